"""The strict validator: TOML tables and `key=value` overrides become frozen dataclasses, or a one-sentence error.

A section of settings is a frozen dataclass that inherits `Section`; its annotations are the rules. Whatever way a
value comes in (a recipe, an override, Python), it passes `checked`: nothing is rounded, cast or guessed, with two
exact exceptions: a whole number is accepted where a float is wanted, and a list becomes a tuple.
"""

import ast
import difflib
import functools
import inspect
import math
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, TypeVar

from ..errors import ConfigError
from .toml import DEEPEST, is_too_deep, toml_value

S = TypeVar("S", bound="Section")
F = TypeVar("F", bound=typing.Callable[..., Any])


def once(function: F) -> F:
    """functools.cache, typed so that checkers let it take classes."""
    return typing.cast("F", functools.cache(function))


@dataclass(frozen=True)
class Section:
    """Base of every settings dataclass: checks each field by its annotation, then `check` for rules between fields."""

    section: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = checked(getattr(self, name), hint, joined(self.section, name))
            object.__setattr__(self, name, value)
        for name, reason in self.unread().items():
            if getattr(self, name) != defaults(type(self))[name]:
                raise ConfigError(f"{joined(self.section, name)} = {shown(getattr(self, name))}: {reason}")
        self.check()

    def check(self) -> None:
        """Rules between fields; raises ConfigError."""

    def unread(self) -> dict[str, str]:
        """Fields that nothing would read, with the reason: they must keep their default and are left out of TOML."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, lists and values as TOML has them; none and unread fields are left out."""
        unread = self.unread()
        values = {name: getattr(self, name) for name in hints(type(self)) if name not in unread}
        return {name: plain(value) for name, value in values.items() if value is not None and value != ()}


def plain(value: Any) -> Any:
    """A setting's value as TOML has it: tables, lists, numbers, texts."""
    if isinstance(value, Section):
        return value.to_dict()
    if hasattr(value, "to_table"):
        return value.to_table()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@once
def hints(section: Any) -> dict[str, Any]:
    """Field name -> annotation of a settings dataclass, in the order of the file."""
    resolved = typing.get_type_hints(section, include_extras=True)
    return {field.name: resolved[field.name] for field in fields(section)}


@once
def defaults(section: Any) -> dict[str, Any]:
    """Field name -> default of every field that has a plain one."""
    return {field.name: field.default for field in fields(section) if field.default is not MISSING}


@once
def sentences(section: Any) -> dict[str, str]:
    """Field name -> the sentence written under it in the source."""
    found: dict[str, str] = {}
    for base in reversed([cls for cls in section.__mro__ if issubclass(cls, Section) and cls is not Section]):
        body = [inner for outer in ast.parse(inspect.getsource(base)).body for inner in getattr(outer, "body", ())]
        for field, text in zip(body, body[1:]):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(sentence))):
                    found[name] = " ".join(sentence.split())
    return found


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def joined(where: str, name: str | int) -> str:
    return f"{where}.{name}" if where else str(name)


def checked(value: Any, hint: Any, key: str) -> Any:
    """`value` if the annotation `hint` allows it, else ConfigError naming `key`, the value and what is allowed."""
    if is_section(hint):
        return value if type(value) is hint else parse(hint, value, key)
    if isinstance(hint, type) and hasattr(hint, "from_table"):
        return value if type(value) is hint else hint.from_table(value, key)
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise refused(value, hint, key)
        items = (items[0],) * len(value) if items[-1] is Ellipsis else items
        return tuple(checked(*pair, joined(key, index)) for index, pair in enumerate(zip(value, items)))
    choices = alternatives(hint)
    if len(choices) > 1:
        if type(None) in choices and (value is None or value == "none"):
            return None
        rest = [choice for choice in choices if choice is not type(None)]
        if len(rest) == 1:
            return checked(value, rest[0], key)
        for choice in rest:
            try:
                return checked(value, choice, key)
            except ConfigError:
                continue
        raise refused(value, hint, key)
    return checked_scalar(value, hint, key)


def checked_scalar(value: Any, hint: Any, key: str) -> Any:
    base, *rules = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if typing.get_origin(hint) is typing.Literal:
        fits = any(value == allowed and type(value) is type(allowed) for allowed in typing.get_args(hint))
    elif base is float:
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max  # not nan, not a whole number beyond
    else:
        fits = type(value) is base
    if not fits or any(value not in rule for rule in rules):
        raise refused(value, hint, key)
    return float(value) if base is float else value


def parse(section: type[S], table: object, where: str = "") -> S:
    """`table` (a mapping as TOML gives it) as an instance of `section`; `where` is the dotted key it stands at.

    Raises ConfigError: an unknown key (with the nearest known one), a wrong type, a value out of range, a missing
    key, a rule between fields that is broken.
    """
    if not isinstance(table, Mapping):
        example = next(iter(hints(section)))
        raise ConfigError(f"{where} = {shown(table)}: {where} is a section; set one of its keys, as {where}.{example}")
    values = {}
    for name, value in table.items():
        if name not in hints(section):
            raise unknown_key(joined(where, name), section, where)
        if is_section(hints(section)[name]) and isinstance(value, Mapping):
            # Looked at from here, where the keys of the other sections are known too.
            for inner in value:
                if inner not in hints(hints(section)[name]):
                    raise unknown_key(joined(joined(where, name), inner), section, where)
        values[name] = checked(value, hints(section)[name], joined(where, name))
    missing = [field.name for field in fields(section) if required(field) and field.name not in values]
    if missing:
        name = missing[0]
        raise ConfigError(f"{joined(where, name)} is missing: wanted {described(hints(section)[name])}")
    return section(**values)


