"""What a run does about numbers that went bad: evidence first, then stop, leave the batch out, or roll back."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from . import checkpoint, guard
from .assemble import assemble
from .errors import TrainingStopped
from .ranks import here

if TYPE_CHECKING:
    from .loop import Trainer

CONSECUTIVE_SKIPS = 10  # batches left out in a row after which it is not the batches' fault
# In a row, from the first scale of 2^16: down to a scale of 1, which is odd, and to 2^-24, which nothing needs.
ODD_OVERFLOWS, ENDLESS_OVERFLOWS = 16, 40
KEPT_EVIDENCE = 10  # findings of a run whose batch and weights are kept


class Recovery:
    """Decides for a Trainer, whose position, parts and checkpoints it moves."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skips_in_a_row, self.skipped_to = 0, -1
        self.warned_of_overflows = False

    def after_bad_step(self, bad: int, rate: float) -> None:
        """The loss was not finite at step `bad`: go back to it and decide. rate: of that step, before rollbacks.

        Raises TrainingStopped, with the state saved, where the policy is to stop or has been tried often enough.
        """
        trainer, progress = self.trainer, self.trainer.progress
        behind = progress.step - bad
        progress.step, progress.batch = bad, progress.batch - behind
        progress.frames -= behind * trainer.parts.config.batch_size
        finding = self.investigate(bad, progress.batch, rate)
        trainer.parts.step.resume_updates()
        self.decide(finding, trainer.parts.config.guard.policy)

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
            self.decide(finding, "stop" if policy == "skip" else policy)
            return True
        if not self.warned_of_overflows:
            self.warned_of_overflows = True
            trainer.warn(f"gradients overflowed fp16 in the last {row} updates, all left out; the loss scale fell to "
                         f"{float(scale.scale):g}: lower optimizer.lr, set optimizer.clip_norm, or use precision=fp32")
        return False

    def investigate(self, step: int, index: int, rate: float) -> guard.Finding:
        """Replay batch `index` of this epoch as step `step`, keep the evidence, tell; nothing that trains changes."""
        trainer, parts = self.trainer, self.trainer.parts
        epoch, policy = trainer.progress.epoch, parts.config.guard.policy
        batch = parts.train.batch(epoch, index)
        with here().apart():  # ranks whose slices are sound stop looking earlier: nobody may wait for the others
            finding = guard.replay(parts.step, batch, epoch=epoch, number=step)
        finding.batch, finding.rate = index, rate * trainer.progress.rate_scale
        finding.utterances = self.utterances(batch.frames.cpu().numpy())
        finding.bad_utterances = self.utterances(np.array(finding.bad_frames, np.int64))
        # The slice that went bad may be any rank's: all speak of it, and rank 0 keeps it.
        seen = here().gather((finding, guard.on_host(batch)) if here().together else (finding, batch))
        finding, batch = next((each for each in seen if each[0].where != guard.NOT_REPRODUCED), seen[0])
        evidence = None
        if trainer.run.writes and len(trainer.run.events("nonfinite")) < KEPT_EVIDENCE:
            directory = trainer.run.evidence / f"step-{step}"
            try:
                guard.save_evidence(directory, finding, batch, parts.state.model)
                evidence = directory.name
            except OSError as error:
                trainer.console.warn(f"{directory}: the evidence could not be written ({error.strerror or error})")
        trainer.event("nonfinite", policy=policy, message=finding.sentence(), where=finding.where, lr=finding.rate,
                      evidence=evidence)
        trainer.console.warn(finding.sentence())
        return finding

    def utterances(self, frames: np.ndarray) -> list[str]:
        """The ids of the utterances that these frames of the training selection, (B,) int64, are from."""
        if not len(frames):
            return []
        selection = self.trainer.parts.train.selection
        return sorted({selection.utterance_ids[utterance] for utterance in selection.locate(frames)[2]})

    def decide(self, finding: guard.Finding, policy: str) -> None:
        """Do what `policy` says, or stop where it has been done often enough."""
        trainer, progress = self.trainer, self.trainer.progress
        if policy == "skip":
            self.skips_in_a_row = self.skips_in_a_row + 1 if progress.step == self.skipped_to else 1
            if self.skips_in_a_row <= CONSECUTIVE_SKIPS:
                self.skip()
                return
        elif policy == "rollback" and progress.rollbacks < trainer.parts.config.guard.max_rollbacks:
            self.roll_back()
            return
        trainer.save()
        tried = {"stop": "", "skip": f" after {CONSECUTIVE_SKIPS} batches in a row were left out",
                 "rollback": f" after {progress.rollbacks} rollbacks"}[policy]
        raise TrainingStopped(f"stopped{tried}: {finding.sentence()}; evidence is in {trainer.run.evidence}, the "
                              f"weights are as before that batch; {finding.advice(trainer.run.path)}")

    def skip(self) -> None:
        """Leave the batch out; the next one has the next step's number and rate."""
        progress = self.trainer.progress
        progress.step += 1
        progress.batch += 1
        self.skipped_to = progress.step
        self.trainer.event("recovered", by="skip")
        self.trainer.console.say(f"batch {progress.batch - 1} was left out")

    def roll_back(self) -> None:
        """Go back to the last good checkpoint with a lower rate; what was trained since stays in the files."""
        trainer, before = self.trainer, self.trainer.progress
        saved = self.last_good()
        old = trainer.parts
        plan = next((plan for plan in trainer.plans if plan.start == saved.identity["stage"]), old.plan)
        if plan != old.plan:
            old.close()
            trainer.parts = assemble(old.run_config, plan, old.corpus, old.roles, old.compute)
        checkpoint.restore(trainer.parts.state, saved)
        restored, factor = trainer.progress, trainer.parts.config.guard.rollback_factor
        trainer.parts.state.progress = replace(
            restored, segment=before.segment + 1, rollbacks=before.rollbacks + 1,
            rate_scale=restored.rate_scale * factor ** (before.rollbacks + 1 - restored.rollbacks),
        )
        progress = trainer.progress
        trainer.watch.forget()
        trainer.event("segment_started", parent=restored.segment, by="rollback")
        trainer.event("recovered", by="rollback", rate_scale=progress.rate_scale, from_step=before.step)
        trainer.console.warn(f"rolled back from step {before.step} to step {restored.step}; learning rates are "
                             f"multiplied by {progress.rate_scale:g} from here on")
        # A process killed from here on must not try the old rate again. A full disk only costs that.
        with contextlib.suppress(TrainingStopped):
            trainer.save()

    def last_good(self) -> checkpoint.Checkpoint:
        """The newest whole checkpoint as rank 0 finds it, read by all ranks before it writes another in its place."""
        trainer, device = self.trainer, self.trainer.parts.compute.device
        saved = None
        if here().is_main:
            saved, problems = checkpoint.read_newest(trainer.run, device)
            for problem in problems:
                trainer.warn(problem)
        path = here().share(None if saved is None else saved.path)
        saved = checkpoint.read(path, device) if saved is None else saved
        here().barrier()
        return saved
