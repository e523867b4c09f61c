"""Overrides: `key=value` on top of a config, and which settings give way to which."""

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from .stages import PREVIOUS, Stage, flattened, resized
from .validation import Section, hints, is_section, parse_override, shown, unknown_key

# An override takes the place of its rivals in the recipe; given together with them, both are refused by the rules of
# their section.
GIVE_WAY: dict[str, tuple[str, ...]] = {
    "model.widths": ("model.archetype", "model.depth", "model.hidden", "model.narrowest", "model.factory"),
    "model.archetype": ("model.widths", "model.factory"),
    "model.depth": ("model.widths", "model.factory"),
    "model.hidden": ("model.widths", "model.factory"),
    "model.max_parameters": ("model.hidden",),
    "schedule.warmup_steps": ("schedule.warmup_epochs", "schedule.warmup_share"),
    "schedule.warmup_epochs": ("schedule.warmup_steps", "schedule.warmup_share"),
    "schedule.warmup_share": ("schedule.warmup_steps", "schedule.warmup_epochs"),
}


def parsed(texts: Iterable[str], settings: Mapping[str, object] | None = None) -> dict[str, object]:
    """`["optimizer.lr=1e-4", ...]` as dotted key -> value, and `settings`, nested or dotted, with them.

    Raises ConfigError: not key=value, or a key given twice.
    """
    given: list[tuple[str, object]] = []
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise ConfigError(f'{shown(text)}: wanted every setting as a text of its own, as "epochs=5", "seed=1"')
        given.append(parse_override(text))
    changes: dict[str, object] = {}
    for key, value in [*given, *flattened(settings or {})]:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if key in changes and changes[key] != value:
            raise ConfigError(f"{key}: said twice, as {shown(changes[key])} and as {shown(value)}")
        changes[key] = value
    return changes


def applied(
    given: Mapping[str, Any], changes: Mapping[str, Any], root: type[Section], epoch: int | None = None
) -> dict[str, Any]:
    """`given` (a table as `to_dict` returns it) with dotted keys set; list places are numbers, as `stage.0.epochs`.

    `epochs` of a run with stages cuts them where the run ends, or makes the last one longer; changed stages without
    `epochs` make the run as long as they are. epoch: where a run stands that is changed by hand; None: from its start.
    """
    table: dict[str, Any] = copy.deepcopy(dict(given))
    stages = table.get("stage") or []
    homes: dict[str, int | None] = {}
    if stages and epoch is not None:
        homes = {key: home(stages, key, epoch) for key in changes}
        refuse_late_carry(stages, changes, epoch)
    for key, value in changes.items():
        if value is not None and value != "none":
            give_way(table, key, value, changes, root)
    for key, value in changes.items():
        if homes.get(key) is None:
            set_key(table, key, value, root)
        if key in homes:
            set_in_stages(stages, homes[key] or 0, key, value, changes, root)
    shrink_time_mask(given, table, changes)
    stages, epochs = table.get("stage"), changes.get("epochs")
    if not isinstance(stages, (list, tuple)):
        return table  # the section refuses it
    if stages and any(key.partition(".")[0] == "stage" for key in changes):
        table.pop("epochs", None)
    if stages and type(epochs) is int and epochs >= 1:
        whole = tuple(Stage.from_table(stage, f"stage.{number}") for number, stage in enumerate(stages))
        table["stage"] = [stage.to_table() for stage in resized(whole, epochs)]
        table["epochs"] = epochs
    return table


def shrink_time_mask(given: Mapping[str, Any], table: dict[str, Any], changes: Mapping[str, object]) -> None:
    """A window that is made smaller takes the recipe's time mask along: it stays the same share of the window.

    Left at its length it would hide a small window whole, or be refused by it. A mask that is said is left as it is.
    """
    mask = (table.get("augment") or {}).get("time_mask")
    if not mask or "augment.time_mask" in changes:
        return
    before, after = (width(sides.get("window") or {}) for sides in (given, table))
    if before is not None and after is not None and after < before:
        table["augment"]["time_mask"] = mask * after // before


def width(window: Mapping[str, Any]) -> int | None:
    """Frames in a window; None where a side is no whole number, which is refused elsewhere."""
    left, right = window.get("left"), window.get("right")
    return left + 1 + right if type(left) is int and type(right) is int else None


def begun(stages: list[dict[str, Any]], epoch: int) -> list[int]:
    """The numbers of the stages that have begun by `epoch`."""
    return [number for number in range(len(stages)) if sum(stage["epochs"] for stage in stages[:number]) <= epoch]


