"""What a run does about numbers that went bad: evidence first, then stop, leave the batch out, or roll back."""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phonedata import WindowBatch

from ..distributed import current
from ..errors import TrainingStopped
from ..runs import next_commands
from . import checkpoint, nonfinite
from .build import assemble

if TYPE_CHECKING:
    from .trainer import Trainer

CONSECUTIVE_SKIPS = 10  # batches left out in a row after which it is not the batches' fault
# In a row, from the first scale of 2^16: down to a scale of 1, which is odd, and to 2^-24, which nothing needs.
ODD_OVERFLOWS, ENDLESS_OVERFLOWS = 16, 40
KEPT_EVIDENCE = 10  # the newest findings of a run, whose batch and weights are kept
HIGHEST_ADVISED = 0.05  # learning rate; a tenth of an absurd one is absurd too


class Recovery:
    """Decides for a Trainer, whose position, parts and checkpoints it moves."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skips_in_a_row, self.skipped_to = 0, -1
        self.warned_of_overflows = False
        self.kept: Path | None = None  # the evidence of the newest finding
        self.told: dict[str, Any] = {}  # for the record of the end, where numbers that went bad are the reason

    def after_bad_step(self, bad: int, rate: float) -> None:
        """The loss was not finite at step `bad`: go back to it and decide. rate: of that step, before rollbacks.

        Raises TrainingStopped, with the state saved, where the policy is to stop or has been tried often enough.
        """
        trainer, progress = self.trainer, self.trainer.progress
        progress.step, progress.batch = bad, progress.batch - (progress.step - bad)
        finding = self.investigate(bad, progress.batch, rate)
        trainer.parts.step.status.clear()
        # Where batches were left out before this one, these weights met them too.
        left_out = self.skips_in_a_row if bad == self.skipped_to else 0
        self.decide(finding, trainer.parts.config.guard.policy, since=bad - left_out)

    def after_step(self, rate: float) -> bool:
        """Look at the loss scale: True if gradients overflowed so long that the run was moved to another place.

        An overflow now and then is how the scale finds its level. A row of them is warned of; one that no scale ends
        is treated like a loss that is not finite, except that leaving out batches cannot help.
        """
        trainer = self.trainer
        scale, policy = trainer.parts.step.loss_scale, trainer.parts.config.guard.policy
        row = 0 if scale is None else int(scale.overflows_in_a_row)
        if row < ODD_OVERFLOWS:
            self.warned_of_overflows = False
            return False
        if row >= ENDLESS_OVERFLOWS:
            finding = self.investigate(trainer.progress.step - 1, trainer.progress.batch - 1, rate)
            scale.begin_anew()
            self.decide(finding, "stop" if policy == "skip" else policy, since=trainer.progress.step - row)
            return True
        if not self.warned_of_overflows:
            self.warned_of_overflows = True
            trainer.warn(
                f"gradients overflowed fp16 in the last {row} updates, all left out; the loss scale fell to "
                f"{float(scale.scale):g}: lower optimizer.lr, set optimizer.clip_norm, or use precision=fp32"
            )
        return False

    def investigate(self, step: int, index: int, rate: float) -> nonfinite.NonfiniteReport:
        """Replay batch `index` of this epoch as step `step`, keep the evidence, tell; nothing that trains changes."""
        trainer, parts = self.trainer, self.trainer.parts
        epoch, policy = trainer.progress.epoch, parts.config.guard.policy
        batch = parts.train.batch(epoch, index)
        with current().local_only():  # ranks whose slices are finite stop looking earlier
            finding = nonfinite.replay(parts.step, batch, epoch=epoch, number=step)
        finding.batch, finding.rate = index, rate * trainer.progress.rate_scale
        finding.utterances = self.utterances(batch.frames.cpu().numpy())
        finding.bad_utterances = self.utterances(np.array(finding.bad_frames, np.int64))
        # The slice that went bad may be any rank's: all speak of it, and rank 0 keeps it.
        seen = current().gather((finding, nonfinite.on_host(batch)) if current().together else (finding, batch))
        finding, batch = next((each for each in seen if each[0].where != nonfinite.NOT_REPRODUCED), seen[0])
        self.kept = self.keep(finding, batch) if trainer.run.writes else None
        trainer.event(
            "nonfinite",
            policy=policy,
            message=finding.sentence(),
            where=finding.where,
            lr=finding.rate,
            evidence=None if self.kept is None else self.kept.name,
        )
        trainer.console.warn(finding.sentence())
        return finding

    def keep(self, finding: nonfinite.NonfiniteReport, batch: WindowBatch) -> Path | None:
        """The directory that holds the evidence now; None where the disk refuses it. The oldest makes room.

        Named with the segment too: a rollback comes to the same step again.
        """
        trainer = self.trainer
        kept = sorted(
            (int(match[1]), int(match[2]), path)
            for path in trainer.run.evidence.glob("*")
            if (match := re.fullmatch(r"segment-(\d+)-step-(\d+)", path.name))
        )
        for _, _, path in kept[: max(0, len(kept) + 1 - KEPT_EVIDENCE)]:
            shutil.rmtree(path, ignore_errors=True)
        directory = trainer.run.evidence / f"segment-{trainer.progress.segment}-step-{finding.step}"
        try:
            nonfinite.save_evidence(directory, finding, batch, trainer.parts.state.model)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            trainer.console.warn(f"{directory}: the evidence could not be written ({error.strerror or error})")
            return None
        return directory

    def utterances(self, frames: np.ndarray) -> list[str]:
        """The ids of the utterances that these frames of the training selection, (B,) int64, are from."""
        if not len(frames):
            return []
        selection = self.trainer.parts.train.selection
        return sorted({selection.utterance_ids[utterance] for utterance in selection.locate(frames)[2]})

    def decide(self, finding: nonfinite.NonfiniteReport, policy: str, since: int) -> None:
        """Do what `policy` says, or stop where it has been done often enough or cannot be done.

        since: the step from which on the weights are those that went bad. The same weights meet the same batch with the
        same dropout again, so that no rate helps from there: what goes back goes to before it.
        """
        trainer, progress = self.trainer, self.trainer.progress
        tried = ""
        if policy == "skip":
            self.skips_in_a_row = self.skips_in_a_row + 1 if progress.step == self.skipped_to else 1
            if self.skips_in_a_row <= CONSECUTIVE_SKIPS:
                self.skip()
                return
            tried = f" after {CONSECUTIVE_SKIPS} batches in a row were left out"
        before = self.checkpoint_before(since)
        if policy == "rollback":
            # A stage that sets its own rate counts anew; the checkpoint of before its edge still knows of the others.
            rollbacks = progress.rollbacks if before is None else max(progress.rollbacks, before.progress.rollbacks)
            if before is not None and rollbacks < trainer.parts.config.guard.max_rollbacks:
                self.roll_back(before, rollbacks + 1)
                return
            tried = f" after {rollbacks} rollbacks"
            if before is None:
                tried = ", since no checkpoint of before it is there to go back to"
        ways = self.ways_on(finding, policy, before)
        self.told = {"ways": ways, "where": finding.where}
        if before is not None:
            trainer.run.write_pointer("before_nonfinite", before.progress.step)
        trainer.save()
        kept = "" if self.kept is None else f"evidence is in {self.kept}, "
        raise TrainingStopped(
            f"stopped{tried}: {finding.sentence()}; {kept}the weights are as before that batch; "
            f"{next_commands.after_bad_numbers(trainer.run, ways, finding.where)}"
        )

    def ways_on(
        self, finding: nonfinite.NonfiniteReport, policy: str, before: checkpoint.Checkpoint | None
    ) -> dict[str, str]:
        """Settings of a resume that can go on from here, none of which the run had, and what each does."""
        if finding.where == "windows":
            return {} if policy == "skip" else {"guard.policy=skip": "leaves such batches out"}
        parts, ways = self.trainer.parts, {}
        if before is not None:
            step = before.progress.step
            if parts.config.optimizer.lr == parts.run_config.optimizer.lr:  # a stage's own rate is not to be changed
                slower = f"optimizer.lr={min(finding.rate / 10, HIGHEST_ADVISED):.2g}"
                ways[f"--from step-{step} {slower}"] = f"goes back to step {step}, slower"
            if policy != "rollback":
                ways["guard.policy=rollback"] = "goes back and lowers the rate by itself"
        if finding.precision == "fp16":
            ways["precision=fp32"] = "goes on with a range that fp16 has not"
        return ways

    def skip(self) -> None:
        """Leave the batch out; the next one has the next step's number and rate."""
        progress = self.trainer.progress
        progress.step += 1
        progress.batch += 1
        self.skipped_to = progress.step
        self.trainer.event("recovered", by="skip")
        self.trainer.console.say(f"batch {progress.batch - 1} was left out")

    def roll_back(self, saved: checkpoint.Checkpoint, rollbacks: int) -> None:
        """Go back to a checkpoint with a lower rate, for the `rollbacks`-th time; what was trained since stays in the
        files."""
        trainer, before = self.trainer, self.trainer.progress
        old = trainer.parts
        plan = next((plan for plan in trainer.plans if plan.start == saved.identity["stage"]), old.plan)
        if plan != old.plan:
            old.close()
            trainer.parts = assemble(old.run_config, plan, old.corpus, old.roles, old.compute)
        checkpoint.restore(trainer.parts.state, saved)
        restored, factor = trainer.progress, trainer.parts.config.guard.rollback_factor
        trainer.parts.state.progress = replace(
            restored,
            segment=before.segment + 1,
            rollbacks=rollbacks,
            back_to=restored.step,
            rate_scale=restored.rate_scale * factor ** (rollbacks - restored.rollbacks),
        )
        progress = trainer.progress
        trainer.watch.forget()
        trainer.event("segment_started", parent=restored.segment, by="rollback")
        trainer.event("recovered", by="rollback", rate_scale=progress.rate_scale, from_step=before.step)
        trainer.console.warn(
            f"rolled back from step {before.step} to step {restored.step}; learning rates are "
            f"multiplied by {progress.rate_scale:g} from here on"
        )
        # A process killed from here on must not try the old rate again. A full disk only costs that.
        with contextlib.suppress(TrainingStopped):
            trainer.save()

    def checkpoint_before(self, since: int) -> checkpoint.Checkpoint | None:
        """The checkpoint to go back to from weights that went bad at step `since`, another one than last time if there
        is one: as rank 0 finds it, read by all ranks before it writes another in its place."""
        trainer, device = self.trainer, self.trainer.parts.compute.device
        saved = None
        if current().is_main:
            stage = trainer.parts.plan.start
            saved, problems = checkpoint.read_before(trainer.run, since, trainer.progress.back_to, stage, device)
            for problem in problems:
                trainer.warn(problem)
        path = current().share(None if saved is None else saved.path)
        if saved is None and path is not None:
            saved = checkpoint.read(path, device)
        current().barrier()
        return saved
