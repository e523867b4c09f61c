"""Schedules: equal to torch's own step by step, computed from any epoch, asked before a length changes."""

import re
import typing
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as theirs

from phonetrain.config.changes import diff, extension_question
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.config.schedule_section import ScheduleConfig
from phonetrain.config.validation import hints
from phonetrain.errors import ConfigError
from phonetrain.optim.lr_curves import SCHEDULES, Curve
from phonetrain.optim.schedule import PlateauMemory, Schedule

EPOCHS, STEPS, LR = 8, 12, 0.04


def config_of(epochs: int = EPOCHS, optimizer: dict | None = None, stage: Sequence[dict] = (), **schedule) -> RunConfig:
    table = {"epochs": epochs, "optimizer": {"lr": LR, **(optimizer or {})}, "schedule": schedule, "stage": list(stage)}
    return RunConfig.from_dict(table)


def tables(config: RunConfig, steps: int = STEPS) -> np.ndarray:
    """(epochs, steps) rates of a schedule that is fed no scores."""
    schedule = Schedule(config, steps)
    return np.stack([schedule.rates(epoch, steps) for epoch in range(config.epochs)])


def stepped_by_torch(make, every: str, lr: float = LR, epochs: int = EPOCHS) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, STEPS) rates and beta1 that torch's scheduler gives when a loop steps it."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates, momenta = np.empty((epochs, STEPS)), np.empty((epochs, STEPS))
    for epoch in range(epochs):
        for step in range(STEPS):
            rates[epoch, step] = optimizer.param_groups[0]["lr"]
            momenta[epoch, step] = optimizer.param_groups[0]["betas"][0]
            optimizer.step()
            last = epoch == epochs - 1 and step == STEPS - 1
            if every == "step" and not last:
                scheduler.step()
            elif every == "fraction":
                scheduler.step(epoch + (step + 1) / STEPS)
        if every == "epoch":
            scheduler.step()
    return rates, momenta


CASES = {
    "step": ({"name": "step", "step_size": 3, "gamma": 0.5}, "epoch", lambda o: theirs.StepLR(o, 3, 0.5)),
    "exponential": ({"name": "exponential", "gamma": 0.9}, "epoch", lambda o: theirs.ExponentialLR(o, 0.9)),
    "exponential by step": (
        {"name": "exponential", "gamma": 0.9, "every": "step"},
        "step",
        lambda o: theirs.ExponentialLR(o, 0.9 ** (1 / STEPS)),
    ),
    "cosine": (
        {"name": "cosine", "min_lr": 1e-4},
        "epoch",
        lambda o: theirs.CosineAnnealingLR(o, EPOCHS, eta_min=1e-4),
    ),
    "cosine by step": (
        {"name": "cosine", "every": "step"},
        "step",
        lambda o: theirs.CosineAnnealingLR(o, EPOCHS * STEPS),
    ),
    "cosine restarts": (
        {"name": "cosine_restarts", "restart_epochs": 2, "restart_multiply": 2, "min_lr": 1e-5},
        "epoch",
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 2, 2, eta_min=1e-5),
    ),
    "cosine restarts by step": (
        {"name": "cosine_restarts", "restart_epochs": 1, "restart_multiply": 2, "every": "step"},
        "fraction",
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 1, 2),
    ),
    "cosine restarts of one length": (
        {"name": "cosine_restarts", "restart_epochs": 3, "every": "step"},
        "fraction",
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 3),
    ),
    "onecycle": ({"name": "onecycle"}, "step", lambda o: theirs.OneCycleLR(o, LR, total_steps=EPOCHS * STEPS)),
    "onecycle in three": (
        {"name": "onecycle", "three_phase": True, "pct_start": 0.4, "div_factor": 10.0, "anneal": "linear"},
        "step",
        lambda o: theirs.OneCycleLR(
            o,
            LR,
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            three_phase=True,
            pct_start=0.4,
            div_factor=10.0,
            anneal_strategy="linear",
        ),
    ),
    "warm-up, then cosine": (
        {"name": "cosine", "every": "step", "warmup_steps": 20, "warmup_start": 0.1},
        "step",
        lambda o: theirs.SequentialLR(
            o,
            [theirs.LinearLR(o, 0.1, total_iters=20), theirs.CosineAnnealingLR(o, EPOCHS * STEPS - 20)],
            [20],
        ),
    ),
    "warm-up in epochs, then exponential by step": (
        {"name": "exponential", "gamma": 0.8, "every": "step", "warmup_epochs": 2, "warmup_start": 0.25},
        "step",
        lambda o: theirs.SequentialLR(
            o,
            [theirs.LinearLR(o, 0.25, total_iters=24), theirs.ExponentialLR(o, 0.8 ** (1 / STEPS))],
            [24],
        ),
    ),
}


