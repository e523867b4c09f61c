"""SCHEDULES, the table of learning-rate schedules: pure formulas, each equal to the torch.optim.lr_scheduler class that
it names."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..config.schedule_section import ScheduleConfig

Table = np.ndarray  # (num_steps,) float64, one number for every step of an epoch


@dataclass(frozen=True)
class SchedulePosition:
    """Where in a schedule the steps of one epoch lie, counted from the schedule's own start.

    steps: (num_steps,) int64, the number of each step, negative before that start. epoch: whole epochs since the
    start. total_steps, total_epochs: length of the schedule. num_steps: steps in this epoch. Steps and epochs beyond
    the length stand at its last one, so a schedule that is over holds its last rate; steps of a warm-up at its first.
    """

    steps: np.ndarray
    epoch: int
    total_steps: int
    total_epochs: int
    num_steps: int

    @property
    def held_steps(self) -> Table:
        return np.clip(self.steps, 0, self.total_steps - 1).astype(np.float64)

    @property
    def held_epoch(self) -> int:
        return min(self.epoch, self.total_epochs - 1)


# Settings that a schedule needs have passed ScheduleConfig.check: where it asserts one, it is there.


def constant(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    return np.full(position.num_steps, float(base))


def step(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    """StepLR, stepped at every epoch."""
    assert config.gamma is not None and config.step_size is not None
    return np.full(position.num_steps, base * config.gamma ** (position.held_epoch // config.step_size))


def exponential(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    """ExponentialLR: gamma for an epoch, its num_steps-th root for a step."""
    assert config.gamma is not None
    return base * config.gamma ** age_in_epochs(config, position)


def cosine(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    """CosineAnnealingLR with T_max = the whole length."""
    share = position.held_steps / position.total_steps
    if config.every == "epoch":
        share = np.full(position.num_steps, position.held_epoch / position.total_epochs)
    return half_cosine(base, config.min_lr, share)


def cosine_restarts(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    """CosineAnnealingWarmRestarts, stepped with fractions of an epoch."""
    assert config.restart_epochs is not None
    share = restarted(age_in_epochs(config, position), config.restart_epochs, config.restart_multiply)
    return half_cosine(base, config.min_lr, share)


def onecycle(config: ScheduleConfig, base: float, position: SchedulePosition) -> Table:
    """OneCycleLR with max_lr = base."""
    low = base / config.div_factor
    return one_cycle(config, position, (low, base, low, low / config.final_div_factor))


def onecycle_momenta(config: ScheduleConfig, position: SchedulePosition) -> Table | None:
    """Momentum that OneCycleLR(cycle_momentum=True) sets against the rate."""
    low, high = config.base_momentum, config.max_momentum
    return one_cycle(config, position, (high, low, high, high)) if config.cycle_momentum else None


class Curve(NamedTuple):
    """One row of SCHEDULES.

    rates: (settings, base rate, position) -> the learning rate of every step there. momenta: (settings, position) ->
    the momentum (beta1 of the Adams) of every step, or None where it is never moved.
    """

    rates: Callable[[ScheduleConfig, float, SchedulePosition], Table]
    momenta: Callable[[ScheduleConfig, SchedulePosition], Table | None] = lambda config, position: None


# The allowed names in config/schedule_section.py are held equal by a test. Plateau is constant between its cuts, which
# schedule.py makes.
SCHEDULES: dict[str, Curve] = {
    "constant": Curve(constant),
    "step": Curve(step),
    "exponential": Curve(exponential),
    "plateau": Curve(constant),
    "cosine": Curve(cosine),
    "cosine_restarts": Curve(cosine_restarts),
    "onecycle": Curve(onecycle, onecycle_momenta),
}


def age_in_epochs(config: ScheduleConfig, position: SchedulePosition) -> Table:
    """Epochs since the schedule's start, at every step: whole ones, or under `every = "step"` with their fractions."""
    if config.every == "step":
        return position.held_steps / position.num_steps
    return np.full(position.num_steps, float(position.held_epoch))


def half_cosine(start: float, end: float, share: Table) -> Table:
    """From `start` at share 0 to `end` at share 1 along half a cosine (Loshchilov and Hutter 2017, equation 5)."""
    return end + (start - end) * (1 + np.cos(math.pi * share)) / 2


def restarted(age: Table, first: int, multiply: int) -> Table:
    """Share of its cycle that is over at each `age` in epochs; cycles are first, first * multiply, ... epochs long."""
    share = np.empty_like(age)
    for index, epochs in enumerate(age):
        length = first
        if multiply == 1:
            epochs = epochs % first
        while epochs >= length:
            epochs, length = epochs - length, length * multiply
        share[index] = epochs / length
    return share


def one_cycle(config: ScheduleConfig, position: SchedulePosition, values: tuple[float, float, float, float]) -> Table:
    """Smith and Topin's 1cycle with torch's step arithmetic: values[0] up to values[1], then down to values[3].

    With three phases it falls back to values[2], which is values[0], before it goes on to values[3].
    """
    start, peak, back, end = values
    last = position.total_steps - 1
    top = config.pct_start * position.total_steps - 1
    knots: list[float] = [0, top, last]
    ends = [start, peak, end]
    if config.three_phase:
        knots, ends = [0, top, 2 * config.pct_start * position.total_steps - 2, last], [start, peak, back, end]
    steps = position.held_steps
    table = np.empty(position.num_steps)
    done = np.zeros(position.num_steps, dtype=bool)
    for piece in range(len(knots) - 1):
        left, right = knots[piece], knots[piece + 1]
        here = ~done & ((steps <= right) | (piece == len(knots) - 2))
        share = (steps[here] - left) / (right - left) if right > left else np.ones(here.sum())
        if config.anneal == "cos":
            table[here] = half_cosine(ends[piece], ends[piece + 1], share)
        else:
            table[here] = ends[piece] + (ends[piece + 1] - ends[piece]) * share
        done |= here
    return table
