"""What a run may be resumed with: which checkpoint, which changes, which corpus and machine; and putting it back."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch

from . import checkpoint
from .assemble import Parts
from .config import RunConfig, diff
from .device import Compute, describe_machine
from .errors import CheckpointError, ConfigError
from .run import Run
from .schedule import extension_question, refuse_silent_extension
from .stages import plan_stages
from .state import Progress

# Changing these changes which frames come next, so they may change only where an epoch begins.
ORDER_KEYS = ("subset", "batch_size", "optimizer.accumulation", "loader.order")
# These make another experiment: a checkpoint cannot go on under another value.
FIXED_KEYS = ("seed", "window.", "model.", "optimizer.name", "optimizer.decay_all", "data.train", "data.dev", "stage")


def find_checkpoint(run: Run, wanted: str | int | None) -> tuple[checkpoint.Checkpoint, list[str]]:
    """The checkpoint to go on from, and sentences about newer ones that are damaged and events that are lost.

    Raises CheckpointError.
    """
    lost = [] if run.events_path.is_file() else [f"{run.events_path} is missing: what the run did before is not told"]
    if wanted is None:
        saved, problems = checkpoint.read_newest(run)
        return saved, [*lost, *problems]
    name = str(wanted).removeprefix("step-")
    steps = checkpoint.saved_steps(run)
    if not name.isdigit() or int(name) not in steps:
        raise CheckpointError(f"{run.path}: no checkpoint {wanted!r}; there are "
                              f"{', '.join(f'step-{step}' for step in steps) or 'none'}")
    return checkpoint.read(run.checkpoint_dir(int(name))), lost


def changes_by_hand(old: RunConfig, new: RunConfig, epoch: int) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of what differs, as it takes effect where the run stands; where the corpus lies is no setting.

    epoch: in which the present stage began. A setting of the present stage goes by its own key, those of other stages
    by the stage's, as `stage.2.optimizer.lr`.
    """
    said = [change for change in diff(old, new) if change[0] != "data.corpus"]
    if len(old.stage) != len(new.stage) or not old.stage:
        return said
    number, before, after = next((number, *both) for number, both in reversed(list(enumerate(zip(
        plan_stages(old), plan_stages(new))))) if both[0].start <= epoch)
    here = [change for change in diff(before.config, after.config) if change[0] not in ("epochs", "data.corpus")]
    shown = {key for key, _, _ in here}
    begun = {f"stage.{place}.{key}" for place in range(number + 1) for key in shown}
    return [change for change in said if change[0] not in shown | begun] + here


def check_changes(run: Run, changes: Sequence[tuple[str, Any, Any]], old: RunConfig, new: RunConfig,
                  progress: Progress) -> None:
    """Refuse a change that would make another experiment, or that cannot take effect in the middle of an epoch."""
    over = [f"stage.{place}." for place, plan in enumerate(plan_stages(old)) if plan.stop <= progress.epoch]
    for key, before, after in changes:
        fixed = (*over, *(name for name in FIXED_KEYS if name.endswith(".")))
        if key == "model.factory" and before and after and before.rpartition(":")[2] == after.rpartition(":")[2]:
            continue  # the same function, found at another place; whether its text is the same is said
        if key.startswith(fixed) or key in FIXED_KEYS or re.fullmatch(r"stage\.\d+\.epochs", key):
            raise ConfigError(f"{key}: {before} -> {after} would be another experiment; start one: phonetrain fit")
        if key in ORDER_KEYS and progress.batch:
            ends = [event["step"] for event in run.events("checkpoint_saved") if event["batch"] == 0
                    and event["step"] <= progress.step and run.checkpoint_dir(event["step"]).is_dir()]
            again = f"; or go back to the last epoch's end: --from step-{max(ends)}" if ends else ""
            raise ConfigError(f"{key}: {before} -> {after} changes which frames come next, and the run stands inside "
                              f"epoch {progress.epoch + 1} (batch {progress.batch}); resume without it until the epoch "
                              f"ends{again}")
    refuse_silent_extension(old, new)


def told_change(key: str, before: Any, after: Any, old: RunConfig, new: RunConfig) -> str:
    """One change for people; where an answer given earlier decides what it does, that answer too."""
    told = f"changed: {key} {'none' if before is None else before} -> {'none' if after is None else after}"
    if key == "epochs" and extension_question(old, new.replaced({"schedule.on_extend": None})) is not None:
        answer = new.schedule.on_extend
        does = "is laid out anew, to the new end" if answer == "stretch" else "stays, and its last rate is held"
        told += f" (its schedule {does}: schedule.on_extend={answer})"
    return told


def check_identity(saved: checkpoint.Checkpoint, now: dict[str, Any], run: Run) -> None:
    """Refuse to go on with another corpus, window or phoneme set than the checkpoint was trained with."""
    for name, value in now.items():
        before = saved.identity.get(name)
        if before != value:
            raise CheckpointError(f"{run.path}: {name} is {value}, but the run was trained with {before}; it goes on "
                                  "with the same corpus only (`--corpus DIR`); `phonetrain fit` starts a new run")


def restore_machine(before: dict[str, Any], compute: Compute) -> list[str]:
    """Set the recorded number of threads; returns a sentence for what differs so that equality cannot be promised.

    Threads stay as they are on a machine that differs in other ways too, or has not so many cores: there is no equality
    to be had by them, and more threads than cores wait for each other.
    """
    def differing() -> dict[str, Any]:
        return {name: value for name, value in describe_machine(compute).items() if before.get(name) != value}

    if set(differing()) == {"threads"} and 0 < (before.get("threads") or 0) <= (os.cpu_count() or 1):
        torch.set_num_threads(before["threads"])
    told = [f"{name} {before.get(name)} -> {value}" for name, value in differing().items()]
    if not told:
        return []
    ranks = "; the order of the frames stays, dropout differs with the number of ranks" * ("ranks" in differing())
    return [f"this machine is not the one before ({', '.join(told)}): training goes on, but bit for bit equality "
            f"with an uninterrupted run is not promised{ranks}"]


def restore_parts(parts: Parts, saved: checkpoint.Checkpoint, changes: Sequence[tuple[str, Any, Any]]) -> None:
    """Load a checkpoint into fresh parts; changes: (key, old, new) of what was changed by hand since it was saved.

    A rate set by hand is the rate that is trained with: what rollbacks had multiplied it by is over.
    """
    built = parts.state.optimizer.state_dict()["param_groups"]
    checkpoint.restore(parts.state, saved)
    if changes:
        # The saved groups carry the settings of then (decay, betas); the configuration says what they are now.
        state = parts.state.optimizer.state_dict()
        parts.state.optimizer.load_state_dict({**state, "param_groups": built})
        before = {key: old for key, old, _ in changes}
        if parts.state.schedule.changed_by_hand(parts.state.progress.epoch, before):
            parts.state.progress.rate_scale, parts.state.progress.rollbacks = 1.0, 0