def test_warm_up_by_share_is_that_many_steps_and_grows_with_the_run():
    share, steps = (
        config_of(name="cosine", every="step", **how) for how in ({"warmup_share": 0.25}, {"warmup_steps": 24})
    )
    assert EPOCHS * STEPS * 0.25 == 24
    np.testing.assert_array_equal(tables(share), tables(steps))
    assert Schedule(share.override([f"epochs={2 * EPOCHS}"]), STEPS).describe()["warmup_steps"] == 48


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR passes it itself
def test_rates_are_those_of_torch_at_every_step(case):
    settings, every, make = CASES[case]
    wanted, _ = stepped_by_torch(make, every)
    np.testing.assert_allclose(tables(config_of(**settings)), wanted, rtol=0, atol=1e-12 * LR)


@pytest.mark.parametrize("three_phase", [False, True])
def test_onecycle_moves_momentum_as_torch_does(three_phase):
    schedule = Schedule(config_of(name="onecycle", three_phase=three_phase), STEPS)
    ours = np.stack([schedule.momenta(epoch, STEPS) for epoch in range(EPOCHS)])
    total = EPOCHS * STEPS
    _, wanted = stepped_by_torch(lambda o: theirs.OneCycleLR(o, LR, total_steps=total, three_phase=three_phase), "step")
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_momentum_waits_at_its_largest_while_onecycle_warms_up(anneal):
    schedule = Schedule(config_of(name="onecycle", anneal=anneal, warmup_steps=2 * STEPS + 5), STEPS)
    momenta = np.concatenate([schedule.momenta(epoch, STEPS) for epoch in range(EPOCHS)])
    np.testing.assert_allclose(momenta[: 2 * STEPS + 6], 0.95, rtol=1e-12)
    assert 0.85 - 1e-12 <= momenta.min() <= 0.853 and momenta.max() <= 0.95 + 1e-12


def test_schedules_without_onecycle_leave_momentum_alone():
    assert Schedule(config_of(name="cosine"), STEPS).momenta(0, STEPS) is None
    assert Schedule(config_of(name="onecycle", cycle_momentum=False), STEPS).momenta(0, STEPS) is None


@pytest.mark.parametrize("watch", ["dev_loss", "dev_accuracy"])
@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 1},
        {"patience": 0, "cooldown": 2, "factor": 0.5},
        {"patience": 1, "threshold": 0.05, "threshold_mode": "abs"},
        {"patience": 0, "min_lr": 1e-3},
        {"patience": 0, "eps": 0.01},
    ],
)
def test_plateau_cuts_when_torch_cuts(watch, settings):
    epochs = 60
    scores = np.cumsum(np.random.default_rng(3).normal(0.02, 0.1, epochs)) + 1
    scores[[0, 20, 30]] = np.inf, np.nan, np.inf
    scores = scores if watch == "dev_accuracy" else np.where(np.isinf(scores), scores, -scores + 10)
    if watch == "dev_accuracy":
        scores[[0, 30]] = -np.inf
    schedule = Schedule(config_of(epochs, name="plateau", watch=watch, **settings), STEPS)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    mode = "max" if watch == "dev_accuracy" else "min"
    rival = theirs.ReduceLROnPlateau(optimizer, mode, **{"factor": 0.1, **settings})
    cuts = set()
    for epoch, score in enumerate(scores):
        rates = schedule.rates(epoch, STEPS)
        cuts.add(rates[0])
        np.testing.assert_allclose(rates, optimizer.param_groups[0]["lr"], rtol=1e-12)
        schedule.end_epoch({watch: float(score), "train_loss": 0.0})
        rival.step(score)
    assert len(cuts) > 1


