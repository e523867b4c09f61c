"""The training loop: steps, logs, checkpoints and scores, epoch by epoch, until there is a reason to stop."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from typing import Any, NamedTuple

import torch

from phonedata import PhonedataError

from ..checkpoints import series
from ..checkpoints.mirror import open_mirror
from ..checkpoints.state import Progress
from ..config.changes import stage_diff
from ..config.sections import duration
from ..console.base import COUNT_SECONDS, Console
from ..device import describe_machine
from ..distributed import current
from ..errors import TrainingStopped
from ..optim.lr_curves import Table
from ..runs.directory import Run
from ..runs.tracker import Tracker
from ..step.metrics import FrameSums
from ..step.scoring import score
from ..text import short
from . import nonfinite
from .build import TrainingSetup, assemble, describe, identity, set_next_rates, transfer
from .data import why_not_finite
from .recovery import Decision, Evidence, Recovery, RollBack, SkipBatch, go_back
from .stopping import Deadline, StopRequest

AGREE_EVERY = 8  # steps; a message between hosts costs about as much as a small step on a fast device
LIFE_EPOCHS = 3  # in which a net is looked at for having learnt anything; it may die in the second


class Pause(NamedTuple):
    """Why training pauses between two steps: to save and, where `stop` gives a reason, to end here."""

    stop: str | None


class Trainer:
    """Trains a run and records what happens. `train` returns why it ended.

    began: monotonic time from which on the run's time is counted.
    """

    def __init__(
        self, run: Run, setup: TrainingSetup, console: Console, tracker: Tracker, request: StopRequest, began: float
    ) -> None:
        self.run, self.setup, self.console, self.tracker, self.request = run, setup, console, tracker, request
        self.plans = setup.run_config.plans
        stop = setup.run_config.stop
        self.deadline = Deadline(None if stop.max_time is None else duration(stop.max_time), stop.stop_at, began)
        self.watch = nonfinite.DivergenceWatch(setup.config.guard.divergence)
        self.last_saved = self.last_logged = self.last_counted = time.monotonic()
        self.scoring_seconds: float | None = None
        self.recent_paces: deque[float] = deque(maxlen=20)  # seconds a frame
        self.saving_seconds = 0.0
        self.saved: tuple[int, int] | None = None  # step and bytes of the newest checkpoint of this process
        self.recovery, self.overflows = Recovery(run), nonfinite.OverflowWatch()
        self.warned_of_dead_net = False
        self.mirror = open_mirror(run, setup.run_config)
        self.end_record: dict[str, Any] = {}  # for the event of the end, where bad numbers are the reason

    @property
    def progress(self) -> Progress:
        return self.setup.state.progress

    @property
    def sees_every_step(self) -> bool:
        """Whether the host reads every step's status: free on a CPU, while on CUDA it would wait for the device."""
        return self.setup.device_spec.device.type == "cpu"

    def event(self, name: str, **fields: Any) -> None:
        """Record an event at the present position."""
        progress = self.progress
        self.run.append_event(name, segment=progress.segment, epoch=progress.epoch, step=progress.step, **fields)

    def warn(self, message: str) -> None:
        """Tell a person, and record that they were told."""
        self.event("warning", message=message)
        self.console.warn(message)

    def train(self) -> str:
        """Train until the last epoch, a deadline, a signal or early stopping; returns which.

        Raises TrainingStopped where bad numbers, the disk or the lock end the run; the state is saved before.
        """
        while not self.progress.finished:
            self.enter_stage()
            self.watch.factor = self.setup.config.guard.divergence  # as its stage has it, after a rollback too
            stop = self.train_batches()
            if stop is None:
                if self.progress.batch < self.setup.train.batches_per_epoch:
                    continue  # numbers went bad, and the position was moved
                self.end_epoch()
                patience = self.setup.config.stop.patience
                if patience is not None and self.progress.epochs_since_best >= patience:
                    return "early_stopped"
                pause = self.pause_due()  # the epoch's end has saved already
                stop = None if pause is None or self.progress.finished else pause.stop
            if stop is not None:
                self.save()
                if stop == "deadline" and self.progress.batch:
                    self.score_inside_epoch()
                return stop
        return "finished"

    def enter_stage(self) -> None:
        """Build another setup where the next epoch belongs to another stage."""
        plan = next(plan for plan in self.plans if plan.start <= self.progress.epoch < plan.stop)
        if plan == self.setup.plan:
            return
        old = self.setup
        old.close()  # first: a device that holds the corpus once may not have room for it twice
        scale = old.state.progress.rate_scale
        self.setup = assemble(old.run_config, plan, old.corpus, old.roles, old.device_spec)
        transfer(old, self.setup)
        for key, before, after in stage_diff(old.plan, plan):
            self.event("config_changed", key=key, old=before, new=after, by="stage")
            self.console.say(f"stage: {key} {before} -> {after}")
        self.record_built()
        if self.progress.rate_scale != scale:
            self.save()  # a rollback goes back to here, and not to where the rate would be set once more

    def record_built(self) -> None:
        """Write what was really built, as it is now, to built.json and the tracker."""
        set_next_rates(self.setup)
        built = describe(self.setup)
        self.run.write_json(self.run.built_path, built)
        self.tracker.config({"built": built})

    def train_batches(self) -> str | None:
        """Train from the present position to the end of the epoch, or to where something else comes first.

        Returns why to stop, or None: the position then says whether the epoch is at its end or was left because
        numbers went bad.
        """
        setup, progress = self.setup, self.progress
        batches = setup.train.batches_per_epoch
        rates = setup.state.schedule.rates(progress.epoch, batches)
        momenta = setup.state.schedule.momenta(progress.epoch, batches)
        log_every = setup.config.tracking.log_every
        start, clock, entered = progress.epoch_seconds, time.monotonic(), progress.batch
        began = clock
        stream = setup.updates.epoch(
            progress.epoch, progress.batch, progress.step, rates * progress.rate_scale, momenta, warn=self.not_captured
        )
        try:
            for frames in stream:
                progress.batch += 1
                progress.step += 1
                now = time.monotonic()
                # The first ones here also compile kernels and read the corpus.
                if self.sees_every_step and progress.batch - entered > 4:
                    self.recent_paces.append((now - began) / max(frames, 1))
                began, progress.epoch_seconds = now, start + now - clock
                logs = progress.step % log_every == 0
                if now - self.last_counted >= COUNT_SECONDS and not logs:
                    self.count(float(rates[progress.batch - 1]) * progress.rate_scale, batches, now)
                looks = self.sees_every_step or logs
                if (looks or progress.batch == batches) and self.recovered_from_bad_step(rates):
                    return None
                rate = float(rates[progress.batch - 1]) * progress.rate_scale
                if logs:
                    self.log(rate, batches)
                if looks and self.recovered_from_overflows(rate):
                    return None
                pause = self.pause_due() if progress.batch < batches else None
                if pause is None:
                    continue
                # Before a checkpoint in any case: a step that went bad unseen would be lost, and with it all those
                # that were left out after it.
                if self.recovered_from_bad_step(rates):
                    return None
                if pause.stop is not None:
                    return pause.stop
                self.save()
        except (PhonedataError, OSError):
            if int(setup.step.status.nonfinite_at) < 0:
                self.save()  # the corpus or the disk failed between two steps: what was learnt so far is sound
            raise
        finally:
            stream.close()
        return None

    def recovered_from_bad_step(self, rates: Table) -> bool:
        """Whether a step went bad; if so the run went back to it and did what was decided. rates: of this epoch."""
        bad, progress = int(self.setup.step.status.nonfinite_at), self.progress
        if bad < 0:
            return False
        progress.step, progress.batch = bad, progress.batch - (progress.step - bad)
        rate = float(rates[progress.batch]) * progress.rate_scale
        evidence = self.investigate(bad, progress.batch, rate)
        self.setup.step.status.clear()
        since = bad - self.recovery.skips_before(bad)
        self.apply(self.recovery.decide(self.setup, evidence, self.setup.config.guard.policy, since))
        return True

    def recovered_from_overflows(self, rate: float) -> bool:
        """Whether gradients overflowed so long that the run did what was decided; warns before it comes to that.

        A row that no scale ends is treated like a loss that is not finite, except that leaving out batches cannot help.
        """
        scale, progress, policy = self.setup.step.loss_scale, self.progress, self.setup.config.guard.policy
        if scale is None:
            return False
        row = int(scale.overflows_in_a_row)
        if row < nonfinite.ENDLESS_OVERFLOWS:
            if (warning := self.overflows.look(row, scale.scale)) is not None:
                self.warn(warning)
            return False
        evidence = self.investigate(progress.step - 1, progress.batch - 1, rate)
        scale.begin_anew()
        policy = "stop" if policy == "skip" else policy
        self.apply(self.recovery.decide(self.setup, evidence, policy, since=progress.step - row))
        return True

    def investigate(self, step: int, index: int, rate: float) -> Evidence:
        """Replay batch `index` of this epoch as step `step`, keep the evidence, record what was found."""
        evidence = self.recovery.investigate(self.setup, step, index, rate)
        finding, directory = evidence.finding, evidence.directory
        if evidence.problem is not None:
            self.console.warn(evidence.problem)
        self.event(
            "nonfinite",
            policy=self.setup.config.guard.policy,
            message=finding.sentence(),
            where=finding.where,
            lr=finding.rate,
            evidence=None if directory is None else directory.name,
        )
        self.console.warn(finding.sentence())
        return evidence

    def apply(self, decision: Decision) -> None:
        """Do what was decided about bad numbers. Raises TrainingStopped, with the state saved, for a Stop."""
        if isinstance(decision, SkipBatch):
            self.progress.step += 1
            self.progress.batch += 1
            self.event("recovered", by="skip")
            self.console.say(f"batch {self.progress.batch - 1} was left out")
            return
        for warning in decision.warnings:
            self.warn(warning)
        if isinstance(decision, RollBack):
            self.roll_back(decision)
            return
        self.end_record = {"ways": decision.ways, "where": decision.where}
        if decision.before is not None:
            self.run.write_pointer("before_nonfinite", decision.before)
        self.save()
        raise TrainingStopped(decision.message)

    def roll_back(self, decision: RollBack) -> None:
        """Go back to a checkpoint with a lower learning rate; what was trained since stays in the files."""
        left, saved = self.progress.step, decision.saved.progress
        self.setup = go_back(self.setup, self.plans, decision)
        rate_scale = self.progress.rate_scale
        self.watch.forget()
        self.event("segment_started", parent=saved.segment, by="rollback")
        self.event("recovered", by="rollback", rate_scale=rate_scale, from_step=left)
        self.console.warn(
            f"rolled back from step {left} to step {saved.step}; learning rates are "
            f"multiplied by {rate_scale:g} from here on"
        )
        # A process killed from here on must not try the old rate again. A full disk only costs that.
        with contextlib.suppress(TrainingStopped):
            self.save()

    def not_captured(self, message: str) -> None:
        """The step turned out not to be capturable: say so, and correct what is recorded as built."""
        self.warn(message)
        self.record_built()

    def pause_due(self) -> Pause | None:
        """Whether to save now, and to stop: the same on all ranks, which ask each other every few steps."""
        ranks, progress = current(), self.progress
        if ranks.together and progress.batch % AGREE_EVERY:
            return None
        reason = ranks.agree(self.own_reason())
        return None if reason is None else Pause(stop=None if reason == "checkpoint" else reason)

    def own_reason(self) -> str | None:
        """This rank's reason to pause, one of `distributed.REASONS`.

        The signal that was received, what the console asks for, "deadline" when only the time to save and score is
        left, or "checkpoint" when one is due.
        """
        if self.request.reason is not None:
            return self.request.reason
        if self.console.stop is not None:
            return self.console.stop
        if self.deadline.end is not None:
            scoring = self.scoring_seconds
            if scoring is None:  # not measured yet: a forward pass is about a third of a step's work
                # The fastest of the recent ones: the first steps also compile kernels and read the corpus.
                scoring = self.setup.dev.num_frames * min(self.recent_paces, default=0.0) / 2
            if self.deadline.reached(2.0 + 1.5 * scoring + 2 * self.saving_seconds):
                return "deadline"
        due = time.monotonic() - self.last_saved > 60 * self.setup.config.checkpoint.every_minutes
        return "checkpoint" if due else None

    def count(self, rate: float, batches: int, now: float) -> None:
        """Let the console count: between two log lines, where the host sees every step with its numbers so far."""
        progress, shown = self.progress, {"lr": rate}
        self.last_counted = now
        if self.sees_every_step:
            interval = self.setup.state.metrics.sums() - FrameSums(progress.logged)
            if frames := interval.by_name["frames"]:
                shown |= interval.means() | {"frames_per_second": frames / max(now - self.last_logged, 1e-9)}
        self.console.count(epoch=progress.epoch, step_in_epoch=progress.batch, steps_per_epoch=batches, **shown)

    def log(self, rate: float, batches: int) -> None:
        """Fetch the sums of the interval since the last line, write them, and look at where the loss is going."""
        progress, step = self.progress, self.setup.step
        sums = self.setup.state.metrics.sums()
        interval = sums - FrameSums(progress.logged)
        progress.logged = dict(sums.by_name)
        now = time.monotonic()
        seconds, self.last_logged = now - self.last_logged, now
        self.last_counted = now
        means, frames = interval.means(), interval.by_name["frames"]
        if not self.sees_every_step:  # the host is ahead of the device but here
            self.recent_paces.append(seconds / max(frames, 1))
        shown = {**means, "lr": rate, "frames_per_second": frames / max(seconds, 1e-9)}
        line = {**shown, "gradient_norm": float(step.status.gradient_norm)}
        scale = {}
        if step.loss_scale is not None:
            skipped = int(step.loss_scale.overflows) / progress.step
            scale = {"loss_scale": float(step.loss_scale.scale), "skipped": skipped}
        self.write_metric("train", **line, **scale, seconds=progress.epoch_seconds)
        if self.setup.device_spec.device.type == "cuda":
            shown["memory"] = torch.cuda.memory_allocated(self.setup.device_spec.device)
        self.console.progress(
            epoch=progress.epoch, step_in_epoch=progress.batch, steps_per_epoch=batches, **(shown | scale)
        )
        if (warning := self.watch.look(means["loss"], progress.step, rate)) is not None:
            self.warn(warning)

    def write_metric(self, kind: str, **numbers: Any) -> None:
        """One line to metrics.jsonl, the same to the tracker."""
        progress = self.progress
        line = {"kind": kind, "segment": progress.segment, "epoch": progress.epoch, "step": progress.step, **numbers}
        self.run.append_metric(line)
        self.tracker.log(line, progress.step)

    def end_epoch(self) -> None:
        """Score, tell the schedule, record the epoch's line, keep the best, save."""
        setup, progress = self.setup, self.progress
        trained, dev = setup.state.metrics.sums(), self.score()
        scores = {f"train_{name}": mean for name, mean in trained.means().items()}
        scores |= {f"dev_{name}": dev[name] for name in trained.means()}
        rates = setup.state.schedule.rates(progress.epoch, setup.train.batches_per_epoch)
        best = self.is_best(dev)
        if best:
            self.note_best(dev)
        else:
            progress.epochs_since_best += 1
        line = {
            **scores,
            "lr": float(rates[-1]) * progress.rate_scale,
            "seconds": progress.epoch_seconds,
            "frames": trained.by_name["frames"],
            "scoring_seconds": self.scoring_seconds,
            "best": best,
        }
        self.write_metric("epoch", **line)
        self.console.epoch_row({"epoch": progress.epoch, **line})
        if math.isfinite(dev["loss"]):
            self.check_life(dev)
        else:
            self.warn(
                f"the dev loss is {dev['loss']}, so this epoch is not taken for the best: "
                f"{why_not_finite(setup.corpus, setup.roles.dev)}"
            )
        setup.state.schedule.end_epoch(scores)
        progress.seconds += progress.epoch_seconds
        progress.epoch, progress.batch, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
        progress.logged = {}
        progress.finished = progress.epoch >= self.plans[-1].stop
        setup.state.metrics.reset()
        self.run.drop_pointer("before_nonfinite")
        self.save()
        if best:
            self.run.write_pointer("best", progress.step)
        # The next line's interval begins with the epoch, as its sums do.
        self.last_logged = time.monotonic()

    def score(self) -> dict[str, float]:
        """Scores of the dev partition in the training precision; answered: how many phonemes were answered at all."""
        setup, began = self.setup, time.monotonic()
        progress, batches = self.progress, setup.train.batches_per_epoch
        self.console.count(epoch=progress.epoch, step_in_epoch=progress.batch, steps_per_epoch=batches)
        with self.console.scoring(setup.roles.dev):
            sums = score(
                setup.scored_model,
                setup.dev,
                setup.device_spec,
                len(setup.corpus.phonemes),
                neighbours=setup.dev_neighbours,
                confusion=True,
            )
        result = sums.result() | {"answered": int(sums.confusion.any(0).sum())}
        self.scoring_seconds = time.monotonic() - began
        self.last_logged += self.scoring_seconds
        return result

    def is_best(self, dev: dict[str, float | int]) -> bool:
        """Whether no score so far is as good; where the loss is not finite a score means nothing."""
        best = self.progress.best_score
        return math.isfinite(dev["loss"]) and (best is None or dev["accuracy"] > best)

    def note_best(self, dev: dict[str, float | int]) -> None:
        """Let the weights of the present position be the best so far, with their scores."""
        progress = self.progress
        progress.best_score, progress.best_epoch, progress.best_step = dev["accuracy"], progress.epoch, progress.step
        progress.epochs_since_best = 0

    def score_inside_epoch(self) -> None:
        """Before a deadline: score the weights as they are, keep them if they are the best so far."""
        dev = self.score()
        best = self.is_best(dev)
        self.write_metric(
            "evaluate", partition=self.setup.roles.dev, dev_loss=dev["loss"], dev_accuracy=dev["accuracy"], best=best
        )
        if best:
            self.note_best(dev)
            self.save()
            self.run.write_pointer("best", self.progress.step)

    def check_life(self, dev: dict[str, float | int]) -> None:
        """Say once if the net is dead, at the end of the first epochs: from the first that ends well after warm-up on,
        or the last where warm-up is longer than the run."""
        batches = self.setup.train.batches_per_epoch
        first = min(2 * self.setup.state.schedule.warmup_steps(batches) // batches, self.plans[-1].stop - 1)
        if self.warned_of_dead_net or not first <= self.progress.epoch < first + LIFE_EPOCHS:
            return
        message = nonfinite.dead_net(dev["loss"], int(dev["answered"]), len(self.setup.corpus.phonemes))
        if message is not None:
            self.warned_of_dead_net = True
            self.warn(message)

    def save(self) -> None:
        """Write a checkpoint of the present position."""
        began, setup = time.monotonic(), self.setup
        about = identity(setup.corpus, setup.run_config, setup.roles) | {
            "machine": describe_machine(setup.device_spec),
            "config": setup.run_config.to_dict(),
            "stage": setup.plan.start,
            "factory": setup.factory,
        }
        self.run.sync_metrics()
        path, size = series.save(self.run, setup.state, about, setup.config.checkpoint.keep)
        self.last_saved = time.monotonic()
        self.saving_seconds = self.last_saved - began
        self.last_logged += self.saving_seconds
        if self.progress.step and (self.saved is None or not self.saved[0]):  # before any step there are no moments
            kept = setup.config.checkpoint.keep
            self.console.say(f"a checkpoint takes {short(size)}B; the newest {kept} and the best are kept")
        self.saved = self.progress.step, size
        self.event("checkpoint_saved", batch=self.progress.batch, path=path.name, bytes=size)
        self.mirror.offer()
        for problem in self.mirror.problems():
            self.warn(problem)
