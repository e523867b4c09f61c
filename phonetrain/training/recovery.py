"""What to do about numbers that went bad: keep the evidence, then decide to stop, skip the batch or roll back.

Nothing here moves the run: the trainer asks, and applies what was decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from phonedata import WindowBatch
from phonedata.files import named, remove_tree

from ..checkpoints import checkpoint, series
from ..config.run_config import StagePlan
from ..distributed import current
from ..runs import next_commands
from ..runs.directory import Run
from . import nonfinite
from .build import TrainingSetup, assemble
from .nonfinite import NonfiniteReport

CONSECUTIVE_SKIPS = 10  # batches left out in a row after which it is not the batches' fault
KEPT_EVIDENCE = 10  # the newest findings of a run, whose batch and weights are kept
HIGHEST_ADVISED = 0.05  # learning rate; a tenth of an absurd one is absurd too


@dataclass(frozen=True)
class Evidence:
    """A bad step as its replay showed it, and where its batch and weights are kept.

    directory: None where nothing is kept: on a rank that writes nothing, or where the disk refused (see `problem`).
    """

    finding: NonfiniteReport
    directory: Path | None
    problem: str | None = None


@dataclass(frozen=True)
class SkipBatch:
    """Leave the bad batch out; the next one gets the next step's number and rate."""


@dataclass(frozen=True)
class RollBack:
    """Go back to the checkpoint `saved` with a lower learning rate, for the `rollbacks`-th time.

    warnings: why newer checkpoints could not be used.
    """

    saved: checkpoint.Checkpoint
    rollbacks: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stop:
    """End the run with `message`.

    where: as in the NonfiniteReport. before: step of the newest checkpoint whose weights had not gone bad, or None.
    ways: settings of a resume that can go on from here, and what each does. warnings: as in `RollBack`.
    """

    message: str
    where: str
    before: int | None
    ways: dict[str, str]
    warnings: list[str] = field(default_factory=list)


Decision = SkipBatch | RollBack | Stop


