"""The checkpoints of a run: which there are, which belong to its life, which are kept, which one it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from phonedata.files import is_folder, named, remove_tree

from ..errors import CheckpointError
from ..runs.directory import Run
from ..text import command
from . import checkpoint
from .checkpoint import Checkpoint
from .state import Progress, TrainState


def save(run: Run, state: TrainState, identity: dict[str, Any], keep: int) -> tuple[Path, int]:
    """Write checkpoints/step-N, let `last` point to it, drop all but the newest `keep` and the best.

    identity, what is returned and raised: as `checkpoint.write` has it. A ReadOnlyRun saves nothing.
    """
    step = state.progress.step
    if not run.writes:
        return run.checkpoint_dir(step), 0
    path, size = checkpoint.write(run, state, identity)
    run.write_pointer("last", step)
    prune(run, keep, state.progress.best_step)
    return path, size


def saved_steps(run: Run) -> list[int]:
    """Steps that have a checkpoint directory, ascending; whether it is whole is known only when it is read."""
    names = [path.name.removeprefix("step-") for path in named(run.checkpoints, "step-*") if is_folder(path)]
    return sorted(int(name) for name in names if name.isdigit())


def life(run: Run) -> tuple[list[int], list[int]]:
    """Steps of the checkpoints that belong to the run's life, the newest first, and of those that were left aside.

    From the checkpoints' own state and the events, and not from the file `last`: the disk may have refused that alone.
    A checkpoint whose state cannot be read may be of the life; who reads it says what is wrong with it.
    """
    spans = run.lineage()
    newest = spans[-1].segment if spans else 0
    inside: list[int] = []
    aside: list[int] = []
    for step in saved_steps(run)[::-1]:
        state = checkpoint.known_state(run.checkpoint_dir(step))
        segment = None if state is None else state["progress"].get("segment")
        known = [span for span in spans if segment in (None, span.segment)]
        lived = not spans or any(span.holds(step) for span in known) or (segment is not None and segment > newest)
        (inside if lived else aside).append(step)
    return inside, aside


def best_step(run: Run) -> int | None:
    """The step of the best checkpoint so far, as the newest checkpoint of the run's life knows it; None before one."""
    return best_known(run)[0]


def best_known(run: Run) -> tuple[int | None, list[str]]:
    """`best_step`, and a sentence for each newer checkpoint that cannot be read."""
    problems = []
    for step in life(run)[0]:
        try:
            best: int | None = checkpoint.readable_state(run.checkpoint_dir(step))["progress"].get("best_step")
        except CheckpointError as error:
            problems.append(f"{error}; an older checkpoint says which is the best")
            continue
        return best, problems
    return None, problems


def prune(run: Run, keep: int, *spared: int | None) -> None:
    """Delete all checkpoints but the newest `keep`, those `spared` and named by a pointer file; and what is half-made.

    Newest is what was saved last: steps above the present one were left aside by a branch or a rollback.
    """
    for step in spare_steps(run, keep, *spared):
        remove_tree(run.checkpoint_dir(step))
    run.put_back()
    for leftover in (*named(run.checkpoints, ".step-*.partial"), *named(run.checkpoints, ".step-*.old")):
        remove_tree(leftover)


def spare_steps(run: Run, keep: int, *spared: int | None) -> list[int]:
    """Steps of the checkpoints that `prune` deletes with the same arguments."""
    named, saved = pointers(run), saved_steps(run)
    last, pointed = named.get("last"), {*spared, *named.values()}
    steps = [step for step in saved if step not in pointed]
    if last is not None and last in saved:
        steps.sort(key=lambda step: (step <= last, step))
        keep -= 1  # `last` itself is one of them
    return steps[: max(0, len(steps) - max(0, keep))]


