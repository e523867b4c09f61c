"""A segment: what one process trains without a break, and how its end is recorded and told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from . import advice
from .assemble import Parts, describe
from .console import Console, short
from .errors import TrainingStopped
from .history import where_scored
from .interrupts import StopRequest, noticed_signals
from .loop import Trainer
from .ranks import Ranks
from .run import Run
from .stages import plan_stages
from .tracking import Tracker, open_tracker


def train(run: Run, parts: Parts, console: Console, warnings: Sequence[str], save_first: bool, ranks: Ranks,
          began: float) -> None:
    """Run the loop under signal handlers, and record how it ended, whatever happens.

    save_first: the present state is in no checkpoint yet; with one, a process that is killed at once can be resumed.
    began: as in Trainer.
    """
    config = parts.run_config
    ranks.barrier()  # all have read what rank 0 is about to write
    settings = {"config": config.to_dict()}
    tracker = open_tracker(config.tracking, run, settings, console.say, console.warn) if ranks.is_main else Tracker()
    plan = {
        "run": str(run.path), "epochs": plan_stages(config)[-1].stop, "steps_per_epoch": parts.train.batches_per_epoch,
        "model": f"{describe(parts)['model']['parameters']:,} parameters",
        "data": f"{parts.train.num_frames:,} frames of {parts.roles.train}; scored on {parts.roles.dev} "
                f"in {parts.compute.precision}",
        "device": f"{parts.compute.reason}, {parts.compute.precision}", "loader": parts.train.reason,
    }
    with noticed_signals() as request:
        trainer = Trainer(run, parts, console, tracker, request, began)
        trainer.record_built()
        try:
            console.start(plan)
            for message in warnings:
                trainer.warn(message)
            if save_first:
                trainer.save()
            reason = trainer.train()
        except BaseException as error:
            # A disk that is full refuses this record too; what is told is the first error.
            with contextlib.suppress(TrainingStopped):
                message = " ".join(str(error).split())
                end(trainer, type(error).__name__, request, message=message, **trainer.recovery.told)
            raise
        end(trainer, reason, request)


def end(trainer: Trainer, reason: str, request: StopRequest, **fields: Any) -> None:
    """Close what is open, record the end of the segment, say what comes next. fields: more for the record."""
    trainer.parts.close()
    try:
        # Before the tracker is waited for, up to a minute in which the machine may be taken away.
        trainer.event("run_finished" if reason == "finished" else "segment_ended", reason=reason, **fields)
    finally:
        say_end(trainer, reason, request, fields.get("ways"))


def say_end(trainer: Trainer, reason: str, request: StopRequest, ways: dict[str, str] | None) -> None:
    """Tell the tracker, wait for it, and say what comes next. ways: as in `advice.after_end`."""
    run, progress, console = trainer.run, trainer.progress, trainer.console
    best = None if progress.best_score is None else float(progress.best_score)
    trainer.tracker.summary({"best_dev_accuracy": best, "best_epoch": progress.best_epoch, "ended": reason})
    trainer.tracker.finish(request.code)
    told = []
    if best is not None:
        line = run.best()
        where = f" ({where_scored(line)})" if line is not None else ""
        told.append(f"best dev frame accuracy {100 * best:.2f} %{where}")
    if trainer.saved is not None:
        step, size = trainer.saved
        told.append(f"{reason}: saved at step {step} ({short(size)}B)")
        told += [f"next: {way}" for way in advice.after_end(run, reason, best is not None, ways)]
    if told:
        console.say("\n".join(told))
