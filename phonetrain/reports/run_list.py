"""The runs of a folder: a table of them with state, score and size; and which of their files may go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phonedata.files import walk

from ..checkpoints import series
from ..config.run_config import RunConfig
from ..display.tables import text_table
from ..errors import ConfigError, PhonetrainError, TrainingStopped
from ..runs.directory import RUNS, Run, RunName, runs_in
from ..text import counted, percent, short


class RunList(list[dict[str, Any]]):
    """What `list_runs` returns: a list of dicts that a notebook shows as the command line does."""

    def __repr__(self) -> str:
        return list_text(self)


def list_runs(folder: str | os.PathLike[str] = RUNS) -> RunList:
    """The runs in `folder`, the one trained last at the end.

    Each as run, recipe, state (a `Run.status`, where none is recorded "running" or "killed"), epochs (done), of
    (wanted; None where its config cannot be read), best (dev frame accuracy, None before the first score), bytes,
    spare_bytes (of checkpoints that `prune_runs` would delete) and trained (UTC, of its last event).
    """
    return RunList(sorted((described(run) for run in runs_in(folder)), key=lambda row: (row["trained"], row["run"])))


def described(run: Run) -> dict[str, Any]:
    state, best = run.status, run.best()
    if state == "running" and not run.is_held():
        state = "killed"
    wanted = None
    try:
        wanted = RunConfig.from_toml(run.config_path).epochs
    except ConfigError:
        pass  # of another version, or damaged: the run is still there, and takes its room
    events = run.events()
    return {
        "run": str(run.path),
        "recipe": next((event.get("recipe") for event in events if event["event"] == "run_started"), None),
        "state": state,
        "epochs": len(run.metrics("epoch")),
        "of": wanted,
        "best": None if best is None else best.get("dev_accuracy"),
        "bytes": bytes_in(run.path),
        "spare_bytes": sum(bytes_in(run.checkpoint_dir(step)) for step in series.spare_steps(run, 1, *spared(run))),
        "trained": max((str(event["time"]) for event in events if "time" in event), default=""),
    }


def spared(run: Run) -> tuple[int | None, ...]:
    """Steps that `resume` and `evaluate` need, whatever the files `last` and `best` say."""
    return (*series.life(run)[0][:1], series.best_step(run))


def bytes_in(folder: Path) -> int:
    """Of all files below `folder`; one that goes away meanwhile counts nothing."""
    total = 0
    for where, _, names in walk(folder, closed=lambda path: None):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total


def list_text(rows: Sequence[dict[str, Any]], folder: str | os.PathLike[str] = RUNS) -> str:
    """The table for people."""
    if not rows:
        return f"no runs in {folder}{os.sep}; `phonetrain fit` makes one"
    header = ("run", "recipe", "state", "epochs", "best dev %", "size", "last trained (UTC)")
    lines = text_table(
        header,
        [
            (row["run"], str(row["recipe"] or "-"), row["state"], f"{row['epochs']}/{row['of'] or '?'}",
             percent(row["best"]), f"{short(row['bytes'])}B", row["trained"][:16].replace("T", " "))
            for row in rows
        ],
        left=3,
    )  # fmt: skip
    spare = sum(row["spare_bytes"] for row in rows)
    total = f"{counted(len(rows), 'run')}, {short(sum(row['bytes'] for row in rows))}B"
    more = f"; `phonetrain runs prune` frees {short(spare)}B" if spare else ""
    return "\n".join([*lines, f"{total}{more}"])


def prune_runs(*runs: RunName, folder: str | os.PathLike[str] = RUNS, delete: bool = False) -> list[dict[str, Any]]:
    """Free disk; returns for each run what was freed: run, bytes, and skipped, a sentence where it was left alone.

    Of every run the checkpoints go that are neither the last nor the best nor kept by a pointer file (the best of
    before a branch, the one of before bad numbers). delete: the runs themselves go, best checkpoints and logs included;
    then `runs` must name them. A run that a process is training is left alone.

    runs: directories or names; none: all in `folder`. Raises RunNotFound before anything is deleted, ConfigError for
    `delete` without a run.
    """
    if delete and not runs:
        raise ConfigError("runs prune --delete deletes whole runs, so it wants their names: none was given")
    chosen = [Run.open(run) for run in runs] or runs_in(folder)
    return [pruned(run, delete) for run in chosen]


def pruned(run: Run, delete: bool) -> dict[str, Any]:
    before, freed = bytes_in(run.path), 0
    try:
        with run.lock():
            if delete:
                shutil.rmtree(run.path)
            else:
                series.prune(run, 1, *spared(run))
            freed = before - bytes_in(run.path)
    except TrainingStopped as error:  # held
        return {"run": str(run.path), "bytes": 0, "skipped": str(error)}
    except OSError as error:
        raise PhonetrainError(f"{run.path}: could not be deleted ({error.strerror or error})") from None
    return {"run": str(run.path), "bytes": freed, "skipped": None}


def pruned_text(rows: Sequence[dict[str, Any]]) -> str:
    """What `prune_runs` returned, for people."""
    lines = [
        f"{row['run']}: left alone: {row['skipped']}" if row["skipped"] else f"{row['run']}: {short(row['bytes'])}B"
        for row in rows
        if row["bytes"] or row["skipped"]
    ]
    return "\n".join([*lines, f"freed {short(sum(row['bytes'] for row in rows))}B"])