def pointers(run: Run) -> dict[str, int]:
    """Pointer files by name with the steps that they name: last, best, best-before-segment-K after a branch, and
    before_nonfinite, to go back to after numbers that went bad."""
    left = [path.name for path in named(run.checkpoints, "best-before-segment-*")]
    names = ["last", "best", "before_nonfinite", *left]
    return {name: step for name in names if (step := pointed_to(run, name)[0]) is not None}


def pointed_to(run: Run, name: str) -> tuple[int | None, list[str]]:
    """The step that a pointer file names, None where it is missing or damaged, and a sentence where it is damaged."""
    try:
        return run.read_pointer(name), []
    except CheckpointError as error:
        return None, [f"{str(error).partition(';')[0]}; it is written anew"]


def mend_best(run: Run, progress: Progress) -> list[str]:
    """Let `best` name the best checkpoint of the life that `progress` stands in; returns sentences on what was wrong.

    It names another after a branch (the best was left aside: `best-before-segment-K` keeps it), and after a kill
    between a checkpoint and its pointer. Where the best as of then is pruned, the next epoch's score is the best.
    """
    pointed, problems = pointed_to(run, "best")
    if progress.best_step is not None and not is_folder(run.checkpoint_dir(progress.best_step)):
        epoch, score = (progress.best_epoch or 0) + 1, 100 * (progress.best_score or 0.0)
        problems.append(
            f"the best checkpoint so far, step-{progress.best_step} of epoch {epoch} with {score:.2f} %, is not there "
            "any more: the best is sought anew from here on"
        )
        progress.best_score = progress.best_epoch = progress.best_step = None
    if pointed is not None and pointed != progress.best_step and pointed > progress.step:
        run.write_pointer(f"best-before-segment-{progress.segment}", pointed)
    if progress.best_step is None:
        run.drop_pointer("best")
    elif pointed != progress.best_step:
        run.write_pointer("best", progress.best_step)
    return problems


def read_newest(run: Run) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint and, for each newer one passed over, a sentence that says why.

    Newest is the newest of the run's life. Raises CheckpointError where there is none at all.
    """
    last, problems = pointed_to(run, "last")
    if last is not None and last not in saved_steps(run):
        problems.append(f"{run.checkpoint_dir(last)}, the newest checkpoint, is missing; an older one is used")
    saved, damaged = newest_whole(run)
    problems += damaged
    if saved is not None:
        return saved, problems
    gone = "they are gone" if run.has_trained else "it stopped before the first one was saved"
    again = f"`{command('fit')}` starts a new run" if run.has_trained else run.goes_on()
    raise CheckpointError(f"{run.path}: no whole checkpoint to resume from: {'; '.join(problems) or gone}; {again}")


def newest_whole(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of the run's life, else the oldest of those left aside; and as `first_whole`."""
    inside, aside = life(run)
    return first_whole(run, [*inside, *aside[::-1]])


def read_before(
    run: Run, step: int, tried: int | None, stage: int, device: torch.device | str = "cpu"
) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of before `step`, None where there is none, and sentences as `read_newest` has them.

    tried: the step that was gone back to already, which comes after older ones of the same `stage` (its first epoch):
    to begin a stage again would undo what the rollbacks in it did. Those that were left aside are not gone back to.
    """
    steps = [old for old in life(run)[0] if old < step]
    if steps[:1] == [tried]:
        states = {old: checkpoint.known_state(run.checkpoint_dir(old)) for old in steps[1:]}
        older = [old for old, state in states.items() if state is not None and state["identity"]["stage"] == stage]
        steps = older + [old for old in steps if old not in older]
    return first_whole(run, steps, device)


def first_whole(
    run: Run, steps: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Checkpoint | None, list[str]]:
    """The first of these checkpoints that can be read, and a sentence for each before it."""
    problems: list[str] = []
    for step in steps:
        try:
            return checkpoint.read(run.checkpoint_dir(step), device), problems
        except CheckpointError as error:
            problems.append(f"{error}; an older checkpoint is used")
    return None, problems
