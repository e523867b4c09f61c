"""Learning-rate schedules as tables: the rate of every step of an epoch, computed, never stepped along.

A rate follows from the configuration, the epoch and the step. What cannot be computed, because it depends on scores
or on what was decided by hand, is the state: see `Schedule.state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config.run_config import RunConfig
from ..config.schedule_section import ScheduleConfig
from ..errors import ConfigError
from .lr_curves import SCHEDULES, SchedulePosition, Table

# Settings under which plateau goes on, from the rate it has come to, when they change.
OF_PLATEAU = {"factor", "patience", "threshold", "threshold_mode", "cooldown", "eps", "watch", "min_lr"}


class Schedule:
    """The learning rate, and under onecycle the momentum, of every step of a run or of one stage.

    It starts at epoch `first_epoch` and is laid out over `config.epochs` epochs; config is as resolved for the stage
    (StagePlan.config). steps_per_epoch: optimizer steps in an epoch now.

    Warm-up goes in a straight line from `warmup_start` times the first rate of the schedule to that rate, as
    SequentialLR([LinearLR, ...]) does; the schedule itself starts when it is over and is shorter by it. What moves once
    an epoch (step, plateau, ...) is delayed by whole epochs of warm-up only.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int, first_epoch: int = 0) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.start, self.length = first_epoch, config.epochs
        self.end = first_epoch + config.epochs  # of the run, or of the stages under this schedule
        self.first_steps = steps_per_epoch
        self.epoch = first_epoch
        self.warms_up = True
        # What takes the place of optimizer.lr: the rate that the stage before ended at, where this one goes on from it,
        # and the rate that plateau had come to when its factor or its lowest rate was changed by hand.
        self.carried_rate: float | None = None
        self.reached_rate: float | None = None
        self.plateau = PlateauMemory()

    @property
    def base_rate(self) -> float:
        """The rate that the formulas start from."""
        rates = (self.reached_rate, self.carried_rate, self.config.optimizer.lr)
        return next(rate for rate in rates if rate is not None)

    def rates(self, epoch: int, num_steps: int) -> Table:
        """Learning rate of every step of `epoch` (counted from 0 over the run): (num_steps,) float64."""
        position, warm = self.locate(epoch, num_steps)
        config, base = self.config.schedule, self.base_rate
        curve = SCHEDULES[config.name].rates
        if config.name == "plateau":
            base = self.plateau.rate(base, config)
        rates = curve(config, base, position)
        if warm > 0:
            first = SchedulePosition(np.zeros(1, np.int64), 0, position.total_steps, position.total_epochs, 1)
            target = curve(config, base, first)[0]
            ages = position.steps + warm
            rising = target * (config.warmup_start + (1 - config.warmup_start) * ages / warm)
            rates = np.where(ages < warm, rising, rates)
        return rates

    def momenta(self, epoch: int, num_steps: int) -> Table | None:
        """Momentum (beta1 of the Adams) of every step of `epoch`, (num_steps,) float64; None if it is never moved."""
        config = self.config.schedule
        return SCHEDULES[config.name].momenta(config, self.locate(epoch, num_steps)[0])

    def carry_over(self, rate: float) -> None:
        """Start from `rate`, at which the stage before ended, in place of optimizer.lr, and without warm-up."""
        self.carried_rate, self.warms_up = rate, False

    def last_rate(self) -> float:
        """The rate at which the last epoch that `end_epoch` was told of ended, or would be cut to now by plateau."""
        return float(self.rates(self.epoch - 1, self.steps_per_epoch)[-1])

    def locate(self, epoch: int, num_steps: int) -> tuple[SchedulePosition, int]:
        """Where `epoch` lies in the schedule, and the steps of warm-up before the schedule starts.

        Steps of the warm-up itself have negative numbers there; formulas meet them held at 0.
        """
        length, age = max(self.length, 1), epoch - self.start
        warm = min(self.warmup_steps(num_steps), length * num_steps - 1) if self.warms_up else 0
        delay = warm // num_steps
        steps = age * num_steps + np.arange(num_steps) - warm
        total_steps, total_epochs = length * num_steps - warm, max(length - delay, 1)
        return SchedulePosition(steps, max(age - delay, 0), total_steps, total_epochs, num_steps), warm

    def warmup_steps(self, num_steps: int) -> int:
        """Steps of warm-up in epochs of `num_steps`: what was said in steps covers the same share of an epoch later."""
        schedule = self.config.schedule
        if schedule.warmup_epochs is not None:
            return schedule.warmup_epochs * num_steps
        if schedule.warmup_share is not None:
            return round(schedule.warmup_share * max(self.length, 1) * num_steps)
        if schedule.warmup_steps is None:
            return 0
        return round(schedule.warmup_steps * num_steps / self.first_steps)

    def end_epoch(self, scores: Mapping[str, float]) -> None:
        """Take the scores of the epoch that ended (train_loss, dev_accuracy, ...); plateau goes by the one it watches.

        Call it once an epoch, after the last `rates` of that epoch. Raises ConfigError if that score is not among them.
        """
        config, epoch, steps = self.config.schedule, self.epoch, self.steps_per_epoch
        if config.name == "plateau" and epoch >= self.start + self.locate(epoch, steps)[1] // steps:
            if config.watch not in scores:
                raise ConfigError(f"schedule.watch = {config.watch}: not scored; there are {', '.join(sorted(scores))}")
            self.plateau.see(scores[config.watch], config, float(self.rates(epoch, steps)[-1]))
        self.epoch += 1

    def changed_by_hand(self, epoch: int, before: Mapping[str, Any]) -> bool:
        """Settings were changed by hand, and training goes on in `epoch`; returns whether the rate is set anew.

        before: dotted key -> value until now. `optimizer.lr`: the schedule starts anew here, without warm-up, over the
        epochs it has left, or up to the run's end where it has none left. Settings of plateau: it goes on from the rate
        it has come to. `on_extend` changes nothing here. Anything else about the schedule: it starts anew here, warm-up
        included, over all epochs that are left.
        """
        self.epoch = epoch
        config = self.config.schedule
        changed = {key.removeprefix("schedule."): old for key, old in before.items() if key.startswith("schedule.")}
        goes_on = {"on_extend", *(OF_PLATEAU if config.name == "plateau" else ())}
        starts_anew = bool(changed.keys() - goes_on)
        if starts_anew or "optimizer.lr" in before:
            is_over = epoch >= self.start + self.length  # its last rate was held
            self.length = (self.end if starts_anew or is_over else self.start + self.length) - epoch
            self.carried_rate = None if "optimizer.lr" in before else self.carried_rate
            self.start, self.first_steps = epoch, self.steps_per_epoch
            self.warms_up = starts_anew and self.carried_rate is None
            self.reached_rate, self.plateau = None, PlateauMemory()
            return True
        cut_by = {name: changed[name] for name in ("factor", "min_lr") if name in changed}
        if cut_by and self.plateau.cuts:
            self.reached_rate = self.plateau.rate(self.base_rate, replace(config, **cut_by))
            self.plateau.cuts = 0
        if "watch" in changed:
            self.plateau.best, self.plateau.bad = None, 0
        return False

    def describe(self) -> dict[str, object]:
        """What was built: the settings, the epochs that it spans, the rate it starts from, the steps of warm-up."""
        settings = self.config.schedule.to_dict()
        for name in ("warmup_epochs", "warmup_share", "warmup_start", "on_extend"):
            settings.pop(name, None)
        return settings | {
            "start_epoch": self.start,
            "stop_epoch": self.start + self.length,
            "lr": self.base_rate,
            "warmup_steps": self.warmup_steps(self.steps_per_epoch),
        }

    def state_dict(self) -> dict[str, object]:
        """What cannot be computed: the epochs it spans, what was changed by hand, a carried rate, plateau's memory."""
        names = ("start", "length", "first_steps", "epoch", "warms_up", "carried_rate", "reached_rate")
        return {name: getattr(self, name) for name in names} | {"plateau": vars(self.plateau).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. If the run has another length now, `schedule.on_extend` decides what becomes of it."""
        vars(self).update(state, plateau=PlateauMemory(**state["plateau"]))
        if self.config.schedule.on_extend != "hold":
            self.length = self.end - self.start


@dataclass
class ScheduleState:
    """The types of `Schedule.state_dict`, by which a checkpoint's is checked."""

    start: int
    length: int
    first_steps: int
    epoch: int
    warms_up: bool
    carried_rate: float | None
    reached_rate: float | None
    plateau: PlateauMemory


@dataclass
class PlateauMemory:
    """What ReduceLROnPlateau remembers: the best score, epochs without a better one, cooldown left, cuts so far."""

    best: float | None = None
    bad: int = 0
    cooldown: int = 0
    cuts: int = 0

    def see(self, score: float, config: ScheduleConfig, rate: float) -> None:
        """One epoch's score under `rate`; a NaN counts as no improvement, as in torch."""
        if self.is_better(score, config):
            self.best, self.bad = score, 0
        else:
            self.bad += 1
        if self.cooldown > 0:
            self.cooldown, self.bad = self.cooldown - 1, 0
        if self.bad > config.patience:
            if rate - max(rate * config.factor, config.min_lr) > config.eps:
                self.cuts += 1
            self.cooldown, self.bad = config.cooldown, 0

    def is_better(self, score: float, config: ScheduleConfig) -> bool:
        """Whether `score` beats the best by more than the threshold: losses go down, all else up."""
        sign = -1 if config.watch.endswith("loss") else 1
        best = -sign * math.inf if self.best is None else self.best
        if config.threshold_mode == "abs":
            wanted = best + sign * config.threshold
        else:
            wanted = best * (1 + sign * config.threshold)
        return sign * score > sign * wanted

    def rate(self, base: float, config: ScheduleConfig) -> float:
        """The base rate after all cuts so far."""
        for _ in range(self.cuts):
            base = max(base * config.factor, config.min_lr)
        return base
