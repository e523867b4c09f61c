"""The shapes of learning-rate schedules: pure formulas, each equal to the torch.optim.lr_scheduler class it names."""

import math
from dataclasses import dataclass

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


def shape(config: ScheduleConfig, base: float, place: SchedulePosition) -> Table:
    """Learning rates of the steps at `place` under `config`, from the base rate. Plateau is not a shape: constant."""
    if config.name == "step":  # StepLR, stepped at every epoch
        return np.full(place.num_steps, base * config.gamma ** (place.held_epoch // config.step_size))
    if config.name == "exponential":  # ExponentialLR: gamma for an epoch, its num_steps-th root for a step
        age = place.held_epoch if config.every == "epoch" else place.held_steps / place.num_steps
        return np.broadcast_to(base * config.gamma ** np.asarray(age, dtype=np.float64), place.num_steps).copy()
    if config.name == "cosine":  # CosineAnnealingLR with T_max = the whole length
        if config.every == "epoch":
            share = np.full(place.num_steps, place.held_epoch / place.total_epochs)
        else:
            share = place.held_steps / place.total_steps
        return cosine(base, config.min_lr, share)
    if config.name == "cosine_restarts":  # CosineAnnealingWarmRestarts, stepped with fractions of an epoch
        age = np.full(place.num_steps, float(place.held_epoch))
        if config.every == "step":
            age = place.held_steps / place.num_steps
        return cosine(base, config.min_lr, restarted(age, config.restart_epochs, config.restart_multiply))
    if config.name == "onecycle":  # OneCycleLR with max_lr = base
        low = base / config.div_factor
        return one_cycle(config, place, (low, base, low, low / config.final_div_factor))
    return np.full(place.num_steps, float(base))


def momentum_shape(config: ScheduleConfig, place: SchedulePosition) -> Table:
    """Momentum that OneCycleLR(cycle_momentum=True) sets against the rate."""
    low, high = config.base_momentum, config.max_momentum
    return one_cycle(config, place, (high, low, high, high))


def cosine(start: float, end: float, share: Table) -> Table:
    """From `start` at share 0 to `end` at share 1 along half a cosine (Loshchilov and Hutter 2017, equation 5)."""
    return end + (start - end) * (1 + np.cos(math.pi * share)) / 2


def restarted(age: Table, first: int, multiply: int) -> Table:
    """Share of its cycle that is over at each `age` in epochs; cycles are first, first * multiply, ... epochs long."""
    share = np.empty_like(age)
    for place, epochs in enumerate(age):
        length = first
        if multiply == 1:
            epochs = epochs % first
        while epochs >= length:
            epochs, length = epochs - length, length * multiply
        share[place] = epochs / length
    return share


def one_cycle(config: ScheduleConfig, place: SchedulePosition, values: tuple[float, float, float, float]) -> Table:
    """Smith and Topin's 1cycle with torch's step arithmetic: values[0] up to values[1], then down to values[3].

    With three phases it falls back to values[2], which is values[0], before it goes on to values[3].
    """
    start, peak, back, end = values
    last = place.total_steps - 1
    top = config.pct_start * place.total_steps - 1
    if config.three_phase:
        knots, ends = (0, top, 2 * config.pct_start * place.total_steps - 2, last), (start, peak, back, end)
    else:
        knots, ends = (0, top, last), (start, peak, end)
    steps = place.held_steps
    table = np.empty(place.num_steps)
    done = np.zeros(place.num_steps, dtype=bool)
    for piece in range(len(knots) - 1):
        left, right = knots[piece], knots[piece + 1]
        here = ~done & ((steps <= right) | (piece == len(knots) - 2))
        share = (steps[here] - left) / (right - left) if right > left else np.ones(here.sum())
        if config.anneal == "cos":
            table[here] = cosine(ends[piece], ends[piece + 1], share)
        else:
            table[here] = ends[piece] + (ends[piece + 1] - ends[piece]) * share
        done |= here
    return table
