"""How settings are worded: what an annotation allows, how TOML writes it, the sentence when a value does not fit."""

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ConfigError


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


def alternatives(hint: object) -> tuple:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or is_union(hint) else (hint,)


def is_union(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Union


def literal_values(hint: object) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def described(hint: object) -> str:
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
        of = typing.get_args(hint)
        if of[-1] is Ellipsis:
            return f"a list, each {described(of[0])}"
        return f"a list of {len(of)}, each {described(of[0])}"
    if isinstance(hint, type):
        return "a table"
    return " or ".join(described(choice) for choice in alternatives(hint))


def refused(value: object, hint: object, key: str) -> ConfigError:
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


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `1,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown(value: object) -> str:
    text = toml_value(value) if isinstance(value, (str, bool, int, float, list, tuple, dict)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def toml_value(value: object) -> str:
    """One value as TOML writes it on one line. Floats keep every bit (`repr`), so that reading gives them back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's too; only DEL may stand bare in JSON and not in TOML.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