def required(field: "Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def known_keys(section: Any, where: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, section class, field name) of every setting below `section`."""
    for name, hint in hints(section).items():
        key = joined(where, name)
        if is_section(hint):
            yield from known_keys(hint, key)
        else:
            yield key, section, name


SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "decay": "optimizer.weight_decay",
    "context": "window.left",
    "scheduler": "schedule.name",
    "layers": "model.depth",
    "width": "model.hidden",
    "ema": "averaging.decay",
    "smoothing": "loss.label_smoothing",
    "amp": "precision",
    "batch": "batch_size",
}


def unknown_key(key: str, section: Any, where: str = "") -> ConfigError:
    """The error for a key that is no setting of `section` (which stands at `where`): it names the nearest one."""
    known = [joined(where, name) for name, _, _ in known_keys(section)]
    parts = [joined(where, name) for name, hint in hints(section).items() if is_section(hint)]
    last = key.rsplit(".", 1)[-1]
    near = [name for name in known if name == SYNONYMS.get(key)]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = near or sorted(same_name, key=lambda name: difflib.SequenceMatcher(None, name, key).ratio(), reverse=True)
    near = near or [name for name in known if name == SYNONYMS.get(last)]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or difflib.get_close_matches(key, parts, n=1)
    if not near:
        by_last = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [by_last[name] for name in difflib.get_close_matches(last, list(by_last), n=1)]
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    sections = [f"{part}.*" for part in parts if part.rpartition(".")[0] == key.rpartition(".")[0]]
    top = list(dict.fromkeys(name.partition(".")[0] for name in known))
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings + sections or top)}"
    return ConfigError(f"{key}: unknown setting; {hint}")


def parse_override(text: str) -> tuple[str, object]:
    """`"optimizer.lr=1e-4"` -> `("optimizer.lr", 1e-4)`: the value is read as TOML, and is text if it is not TOML."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not all(part.replace("-", "_").isidentifier() or part.isdecimal() for part in key.split(".")):
        raise ConfigError(f"{shown(text)}: wanted key=value, as optimizer.lr=1e-4")
    try:
        table = tomllib.loads(f"value = {value}")
    except ValueError:  # not TOML, or a whole number of more digits than Python reads
        return key, value
    except RecursionError:
        table = None
    if table is None or is_too_deep(table):
        raise ConfigError(f"{key}: its value is nested deeper than any setting is (over {DEEPEST} levels)")
    plain = isinstance(table["value"], (bool, int, float, str, list, dict)) and len(table) == 1
    # A date or a time (stop.stop_at=23:30:00) has no type of its own among the settings: it stays the text it was.
    return key, table["value"] if plain else value


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, ends included unless said otherwise; goes into an `Annotated` type."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        over = number > self.low if self.above else number >= self.low
        under = self.high is None or (number < self.high if self.below else number <= self.high)
        return over and under

    def __str__(self) -> str:
        text = f"{'above' if self.above else 'at least'} {self.low:,}"
        if self.high is not None:
            text += f" and {'below' if self.below else 'at most'} {self.high:,}"
        return text


@dataclass(frozen=True)
class Text:
    """Text that `accepts` takes (it returns or raises ValueError); `wanted` says in words what that is."""

    wanted: str
    accepts: typing.Callable[[str], object]

    def __contains__(self, text: str) -> bool:
        try:
            self.accepts(text)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return self.wanted


def alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def literal_values(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def described(hint: Any) -> str:
    """What an annotation allows, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(toml_value(allowed) for allowed in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Annotated:
        base, *rules = typing.get_args(hint)
        if base is str:
            return ", ".join(map(str, rules))
        return ", ".join([described(base), *map(str, rules)])
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        count = "" if items[-1] is Ellipsis else f" of {len(items)}"
        return f"a list{count}, each {described(items[0])}"
    if isinstance(hint, type):
        return "a table"
    return " or ".join(described(choice) for choice in alternatives(hint))


def refused(value: object, hint: Any, key: str) -> ConfigError:
    """The error for a value that `hint` does not allow: what is wanted and, where one is near, what was meant."""
    message = f"{key} = {shown(value)}: wanted {described(hint)}"
    if isinstance(value, str):
        allowed = [name for choice in alternatives(hint) for name in literal_values(choice) if isinstance(name, str)]
        near = difflib.get_close_matches(value.lower(), allowed, n=1)
        takes_text = any(choice is str or str in typing.get_args(choice)[:1] for choice in alternatives(hint))
        spelled = None if takes_text else number_in_toml(value)
        if near:
            message += f"; did you mean {toml_value(near[0])}?"
        elif spelled is not None:
            message += f"; in TOML it is written {spelled}"
    elif type(value) is float and value.is_integer() and "a whole number" in described(hint):
        message += f"; that is {int(value):_}"
    return ConfigError(message)


def number_in_toml(text: str) -> str | None:
    """How TOML writes what `text` means to Python: `.3` is 0.3 and `True` is true."""
    if text.lower() in ("true", "false"):
        return text.lower()
    try:
        number = float(text)
    except ValueError:
        return None
    return toml_value(int(number) if text.lstrip("+-").isdecimal() else number) if math.isfinite(number) else None


def shown(value: object) -> str:
    text = toml_value(value) if isinstance(value, (str, bool, int, float, list, tuple, dict)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
