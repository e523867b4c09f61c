"""Where recipes are, and how their TOML is read and written."""

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FOLDER = Path(__file__).parents[1] / "recipes"
DEFAULT = "default"


def names() -> list[str]:
    """Names of the recipes that come with the package: the one to start with, then the others by the alphabet."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (name != DEFAULT, name))


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a recipe: the package's own for a bare name, else the path as given. Raises ConfigError."""
    text = os.fspath(name_or_path)
    if text in names():
        return FOLDER / f"{text}.toml"
    if text.endswith(".toml") or "/" in text or os.sep in text or Path(text).is_file():
        return Path(text)
    if "=" in text:
        raise ConfigError(f"{text}: an override, not a recipe; say fit default {''.join(text.split())}")
    near = difflib.get_close_matches(text, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}, or a path that ends in .toml"
    raise ConfigError(f"{text}: no such recipe; {hint}")


def summary(name_or_path: str | os.PathLike[str]) -> str:
    """The sentence that a recipe's first comment line says about it; empty where it has none."""
    first = read_text(locate(name_or_path)).split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def read_text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file; `phonetrain recipes list` shows those that exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a recipe: byte {error.start} is not UTF-8 text, wanted TOML") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}), wanted a recipe file") from None


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError: missing, unreadable, or not TOML (with line and column)."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or a whole number of more digits than Python reads
        raise ConfigError(f"{path}: not TOML: {error}") from None


def toml_text(table: Mapping[str, Any]) -> str:
    """Settings as TOML: top-level keys, then a [table] for each section, then a [[table]] for each stage."""
    sections = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("", {key: value for key, value in table.items() if key not in sections and key != "stage"})
    ]
    blocks += [(f"[{name}]\n", section) for name, section in sections.items()]
    blocks += [("[[stage]]\n", stage) for stage in table.get("stage", ())]
    lines = [(head, [f"{key} = {toml_value(value)}" for key, value in keys.items()]) for head, keys in blocks if keys]
    return "\n\n".join(head + "\n".join(pairs) for head, pairs in lines) + "\n"


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
