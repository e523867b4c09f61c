"""The numbers that sum a run up, and its scores."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from phonedata import PhonedataError

from ..checkpoints.series import best_step
from ..errors import PhonetrainError
from ..results.evaluate import evaluate, kept_evaluation
from ..runs.directory import Run
from ..runs.experiment import shown
from ..runs.history import where_scored
from ..runs.next_commands import changed_on_resume

Scores = dict[str, Any] | str  # an evaluation, or a sentence that says why there is none


def summary(run: Run) -> dict[str, Any]:
    """The numbers that sum a run up, without abandoned segments; the best epoch as scored in training."""
    epochs, train, best = run.metrics("epoch"), run.metrics("train"), run.best()
    built = run.read_json(run.built_path)
    started = next(iter(run.events("run_started")), {})
    best = best or {}
    paces = [line["frames_per_second"] for line in train if "frames_per_second" in line]
    return {
        "recipe": started.get("recipe") or "none",
        "status": run.status,
        "epochs": len(epochs),
        "best_epoch": best.get("epoch"),
        "best_in": where_scored(best) if best else None,
        "best_accuracy": best.get("dev_accuracy"),
        "best_loss": best.get("dev_loss"),
        "train_accuracy": best.get("train_accuracy"),
        "seconds": sum(line.get("seconds") or 0.0 for line in epochs),
        "frames": sum(line.get("frames") or 0 for line in epochs),
        "frames_per_second": float(np.median(paces)) if paces else None,
        "parameters": (built.get("model") or {}).get("parameters"),
        "precision": built.get("precision"),
        "partition": (built.get("scoring") or {}).get("partitions"),
    }


def best_evaluation(run: Run) -> Scores:
    """Of the best checkpoint on dev, made now where it is missing; a sentence where it cannot be made."""
    if kept := kept_evaluation(run):
        return kept
    if best_step(run) is None:
        return "No epoch has been scored yet, so there is no best checkpoint to look at."
    try:
        print(f"{run.path}: scoring its best checkpoint on dev, once, for the confusion matrix", file=sys.stderr)
        return evaluate(run)
    except (PhonetrainError, PhonedataError) as error:
        print(f"warning: it could not be scored: {error}", file=sys.stderr)
        return f"The best checkpoint could not be scored for this report: {error}"


def by_hand(run: Run) -> list[str]:
    """What was changed on resume, and at which step: the command gives the last value from the first step on."""
    return [
        f"{event['key']} was {shown(event['old'])} up to step {event['step']:,}, then {shown(event['new'])}"
        for event in changed_on_resume(run)
    ]


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{float(value):.4f}"  # a JSON file has NaN as a text
