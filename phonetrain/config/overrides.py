"""Overrides: `key=value` on top of a config, and which settings give way to which."""

import copy
from collections.abc import Iterable, Mapping

from ..errors import ConfigError
from .stages import PREVIOUS, Stage, resized
from .validation import Section, hints, is_section, parse_override, shown, unknown_key

# A setting said later takes the place of its rivals from the recipe; said together with them, both are refused by the
# rules of their section.
GIVE_WAY: dict[str, tuple[str, ...]] = {
    "model.widths": ("model.archetype", "model.depth", "model.hidden", "model.narrowest", "model.factory"),
    "model.archetype": ("model.widths", "model.factory"),
    "model.depth": ("model.widths", "model.factory"),
    "model.hidden": ("model.widths", "model.factory"),
    "model.max_parameters": ("model.hidden",),
    "schedule.warmup_steps": ("schedule.warmup_epochs",),
    "schedule.warmup_epochs": ("schedule.warmup_steps",),
}


def parsed(texts: Iterable[str]) -> dict[str, object]:
    """`["optimizer.lr=1e-4", ...]` as dotted key -> value. Raises ConfigError: not key=value, or a key said twice."""
    if isinstance(texts, str):
        texts = [texts]
    changes: dict[str, object] = {}
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f'{shown(text)}: wanted every setting as a text of its own, as "epochs=5", "seed=1"')
        key, value = parse_override(text)
        if key in changes and changes[key] != value:
            raise ConfigError(f"{key}: said twice, as {shown(changes[key])} and as {shown(value)}")
        changes[key] = value
    return changes


def refuse_keywords(call: str, said: Mapping[str, object]) -> None:
    """Raises ConfigError for keywords that `call`, as `fit("default", ...)`, does not have: a notebook's `epochs=5`."""
    for name, value in said.items():
        setting = f"{name}={value if isinstance(value, str) else shown(value)}"
        instead = call.replace("...", repr(setting))
        raise ConfigError(f"{setting}: is no argument of its own; settings are texts: {instead}")


def applied(
    table: dict[str, object], changes: Mapping[str, object], root: type[Section], epoch: int | None = None
) -> dict[str, object]:
    """`table` (as `to_dict` gives it) with dotted keys set; list places are numbers, as `stage.0.epochs`.

    `epochs` of a run with stages cuts them where the run ends, or makes the last one longer; changed stages without
    `epochs` make the run as long as they are. epoch: where a run stands that is changed by hand; None: from its start.
    """
    table = copy.deepcopy(table)
    stage = table.get("stage")
    homes = {key: home(stage, key, epoch) for key in changes if stage and epoch is not None}
    if homes:
        refuse_late_carry(stage, changes, epoch)
    for key, value in changes.items():
        if value is not None and value != "none":
            give_way(table, key, value, changes, root)
    for key, value in changes.items():
        if homes.get(key) is None:
            set_key(table, key, value, root)
        if key in homes:
            set_in_stages(stage, homes[key] or 0, key, value, changes, root)
    stage = table.get("stage")
    if stage and any(key.partition(".")[0] == "stage" for key in changes):
        table.pop("epochs", None)
    if stage and type(changes.get("epochs")) is int and changes["epochs"] >= 1:
        whole = tuple(Stage.from_table(each, f"stage.{place}") for place, each in enumerate(stage))
        table["stage"] = [each.to_table() for each in resized(whole, changes["epochs"])]
        table["epochs"] = changes["epochs"]
    return table


def home(stages: list[dict[str, object]], key: str, epoch: int) -> int | None:
    """Number of the stage that the value of `key` in `epoch` is from; None: from the run itself."""
    began = [place for place in range(len(stages)) if sum(each["epochs"] for each in stages[:place]) <= epoch]
    return max((place for place in began if said_by(stages[place], key)), default=None)


def refuse_late_carry(stages: list[dict[str, object]], changes: Mapping[str, object], epoch: int) -> None:
    """Raises ConfigError for `optimizer.lr=previous` in a stage that has begun: there the rate goes on by itself."""
    begun = [number for number in range(len(stages)) if sum(each["epochs"] for each in stages[:number]) <= epoch]
    for key in ("optimizer.lr", *(f"stage.{number}.optimizer.lr" for number in begun)):
        if changes.get(key) == PREVIOUS:
            raise ConfigError(
                f'{key} = "previous": the stage has begun, and its rate goes on by itself; wanted a number'
            )


def said_by(stage: Mapping[str, object], key: str) -> str | None:
    """The key of `stage` that `key` is, or stands in: `optimizer.betas` for `optimizer.betas.0`."""
    return next((own for own in stage if own != "epochs" and (key == own or key.startswith(f"{own}."))), None)


def set_in_stages(
    stages: list[dict[str, object]],
    first: int,
    key: str,
    value: object,
    changes: Mapping[str, object],
    root: type[Section],
) -> None:
    """Set `key` in each stage from number `first` on that says it: what is said by hand is said after all of them.

    A later stage that carries over the rate of the one before goes on doing so.
    """
    for number, stage in enumerate(stages):
        if number < first or (number > first and stage.get(key) == PREVIOUS):
            continue
        for rival in rivals(key, value, stage, root) if value is not None and value != "none" else ():
            if rival not in changes:
                stage.pop(rival, None)
        own = said_by(stage, key)
        if own is not None:
            set_inside(stage, [own, *key.removeprefix(own).split(".")[1:]], key, value, root)


def give_way(table: dict, key: str, value: object, changes: Mapping[str, object], root: type[Section]) -> None:
    """Take away what the new `value` of `key` replaces, unless it is said anew in the same breath."""
    section, _, name = key.rpartition(".")
    present: object = table
    for part in section.split("."):
        if isinstance(present, list):
            present = present[int(part)] if part.isdecimal() and int(part) < len(present) else None
        else:
            present = present.get(part) if isinstance(present, dict) else None
    if not isinstance(present, dict):
        return
    for rival in rivals(key, value, [f"{section}.{each}" for each in present], root):
        if rival not in changes:
            present.pop(rival.rpartition(".")[2], None)


def rivals(key: str, value: object, present: Iterable[str], root: type[Section]) -> list[str]:
    """Settings that give way to the new `value` of `key`. present: those that are there."""
    section, _, name = key.rpartition(".")
    if key == "model.factory":
        return [each for each in present if each not in ("model.factory", "model.max_parameters")]
    if name == "name":
        readers = getattr(hints(root).get(section), "READ_BY", {})
        return [f"{section}.{each}" for each, names in readers.items() if value not in names]
    return [*GIVE_WAY.get(key, ()), *["model.narrowest"] * (key == "model.archetype" and value == "cylinder")]


def set_key(table: dict, key: str, value: object, root: type[Section]) -> None:
    first, dot, _ = key.partition(".")
    if dot and first not in table and not is_section(hints(root).get(first)):
        raise unknown_key(key, root)
    set_inside(table, key.split("."), key, value, root)


def set_inside(table: dict, path: list[str], key: str, value: object, root: type[Section]) -> None:
    place: object = table
    *path, last = path
    for part in path:
        if isinstance(place, list):
            place = list_item(place, part, key)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise unknown_key(key, root)
    if isinstance(place, list):
        list_item(place, last, key)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise unknown_key(key, root)


def list_item(items: list, place: str, key: str) -> object:
    if not place.isdecimal() or int(place) >= len(items):
        raise ConfigError(f"{key}: {place} is no place in a list of {len(items)}; wanted 0 to {len(items) - 1}")
    return items[int(place)]