@pytest.mark.parametrize(("watch", "better"), [("dev_loss", 0.4), ("dev_accuracy", 0.6), ("dev_top3", 0.6)])
def test_plateau_wants_more_of_every_score_but_a_loss(watch, better):
    config = SimpleNamespace(watch=watch, threshold=0.01, threshold_mode="abs")
    memory = PlateauMemory(best=0.5)
    assert memory.is_better(better, config) and not memory.is_better(1 - better, config)


def test_plateau_names_the_score_it_misses():
    schedule = Schedule(config_of(name="plateau", watch="dev_accuracy"), STEPS)
    with pytest.raises(ConfigError, match="schedule.watch = dev_accuracy: not scored; there are train_loss"):
        schedule.end_epoch({"train_loss": 1.0})


def tables_of_stages(config: RunConfig, scores: Sequence[float]) -> np.ndarray:
    """(epochs, STEPS) rates of a run with stages. scores: its dev loss, (epochs,)."""
    rates, schedule = [], None
    for plan in config.plans:
        before, schedule = schedule, Schedule(plan.config, STEPS, plan.schedule_start)
        if not plan.starts_schedule:
            schedule.load_state_dict(before.state_dict())
        elif plan.carries_rate:
            schedule.carry_over(before.last_rate())
        for epoch in range(plan.start, plan.stop):
            rates.append(schedule.rates(epoch, STEPS))
            schedule.end_epoch({"dev_loss": scores[epoch]})
    return np.stack(rates)


def test_recipe_chain_has_the_rates_of_torchs_schedulers_put_one_behind_the_other():
    scores = [1 / (1 + min(epoch, 24)) for epoch in range(35)]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.01)
    rising = theirs.OneCycleLR(optimizer, 0.01, total_steps=15 * STEPS)
    falling = None
    wanted = np.empty((35, STEPS))
    for epoch, score in enumerate(scores):
        for step in range(STEPS):
            wanted[epoch, step] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if epoch < 15 and (epoch, step) != (14, STEPS - 1):
                rising.step()
        if epoch == 14:
            falling = theirs.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
        elif falling is not None:
            falling.step(score)
    np.testing.assert_allclose(tables_of_stages(load_recipe("chain"), scores), wanted, rtol=1e-12)
    assert wanted[15, 0] == pytest.approx(4e-8) and wanted[-1, 0] == pytest.approx(2e-8)


def test_stages_with_schedules_of_their_own_are_torchs_sequence():
    stages = [
        {"epochs": 3},
        {"epochs": 2, "schedule.name": "constant"},
        {"epochs": 3, "schedule.name": "exponential", "schedule.every": "step", "schedule.gamma": 0.8},
    ]
    config = config_of(name="cosine", every="step", min_lr=1e-4, stage=stages)

    def sequence(optimizer):
        cosine = theirs.CosineAnnealingLR(optimizer, 3 * STEPS, eta_min=1e-4)
        constant = theirs.ConstantLR(optimizer, 1.0)
        exponential = theirs.ExponentialLR(optimizer, 0.8 ** (1 / STEPS))
        return theirs.SequentialLR(optimizer, [cosine, constant, exponential], [3 * STEPS, 5 * STEPS])

    wanted, _ = stepped_by_torch(sequence, "step")
    np.testing.assert_allclose(tables_of_stages(config, [1.0] * EPOCHS), wanted, rtol=0, atol=1e-12 * LR)