def home(stages: list[dict[str, Any]], key: str, epoch: int) -> int | None:
    """Number of the stage that the value of `key` in `epoch` is from; None: from the run itself."""
    return max((number for number in begun(stages, epoch) if given_by(stages[number], key)), default=None)


def refuse_late_carry(stages: list[dict[str, Any]], changes: Mapping[str, Any], epoch: int) -> None:
    """Raises ConfigError for `optimizer.lr=previous` in a stage that has begun: there the rate goes on by itself."""
    for key in ("optimizer.lr", *(f"stage.{number}.optimizer.lr" for number in begun(stages, epoch))):
        if changes.get(key) == PREVIOUS:
            raise ConfigError(
                f'{key} = "previous": the stage has begun, and its rate goes on by itself; wanted a number'
            )


def given_by(stage: Mapping[str, object], key: str) -> str | None:
    """The key of `stage` that `key` is, or stands in: `optimizer.betas` for `optimizer.betas.0`."""
    return next((own for own in stage if own != "epochs" and (key == own or key.startswith(f"{own}."))), None)


def set_in_stages(
    stages: list[dict[str, Any]],
    first: int,
    key: str,
    value: object,
    changes: Mapping[str, object],
    root: type[Section],
) -> None:
    """Set `key` in every stage from number `first` on that has it: a change by hand comes after all that was planned.

    A later stage that carries over the rate of the one before goes on doing so.
    """
    for number, stage in enumerate(stages):
        if number < first or (number > first and stage.get(key) == PREVIOUS):
            continue
        for rival in rivals(key, value, stage, root) if value is not None and value != "none" else ():
            if rival not in changes:
                stage.pop(rival, None)
        own = given_by(stage, key)
        if own is not None:
            set_inside(stage, [own, *key.removeprefix(own).split(".")[1:]], key, value, root)


def give_way(
    table: dict[str, Any], key: str, value: object, changes: Mapping[str, object], root: type[Section]
) -> None:
    """Remove the settings that the new `value` of `key` replaces, unless they are among the `changes` themselves."""
    section, _, _ = key.rpartition(".")
    present: Any = table
    for part in section.split("."):
        if isinstance(present, list):
            present = present[int(part)] if part.isdecimal() and int(part) < len(present) else None
        else:
            present = present.get(part) if isinstance(present, dict) else None
    if not isinstance(present, dict):
        return
    for rival in rivals(key, value, [f"{section}.{name}" for name in present], root):
        if rival not in changes:
            present.pop(rival.rpartition(".")[2], None)


def rivals(key: str, value: object, present: Iterable[str], root: type[Section]) -> list[str]:
    """Settings that give way to the new `value` of `key`. present: those that are there."""
    section, _, name = key.rpartition(".")
    if key == "model.factory":
        return [other for other in present if other not in ("model.factory", "model.max_parameters")]
    if name == "name":
        readers = getattr(hints(root).get(section), "READ_BY", {})
        return [f"{section}.{field}" for field, names in readers.items() if value not in names]
    return [*GIVE_WAY.get(key, ()), *["model.narrowest"] * (key == "model.archetype" and value == "cylinder")]


def set_key(table: dict[str, Any], key: str, value: object, root: type[Section]) -> None:
    """Set a dotted key. Raises ConfigError, with the nearest known one, for a key in no section."""
    first, dot, _ = key.partition(".")
    if dot and first not in table and not is_section(hints(root).get(first)):
        raise unknown_key(key, root)
    set_inside(table, key.split("."), key, value, root)


def set_inside(table: dict[str, Any], path: list[str], key: str, value: object, root: type[Section]) -> None:
    """Set what `path` leads to in nested tables and lists, making tables that are missing. key: for messages."""
    inner: Any = table
    *path, last = path
    for part in path:
        if isinstance(inner, list):
            inner = list_item(inner, part, key)
        elif isinstance(inner, dict):
            inner = inner.setdefault(part, {})
        else:
            raise unknown_key(key, root)
    if isinstance(inner, list):
        list_item(inner, last, key)
        inner[int(last)] = value
    elif isinstance(inner, dict):
        inner[last] = value
    else:
        raise unknown_key(key, root)


def list_item(items: list[Any], index: str, key: str) -> Any:
    """`items[index]`. Raises ConfigError for what is no index of it."""
    if not index.isdecimal() or len(index) > 9 or int(index) >= len(items):
        wanted = f"wanted 0 to {len(items) - 1}" if items else "it is empty"
        raise ConfigError(f"{key}: {index} is no place in a list of {len(items)}; {wanted}")
    return items[int(index)]
