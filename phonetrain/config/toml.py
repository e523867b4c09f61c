"""Where recipes are, and how their TOML is read and written."""

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phonedata.files import is_file, named, read_file

from ..errors import ConfigError

FOLDER = Path(__file__).parents[1] / "recipes"
DEFAULT = "default"
LONGEST = 1024  # characters of a recipe's name or path
DEEPEST = 12  # levels of tables and lists; the deepest setting has 4


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package: the one to start with, then the others by the alphabet."""
    return sorted((path.stem for path in named(FOLDER, "*.toml")), key=lambda name: (name != DEFAULT, name))


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a recipe: the package's own for a bare name, else the path as given. Raises ConfigError."""
    text, names = os.fspath(name_or_path), recipe_names()
    if text in names:
        return FOLDER / f"{text}.toml"
    # is_file answers False for what can be no name, as one that is too long.
    if is_file(text) or (len(text) < LONGEST and (text.endswith(".toml") or "/" in text or os.sep in text)):
        return Path(text)
    if len(text) >= LONGEST:
        raise ConfigError(f"{text[:40]}...: {len(text):,} characters, too long for a recipe's name or path")
    if "=" in text:
        raise ConfigError(f"{text}: an override, not a recipe; say fit default {''.join(text.split())}")
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}, or a path that ends in .toml"
    raise ConfigError(f"{text}: no such recipe; {hint}")


def summary(name_or_path: str | os.PathLike[str]) -> str:
    """The sentence that a recipe's first comment line says about it; empty where it has none."""
    first = read_text(locate(name_or_path)).split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def read_text(path: str | os.PathLike[str]) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
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
        table = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or a whole number of more digits than Python reads
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        table = None
    if table is None or is_too_deep(table):
        raise ConfigError(f"{path}: nested deeper than any setting is (over {DEEPEST} levels)")
    return table


def is_too_deep(value: object) -> bool:
    """Whether tables and lists stand in each other deeper than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inside = [each for each in level if isinstance(each, (dict, list))]
        level = [item for each in inside for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


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
