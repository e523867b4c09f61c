"""Builds the parts of training from a configuration and connects them, and describes what was really built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phonedata import LOADERS, PackedCorpus, Selection, WindowSpec, open_loader

from ..checkpoints.state import Progress, TrainState
from ..config.run_config import RunConfig, StagePlan
from ..config.sections import fold
from ..config.stages import PREVIOUS
from ..device import DeviceSpec, describe_machine
from ..distributed import ProcessGroup, current, reduce_norms
from ..kernels import layer
from ..model.classifier import FrameClassifier, build_model, num_parameters, planned_model
from ..model.ema import AveragedWeights
from ..model.trust import digest
from ..optim.loss_scale import LossScale
from ..optim.optimizers import build_optimizer, describe_optimizer, load_moments
from ..optim.schedule import Schedule
from ..step.augment import Augment
from ..step.epoch import Updates, measure
from ..step.metrics import FrameMetrics
from ..step.neighbours import Neighbours
from ..step.train_step import TrainStep
from ..step.warp import warps_of
from ..text import opening_line
from .data import Roles, folds


@dataclass
class TrainingSetup:
    """The live parts of one stage of a run. `state` holds those that a checkpoint holds."""

    run_config: RunConfig
    plan: StagePlan
    corpus: PackedCorpus
    roles: Roles
    device_spec: DeviceSpec
    train: Any
    dev: Any
    dev_neighbours: Neighbours | None  # of a net that predicts them
    state: TrainState
    step: TrainStep
    updates: Updates
    compiling: str  # one line on what became of `compile`
    factory: str | None  # digest of the code that the user's own model is from

    @property
    def config(self) -> RunConfig:
        """The stage's configuration."""
        return self.plan.config

    @property
    def scored_model(self) -> torch.nn.Module:
        """The weights that are scored: averaged ones where the run averages."""
        return self.state.model if self.state.averaged is None else self.state.averaged.model

    def pace(self, seconds: float) -> float:
        """Frames a second of all processes together, in some `seconds` of real steps of the first epoch."""
        schedule, batches = self.state.schedule, self.train.batches_per_epoch
        steps = self.updates.epoch(0, 0, 0, schedule.rates(0, batches), schedule.momenta(0, batches))
        return measure(steps, self.device_spec.device, seconds)

    def close(self) -> None:
        """Stop the loaders' threads, and let go what they and a captured step hold on the device."""
        for loader in (self.train, self.dev):
            if loader is not None:
                loader.close()
        self.train = self.dev = None
        vars(self).pop("updates", None)


def training_selection(corpus: PackedCorpus, roles: Roles, config: RunConfig) -> Selection:
    """The utterances that are trained on: `subset` of them, nested and seeded, without the fold that is held out."""
    selection = Selection.of(corpus, roles.train, subset=config.subset, seed=config.seed)
    if config.data.hold_out is None:
        return selection
    number, of = fold(config.data.hold_out)
    return selection.only(folds(selection, of) != number)


def open_training_loader(selection: Selection, config: RunConfig, device_spec: DeviceSpec):
    """The loader of training batches, in the run's order, last incomplete batch dropped."""
    return open_loader(
        selection,
        batch_size=config.batch_size,
        seed=config.seed,
        order=config.loader.order,
        kind=config.loader.kind,
        drop_last=True,
        **loader_settings(selection.corpus, config, device_spec, current()),
    )


def open_scoring_loader(corpus: PackedCorpus, partitions: str, config: RunConfig, device_spec: DeviceSpec):
    """The loader of every frame of `partitions`, in order, last batch kept."""
    # Neighbours of a frame are in one process.
    ranks = current() if config.model.neighbours == 0 else ProcessGroup()
    # Scores are of frames as they lie, which some loaders cannot give.
    chosen = LOADERS.get(config.loader.kind)
    kind = config.loader.kind if chosen and "sequential" in chosen.orders else "auto"
    shared = loader_settings(corpus, config, device_spec, ranks)
    return open_loader(corpus, partitions, batch_size=None, order="sequential", kind=kind, drop_last=False, **shared)


