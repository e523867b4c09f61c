"""What a person may do next: commands that work when pasted, and only what the run did not have already."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from ..config.changes import extension_question, lengthened
from ..config.run_config import RunConfig
from ..config.stages import flattened
from ..text import command
from .directory import Run


def longer(run: Run, config: RunConfig, epochs: int) -> str:
    """The command that trains a run on up to `epochs` epochs, with the answer its schedule will ask for."""
    asks = extension_question(config, lengthened(config, epochs)) is not None
    return run.resume_with(f"epochs={epochs}", *["schedule.on_extend=stretch"] * asks)


def evaluate(run: Run) -> str:
    return command("evaluate", run.path)


def after_end(run: Run, reason: str, scored: bool, ways: Mapping[str, str] | None = None) -> list[str]:
    """What comes next when a segment has ended, as commands whose explanation a shell, or Python, takes for a comment.

    scored: there is a best checkpoint. ways: as in `after_bad_numbers`, where those ended it.
    """
    done = reason in ("finished", "early_stopped")
    scoring = [f"{evaluate(run)}    # scores the best checkpoint, in fp32"] if scored else []
    if ways is not None:
        return [*(f"{run.resume_with(setting)}    # {does}" for setting, does in ways.items()), *scoring]
    limits = [f"stop.{name}=none" for name in ("max_time", "stop_at") if settings(run).get(f"stop.{name}")]
    if reason == "deadline" and limits:
        return [f"{run.resume_with(*limits)}    # goes on, without the limit", *scoring]
    return [*([] if done else [f"{run.resume_command}    # goes on where it stopped"]), *scoring]


def against_overfitting(run: Run) -> list[str]:
    """What the run did not have yet, as settings where one says it."""
    had = settings(run)
    kept = had.get("subset", 1.0)
    masked = had.get("augment.time_mask") or had.get("augment.freq_mask")
    return [
        *(["all of the data (subset=1.0)"] if kept < 1 else []),
        *([] if masked else ["masks (augment.time_mask, augment.freq_mask)"]),
        *([] if had.get("averaging.decay") else ["averaged weights (averaging.decay=0.999)"]),
        "more dropout" if had.get("model.dropout") else "dropout (model.dropout)",
        "more data" if kept >= 1 else "a smaller net",
    ]


def after_bad_numbers(run: Run, ways: Mapping[str, str], where: str) -> str:
    """What goes on where numbers went bad. ways: settings of a resume -> what they do; where: a
    NonfiniteReport's."""
    told = ", or ".join(f"`{run.resume_with(setting)}` {does}" for setting, does in ways.items())
    if where == "windows":
        return f"the net is not at fault: {told}{'; better, ' * bool(ways)}mend the features and pack them again"
    return told or (
        "no setting that a resume may change mends that: begin a new run with a norm (model.norm=batch), "
        "another model.init or a lower optimizer.lr"
    )


def settings(run: Run) -> dict[str, Any]:
    """Dotted key -> value of config.toml; what is none is left out."""
    with open(run.config_path, "rb") as file:
        return dict(flattened(tomllib.load(file)))