def test_carried_rate_is_the_one_that_plateau_had_cut_to_at_the_end_of_the_stage_before():
    stages = [{"epochs": 3}, {"epochs": 5, "optimizer.lr": "previous", "schedule.name": "step",
                              "schedule.step_size": 2, "schedule.gamma": 0.1}]  # fmt: skip
    config = config_of(name="plateau", patience=0, factor=0.5, warmup_steps=5, stage=stages)
    first = [LR / 100, LR, LR / 2, LR / 4, LR / 4, LR / 40, LR / 40, LR / 400]
    np.testing.assert_allclose(tables_of_stages(config, [1.0] * EPOCHS)[:, 0], first, rtol=1e-12)


def test_warmup_meets_the_schedule_without_a_jump_under_every_name():
    extra = {
        "step": {"step_size": 2, "gamma": 0.5},
        "exponential": {"gamma": 0.9},
        "cosine_restarts": {"restart_epochs": 2},
    }
    for name in ("constant", "step", "exponential", "plateau", "cosine", "cosine_restarts", "onecycle"):
        rates = tables(config_of(name=name, warmup_steps=STEPS + 5, **extra.get(name, {}))).ravel()
        bare = tables(config_of(name=name, **extra.get(name, {}))).ravel()
        warm = rates[: STEPS + 5]
        assert warm[0] == pytest.approx(0.01 * bare[0]), name
        np.testing.assert_allclose(np.diff(warm), np.diff(warm)[0], atol=1e-15)
        assert rates[STEPS + 5] == pytest.approx(bare[0]), name


@pytest.mark.parametrize("settings", [{"name": "onecycle", "warmup_steps": 5}, {"name": "plateau", "patience": 0}])
def test_state_restored_in_the_middle_goes_on_as_if_never_stopped(settings):
    config = config_of(10, **settings)
    whole = Schedule(config, STEPS)
    whole.carry_over(LR / 3)
    for epoch in range(10):
        copy = Schedule(config, STEPS)
        copy.load_state_dict(whole.state_dict())
        np.testing.assert_array_equal(copy.rates(epoch, STEPS), whole.rates(epoch, STEPS))
        np.testing.assert_equal(copy.momenta(epoch, STEPS), whole.momenta(epoch, STEPS))
        whole.end_epoch({"dev_loss": 1.0 + epoch % 3})


def test_rate_set_by_hand_is_the_rate_from_there_on():
    names = {"name": "step", "step_size": 2, "gamma": 0.1}, {"name": "plateau", "patience": 0}, {"name": "constant"}
    for settings in names:
        schedule = Schedule(config_of(**settings), STEPS)
        for _ in range(5):
            schedule.end_epoch({"dev_loss": 1.0})
        resumed = Schedule(config_of(optimizer={"lr": 7e-4}, **settings), STEPS)
        resumed.load_state_dict(schedule.state_dict())
        resumed.changed_by_hand(5, {"optimizer.lr": None})
        assert resumed.rates(5, STEPS) == pytest.approx(7e-4)
        again = Schedule(config_of(optimizer={"lr": 7e-4}, **settings), STEPS)
        again.load_state_dict(resumed.state_dict())
        np.testing.assert_array_equal(again.rates(6, STEPS), resumed.rates(6, STEPS))


def test_cosine_set_by_hand_starts_anew_over_the_epochs_left():
    schedule = Schedule(config_of(name="cosine", every="step", optimizer={"lr": 0.5}), STEPS)
    schedule.changed_by_hand(5, {"optimizer.lr": None})
    short = tables(config_of(EPOCHS - 5, name="cosine", every="step", optimizer={"lr": 0.5}))
    np.testing.assert_allclose(np.stack([schedule.rates(epoch, STEPS) for epoch in range(5, EPOCHS)]), short)


