"""Stages of a run: settings that change at a given epoch, said beforehand (`[[stage]]` tables of a recipe)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError
from .sections import OptimizerConfig
from .validation import shown

# What a stage may change. The rest (model, data, window, seed, precision, ...) belongs to the whole run: changing it
# in the middle would be another run, and time limits are a process's.
CHANGEABLE = (
    "subset",
    "batch_size",
    "optimizer.",
    "loss.",
    "schedule.",
    "augment.",
    "guard.",
    "averaging.",
    "stop.patience",
)
PREVIOUS = "previous"  # as optimizer.lr of a stage: it goes on from the rate at which the one before it ended
FIXED = ("optimizer.name", "optimizer.decay_all", "optimizer.accumulation")


@dataclass(frozen=True)
class Stage:
    """`epochs` epochs under `changes`: dotted key -> value, on top of the stages before.

    In TOML: `[[stage]]` with `epochs = 35` and any changeable settings, as `subset = 1.0` or `optimizer.lr = 1e-4`.
    """

    epochs: int
    changes: tuple[tuple[str, object], ...] = ()

    @classmethod
    def from_table(cls, table: object, where: str) -> "Stage":
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} = {shown(table)}: wanted a table, as {{epochs = 35, subset = 1.0}}")
        epochs = table.get("epochs")
        if type(epochs) is not int or epochs < 1:
            got = "is missing" if epochs is None else f"= {shown(epochs)}"
            raise ConfigError(f"{where}.epochs {got}: wanted a whole number, at least 1")
        changes = dict(flattened({key: value for key, value in table.items() if key != "epochs"}))
        for key in changes:
            if not key.startswith(CHANGEABLE) or key in FIXED:
                allowed = ", ".join(name + "*" * name.endswith(".") for name in CHANGEABLE)
                raise ConfigError(f"{where}.{key}: belongs to the whole run; a stage may change {allowed}")
        return cls(epochs, tuple((key, frozen(value)) for key, value in changes.items()))

    def to_table(self) -> dict[str, object]:
        """The TOML table, its keys dotted."""
        return {"epochs": self.epochs, **{key: thawed(value) for key, value in self.changes}}

    @property
    def restarts_schedule(self) -> bool:
        return any(key == "optimizer.lr" or key.startswith("schedule.") for key, _ in self.changes)


class Stageable(Protocol):
    """What stages need of a RunConfig, which stands above them."""

    epochs: int
    stage: tuple[Stage, ...]
    optimizer: OptimizerConfig

    def replaced(self, changes: Mapping[str, object]) -> "Stageable": ...


@dataclass(frozen=True)
class StagePlan:
    """What one stage comes to: epochs `start <= epoch < stop` of the run train under `config`.

    Its schedule is laid out over epochs `schedule_start <= epoch < schedule_stop`. A stage that sets `optimizer.lr`
    or any `schedule.*` starts a schedule of its own (clock, warm-up and plateau memory begin anew); any other stage
    goes on with the schedule before it, whose length then is that of all stages under it. `config.stage` is empty and
    `config.epochs == schedule_stop - schedule_start`, so `build_schedule(config, steps, first_epoch=schedule_start)`
    is right for every stage. carries_rate: it says optimizer.lr = "previous", and its schedule starts, without warm-up,
    from the rate at which the stage before ended; `config.optimizer.lr` is then the last rate given as a number.
    """

    config: Stageable
    start: int
    stop: int
    schedule_start: int
    schedule_stop: int
    carries_rate: bool = False

    @property
    def lr(self) -> float | str:
        """The base rate as the stage has it: a number or "previous"."""
        return PREVIOUS if self.carries_rate else self.config.optimizer.lr

    @property
    def starts_schedule(self) -> bool:
        return self.start == self.schedule_start


def plan_stages(config: Stageable) -> list[StagePlan]:
    """The stages of `config` in order; a run without stages is one stage of all its epochs."""
    if not config.stage:
        return [StagePlan(config, 0, config.epochs, 0, config.epochs)]
    stages = config.stage
    starts = [sum(stage.epochs for stage in stages[:place]) for place in range(len(stages) + 1)]
    opens = [place for place, stage in enumerate(stages) if place == 0 or stage.restarts_schedule]
    plans = []
    # Each on top of what the one before came to: settings that gave way to a new schedule.name there are gone here.
    resolved = config
    for place, stage in enumerate(stages):
        changes = {key: thawed(value) for key, value in stage.changes}
        if changes.get("optimizer.lr") == PREVIOUS:
            del changes["optimizer.lr"]
            if place == 0:
                raise ConfigError('stage.0.optimizer.lr = "previous": the first stage has none before it')
        opened = max(each for each in opens if each <= place)
        closed = min([each for each in opens if each > place], default=len(stages))
        span = starts[closed] - starts[opened]
        try:
            resolved = resolved.replaced({**changes, "stage": (), "epochs": span})
        except ConfigError as error:
            raise ConfigError(f"stage.{place}: {error}") from None
        carries_rate = ("optimizer.lr", PREVIOUS) in stages[opened].changes
        plans.append(
            StagePlan(resolved, starts[place], starts[place + 1], starts[opened], starts[closed], carries_rate)
        )
    return plans


def resized(stages: tuple[Stage, ...], epochs: int) -> tuple[Stage, ...]:
    """The same stages in a run of `epochs` epochs: cut where it ends, or with a longer last stage."""
    kept = []
    left = epochs
    for place, stage in enumerate(stages):
        length = left if place == len(stages) - 1 else min(stage.epochs, left)
        if length > 0:
            kept.append(Stage(length, stage.changes))
        left -= length
    return tuple(kept)


def flattened(table: Mapping[str, object], where: str = "") -> list[tuple[str, object]]:
    """Nested tables as (dotted key, value) pairs; lists are values."""
    pairs = []
    for key, value in table.items():
        key = f"{where}.{key}" if where else key
        pairs += flattened(value, key) if isinstance(value, Mapping) else [(key, value)]
    return pairs


def frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def thawed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