def loader_settings(
    corpus: PackedCorpus, config: RunConfig, device_spec: DeviceSpec, ranks: ProcessGroup
) -> dict[str, Any]:
    """What all loaders of a run have in common; windows come as packed, in float16 for a net that computes in it."""
    return {
        "window": WindowSpec(config.window.left, config.window.right),
        "device": str(device_spec.device),
        "threads": config.loader.threads,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "dtype": "float16" if device_spec.precision == "fp16" else str(corpus.dtype),
    }


def neighbours_of(selection: Selection, config: RunConfig, device_spec: DeviceSpec) -> Neighbours | None:
    """The frames that each window of `selection` predicts; None where that is its middle one."""
    reach = config.model.neighbours
    return Neighbours.of(selection, reach, device_spec.device) if reach else None


def assemble(
    run_config: RunConfig,
    plan: StagePlan,
    corpus: PackedCorpus,
    roles: Roles,
    device_spec: DeviceSpec,
    *,
    only_planned: bool = False,
) -> TrainingSetup:
    """Build every part of a stage from its configuration and nothing else.

    Weights start from the run's seed, whatever the process did before. only_planned: around a model without values, to
    be told about and not trained.
    """
    config = plan.config
    torch.manual_seed(config.seed)
    num_classes = len(corpus.phonemes)
    sizes = {"feature_dim": corpus.feature_dim, "num_classes": num_classes}
    model = planned_model(config, **sizes) if only_planned else build_model(config, **sizes).to(device_spec.device)
    layer.hash_dropout(reduce_norms(model))
    optimizer = build_optimizer(config.optimizer, model, device_spec.device)
    averaged = None if config.averaging.decay is None else AveragedWeights(model, config.averaging.decay)
    loss_scale = LossScale(device_spec.device) if device_spec.scales_loss else None
    metrics = FrameMetrics(num_classes, device_spec.device)
    window = WindowSpec(config.window.left, config.window.right)
    train = open_training_loader(training_selection(corpus, roles, config), config, device_spec)
    warps = warps_of(train.selection, config.augment.warp)[0] if config.augment.warp > 0 else None
    augment = Augment(config.augment, window, corpus.feature_dim, seed=config.seed, warps=warps)
    schedule = Schedule(config, train.batches_per_epoch, first_epoch=plan.schedule_start)
    state = TrainState(model, optimizer, schedule, metrics, averaged, loss_scale, Progress())
    network, compiling = compiled(model, device_spec.device) if config.compile == "on" else (None, "off")
    step = TrainStep(
        model,
        optimizer,
        metrics,
        device_spec,
        seed=config.seed,
        augment=augment if augment.active else None,
        neighbours=neighbours_of(train.selection, config, device_spec),
        averaged=averaged,
        clip_norm=config.optimizer.clip_norm,
        accumulation=config.optimizer.accumulation,
        label_smoothing=config.loss.label_smoothing,
        loss_scale=loss_scale,
        ranks=current(),
        network=network,
        first_row=train.plan.bounds(0)[0],
    )
    dev = open_scoring_loader(corpus, roles.dev, config, device_spec)
    moves_momentum = schedule.momenta(plan.start, train.batches_per_epoch) is not None
    updates = Updates(step, train, capture=config.capture == "auto", cycles_momentum=moves_momentum)
    setup = TrainingSetup(
        run_config,
        plan,
        corpus,
        roles,
        device_spec,
        train,
        dev,
        neighbours_of(dev.selection, config, device_spec),
        state,
        step,
        updates,
        compiling,
        None if config.model.factory is None else digest(config.model.factory),
    )
    set_next_rates(setup)
    return setup


def set_next_rates(setup: TrainingSetup) -> None:
    """Put the rate and the momentum of the next step where the optimizer reads them: what `describe` tells is then
    what is trained with, and not what a schedule starts from later."""
    progress, batches = setup.state.progress, setup.train.batches_per_epoch
    epoch = max(progress.epoch, setup.plan.start)
    momenta = setup.state.schedule.momenta(epoch, batches)
    rate = setup.state.schedule.rates(epoch, batches)[progress.batch] * progress.rate_scale
    setup.step.set_rates(float(rate), None if momenta is None else float(momenta[progress.batch]))