def test_rate_set_by_hand_takes_the_place_of_a_carried_one_and_another_schedule_keeps_it():
    schedule = Schedule(config_of(10, name="plateau", patience=0), STEPS)
    schedule.carry_over(LR / 3)
    for _ in range(6):
        schedule.end_epoch({"dev_loss": 1.0})
    schedule.changed_by_hand(6, {"schedule.name": None})
    assert schedule.rates(6, STEPS) == pytest.approx(LR / 3)
    schedule.changed_by_hand(6, {"optimizer.lr": None})
    assert schedule.rates(6, STEPS) == pytest.approx(LR)


def test_another_schedule_by_hand_starts_anew_where_training_is():
    old = Schedule(config_of(name="plateau", patience=0), STEPS)
    for _ in range(4):
        old.end_epoch({"dev_loss": 1.0})
    new = Schedule(config_of(name="onecycle"), STEPS)
    new.load_state_dict(old.state_dict())
    new.changed_by_hand(4, {"schedule.name": None})
    wanted = tables(config_of(EPOCHS - 4, name="onecycle"))
    np.testing.assert_allclose(np.stack([new.rates(epoch, STEPS) for epoch in range(4, EPOCHS)]), wanted)


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_more_epochs_under_a_schedule_with_a_length_are_refused_until_said(name):
    old = config_of(name=name)
    question = extension_question(old, old.override(["epochs=12"]))
    assert re.match(r"epochs 8 -> 12: .* schedule.on_extend=stretch .*schedule.on_extend=hold", question)
    assert extension_question(old, old.override(["epochs=12", "schedule.on_extend=hold"])) is None
    assert extension_question(old, old.override(["epochs=12", "optimizer.lr=1e-3"])) is None
    staged = config_of(name="plateau", stage=[{"epochs": 2}, {"epochs": 6, "schedule.name": name}])
    assert extension_question(staged, staged.override(["epochs=9"]))


def test_more_epochs_under_other_schedules_need_no_word():
    for settings in ({"name": "plateau"}, {"name": "cosine_restarts", "restart_epochs": 2}, {"name": "constant"}):
        assert extension_question(config_of(**settings), config_of(20, **settings)) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cosine"},
        {"name": "cosine", "every": "step"},
        {"name": "onecycle"},
        {"name": "step", "step_size": 3, "gamma": 0.5},
        {"name": "exponential", "gamma": 0.9},
        {"name": "exponential", "gamma": 0.9, "every": "step"},
        {"name": "cosine_restarts", "restart_epochs": 3},
        {"name": "cosine_restarts", "restart_epochs": 3, "every": "step"},
    ],
)
def test_hold_keeps_the_old_rates_and_then_the_last_one(settings):
    old = Schedule(config_of(**settings), STEPS)
    new = Schedule(config_of(12, on_extend="hold", **settings), STEPS)
    new.load_state_dict(old.state_dict())
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(new.rates(epoch, STEPS), old.rates(epoch, STEPS))
    np.testing.assert_array_equal(new.rates(10, STEPS), np.full(STEPS, old.rates(EPOCHS - 1, STEPS)[-1]))


def test_stretch_lays_the_schedule_out_over_the_new_length():
    old = Schedule(config_of(name="onecycle"), STEPS)
    new = Schedule(config_of(12, name="onecycle", on_extend="stretch"), STEPS)
    new.load_state_dict(old.state_dict())
    wanted = Schedule(config_of(12, name="onecycle"), STEPS)
    np.testing.assert_array_equal(new.rates(9, STEPS), wanted.rates(9, STEPS))


def test_other_number_of_steps_later_keeps_the_place_in_the_schedule():
    schedule = Schedule(config_of(name="cosine", every="step", warmup_steps=6), STEPS)
    longer = schedule.rates(4, 2 * STEPS)
    np.testing.assert_allclose(longer[::2], schedule.rates(4, STEPS), rtol=1e-12)


