"""What a sweep tries: lists and ranges among the settings of a command, and the configs that they lead to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.overrides import parsed
from ..config.resolve import resolve
from ..config.run_config import RunConfig
from ..config.validation import parse_override
from ..errors import ConfigError

LOGARITHMIC = ("optimizer.lr", "optimizer.weight_decay", "optimizer.eps", "schedule.min_lr")


@dataclass(frozen=True)
class SearchRange:
    """`key=low..high`, both ends included; on a log scale for rates and decay above 0."""

    key: str
    low: int | float
    high: int | float
    whole: bool

    @property
    def logarithmic(self) -> bool:
        return self.key in LOGARITHMIC and self.low > 0


@dataclass(frozen=True)
class SearchSpace:
    """Each of `combinations` is one fixed part (dotted key -> value), in which `ranges` are searched.

    `seeds` repeat every sample; `config` is what all have in common.
    """

    config: RunConfig
    combinations: tuple[dict[str, Any], ...]
    ranges: tuple[SearchRange, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(
        cls, recipe: str | os.PathLike[str], texts: Sequence[str], corpus: str | os.PathLike[str] | None = None
    ) -> SearchSpace:
        """Read `optimizer.lr=1e-4..1e-2`, `model.depth=3,4,5`, `seed=0,1,2` and plain settings.

        Every combination is tried at the ends of its ranges, so that what could never train is refused here.
        Raises ConfigError.
        """
        lists: dict[str, list[Any]] = {}
        ranges: dict[str, tuple[Any, Any]] = {}
        fixed: list[str] = []
        for text in texts:
            key, _, value = (part.strip() for part in text.partition("="))
            low, dots, high = value.partition("..")
            if key in lists or key in ranges or any(key == parse_override(other)[0] for other in fixed):
                raise ConfigError(f"{key}: said twice; a list is key=a,b,c and a range key=low..high")
            if dots:
                ranges[key] = parse_override(f"{key}={low}")[1], parse_override(f"{key}={high}")[1]
            elif "," in value and value[:1] not in "[{\"'":
                lists[key] = [parse_override(f"{key}={item}")[1] for item in value.split(",")]
            else:
                fixed.append(text)
        for key, values in lists.items():
            if len({repr(value) for value in values}) < len(values):
                raise ConfigError(f"{key}: one of its values is said twice; wanted different ones")
        config = resolve(recipe, fixed, corpus)
        seeds = lists.pop("seed", [config.seed])
        if "seed" in ranges:
            raise ConfigError("seed: is repeated and never chosen; wanted a list, as seed=0,1,2")
        combinations = tuple(dict(zip(lists, values)) for values in itertools.product(*lists.values()))
        searched = tuple(read_range(config, key, *ends) for key, ends in ranges.items())
        for combination in combinations:
            for end in ("low", "high"):
                config.replaced(combination | {each.key: getattr(each, end) for each in searched})
        for seed in seeds:
            config.replaced({"seed": seed})
        if len(combinations) == 1 and not ranges and len(seeds) == 1:
            raise ConfigError(
                "sweep: nothing to try; say a range, as optimizer.lr=1e-4..1e-2, or a list, as model.depth=3,4,5"
            )
        return cls(config, combinations, searched, tuple(seeds))


def read_range(config: RunConfig, key: str, low: object, high: object) -> SearchRange:
    """Raises ConfigError for ends that are no numbers, in the wrong order, or nothing that the setting takes."""
    if not all(type(end) in (int, float) for end in (low, high)):
        raise ConfigError(f"{key}: wanted a range of numbers, as {key}=1e-4..1e-2")
    first, last = float(low), float(high)  # type: ignore[arg-type]
    if not first < last:
        raise ConfigError(f"{key} = {low}..{high}: wanted a lower end below the upper one")
    whole = type(low) is int and type(high) is int and not takes_fractions(config, key, first + 0.5)
    return SearchRange(key, int(first), int(last), True) if whole else SearchRange(key, first, last, False)


def takes_fractions(config: RunConfig, key: str, value: float) -> bool:
    try:
        config.replaced({key: value})
    except ConfigError as error:
        return "a whole number" not in str(error)
    return True


def told(settings: dict[str, Any]) -> str:
    """`optimizer.lr=0.0012 model.depth=4`."""
    shown = {key: f"{value:.4g}" if type(value) is float else str(value) for key, value in settings.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def same_command(recipe: str | os.PathLike[str], texts: Sequence[str]) -> str:
    """What two commands that join one sweep have in common: the recipe and the settings, in any order."""
    parsed([text for text in texts if ".." not in text and "," not in text])  # what is wrong is refused here
    return "\n".join([os.fspath(recipe), *sorted("".join(text.split()) for text in texts)])