class Recovery:
    """Decides what a run does about bad numbers, by its policy and by what was tried before."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.skips_in_a_row, self.skipped_to = 0, -1

    def skips_before(self, step: int) -> int:
        """How many batches were left out directly before `step`: the weights at `step` met them too."""
        return self.skips_in_a_row if step == self.skipped_to else 0

    def investigate(self, setup: TrainingSetup, step: int, index: int, rate: float) -> Evidence:
        """Replay batch `index` of the present epoch as step `step` and keep the evidence; nothing that trains changes.

        rate: the learning rate that the step was made with.
        """
        progress = setup.state.progress
        batch = setup.train.batch(progress.epoch, index)
        with current().local_only():  # ranks whose slices are finite stop looking earlier
            finding = nonfinite.replay(setup.step, batch, epoch=progress.epoch, number=step)
        finding.batch, finding.rate = index, rate
        finding.utterances = utterance_ids(setup, batch.frames.cpu().numpy())
        finding.bad_utterances = utterance_ids(setup, np.array(finding.bad_frames, np.int64))
        # The slice that went bad may be any rank's: all speak of it, and rank 0 keeps it.
        seen = current().gather((finding, nonfinite.on_host(batch)) if current().together else (finding, batch))
        finding, batch = next((both for both in seen if both[0].where != nonfinite.NOT_REPRODUCED), seen[0])
        return self.keep(setup, finding, batch) if self.run.writes else Evidence(finding, None)

    def keep(self, setup: TrainingSetup, finding: NonfiniteReport, batch: WindowBatch) -> Evidence:
        """Write the evidence into a directory of its own; the oldest of a full collection makes room.

        Named with the segment too: a rollback comes to the same step again.
        """
        kept = sorted(
            (int(match[1]), int(match[2]), path)
            for path in named(self.run.evidence, "*")
            if (match := re.fullmatch(r"segment-(\d+)-step-(\d+)", path.name))
        )
        for _, _, path in kept[: max(0, len(kept) + 1 - KEPT_EVIDENCE)]:
            remove_tree(path)
        directory = self.run.evidence / f"segment-{setup.state.progress.segment}-step-{finding.step}"
        try:
            nonfinite.save_evidence(directory, finding, batch, setup.state.model)
        except OSError as error:
            remove_tree(directory)
            problem = f"{directory}: the evidence could not be written ({error.strerror or error})"
            return Evidence(finding, None, problem)
        return Evidence(finding, directory)

    def decide(self, setup: TrainingSetup, evidence: Evidence, policy: str, since: int) -> Decision:
        """What `policy` ("stop", "skip" the batch that the run stands before, or "rollback") asks for.

        A Stop as well where the policy was tried often enough, or where there is nothing to roll back to.

        since: the first step whose weights went bad. The same weights meet the same batch with the same dropout again,
        so no lower rate helps from there: a rollback goes to before it.
        """
        progress, tried = setup.state.progress, ""
        if policy == "skip":
            self.skips_in_a_row = self.skips_before(progress.step) + 1
            if self.skips_in_a_row <= CONSECUTIVE_SKIPS:
                self.skipped_to = progress.step + 1
                return SkipBatch()
            tried = f" after {CONSECUTIVE_SKIPS} batches in a row were left out"
        before, warnings = self.checkpoint_before(setup, since)
        if policy == "rollback":
            # A stage that sets its own rate counts anew; the checkpoint of before its edge still knows of the others.
            rollbacks = progress.rollbacks if before is None else max(progress.rollbacks, before.progress.rollbacks)
            if before is not None and rollbacks < setup.config.guard.max_rollbacks:
                return RollBack(before, rollbacks + 1, warnings)
            tried = f" after {rollbacks} rollbacks"
            if before is None:
                tried = ", since no checkpoint of before it is there to go back to"
        finding, step = evidence.finding, None if before is None else before.progress.step
        ways = ways_on(setup, finding, policy, step)
        kept = "" if evidence.directory is None else f"evidence is in {evidence.directory}, "
        message = (
            f"stopped{tried}: {finding.sentence()}; {kept}the weights are as before that batch; "
            f"{next_commands.after_bad_numbers(self.run, ways, finding.where)}"
        )
        return Stop(message, finding.where, step, ways, warnings)

    def checkpoint_before(self, setup: TrainingSetup, since: int) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """The checkpoint to go back to from weights that went bad at step `since`, and why newer ones are of no use.

        Another one than last time if there is one: as rank 0 finds it, read by all ranks before it writes another in
        its place.
        """
        device, back_to = setup.device_spec.device, setup.state.progress.back_to
        saved: checkpoint.Checkpoint | None = None
        problems: list[str] = []
        if current().is_main:
            saved, problems = series.read_before(self.run, since, back_to, setup.plan.start, device)
        path = current().share(None if saved is None else saved.path)
        if saved is None and path is not None:
            saved = checkpoint.read(path, device)
        current().barrier()
        return saved, problems


def go_back(setup: TrainingSetup, plans: Sequence[StagePlan], decision: RollBack) -> TrainingSetup:
    """Restore the checkpoint of `decision` with a lowered rate; returns what holds it now.

    That is `setup`, or a new one where the checkpoint is of another stage. plans: of all stages.
    """
    plan = next((plan for plan in plans if plan.start == decision.saved.identity["stage"]), setup.plan)
    segment = setup.state.progress.segment + 1
    if plan != setup.plan:
        setup.close()
        setup = assemble(setup.run_config, plan, setup.corpus, setup.roles, setup.device_spec)
    checkpoint.restore(setup.state, decision.saved)
    restored = setup.state.progress
    slower = setup.config.guard.rollback_factor ** (decision.rollbacks - restored.rollbacks)
    setup.state.progress = replace(
        restored,
        segment=segment,
        rollbacks=decision.rollbacks,
        back_to=restored.step,
        rate_scale=restored.rate_scale * slower,
    )
    return setup


def utterance_ids(setup: TrainingSetup, frames: np.ndarray) -> list[str]:
    """The ids of the utterances that these frames of the training selection, (B,) int64, are from."""
    if not len(frames):
        return []
    selection = setup.train.selection
    return sorted({selection.utterance_ids[utterance] for utterance in selection.locate(frames)[2]})


def ways_on(setup: TrainingSetup, finding: NonfiniteReport, policy: str, before: int | None) -> dict[str, str]:
    """Settings with which a resume can go on from here, none of them the run's own, and what each does.

    policy: that was followed. before: step of the checkpoint to go back to, None where there is none.
    """
    if finding.where == "windows":
        return {} if policy == "skip" else {"guard.policy=skip": "leaves such batches out"}
    ways = {}
    if before is not None:
        if setup.config.optimizer.lr == setup.run_config.optimizer.lr:  # a stage's own rate is not to be changed
            slower = f"optimizer.lr={min(finding.rate / 10, HIGHEST_ADVISED):.2g}"
            ways[f"--from step-{before} {slower}"] = f"goes back to step {before}, slower"
        if policy != "rollback":
            ways["guard.policy=rollback"] = "goes back and lowers the rate by itself"
    if finding.precision == "fp16":
        ways["precision=fp32"] = "goes on with a range that fp16 has not"
    return ways
