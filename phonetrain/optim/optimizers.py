"""Optimizers and their parameter groups, all from torch.optim; the live object is asked what was built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RMSprop

from ..config.sections import OptimizerConfig
from ..errors import CheckpointError, ConfigError
from ..runs.recorded import problem
from ..text import plain

FUSED_ON = ("cpu", "cuda")  # where SGD, Adam and AdamW have fused kernels; RMSprop and Muon have none


Groups = list[dict[str, Any]]  # parameter groups as torch.optim takes them


class MuonWithAdamW(Optimizer):
    """torch's Muon for its groups and torch's AdamW for the others, as one optimizer: one state, one list of groups.

    groups: parameter groups with a key `muon`: True for matrices that Muon updates, False for the rest. Both parts
    work on the same group and state objects that this optimizer owns, so setting a rate or loading a state reaches
    them. The rate of a Muon matrix is scaled to the size of AdamW's updates ("match_rms_adamw": 0.2 sqrt(max(rows,
    columns)), Liu et al. 2025, Muon is Scalable for LLM Training), so that one rate and one decay serve both.
    """

    def __init__(self, groups: Groups, config: OptimizerConfig, fused: bool) -> None:
        matrices = [group for group in groups if group["muon"]]
        rest = [group for group in groups if not group["muon"]]
        decay, scale = config.weight_decay, "match_rms_adamw"
        self.muon = Muon(matrices, lr=config.lr, weight_decay=decay, momentum=config.momentum, adjust_lr_fn=scale)
        self.adamw = AdamW(rest, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {"lr": config.lr})
        self._share()

    def _share(self) -> None:
        self.muon.state = self.adamw.state = self.state
        self.muon.param_groups = [group for group in self.param_groups if group["muon"]]
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's; the parts go on sharing what was loaded."""
        super().load_state_dict(state_dict)
        self._share()


def build_optimizer(config: OptimizerConfig, model: nn.Module, device: torch.device | str) -> Optimizer:
    """The optimizer of `config` for the parameters of `model`, which are on `device`.

    Every group has `lr_ratio`, its share of the scheduled rate: the loop sets `lr = lr_ratio * rate` before a step.
    Weight decay goes to matrices only; vectors (biases, scales and shifts of norms) get it under `decay_all`. Muon
    takes the matrices between layers, the first one included (its inputs are dense, unlike an embedding's); the matrix
    that gives the logits, which `model.logits_matrix` names, and all vectors go to AdamW. Kernels are fused where torch
    has them for the device, on CPUs too: besides being faster they skip a step on the device when `found_inf` says so.
    """
    kind, groups = OPTIMIZERS[config.name], parameter_groups(config, model)
    if config.name == "muon" and groups[0]["kind"] != "muon":
        raise ConfigError("optimizer.name = muon: the model has no weight matrix before its head; use adamw")
    fused = torch.device(device).type in FUSED_ON
    if kind.make is MuonWithAdamW:
        return MuonWithAdamW(groups, config, fused)
    settings: dict[str, Any] = {name: getattr(config, name) for name in kind.reads}
    settings |= {"fused": fused} if kind.fused else {}
    return kind.make(groups, lr=config.lr, **settings)


def with_momenta(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """`kind`, SGD or RMSprop, with a momentum buffer for each parameter at every update with momentum: it starts at 0.

    Momentum may begin late, by a schedule, a stage or on resume. torch's fused SGD then makes the momenta out of
    uninitialised memory, and leaves them so where that update is skipped, as fp16's first one commonly is; the next
    adds the garbage to the weights. RMSprop makes them at its very first update only, and fails without.
    """

    def make(groups: Groups, **settings: Any) -> Optimizer:
        optimizer = kind(groups, **settings)
        optimizer.register_step_pre_hook(start_momenta)
        return optimizer

    return make


def start_momenta(optimizer: SGD | RMSprop, *_: object) -> None:
    """Before an update: make the momentum buffers that are missing, all 0."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            # RMSprop takes a state that is not empty for a whole one, and fills the empty one itself.
            if "momentum_buffer" not in state and (state or isinstance(optimizer, SGD)):
                state["momentum_buffer"] = torch.zeros_like(parameter)


class OptimizerKind(NamedTuple):
    """One row of OPTIMIZERS.

    make: the class, or a function of the same arguments. moments: values that it keeps beside each parameter. reads:
    the settings, besides lr and weight_decay, that it is given under their own names. fused: its kernels leave an
    update out on the device, so that the whole step can be captured; else the host decides about every update.
    """

    make: Callable[..., Optimizer]
    moments: int
    reads: tuple[str, ...]
    fused: bool


# Every fact about an optimizer; the allowed names and READ_BY in config/sections.py are held equal by a test.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(with_momenta(SGD), 1, ("momentum",), fused=True),
    "nesterov": OptimizerKind(with_momenta(partial(SGD, nesterov=True)), 1, ("momentum",), fused=True),
    "rmsprop": OptimizerKind(with_momenta(RMSprop), 2, ("momentum", "eps", "alpha"), fused=False),
    "adam": OptimizerKind(Adam, 2, ("betas", "eps"), fused=True),
    "adamw": OptimizerKind(AdamW, 2, ("betas", "eps"), fused=True),
    "muon": OptimizerKind(MuonWithAdamW, 1, ("momentum", "betas", "eps", "rest_ratio"), fused=False),
}


# What each of torch's optimizers keeps beside a parameter; `step` is () float32, all else of the parameter's own shape
# and dtype. Only a momentum may be missing: it begins when the momentum does.
KEPT: dict[type[Optimizer], frozenset[str]] = {
    SGD: frozenset({"momentum_buffer"}),
    RMSprop: frozenset({"step", "square_avg", "momentum_buffer"}),
    Adam: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    Muon: frozenset({"momentum_buffer"}),
}


class SavedGroup(TypedDict):
    params: list[int]


class SavedOptimizer(TypedDict):
    """The entries of a `state_dict` that are read, with their types."""

    param_groups: list[SavedGroup]
    state: dict[str, dict[str, Any]]


def load_moments(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the moments of a `state_dict`; rates, decay and betas stay those that `optimizer` was built with.

    Raises CheckpointError, before anything is loaded, unless each moment is the one that torch's kernels will take for
    granted: they read and write memory by the shape of the parameter alone.
    """
    wanted = optimizer.state_dict()["param_groups"]
    if (wrong := problem(saved, SavedOptimizer)) is not None:
        raise CheckpointError(f"optimizer.{wrong}")
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in wanted]:
        raise CheckpointError(
            "optimizer: its parameter groups are not those of the checkpoint; "
            "optimizer.name and decay_all belong to the whole run"
        )
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    states = saved["state"]
    if not states.keys() <= set(range(len(parameters))):
        raise CheckpointError("optimizer: it holds moments of parameters that the model does not have")
    for number, (parameter, group) in enumerate(parameters):
        check_moments(states.get(number, {}), parameter, KEPT[kind_of(optimizer, group)], f"moments of tensor {number}")
    optimizer.load_state_dict({"state": states, "param_groups": wanted})


