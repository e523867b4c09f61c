"""Overrides: `key=value` on top of a config, and which settings give way to which."""

import copy
from collections.abc import Iterable, Mapping

from .errors import ConfigError
from .settings import Section, hints, is_section, parse_override, unknown_key
from .stages import Stage, resized
from .wording import shown

# A setting said later takes the place of its rivals from the recipe; said together with them, both are refused by the
# rules of their section.
GIVE_WAY: dict[str, tuple[str, ...]] = {
    "model.widths": ("model.archetype", "model.depth", "model.hidden", "model.narrowest", "model.factory"),
    "model.archetype": ("model.widths", "model.factory"),
    "model.depth": ("model.widths", "model.factory"),
    "model.hidden": ("model.max_parameters", "model.widths", "model.factory"),
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
            raise ConfigError(f"{shown(text)}: wanted every setting as a text of its own, as \"epochs=5\", \"seed=1\"")
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


def applied(table: dict[str, object], changes: Mapping[str, object], root: type[Section]) -> dict[str, object]:
    """`table` (as `to_dict` gives it) with dotted keys set; list places are numbers, as `schedule.chain.0.epochs`.

    `epochs` of a run with stages cuts them where the run ends, or makes the last one longer; changed stages without
    `epochs` make the run as long as they are.
    """
    table = copy.deepcopy(table)
    for key, value in changes.items():
        if value is not None and value != "none":
            give_way(table, key, value, changes, root)
    for key, value in changes.items():
        set_key(table, key, value, root)
    stage = table.get("stage")
    if stage and any(key.partition(".")[0] == "stage" for key in changes):
        table.pop("epochs", None)
    if stage and type(changes.get("epochs")) is int and changes["epochs"] >= 1:
        whole = tuple(Stage.from_table(each, f"stage.{place}") for place, each in enumerate(stage))
        table["stage"] = [each.to_table() for each in resized(whole, changes["epochs"])]
        table["epochs"] = changes["epochs"]
    return table


def give_way(table: dict, key: str, value: object, changes: Mapping[str, object], root: type[Section]) -> None:
    """Take away what the new `value` of `key` replaces, unless it is said anew in the same breath."""
    section, _, name = key.partition(".")
    present = table.get(section)
    if not isinstance(present, dict):
        return
    rivals = GIVE_WAY.get(key, ())
    if key == "model.archetype" and value == "cylinder":
        rivals = (*rivals, "model.narrowest")
    if key == "model.factory":
        rivals = [f"model.{each}" for each in present if each not in ("factory", "max_parameters")]
    readers = getattr(hints(root)[section], "READ_BY", {}) if section in hints(root) else {}
    if name == "name":
        rivals = [f"{section}.{each}" for each, names in readers.items() if value not in names]
        rivals += ["schedule.chain"] * (section == "schedule" and value != "chain")
    for rival in rivals:
        if rival not in changes:
            present.pop(rival.partition(".")[2], None)


def set_key(table: dict, key: str, value: object, root: type[Section]) -> None:
    place: object = table
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        if isinstance(place, list):
            place = list_item(place, part, key)
        elif isinstance(place, dict):
            if part not in place and depth == 0 and not is_section(hints(root).get(part)):
                raise unknown_key(key, root)
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
