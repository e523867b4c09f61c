"""Numbers as people read them (counts, shares, short forms, durations), commands to type, and values as JSON."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from typing import Any

UNKNOWN = "?"  # a duration that is not known yet


def clock(seconds: float | None) -> str:
    """42 -> "42 s", 65 -> "1:05", 3725 -> "1:02:05", None -> "?", and so for what is no duration."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """12345 -> "12.3 k", 2100000 -> "2.1 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def percent(share: float | None) -> str:
    """0.5 -> "50.00", None -> "–"."""
    return "–" if share is None else f"{100 * share:.2f}"


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `1,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def opening_line(error: BaseException) -> str:
    """The first line of what an error says, at most 200 characters; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


IN_NOTEBOOK = "PHONETRAIN_IN_NOTEBOOK"


def in_notebook() -> bool:
    """Whether an IPython kernel shows our output (Jupyter, Colab, Kaggle, VS Code); IPython in a terminal is none.

    A process that a kernel started for `devices` has IN_NOTEBOOK set: what it says is shown there.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None or IN_NOTEBOOK in os.environ


def command(verb: str, *words: object, **options: object) -> str:
    """What to type: `phonetrain resume runs/a-1 epochs=9`, and in a notebook the same as a Python call."""
    if in_notebook():
        named = [f"{name}={str(value)!r}" for name, value in options.items()]
        return f"phonetrain.{verb}({', '.join([*(repr(str(word)) for word in words), *named])})"
    return shell_command(verb, *words, **options)


def shell_command(verb: str, *words: object, **options: object) -> str:
    """The same for a POSIX shell, wherever this runs."""
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return shlex.join(["phonetrain", verb, *map(str, words), *named])


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON, in ASCII, of any value, as `plain` makes it; on one line where `indent` is None."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` with JSON's types only: numpy and torch scalars as numbers, paths as text, NaN and infinities named."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    return str(value)