def kind_of(optimizer: Optimizer, group: Mapping[str, Any]) -> type[Optimizer]:
    """The class of torch's that updates a group."""
    if isinstance(optimizer, MuonWithAdamW):
        return Muon if group["muon"] else AdamW
    return type(optimizer)


def check_moments(state: Mapping[str, Any], parameter: nn.Parameter, kept: frozenset[str], where: str) -> None:
    """Raises CheckpointError unless `state` is what an optimizer that keeps `kept` has beside `parameter`, or empty."""
    if state.keys() - kept or (state and kept - {"momentum_buffer"} - state.keys()):
        raise CheckpointError(f"{where}: got {', '.join(map(str, state)) or 'none'}, wanted {', '.join(sorted(kept))}")
    step = torch.zeros(())
    for name, tensor in state.items():
        check_tensor(tensor, step if name == "step" else parameter, f"{where}, {name}")


def check_tensor(found: object, wanted: Tensor, name: str) -> None:
    """Raises CheckpointError unless `found` is a plain tensor of the shape and dtype of `wanted`, without gaps."""
    shape = f"{tuple(wanted.shape)} {str(wanted.dtype).removeprefix('torch.')}"
    if type(found) is not Tensor or found.layout is not torch.strided or found.is_meta:
        raise CheckpointError(f"{name}: got {type(found).__name__}, wanted a tensor {shape}")
    dense = found.is_contiguous() or found.stride() == wanted.stride()
    if found.shape != wanted.shape or found.dtype != wanted.dtype or not dense:
        got = f"{tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}{'' if dense else ' with gaps'}"
        raise CheckpointError(f"{name}: got {got}, wanted {shape}")


def check_tensors(found: object, wanted: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError unless `found` has the tensors of `wanted`: name, shape and dtype."""
    if not isinstance(found, Mapping) or found.keys() != wanted.keys():
        names = set(found) if isinstance(found, Mapping) else set()
        odd = sorted(map(str, names ^ wanted.keys()))[:3]
        raise CheckpointError(
            f"{where}: {', '.join(odd)}: in the checkpoint or in the model that is built, not in both"
        )
    for name, tensor in wanted.items():
        check_tensor(found[name], tensor, f"{where}, {name}")


def parameter_groups(config: OptimizerConfig, model: nn.Module) -> Groups:
    """Parameters by what is done with them, in the order of the model; empty groups are left out."""
    head, is_muon = getattr(model, "logits_matrix", None), config.name == "muon"
    if is_muon and head is None:
        raise ConfigError("optimizer.name = muon: no matrix of the model is seen to give its logits; use adamw")
    kinds: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "plain": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "decayed" if parameter.ndim >= 2 or config.decay_all else "plain"
        kinds["muon" if is_muon and parameter.ndim == 2 and name != head else kind].append(parameter)
    groups: Groups = []
    for kind, parameters in kinds.items():
        ratio = config.rest_ratio if is_muon and kind != "muon" else 1.0
        decay = 0.0 if kind == "plain" else config.weight_decay
        group = {"params": parameters, "weight_decay": decay, "lr_ratio": ratio, "lr": ratio * config.lr, "kind": kind}
        groups.append(group | ({"muon": kind == "muon"} if is_muon else {}))
    return [group for group in groups if group["params"]]


READ_FROM_GROUPS = ("weight_decay", "momentum", "nesterov", "betas", "eps", "alpha", "fused", "adjust_lr_fn")


def describe_optimizer(optimizer: Optimizer) -> dict[str, object]:
    """What `optimizer` is, read from the object: its class, and kind, sizes, rate, decay and settings of each group.

    `elements` counts what the tensors hold, so also the zero columns that pad the first matrix.
    """
    groups = []
    for group in optimizer.param_groups:
        found: dict[str, object] = {"kind": group.get("kind", "")}
        if isinstance(optimizer, MuonWithAdamW):
            found["class"] = type(optimizer.muon if group["muon"] else optimizer.adamw).__name__
        found["tensors"] = len(group["params"])
        found["elements"] = sum(parameter.numel() for parameter in group["params"])
        found["lr"], found["lr_ratio"] = float(group["lr"]), group.get("lr_ratio", 1.0)
        found.update({name: plain(group[name]) for name in READ_FROM_GROUPS if group.get(name) is not None})
        groups.append(found)
    return {"class": type(optimizer).__name__, "groups": groups}
