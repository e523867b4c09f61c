"""Every recipe trains two epochs, and what was built is what its configuration says."""

import math

import pytest
import torch

from phonetrain.config.run_config import RunConfig, StagePlan, load_recipe
from phonetrain.config.toml import recipe_names
from phonetrain.console.base import Console
from phonetrain.optim.schedule import Schedule
from phonetrain.runs.directory import Run
from phonetrain.training.fit import fit
from phonetrain.training.session import prepare
from tests import reference

torch.set_num_threads(1)  # nets this small only wait for each other's threads

SMALL = [
    "window.left=5",
    "window.right=5",
    "model.max_parameters=100_000",
    "batch_size=256",
    "device=cpu",
    "tracking.wandb=off",
    "tracking.log_every=4",
]
SHORT = {
    "chain": ["epochs=2", "stage.0.epochs=1"],
    "nan20": ["epochs=2", "optimizer.lr=1e-3"],  # at its own rate it is made to fail
    "long": ["stage.0.epochs=1", "stage.1.epochs=1", "stage.2.epochs=1", "stage.3.epochs=1"],
}
CLASSES = {"adamw": "AdamW", "muon": "MuonWithAdamW"}
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
NORMS = {"batch": "BatchNorm1d", "none": ""}


@pytest.fixture(scope="module", params=recipe_names())
def trained(request, learnable_corpus, tmp_path_factory) -> Run:
    config = load_recipe(request.param)
    masks = ["augment.time_mask=3"] if config.augment.time_mask > 11 else []
    short = config.override([*SMALL, *masks, *SHORT.get(request.param, ["epochs=2"])])
    return fit(
        config=short,
        corpus=learnable_corpus.path,
        run=tmp_path_factory.mktemp("runs") / request.param,
        console=Console(),
    )


def test_every_recipe_trains(trained):
    config = RunConfig.from_toml(trained.config_path)
    lines = trained.metrics("epoch")
    assert [line["epoch"] for line in lines] == list(range(config.epochs))
    assert all(math.isfinite(line["train_loss"]) and math.isfinite(line["dev_loss"]) for line in lines)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def rate_before(run: Run, plan: StagePlan) -> float | None:
    """The rate at which the stage before `plan` ended, where `plan` carries it over."""
    return run.metrics("epoch")[plan.start - 1]["lr"] if plan.carries_rate else None


def test_what_was_built_is_what_the_configuration_says(trained):
    plan = RunConfig.from_toml(trained.config_path).plans[-1]
    config = plan.config
    built = trained.read_json(trained.built_path)
    layers = built["model"]["layers"]
    assert {layer["activation"] for layer in layers[:-1]} == {ACTIVATIONS[config.model.activation]}
    assert {layer["norm"] for layer in layers[:-1]} == {NORMS[config.model.norm]}
    assert {layer["dropout"] for layer in layers[:-1]} == {config.model.dropout}
    assert len(layers) - 1 == (config.model.depth or len(config.model.widths))
    assert built["model"]["parameters"] == sum(layer["parameters"] for layer in layers) <= config.model.max_parameters
    optimizer = built["optimizer"]
    assert optimizer["class"] == CLASSES[config.optimizer.name]
    assert {group["weight_decay"] for group in optimizer["groups"]} == {0.0, config.optimizer.weight_decay}
    steps = built["loader"]["batches_per_epoch"]
    schedule = Schedule(config, steps, plan.schedule_start)
    if (carried := rate_before(trained, plan)) is not None:
        schedule.carry_over(carried)
    rate, momenta = schedule.rates(plan.start, steps)[0], schedule.momenta(plan.start, steps)
    beta = config.optimizer.betas[0] if momenta is None else momenta[0]
    for group in optimizer["groups"]:
        assert group["lr"] == pytest.approx(rate * group["lr_ratio"], rel=1e-6)
        assert group["betas"] == pytest.approx([beta, config.optimizer.betas[1]])
        assert group["eps"] == config.optimizer.eps
    assert built["clip_norm"] == config.optimizer.clip_norm
    assert built["accumulation"] == config.optimizer.accumulation
    schedule_built = built["schedule"]
    settings = {key: value for key, value in config.schedule.to_dict().items() if key in schedule_built}
    assert {key: schedule_built[key] for key in settings} == settings
    assert schedule_built["lr"] == (config.optimizer.lr if carried is None else carried)
    augment = built["augment"] or {"time_mask": 0, "freq_mask": 0, "noise": 0.0}
    assert {key: augment[key] for key in ("time_mask", "freq_mask", "noise")} == {
        key: getattr(config.augment, key) for key in ("time_mask", "freq_mask", "noise")
    }
    assert augment.get("mask_mode", "window") == config.augment.mask_mode
    assert (built["averaging"] or {}).get("decay") == config.averaging.decay
    assert built["precision"] == config.precision or config.precision == "auto"
    assert built["loss"]["label_smoothing"] == config.loss.label_smoothing
    loader = built["loader"]
    assert (loader["batch_size"], loader["window"]) == (config.batch_size, [config.window.left, config.window.right])
    assert (loader["order"], loader["subset"], loader["seed"]) == (config.loader.order, config.subset, config.seed)
    assert loader["utterances"] == round(config.subset * 40)
    assert loader["frames_per_epoch"] == loader["batches_per_epoch"] * config.batch_size


