"""`phonetrain settings [NAME]`: every setting of a run with its type, its default and its sentence."""

from __future__ import annotations

import difflib
from typing import Any

from ..config.run_config import RunConfig
from ..config.toml import toml_value
from ..config.validation import defaults, described, hints, known_keys, sentences
from ..errors import ConfigError


def settings(name: str | None = None) -> list[dict[str, Any]]:
    """All settings in their order, each as a dict: key, type and sentence (texts), default as TOML has it or None.

    name: only this section or this setting, as `optimizer` or `optimizer.lr`; `run` means those that stand in no
    section. Raises ConfigError, with the nearest name, where there is neither.
    """
    table: list[dict[str, Any]] = [
        {
            "key": key,
            "type": described(hints(section)[field]),
            "default": defaults(section).get(field),
            "sentence": sentences(section)[field],
        }
        for key, section, field in known_keys(RunConfig)
    ]
    if name is None:
        return table
    chosen = [row for row in table if name in (row["key"], section_of(row["key"]))]
    if not chosen:
        known = [*{section_of(row["key"]): None for row in table}, *(row["key"] for row in table)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"sections are {', '.join(k for k in known if '.' not in k)}"
        raise ConfigError(f"{name}: no section and no setting; {hint}")
    return chosen


def section_of(key: str) -> str:
    return key.rpartition(".")[0] or "run"


def default_text(row: dict[str, Any]) -> str:
    return "none" if row["default"] is None else toml_value(row["default"])


def settings_text(table: list[dict[str, Any]]) -> str:
    """The settings for a terminal: three lines each."""
    return "\n".join(f"{row['key']} = {default_text(row)}\n    {row['type']}\n    {row['sentence']}" for row in table)


def settings_page(table: list[dict[str, Any]]) -> str:
    """The settings as docs/SETTINGS.md: a table for each section."""
    lines = [
        "# Settings",
        "",
        "Every setting of a run. A recipe sets them in TOML (`[optimizer]`, `lr = 1e-3`), a command or a notebook as",
        "texts (`optimizer.lr=1e-3`). What neither says has the default of this page; `phonetrain fit --dry-run` shows",
        "what a run would have, and `phonetrain settings optimizer` prints one section.",
        "",
        "This page is made by `python tools/settings_page.py` from the sections of `phonetrain/config/`.",
    ]
    last = None
    for row in table:
        if (section := section_of(row["key"])) != last:
            last = section
            lines += ["", f"## {section}", "", "| setting | default | type | |", "|---|---|---|---|"]
        cells = (f"`{row['key']}`", f"`{default_text(row)}`", row["type"], row["sentence"])
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