def transfer(old: TrainingSetup, new: TrainingSetup) -> None:
    """Carry what has been learnt from the parts of one stage, or of one segment, into those of the next.

    Weights, optimizer moments, averaged weights, loss scale and progress go over. The schedule goes over unless the
    new stage starts one of its own. Rates and decays are the new configuration's; where a stage sets the rate, what
    rollbacks had multiplied the old one by is over.
    """
    new.state.model.load_state_dict(old.state.model.state_dict())
    load_moments(new.state.optimizer, old.state.optimizer.state_dict())
    if new.state.averaged is not None:
        source = old.state.averaged.state_dict() if old.state.averaged is not None else old.state.model.state_dict()
        new.state.averaged.load_state_dict(source)
    if new.state.loss_scale is not None and old.state.loss_scale is not None:
        new.state.loss_scale.load_state_dict(old.state.loss_scale.state_dict())
    if not new.plan.starts_schedule:
        new.state.schedule.load_state_dict(old.state.schedule.state_dict())
    elif new.plan.carries_rate:
        new.state.schedule.carry_over(old.state.schedule.last_rate())
    new.state.progress = old.state.progress
    if new.plan.lr not in (old.plan.lr, PREVIOUS):
        new.state.progress.rate_scale, new.state.progress.rollbacks = 1.0, 0


def identity(corpus: PackedCorpus, config: RunConfig, roles: Roles) -> dict[str, Any]:
    """What may not change between the segments of a run: another value makes another experiment."""
    return {
        "corpus": corpus.digest,
        "phonemes": corpus.phonemes.fingerprint,
        "window": [config.window.left, config.window.right],
        "train": roles.train,
        "dev": roles.dev,
    }


def layer_kernels(device: torch.device) -> str:
    """Whose kernels compute norm, activation and dropout of the layers that they know, and why not ours."""
    reason = layer.why_not(device)
    if reason is not None:
        return f"torch: {reason}"
    return "triton" if device.type == "cuda" else "numba"


def describe(setup: TrainingSetup) -> dict[str, Any]:
    """What was really built, read from the live objects and not from the configuration."""
    model, state = setup.state.model, setup.state
    return {
        "model": {
            "class": type(model).__name__,
            "parameters": num_parameters(model),
            "layers": model.layer_table() if isinstance(model, FrameClassifier) else None,
            "factory": setup.config.model.factory,
            "factory_digest": setup.factory,
        },
        "optimizer": describe_optimizer(state.optimizer),
        "schedule": state.schedule.describe(),
        "augment": setup.step.augment.describe() if setup.step.augment is not None else None,
        "averaging": None if state.averaged is None else {"decay": state.averaged.decay},
        "loss": {"label_smoothing": setup.step.label_smoothing},
        "clip_norm": setup.step.clip_norm,
        "accumulation": setup.step.accumulation,
        "device": str(setup.device_spec.device),
        "precision": setup.device_spec.precision,
        "capture": setup.updates.capture_mode,
        "compile": setup.compiling,
        "kernels": layer_kernels(setup.device_spec.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "loss_scale": None if state.loss_scale is None else float(state.loss_scale.scale),
        "machine": describe_machine(setup.device_spec),
        "loader": {
            "kind": setup.train.kind,
            "reason": setup.train.reason,
            "order": setup.train.plan.order,
            "partitions": setup.roles.train,
            "subset": setup.train.selection.subset,
            "seed": setup.train.selection.seed,
            "utterances": setup.train.selection.num_utterances,
            "frames": setup.train.num_frames,
            "frames_per_epoch": setup.train.frames_per_epoch,
            "batches_per_epoch": setup.train.batches_per_epoch,
            "batch_size": setup.train.batch_size,
            "window": [setup.train.window.left, setup.train.window.right],
        },
        "scoring": {"partitions": setup.roles.dev, "frames": setup.dev.num_frames},
    }


def compiled(model: nn.Module, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """What to call in place of `model` in training, and one line on what it is.

    The module itself stays what it is (names, hooks, checkpoints, scoring). Its kernels are made at the first call;
    whether this machine can make any is tried on a function of one line, since a compiler that is not there is only
    noticed then. Dropout draws other numbers than the eager model does, from the same seed.
    """
    if current().world_size > 1:
        return model, "off: several processes meet inside the model"
    try:
        torch.compile(lambda values: values.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # what a missing compiler raises differs by device, system and version
        reason = opening_line(error).removesuffix(":")
        return model, f"off: torch.compile does not work here ({reason})"
    return torch.compile(model, dynamic=False), "on"