def test_recorded_rates_are_those_of_the_schedule(trained):
    config = RunConfig.from_toml(trained.config_path)
    steps = trained.read_json(trained.built_path)["loader"]["batches_per_epoch"]
    lines, plans = trained.metrics("epoch"), config.plans
    first = Schedule(plans[0].config, steps).rates(0, steps)[-1]
    assert lines[0]["lr"] == pytest.approx(float(first), rel=1e-12)
    schedule = Schedule(plans[-1].config, steps, plans[-1].schedule_start)
    if (carried := rate_before(trained, plans[-1])) is not None:
        schedule.carry_over(carried)
    last = schedule.rates(plans[-1].stop - 1, steps)[-1]
    # Two epochs are fewer than any plateau's patience, so the last rate can be computed there too.
    assert lines[-1]["lr"] == pytest.approx(float(last), rel=1e-12)


@pytest.mark.parametrize("name", ["default", "demo", "diamond", "onecycle", "start"])
def test_fifty_steps_of_a_recipe_are_those_of_a_plain_loop(name, learnable_corpus):
    """Real parts from recipe to update against torch's own modules, optimizer and scheduler, in float32."""
    few = [
        "model.dropout=0",
        "augment.time_mask=0",
        "augment.freq_mask=0",
        "augment.noise=0",
        "augment.warp=0",
        "model.neighbours=0",
        "precision=fp32",
        "epochs=2",
        "subset=1.0",
        "averaging.decay=none",
        "loss.label_smoothing=0",
    ]
    config = load_recipe(name)
    few += ["schedule.warmup_steps=10"] if config.schedule.warmup_steps else []
    few += ["model.depth=4"] if (config.model.depth or 0) > 5 else []  # rounding grows with every layer
    config = config.override(few).override(["batch_size=240", *(each for each in SMALL if "batch" not in each)])
    setup = prepare(config, learnable_corpus).setup
    try:
        plain = reference.plain_net(setup.state.model, getattr(torch.nn, ACTIVATIONS[config.model.activation]))
        batches, losses, before = setup.train.batches_per_epoch, [], 0.0
        made = [
            (batch.windows.clone(), batch.labels.clone()) for epoch in range(2) for batch in setup.train.epoch(epoch)
        ]
        wanted = reference.train_recipe_plainly(config, plain, made)
        for epoch in range(2):
            rates, momenta = (
                table(epoch, batches) for table in (setup.state.schedule.rates, setup.state.schedule.momenta)
            )
            for frames in setup.updates.epoch(epoch, 0, epoch * batches, rates, momenta):
                total = float(setup.state.metrics.by_name["loss"])
                losses.append((total - before) / frames)
                before = total
            setup.state.schedule.end_epoch({"dev_loss": 1.0 - epoch})
    finally:
        setup.close()
    assert len(losses) == 50
    assert losses[:10] == pytest.approx(wanted[:10], rel=1e-4)
    assert losses == pytest.approx(wanted, rel=5e-3)
    assert losses[-1] < losses[0]


def test_after_onecycle_each_group_of_muon_has_its_own_momentum_again(learnable_corpus, tmp_path):
    settings = [*SHORT["chain"], "optimizer.name=muon", "model.depth=3"]
    config = load_recipe("chain").override([*SMALL, *settings])
    table = config.to_dict()
    table["stage"][1] |= {"optimizer.betas": [0.8, 0.99], "optimizer.momentum": 0.7}
    run = fit(config=RunConfig.from_dict(table), corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    groups = run.read_json(run.built_path)["optimizer"]["groups"]
    found = [group.get("momentum", group.get("betas")) for group in groups]
    assert found == [0.7, [0.8, 0.99], [0.8, 0.99]]