def test_stage_schedule_starts_at_its_first_epoch():
    whole = config_of(name="cosine")
    staged = RunConfig.from_dict(
        {
            **whole.to_dict(),
            "epochs": 16,
            "stage": [
                {"epochs": 8},
                {"epochs": 3, "subset": 0.5},
                {"epochs": 5, "optimizer.lr": 0.01},
            ],
        }
    )
    first, second, third = staged.plans
    assert (first.schedule_start, first.schedule_stop, second.schedule_start, third.schedule_start) == (0, 11, 0, 11)
    assert second.config.subset == third.config.subset == 0.5
    schedule = Schedule(third.config, STEPS, first_epoch=third.schedule_start)
    assert schedule.rates(11, STEPS)[0] == 0.01
    np.testing.assert_allclose(schedule.rates(13, STEPS), 0.005 * (1 + np.cos(np.pi * 2 / 5)))


@pytest.mark.parametrize("change", [("optimizer.lr", 1e-4), ("schedule.min_lr", 1e-6)])
def test_change_by_hand_after_a_held_end_lasts_to_the_end_of_the_run(change):
    held = config_of(14, name="cosine", on_extend="hold")
    old = Schedule(config_of(name="cosine"), STEPS)
    old.epoch = 10
    config = held.replaced(dict([change]))
    new = Schedule(config, STEPS)
    new.load_state_dict({**old.state_dict(), "length": EPOCHS})
    new.changed_by_hand(10, {change[0]: None})
    rates = [new.rates(epoch, STEPS)[0] for epoch in range(10, 14)]
    alone = config_of(4, {"lr": config.optimizer.lr}, name="cosine", min_lr=config.schedule.min_lr)
    wanted = tables(alone)[:, 0]
    np.testing.assert_allclose(rates, wanted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patience", 5),
        ("watch", "train_loss"),
        ("factor", 0.9),
        ("min_lr", 0.01),
    ],
)
def test_settings_of_plateau_changed_by_hand_keep_the_rate_that_it_had_come_to(key, value):
    config = config_of(20, name="plateau", patience=0, factor=0.5)
    schedule = Schedule(config, STEPS)
    for _ in range(8):
        schedule.end_epoch({"dev_loss": 1.0, "train_loss": 1.0})
    before = schedule.rates(8, STEPS)[0]
    assert before < LR / 8
    changed = config.replaced({f"schedule.{key}": value})
    new = Schedule(changed, STEPS)
    new.load_state_dict(schedule.state_dict())
    assert not new.changed_by_hand(8, {key: old for key, old, _ in diff(config, changed)})
    assert new.rates(8, STEPS)[0] == before
    again = Schedule(changed, STEPS)
    again.load_state_dict(new.state_dict())
    for epoch in range(8, 12):
        assert again.rates(epoch, STEPS)[0] <= before
        again.end_epoch({"dev_loss": 1.0, "train_loss": 1.0})
    if key == "factor":
        assert again.rates(12, STEPS)[0] == pytest.approx(before * 0.9**4)


def test_the_settings_allow_what_the_table_of_schedules_has():
    assert typing.get_args(hints(ScheduleConfig)["name"]) == tuple(SCHEDULES)
    settings = [*ScheduleConfig.READ_BY.values(), tuple(ScheduleConfig.NEEDED), ScheduleConfig.LAID_OUT]
    assert {name for names in settings for name in names} <= set(SCHEDULES)


def test_a_schedule_is_one_row_and_one_allowed_name(monkeypatch):
    def linear(config, base, position):
        return base * (1 - position.held_steps / position.total_steps)

    monkeypatch.setitem(SCHEDULES, "linear", Curve(linear))
    monkeypatch.setitem(hints(ScheduleConfig), "name", typing.Literal["linear"])
    monkeypatch.setattr(ScheduleConfig, "LAID_OUT", ("linear",))
    config = config_of(name="linear")
    total = EPOCHS * STEPS
    np.testing.assert_allclose(tables(config).ravel(), LR * (total - np.arange(total)) / total)
    assert "linear was laid out to end at epoch 8" in extension_question(config, config.replaced({"epochs": 9}))
