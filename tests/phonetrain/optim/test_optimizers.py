"""Optimizers: torch's own, decay where it belongs, one state for Muon and AdamW, told from the live object."""

import copy
import typing

import pytest
import torch

from phonetrain.config.run_config import RunConfig
from phonetrain.config.sections import OptimizerConfig
from phonetrain.config.validation import hints
from phonetrain.errors import ConfigError
from phonetrain.model.classifier import build_model
from phonetrain.optim.optimizers import OPTIMIZERS, OptimizerKind, build_optimizer, describe_optimizer
from tests.training import fit_tiny

NAMES = tuple(OPTIMIZERS)
READ_BY = OptimizerConfig.READ_BY


def config_of(name: str, **settings) -> RunConfig:
    return RunConfig.from_dict(
        {
            "window": {"left": 2, "right": 2},
            "model": {"archetype": "diamond", "depth": 3, "hidden": 32},
            "optimizer": {"name": name, "lr": 0.01, "weight_decay": 0.1, **settings},
        }
    )


def model_and_optimizer(name: str, **settings):
    torch.manual_seed(1)
    config = config_of(name, **settings)
    model = build_model(config, feature_dim=8, num_classes=7)
    return model, build_optimizer(config.optimizer, model, "cpu")


def train(model, optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        windows, labels = torch.randn(16, 5, 8, generator=generator), torch.randint(7, (16,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(windows), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_restored_optimizer_goes_on_bit_for_bit(name):
    model, optimizer = model_and_optimizer(name)
    train(model, optimizer, 0, 3)
    other, restored = model_and_optimizer(name)
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 3, 6) == train(other, restored, 3, 6)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_set_in_the_groups_is_the_rate_used(name):
    model, optimizer = model_and_optimizer(name)
    before = [parameter.clone() for parameter in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 0, 1)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    train(model, optimizer, 1, 2)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_decay_leaves_norms_and_biases_alone_unless_asked(name):
    for decay_all in (False, True):
        model, optimizer = model_and_optimizer(name, decay_all=decay_all)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert len(decays) == len(list(model.parameters()))
        for parameter in model.parameters():
            wanted = 0.1 if parameter.ndim == 2 or decay_all else 0.0
            assert decays[id(parameter)] == wanted


def test_adamw_equals_a_bare_torch_call_when_everything_decays():
    model, optimizer = model_and_optimizer("adamw", decay_all=True, betas=[0.8, 0.95], eps=1e-6)
    other, _ = model_and_optimizer("adamw")
    bare = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    assert train(model, optimizer, 0, 5) == pytest.approx(train(other, bare, 0, 5), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
    ],
)
def test_the_others_equal_torchs_too(name, make):
    model, optimizer = model_and_optimizer(name, decay_all=True)
    other, _ = model_and_optimizer(name)
    assert train(model, optimizer, 0, 5) == pytest.approx(train(other, make(other.parameters()), 0, 5), rel=1e-5)


def test_muon_takes_the_matrices_between_layers_and_adamw_the_rest():
    model, optimizer = model_and_optimizer("muon", rest_ratio=0.5)
    kinds = {id(p): group["kind"] for group in optimizer.param_groups for p in group["params"]}
    assert all(kinds[id(layer.linear.weight)] == "muon" for layer in model.hidden)
    assert kinds[id(model.output.weight)] == "decayed"
    assert all(kinds[id(p)] == "plain" for p in model.parameters() if p.ndim == 1)
    assert [group["lr_ratio"] for group in optimizer.param_groups] == [1.0, 0.5, 0.5]
    matrix = model.hidden[1].linear.weight
    other = matrix.detach().clone().requires_grad_()
    rival = torch.optim.Muon([other], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    matrix.grad = torch.randn_like(matrix)
    other.grad = matrix.grad.clone()
    optimizer.step()
    rival.step()
    assert torch.equal(matrix, other)


def test_muon_is_refused_for_a_model_without_matrices_for_it():
    model = torch.nn.Linear(8, 7)
    with pytest.raises(ConfigError, match="no matrix of the model is seen to give its logits; use adamw"):
        build_optimizer(config_of("muon").optimizer, model, "cpu")
    model.logits_matrix = "weight"
    with pytest.raises(ConfigError, match="no weight matrix before its head; use adamw"):
        build_optimizer(config_of("muon").optimizer, model, "cpu")


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_fused_kernels_skip_a_step_on_the_device(name):
    model, optimizer = model_and_optimizer(name)
    train(model, optimizer, 0, 2)
    assert all(group["fused"] for group in optimizer.param_groups)
    before = copy.deepcopy([list(model.parameters()), optimizer.state_dict()["state"]])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before[0], model.parameters()))
    for place, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(before[1][place][key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_a_first_update_that_is_skipped_leaves_no_garbage_behind(name):
    model, optimizer = model_and_optimizer(name)
    plain = copy.deepcopy(model)
    other = torch.optim.SGD(
        [
            {"params": [parameter], "weight_decay": 0.1 if parameter.ndim == 2 else 0.0}
            for parameter in plain.parameters()
        ],
        lr=0.01,
        momentum=0.9,
        nesterov=name == "nesterov",
    )
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    junk = [torch.full_like(parameter, 1e30) for parameter in model.parameters()]
    del junk  # what an allocator would hand out again as it is
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    optimizer.found_inf = torch.zeros(())
    optimizer.zero_grad()
    assert train(model, optimizer, 0, 3) == pytest.approx(train(plain, other, 0, 3), rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
@pytest.mark.parametrize("loaded", [False, True])
def test_momentum_may_begin_late(name, loaded):
    model, optimizer = model_and_optimizer(name, momentum=0.0)
    plain, (kind, settings) = (
        copy.deepcopy(model),
        {"sgd": (torch.optim.SGD, {}), "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99})}[name],
    )
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim == 2 else 0.0} for p in plain.parameters()]
    other = kind(groups, lr=0.01, momentum=0.9, **settings)
    for group in other.param_groups:
        group["momentum"] = 1e-30  # torch's own, with the momenta there from the start
    train(model, optimizer, 0, 2)
    train(plain, other, 0, 2)
    if loaded:
        state = optimizer.state_dict()
        optimizer = build_optimizer(config_of(name, momentum=0.9).optimizer, model, "cpu")
        optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    for each in (*optimizer.param_groups, *other.param_groups):
        each["momentum"] = 0.9
    for state in other.state.values():
        state["momentum_buffer"].zero_()
    assert train(model, optimizer, 2, 5) == pytest.approx(train(plain, other, 2, 5), rel=1e-5)


def test_momentum_that_begins_with_a_skipped_update_is_no_garbage():
    model, optimizer = model_and_optimizer("sgd", momentum=0.0)
    train(model, optimizer, 0, 1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    for group in optimizer.param_groups:
        group["momentum"] = 0.9
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_description_is_read_from_the_live_object(name):
    model, optimizer = model_and_optimizer(name)
    optimizer.param_groups[0]["lr"] = 0.123
    told = describe_optimizer(optimizer)
    assert told["groups"][0]["lr"] == 0.123
    assert sum(group["elements"] for group in told["groups"]) == sum(p.numel() for p in model.parameters())
    assert {"adamw": "AdamW", "nesterov": "SGD", "muon": "MuonWithAdamW"}.get(name, told["class"]) == told["class"]
    assert {group["weight_decay"] for group in told["groups"]} == {0.0, 0.1}


def test_the_settings_allow_and_read_what_the_table_of_optimizers_has():
    assert set(typing.get_args(hints(OptimizerConfig)["name"])) == set(OPTIMIZERS)
    readers = {field: tuple(name for name, kind in OPTIMIZERS.items() if field in kind.reads) for field in READ_BY}
    assert readers == READ_BY


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_says_which_optimizers_leave_updates_out_on_the_device(name):
    optimizer = model_and_optimizer(name)[1]
    assert all(group.get("fused") for group in optimizer.param_groups) == OPTIMIZERS[name].fused


def test_an_optimizer_is_one_row_and_one_allowed_name(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "adagrad", OptimizerKind(torch.optim.Adagrad, 1, ("eps",), fused=False))
    monkeypatch.setitem(hints(OptimizerConfig), "name", typing.Literal["adagrad"])
    monkeypatch.setitem(READ_BY, "eps", (*READ_BY["eps"], "adagrad"))
    optimizer = model_and_optimizer("adagrad", eps=1e-3)[1]
    assert type(optimizer) is torch.optim.Adagrad and optimizer.param_groups[0]["eps"] == 1e-3


def test_after_a_onecycle_stage_every_part_of_muon_has_its_own_momentum_again(learnable_corpus, tmp_path):
    stages = 'stage=[{epochs=1, schedule.name="onecycle"}, {epochs=1, schedule.name="constant"}]'
    run = fit_tiny(learnable_corpus, tmp_path / "run", "optimizer.name=muon", "schedule.warmup_steps=none", stages)
    groups = {group["kind"]: group for group in run.read_json(run.built_path)["optimizer"]["groups"]}
    assert groups.pop("muon")["momentum"] == 0.9
    assert groups and all(group["betas"] == [0.9, 0.999] for group in groups.values())
    saved = torch.load(run.checkpoint_dir(run.read_pointer("last")) / "training.pt", weights_only=True)["optimizer"]
    assert all(group["betas"] == (0.9, 0.999) for group in saved["param_groups"] if not group["muon"])
