"""Learning-rate schedules as tables: the rate of every step of an epoch, computed, never stepped along.

A rate follows from the configuration, the epoch and the step. What cannot be computed, because it depends on scores
or on what was decided by hand, is the state: see `Schedule.state_dict`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..config.run_config import RunConfig
from ..config.schedule_section import PhaseConfig, ShapeConfig
from ..errors import ConfigError
from .lr_curves import SchedulePosition, Table, momentum_shape, shape

# Settings under which plateau goes on, from the rate it has come to, when they change.
OF_PLATEAU = ("factor", "patience", "threshold", "threshold_mode", "cooldown", "eps", "watch", "min_lr")


@dataclass(frozen=True)
class Phase:
    """One shape over epochs `start <= epoch < stop` of the run; `base` None: it starts where the phase before ended."""

    config: ShapeConfig
    start: int
    stop: int
    base: float | None


class Schedule:
    """The learning rate, and under onecycle the momentum, of every step from epoch `first_epoch` on.

    Warm-up goes in a straight line from `warmup_start` times the first rate of the schedule to that rate, as
    SequentialLR([LinearLR, ...]) does; the schedule itself starts when it is over and is shorter by it. What moves once
    an epoch (step, plateau, ...) is delayed by whole epochs of warm-up only.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int, first_epoch: int = 0) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.origin, self.length = first_epoch, config.epochs
        self.end = first_epoch + config.epochs  # of the run, or of the stages under this schedule
        self.first_steps = steps_per_epoch
        self.epoch = first_epoch
        # Phase that started anew, the epoch, and from which rate where that is not optimizer.lr.
        self.by_hand: tuple[int, int] | tuple[int, int, float] | None = None
        self.entries: dict[int, float] = {}
        self.plateau = PlateauMemory()

    @property
    def phases(self) -> list[Phase]:
        """The shapes in order; one unless the schedule is a chain."""
        lr, schedule = self.config.optimizer.lr, self.config.schedule
        stop = self.origin + self.length
        chain = schedule.chain if schedule.name == "chain" else (schedule,)
        phases, start = [], self.origin
        for place, each in enumerate(chain):
            last = place == len(chain) - 1
            end = max(stop, start + 1) if last else start + each.epochs
            said = each.lr if isinstance(each, PhaseConfig) else None
            phases.append(Phase(each, start, end, None if said == "previous" else said or lr))
            start = end
        if self.by_hand is not None:
            place, epoch, *rate = self.by_hand
            base = rate[0] if rate else lr
            phases[place] = Phase(phases[place].config, epoch, max(phases[place].stop, epoch + 1), base)
        return phases

    def rates(self, epoch: int, num_steps: int) -> Table:
        """Learning rate of every step of `epoch` (counted from 0 over the run): (num_steps,) float64."""
        phase, place, warm = self.locate(epoch, num_steps)
        config = self.phases[phase].config
        base = self.base(phase, num_steps)
        if config.name == "plateau" and phase == self.present_phase:
            base = self.plateau.rate(base, config)
        rates = shape(config, base, place)
        if warm > 0:
            first = SchedulePosition(np.zeros(1, np.int64), 0, place.total_steps, place.total_epochs, 1)
            target = shape(config, base, first)[0]
            below = self.config.schedule.warmup_start
            ages = place.steps + warm
            rising = target * (below + (1 - below) * ages / warm)
            rates = np.where(ages < warm, rising, rates)
        return rates

    def momenta(self, epoch: int, num_steps: int) -> Table | None:
        """Momentum (beta1 of the Adams) of every step of `epoch`, (num_steps,) float64; None if it is never moved."""
        phases = self.phases
        if not any(each.config.name == "onecycle" and each.config.cycle_momentum for each in phases):
            return None
        phase, place, _ = self.locate(epoch, num_steps)
        config = phases[phase].config
        if config.name == "onecycle" and config.cycle_momentum:
            return momentum_shape(config, place)
        optimizer = self.config.optimizer
        return np.full(num_steps, optimizer.betas[0] if optimizer.name in ("adam", "adamw") else optimizer.momentum)

    def locate(self, epoch: int, num_steps: int) -> tuple[int, SchedulePosition, int]:
        """Number of the phase that `epoch` is in, its place there, and the steps of warm-up before the phase.

        Steps of the warm-up itself have negative numbers there; formulas meet them held at 0.
        """
        phases = self.phases
        number = max((each for each, phase in enumerate(phases) if phase.start <= epoch), default=0)
        phase = phases[number]
        # A rate set by hand is meant at once: warm-up protects a net that has learnt nothing yet.
        first = phase.start == phases[0].start and self.by_hand is None
        warm = self.warmup_steps(num_steps) if first else 0
        warm = min(warm, (phase.stop - phase.start) * num_steps - 1)
        steps = (epoch - phase.start) * num_steps + np.arange(num_steps) - warm
        delay = warm // num_steps
        total = (phase.stop - phase.start) * num_steps - warm
        whole = max(phase.stop - phase.start - delay, 1)
        return number, SchedulePosition(steps, max(epoch - phase.start - delay, 0), total, whole, num_steps), warm

    def warmup_steps(self, num_steps: int) -> int:
        """Steps of warm-up in epochs of `num_steps`: what was said in steps covers the same share of an epoch later."""
        schedule = self.config.schedule
        if schedule.warmup_epochs is not None:
            return schedule.warmup_epochs * num_steps
        if schedule.warmup_steps is None:
            return 0
        return round(schedule.warmup_steps * num_steps / self.first_steps)

    def base(self, phase: int, num_steps: int) -> float:
        """The base rate of a phase: as configured, or the rate at which the phase before it ended."""
        phases = self.phases
        if phases[phase].base is not None:
            return phases[phase].base
        if phase in self.entries:
            return self.entries[phase]
        return float(self.rates(phases[phase].start - 1, num_steps)[-1])

    @property
    def present_phase(self) -> int:
        """Number of the phase that training is in."""
        return self.locate(self.epoch, self.steps_per_epoch)[0]

    def end_epoch(self, scores: dict[str, float]) -> None:
        """Take the scores of the epoch that ended (train_loss, dev_accuracy, ...); plateau goes by the one it watches.

        Call it once an epoch, after the last `rates` of that epoch. Raises ConfigError if that score is not among them.
        """
        epoch, steps = self.epoch, self.steps_per_epoch
        number, _, warm = self.locate(epoch, steps)
        phases = self.phases
        config = phases[number].config
        if config.name == "plateau" and epoch >= phases[number].start + warm // steps:
            if config.watch not in scores:
                raise ConfigError(f"schedule.watch = {config.watch}: not scored; there are {', '.join(sorted(scores))}")
            self.plateau.see(scores[config.watch], config, float(self.rates(epoch, steps)[-1]))
        if number + 1 < len(phases) and epoch + 1 >= phases[number + 1].start:
            self.entries[number + 1] = float(self.rates(epoch, steps)[-1])
            self.plateau = PlateauMemory()
        self.epoch += 1

    def changed_by_hand(self, epoch: int, before: Mapping[str, object]) -> bool:
        """Settings were changed by hand, and training goes on in `epoch`; returns whether the rate is set anew.

        before: dotted key -> value until now. `optimizer.lr`, or a setting of a chain's present phase: this phase
        starts anew here, over the epochs it has left, or up to the run's end where it has none left. Settings of
        plateau: it goes on from the rate it has come to. Those of a chain's other phases change nothing here, and
        neither does `on_extend`. Anything else about the schedule: the whole schedule starts anew here.
        """
        self.epoch = epoch
        present = self.present_phase
        config = self.phases[present].config
        keeps = OF_PLATEAU if config.name == "plateau" else ()
        said = {concerned(key, present, keeps): value for key, value in before.items()}
        if "schedule" in said:
            self.length = self.end - epoch
            self.origin, self.first_steps, self.by_hand, self.entries = epoch, self.steps_per_epoch, None, {}
            self.plateau = PlateauMemory()
            return True
        if "phase" in said:
            if epoch >= self.origin + self.length:  # held beyond its end
                self.length = self.end - self.origin
            self.by_hand, self.first_steps = None, self.steps_per_epoch
            rate = () if "optimizer.lr" in before else (self.base(present, self.steps_per_epoch),)
            self.by_hand = (present, epoch, *rate)
            self.plateau = PlateauMemory()
            return True
        cut_by = {name: said[name] for name in ("factor", "min_lr") if name in said}
        if cut_by and self.plateau.cuts:
            reached = self.plateau.rate(self.base(present, self.steps_per_epoch), replace(config, **cut_by))
            self.by_hand, self.plateau.cuts = (present, epoch, reached), 0
        if "watch" in said:
            self.plateau.best, self.plateau.bad = None, 0
        return False

    def describe(self) -> dict[str, object]:
        """What was built: the phases with their epochs and settings, and the warm-up."""
        phases = []
        for phase in self.phases:
            settings = phase.config.to_dict()
            for name in ("chain", "epochs", "lr", "warmup_steps", "warmup_epochs", "warmup_start", "on_extend"):
                settings.pop(name, None)
            lr = "previous" if phase.base is None else phase.base
            phases.append({**settings, "start_epoch": phase.start, "stop_epoch": phase.stop, "lr": lr})
        return {"phases": phases, "warmup_steps": self.warmup_steps(self.steps_per_epoch)}

    def state_dict(self) -> dict[str, object]:
        """What cannot be computed: the length it was laid out for, restarts by hand, plateau's memory, entry rates."""
        return {
            "origin": self.origin,
            "length": self.length,
            "first_steps": self.first_steps,
            "epoch": self.epoch,
            "by_hand": None if self.by_hand is None else list(self.by_hand),
            "entries": {str(phase): rate for phase, rate in self.entries.items()},
            "plateau": vars(self.plateau).copy(),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state`. If the run has another length now, `schedule.on_extend` decides what becomes of it."""
        length = self.length + self.origin - state["origin"]
        if length != state["length"] and self.config.schedule.on_extend == "hold":
            length = state["length"]
        self.origin, self.length = state["origin"], length
        self.first_steps, self.epoch = state["first_steps"], state["epoch"]
        self.by_hand = None if state["by_hand"] is None else tuple(state["by_hand"])
        self.entries = {int(phase): rate for phase, rate in state["entries"].items()}
        self.plateau = PlateauMemory(**state["plateau"])


@dataclass
class PlateauMemory:
    """What ReduceLROnPlateau remembers: the best score, epochs without a better one, cooldown left, cuts so far."""

    best: float | None = None
    bad: int = 0
    cooldown: int = 0
    cuts: int = 0

    def see(self, score: float, config: ShapeConfig, rate: float) -> None:
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

    def is_better(self, score: float, config: ShapeConfig) -> bool:
        """Whether `score` beats the best by more than the threshold: accuracies go up, losses down."""
        sign = 1 if config.watch.endswith("accuracy") else -1
        best = -sign * math.inf if self.best is None else self.best
        if config.threshold_mode == "abs":
            wanted = best + sign * config.threshold
        else:
            wanted = best * (1 + sign * config.threshold)
        return sign * score > sign * wanted

    def rate(self, base: float, config: ShapeConfig) -> float:
        """The base rate after all cuts so far."""
        for _ in range(self.cuts):
            base = max(base * config.factor, config.min_lr)
        return base


def build_schedule(config: RunConfig, steps_per_epoch: int, first_epoch: int = 0) -> Schedule:
    """The schedule of a run or of one stage: it starts at `first_epoch` and is laid out over `config.epochs` epochs.

    config: as resolved for the stage (StagePlan.config). steps_per_epoch: optimizer steps in an epoch now.
    """
    return Schedule(config, steps_per_epoch, first_epoch)


def concerned(key: str, present: int, keeps: Collection[str]) -> str | None:
    """What starts anew where `key` is changed: "schedule", "phase" (the present one), its name where it is one of
    `keeps`, the settings that the present phase goes on under; None: nothing."""
    if key == "optimizer.lr":
        return "phase"
    of_phase = re.fullmatch(r"schedule\.chain\.(\d+)\.(\w+)", key)
    number, name = (int(of_phase[1]), of_phase[2]) if of_phase else (present, key.removeprefix("schedule."))
    if name in (key, "on_extend") or number > present or (number < present and name != "epochs"):
        return None
    if number == present and name in keeps:
        return name
    return "phase" if of_phase and name != "epochs" else "schedule"
