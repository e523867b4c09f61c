"""Stages: settings that change at a given epoch, as `[[stage]]` tables of a recipe. run_config.py merges them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .validation import joined, shown

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

    def to_table(self) -> dict[str, Any]:
        """The TOML table, its keys dotted."""
        return {"epochs": self.epochs, **{key: thawed(value) for key, value in self.changes}}

    @property
    def restarts_schedule(self) -> bool:
        return any(key == "optimizer.lr" or key.startswith("schedule.") for key, _ in self.changes)


def resized(stages: tuple[Stage, ...], epochs: int) -> tuple[Stage, ...]:
    """The same stages in a run of `epochs` epochs: cut where it ends, or with a longer last stage."""
    kept: list[Stage] = []
    for stage in stages:
        left = epochs - sum(earlier.epochs for earlier in kept)
        length = left if stage is stages[-1] else min(stage.epochs, left)
        kept += [Stage(length, stage.changes)] if length > 0 else []
    return tuple(kept)


def flattened(table: Mapping[str, object], where: str = "") -> list[tuple[str, object]]:
    """Nested tables as (dotted key, value) pairs; lists are values."""
    pairs: list[tuple[str, object]] = []
    for name, value in table.items():
        key = joined(where, name)
        pairs += flattened(value, key) if isinstance(value, Mapping) else [(key, value)]
    return pairs


def frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def thawed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
