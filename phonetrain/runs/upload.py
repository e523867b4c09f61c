"""metrics.jsonl, replayed as one continuous curve into wandb, TensorBoard's event files or trackio.

What a tracker recorded live is one piece a segment, and abandoned steps with it; the lines of the run's life are not. A
second call adds only lines that are new; where the run has gone back since, another curve is begun. Files that
wandb writes offline hold the whole curve each time: nothing says whether those before were ever synced.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import xxhash

from phonedata.files import remove_tree

from ..config.run_config import RunConfig
from ..errors import ConfigError, PhonetrainError
from ..text import opening_line, to_json
from .directory import Run, RunName
from .tracker import Mode, begin, logged_in, named, quietly_imported, wandb_id, without_places

Target = Literal["wandb", "tensorboard", "trackio"]
Lines = Sequence[dict[str, Any]]


def upload(run: RunName = None, to: Target = "wandb") -> dict[str, Any]:
    """Send the lines of the run's life that are not there yet.

    to: "wandb" (needs a login; project, entity, name, tags and notes are the run's `tracking` settings;
    WANDB_MODE=offline writes files to sync later), "tensorboard" (event files in RUN/tensorboard) or "trackio" (a
    local database).

    Returns to, where (an address or a folder), lines (of the whole life), added, and offline (wandb's files, unsent).
    Raises RunNotFound, ConfigError for another target, PhonetrainError where it cannot be sent: nothing counts as sent
    then.
    """
    if to not in get_args(Target):
        raise ConfigError(f"to: got {to!r}, wanted one of {', '.join(get_args(Target))}")
    run = Run.open(run)
    lines = run.metrics()
    if not lines:
        raise PhonetrainError(f"{run.path}: no numbers are logged in it yet, so there is nothing to upload")
    told = run.read_json(run.tracker_path)
    known = (told.get("uploaded") or {}).get(to) or {}
    there = int(known.get("lines", 0))
    offline = to == "wandb" and wandb_mode() == "offline"
    held = known.get("offline") == offline and 0 < there <= len(lines) and known["digest"] == digest(lines[:there])
    if held and there == len(lines):
        return {"to": to, "where": known["where"], "lines": there, "added": 0, "offline": offline}
    goes_on = held and not offline
    new = lines[there:] if goes_on else lines
    curve = int(known.get("curve", 0)) + (0 if goes_on else 1)
    config = RunConfig.from_toml(run.config_path)
    try:
        where = SENDERS[to](run, config, new, curve, goes_on)
    except ImportError as error:
        raise PhonetrainError(f"{to} is not installed ({error}); pip install {to}") from None
    except PhonetrainError:
        raise
    except Exception as error:  # each library has its own errors, and many of them
        reason = opening_line(error)
        raise PhonetrainError(f"{to}: could not be written ({reason}); the same command tries again") from error
    told = run.read_json(run.tracker_path)  # a sender may have made the id
    sent = {"lines": len(lines), "digest": digest(lines), "curve": curve, "where": where, "offline": offline}
    run.write_json(run.tracker_path, told | {"uploaded": (told.get("uploaded") or {}) | {to: sent}}
                   | ({"url": where} if to == "wandb" and where.startswith("http") else {}))  # fmt: skip
    return {"to": to, "where": where, "lines": len(lines), "added": len(new), "offline": offline}


def digest(lines: Lines) -> str:
    return xxhash.xxh3_64_hexdigest(to_json(list(lines), indent=None).encode())


def wandb_mode() -> Mode:
    return "offline" if os.environ.get("WANDB_MODE", "").strip().lower() in ("offline", "dryrun") else "online"


def to_wandb(run: Run, config: RunConfig, lines: Lines, curve: int, goes_on: bool) -> str:
    mode = wandb_mode()
    if mode == "online" and not logged_in():
        raise PhonetrainError(
            "wandb: nobody is logged in; `wandb login` does that, and --to tensorboard or trackio need no account"
        )
    # What was recorded live has the id itself, and may be online.
    sent = begin(run, config.tracking, mode, f"{wandb_id(run)}-{curve}")
    try:
        sent.config.update(without_places({"config": config.to_dict(), "built": run.read_json(run.built_path)}),
                           allow_val_change=True)  # fmt: skip
        for line in lines:
            sent.log(named(line) | {"step": line.get("step", 0)})
        best = run.best()
        if best is not None:
            sent.summary.update({"best_dev_accuracy": best["dev_accuracy"], "best_epoch": best["epoch"]})
        return sent.url or str(Path(sent.dir).parent)
    finally:
        sent.finish()


def to_tensorboard(run: Run, config: RunConfig, lines: Lines, curve: int, goes_on: bool) -> str:
    folder = run.path / "tensorboard"
    if not goes_on:
        remove_tree(folder)
    writer = quietly_imported("torch.utils.tensorboard").SummaryWriter(str(folder))
    try:
        for line in lines:
            for name, value in numbers_of(line).items():
                writer.add_scalar(name, value, line.get("step", 0))
    finally:
        writer.close()
    return str(folder)


def to_trackio(run: Run, config: RunConfig, lines: Lines, curve: int, goes_on: bool) -> str:
    trackio = quietly_imported("trackio")
    name = f"{config.tracking.name or run.name}-{wandb_id(run)}-{curve}"
    with contextlib.redirect_stdout(sys.stderr):  # what it has to say is no result
        trackio.init(
            project=config.tracking.project,
            name=name,
            config=without_places({"config": config.to_dict()}),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for line in lines:
            trackio.log(numbers_of(line), step=line.get("step", 0))
        trackio.finish()
    return f"trackio project {config.tracking.project}, run {name}"


def numbers_of(line: dict[str, Any]) -> dict[str, float]:
    """The values of a line that make a curve."""
    return {name: float(value) for name, value in named(line).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)}  # fmt: skip


SENDERS: dict[str, Callable[[Run, RunConfig, Lines, int, bool], str]] = {
    "wandb": to_wandb,
    "tensorboard": to_tensorboard,
    "trackio": to_trackio,
}
