"""`phonetrain runs` and `phonetrain runs prune`."""

from __future__ import annotations

import sys
from pathlib import Path

from cyclopts import App

from ..display.tables import print_result
from ..errors import ConfigError
from .options import Flag, Json

runs = App(name="runs", help="The runs in a folder, with state, score and size; `runs prune` frees disk.")


@runs.default
def list_all(folder: Path = Path("runs"), /, *, json: Json = False) -> None:
    """The runs in a folder, a line each, the one trained last at the end.

    Parameters
    ----------
    folder
        Where they lie.
    """
    from ..reports.run_list import list_runs, list_text

    found = list_runs(folder)
    print_result(found, list_text(found, folder), json)


@runs.command
def prune(
    *names: Path, folder: Path = Path("runs"), delete: Flag = False, yes: Flag = False, json: Json = False
) -> None:
    """Delete checkpoints that are neither the best nor the last of their run.

    Parameters
    ----------
    names
        Run directories or names; default: every run in the folder.
    folder
        Where the runs lie.
    delete
        Delete the named runs whole, their best and last checkpoints and their logs too; asks before.
    yes
        Do not ask.
    """
    from ..reports.run_list import prune_runs, pruned_text
    from ..runs.directory import Run

    chosen = [Run.open(name) for name in names]
    if delete and chosen and not yes:
        ask(chosen)
    freed = prune_runs(*chosen, folder=folder, delete=delete)
    print_result(freed, pruned_text(freed), json)


def ask(chosen: list) -> None:
    """Raises ConfigError unless a person at a terminal types yes."""
    told = "\n".join(f"  {run!r}" for run in chosen)
    if not sys.stdin.isatty():
        names = " ".join(str(run.path) for run in chosen)
        raise ConfigError(f"nobody is here to be asked; `phonetrain runs prune {names} --delete --yes` deletes them")
    print(f"Delete for good, with their best checkpoints and logs:\n{told}", file=sys.stderr)
    print("Type yes to delete them: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise ConfigError("nothing was deleted")
