"""What a run may be resumed with: which checkpoint, which changes, which corpus and machine; and putting it back."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checkpoints import checkpoint, series
from ..checkpoints.mirror import fetch, home_of, open_mirror, place_of
from ..checkpoints.state import Progress
from ..config.changes import diff, extension_question, stage_diff
from ..config.overrides import parsed
from ..config.resolve import resolve
from ..config.run_config import RunConfig
from ..console.base import Console
from ..device import DeviceSpec, describe_machine, determinism
from ..distributed import init, launched_size
from ..errors import CheckpointError, ConfigError
from ..model.trust import check_trusted
from ..runs import experiment, next_commands
from ..runs.directory import Run
from ..text import command, counted
from .build import TrainingSetup, assemble, identity
from .data import choose_roles, corpus_of, place_from_run
from .launch import trained
from .session import device_for, looked_through, seen_by, shown_by, train

# Changing these changes which frames come next, so they may change only where an epoch begins.
ORDER_KEYS = ("subset", "batch_size", "optimizer.accumulation", "loader.order")
# These make another experiment: a checkpoint cannot go on under another value.
FIXED_KEYS = (
    "seed", "window.", "model.", "optimizer.name", "optimizer.decay_all", "data.train", "data.dev", "data.hold_out",
    "stage",
)  # fmt: skip


def find_checkpoint(run: Run, wanted: str | int | None) -> tuple[checkpoint.Checkpoint, list[str]]:
    """The checkpoint to go on from, and sentences about newer ones that are damaged and events that are lost.

    Raises CheckpointError.
    """
    lost = [] if run.events_path.is_file() else [f"{run.events_path} is missing: what the run did before is not told"]
    if wanted is None:
        saved, problems = series.read_newest(run)
        return saved, [*lost, *problems]
    name = str(wanted).removeprefix("step-")
    steps = series.saved_steps(run)
    if not name.isdigit() or int(name) not in steps:
        raise CheckpointError(
            f"{run.path}: no checkpoint {wanted!r}; there are {', '.join(f'step-{step}' for step in steps) or 'none'}"
        )
    return checkpoint.read(run.checkpoint_dir(int(name))), lost


def changes_by_hand(old: RunConfig, new: RunConfig, epoch: int) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of what differs, as it takes effect where the run stands; where the corpus lies is no setting.

    epoch: in which the present stage began. A setting of the present stage goes by its own key, those of other stages
    by the stage's, as `stage.2.optimizer.lr`.
    """
    changes = [change for change in diff(old, new) if change[0] != "data.corpus"]
    if len(old.stage) != len(new.stage) or not old.stage:
        return changes
    number, before, after = next(
        (number, *both)
        for number, both in reversed(list(enumerate(zip(old.plans, new.plans))))
        if both[0].start <= epoch
    )
    here = [change for change in stage_diff(before, after) if change[0] != "data.corpus"]
    shown = {key for key, _, _ in here}
    begun = {f"stage.{index}.{key}" for index in range(number + 1) for key in shown}
    return [change for change in changes if change[0] not in shown | begun] + here


def check_changes(
    run: Run, changes: Sequence[tuple[str, Any, Any]], old: RunConfig, new: RunConfig, progress: Progress
) -> None:
    """Refuse a change that would make another experiment, or that cannot take effect in the middle of an epoch."""
    over = [f"stage.{index}." for index, plan in enumerate(old.plans) if plan.stop <= progress.epoch]
    for key, before, after in changes:
        fixed = (*over, *(name for name in FIXED_KEYS if name.endswith(".")))
        if key == "model.factory" and before and after and before.rpartition(":")[2] == after.rpartition(":")[2]:
            continue  # the same function, found at another place; whether its text is the same is said
        if key.startswith(fixed) or key in FIXED_KEYS or re.fullmatch(r"stage\.\d+\.epochs", key):
            raise ConfigError(f"{key}: {before} -> {after} would be another experiment; start one: {command('fit')}")
        if key in ORDER_KEYS and progress.batch:
            ends = [
                event["step"]
                for event in run.events("checkpoint_saved")
                if event["batch"] == 0 and event["step"] <= progress.step and run.checkpoint_dir(event["step"]).is_dir()
            ]
            again = f"; or go back to the last epoch's end: --from step-{max(ends)}" if ends else ""
            raise ConfigError(
                f"{key}: {before} -> {after} changes which frames come next, and the run stands inside "
                f"epoch {progress.epoch + 1} (batch {progress.batch}); resume without it until the epoch "
                f"ends{again}"
            )
    if (question := extension_question(old, new)) is not None:
        raise ConfigError(question)


def told_change(key: str, before: Any, after: Any, old: RunConfig, new: RunConfig) -> str:
    """One change for people; where an answer given earlier decides what it does, that answer too."""
    sentence = f"changed: {key} {experiment.shown(before)} -> {experiment.shown(after)}"
    if key == "epochs" and extension_question(old, new.replaced({"schedule.on_extend": None})) is not None:
        answer = new.schedule.on_extend
        does = "is laid out anew, to the new end" if answer == "stretch" else "stays, and its last rate is held"
        sentence += f" (its schedule {does}: schedule.on_extend={answer})"
    return sentence


def check_identity(saved: checkpoint.Checkpoint, now: dict[str, Any], run: Run) -> None:
    """Refuse to go on with another corpus, window or phoneme set than the checkpoint was trained with."""
    for name, value in now.items():
        before = saved.identity.get(name)
        if before != value:
            raise CheckpointError(
                f"{run.path}: {name} is {value}, but the run was trained with {before}; it goes on "
                "with the same corpus only (`--corpus DIR`); `{command('fit')}` starts a new run"
            )


def restore_machine(before: dict[str, Any], device_spec: DeviceSpec) -> list[str]:
    """Set the recorded number of threads; returns a sentence for what differs so that equality cannot be promised.

    Threads stay as they are on a machine that differs in other ways too, or has not so many cores: there is no equality
    to be had by them, and more threads than cores wait for each other.
    """

    def differing() -> dict[str, Any]:
        return {name: value for name, value in describe_machine(device_spec).items() if before.get(name) != value}

    if set(differing()) == {"threads"} and 0 < (before.get("threads") or 0) <= (os.cpu_count() or 1):
        torch.set_num_threads(before["threads"])
    differences = [f"{name} {before.get(name)} -> {value}" for name, value in differing().items()]
    if not differences:
        return []
    ranks = "; the frames of every batch and their dropout stay, sums are rounded otherwise" * ("ranks" in differing())
    return [
        f"this machine is not the one before ({', '.join(differences)}): training goes on, but bit for bit equality "
        f"with an uninterrupted run is not promised{ranks}"
    ]


def restore_setup(setup: TrainingSetup, saved: checkpoint.Checkpoint, changes: Sequence[tuple[str, Any, Any]]) -> None:
    """Load a checkpoint into a fresh setup; changes: (key, old, new) of what was changed by hand since it was saved.

    A rate set by hand is the rate that is trained with: what rollbacks had multiplied it by is over.
    """
    checkpoint.restore(setup.state, saved)
    batch, batches = saved.progress.batch, setup.train.batches_per_epoch
    if batch > batches:
        raise CheckpointError(f"{saved.path}: it stands at batch {batch} of an epoch that has {batches}: it is damaged")
    if changes:
        before = {key: old for key, old, _ in changes}
        if setup.state.schedule.changed_by_hand(setup.state.progress.epoch, before):
            setup.state.progress.rate_scale, setup.state.progress.rollbacks = 1.0, 0


def resume(
    run: str | os.PathLike[str] | None = None,
    *overrides: str,
    corpus: str | os.PathLike[str] | None = None,
    from_checkpoint: str | int | None = None,
    console: Console | None = None,
    trust_code: bool = False,
    **settings: object,
) -> Run:
    """Continue a run from its newest whole checkpoint, exactly as if it had not stopped, or with changes that are said.

    Parameters
    ----------
    run: run directory or name; default: the newest. overrides, settings: changes, as in `fit`, recorded as
    events.
    corpus: the packed corpus, where it has moved; it is recognised by its digest.
    from_checkpoint: "step-1200" or 1200: go on from there with the settings of then, leaving what came after aside.
    trust_code: run the code of a model.factory that this user has not trusted here before, and remember it.

    Raises RunNotFound, CodeNotTrusted, CheckpointError (damaged, or of another corpus or window), ConfigError,
    TrainingStopped.
    """
    began = time.monotonic()
    found = Run.open(run)
    # The devices are asked for first of all; where the run stands, which decides what the others mean, is read later.
    wanted = parsed(overrides, settings)
    asked = {key: value for key, value in wanted.items() if key in ("device", "devices")}
    config = RunConfig.from_toml(found.config_path).replaced(asked)
    if (started := launched_size()) > 1 and config.devices != 1 and "devices" not in wanted:
        config = config.replaced({"devices": started})  # as many as were started now
    given = {"run": found.path, "corpus": corpus, "from_checkpoint": from_checkpoint, "trust_code": trust_code}

    def arguments(config: RunConfig, pace: Mapping[str, float]) -> dict[str, Any]:
        return {"wanted": {**wanted, "devices": config.devices}, "began": began, **given}

    return trained(config, console, resume_here, arguments)


def resume_here(
    run: str | os.PathLike[str],
    wanted: Mapping[str, object],
    corpus: str | os.PathLike[str] | None,
    from_checkpoint: str | int | None,
    trust_code: bool,
    console: Console | None,
    began: float,
) -> Run:
    """`resume` as this process does it, alone or together with others that do the same.

    wanted: dotted keys and their new values. began: monotonic time.
    """
    with contextlib.ExitStack() as held:
        found = Run.open(run)
        asked = {key: value for key, value in wanted.items() if key == "device"}
        as_found = RunConfig.from_toml(found.config_path).replaced(asked)
        ranks = held.enter_context(init(as_found.device))
        where = seen_by(ranks, home_of(found))
        held.enter_context(where.lock())
        shown = held.enter_context(shown_by(ranks, console))
        mirror = as_found.checkpoint.mirror
        if ranks.is_main and (mirror is not None or found.path != where.path):
            copy = found.path if mirror is None or found.path != where.path else place_of(where, mirror)
            if (fetched := fetch(where, copy)) is not None:
                shown.say(fetched)
        ranks.barrier()
        saved, problems = find_checkpoint(where, from_checkpoint)
        stage_start = saved.identity["stage"]
        old, newest = RunConfig.from_dict(saved.identity["config"]), RunConfig.from_toml(where.config_path)
        # Who goes back means the settings of then: what was changed later belongs to what is left aside.
        begins = newest if from_checkpoint is None else old.replaced({"data.corpus": newest.data.corpus})
        config = resolve(begins, corpus=corpus, epoch=stage_start, settings=wanted)
        # Against the checkpoint and not against config.toml: a change whose process died before its first checkpoint
        # is made again.
        changes = changes_by_hand(old, config, stage_start)
        check_changes(where, changes, old, config, saved.progress)
        packed = corpus_of(where, config, corpus)
        roles = choose_roles(packed, config.data)
        check_identity(saved, identity(packed, config, roles), where)
        # Before anything imports it: what a CPU computes in may be measured with the model itself.
        trusts, untold = trust_code or "model.factory" in wanted, None
        if ranks.is_main:
            untold = check_trusted(config.model.factory, where.path, trusts)
        ranks.barrier()
        device_spec, _ = device_for(config, packed, saved.identity["machine"])
        held.enter_context(determinism(config.deterministic))
        warnings = problems + restore_machine(saved.identity["machine"], device_spec)
        warnings += [] if untold is None else [untold]
        looked_through(packed, roles, config.plans)
        # Ended by a kill or a full disk after its last checkpoint: recording the end is all that is left to do.
        only_the_end = saved.progress.finished and not changes and where.status not in ("finished", "early_stopped")
        if saved.progress.epoch >= config.plans[-1].stop and not only_the_end:
            done = saved.progress.epoch
            copies = open_mirror(where, as_found)  # which a cut after the end may have left without the last one
            copies.offer()
            copies.finish()
            for said in copies.problems():
                shown.say(said)
            more = next_commands.longer(where, old, max(old.epochs, done) + 10)
            raise ConfigError(
                f"{where.path}: {counted(done, 'epoch')} of {config.epochs} wanted are done; `{more}` trains longer"
            )
        # The stage whose setup was saved: at its very end that is not yet the stage of the next epoch.
        plan = next(plan for plan in reversed(config.plans) if plan.start <= stage_start)
        setup = assemble(config, plan, packed, roles, device_spec)
        if setup.factory != saved.identity.get("factory", setup.factory):
            warnings.append(f"{config.model.factory}: its code is not the one that the run was trained with so far")
        restore_setup(setup, saved, changes)
        progress = setup.state.progress
        progress.finished = only_the_end
        progress.back_to = progress.back_to if from_checkpoint is None else progress.step
        begun = [event["segment"] for event in where.events() if "segment" in event]
        parent, progress.segment = progress.segment, 1 + max([progress.segment, *begun])
        warnings += series.mend_best(where, progress)
        where.write_text(where.config_path, config.to_toml())
        about = where.read_json(where.environment_path)
        if about.get("corpus"):  # it may lie elsewhere now, and a relative path is seen from where we stand
            about["corpus"]["from_run"] = place_from_run(packed, where)
            where.write_json(where.environment_path, about)
        standing = {"segment": progress.segment, "epoch": progress.epoch, "step": progress.step}
        where.append_event("segment_started", parent=parent, checkpoint=saved.path.name, **standing)
        where.write_pointer("last", saved.progress.step)  # after the event, which decides what the run's life is
        for key, before, after in changes:
            where.append_event("config_changed", key=key, old=before, new=after, by="resume", **standing)
        position = f"epoch {progress.epoch + 1}, batch {progress.batch}, step {progress.step}"
        shown.say(
            f"{where.path}: all {progress.epoch} epochs are done; only the end was not recorded"
            if only_the_end
            else f"resuming {where.path} at {position}"
        )
        for key, later, then in diff(newest, begins):
            shown.say(f"as it was at {saved.path.name}: {key} {experiment.shown(later)} -> {experiment.shown(then)}")
        for key, before, after in changes:
            shown.say(told_change(key, before, after, old, config))
        if any(key in ("epochs", "optimizer.lr") or key.startswith("schedule.") for key, _, _ in changes):
            shown.say(f"learning rate: {told_rate(where, setup)}")
        train(where, setup, shown, warnings, bool(changes) or from_checkpoint is not None, ranks, began)
    return where


def told_rate(run: Run, setup: TrainingSetup) -> str:
    """The learning rate of the next step, whether it stays there, and the last one that was logged."""
    progress, batches = setup.state.progress, setup.train.batches_per_epoch
    schedule, plans = setup.state.schedule, setup.run_config.plans
    rate = float(schedule.rates(progress.epoch, batches)[progress.batch]) * progress.rate_scale
    name, last = setup.config.schedule.name, setup.plan.schedule_stop - 1
    if name != "constant":
        until = f"at the next step, then as schedule.name={name} moves it"
    elif rate != float(schedule.rates(last, batches)[-1]) * progress.rate_scale:
        until = "at the next step, then up to its full height"
    elif setup.plan.schedule_stop < plans[-1].stop:
        until = f"from here on, up to the stage that begins with epoch {setup.plan.schedule_stop + 1}"
    else:
        until = "from here on"
    lines = [*run.metrics("train"), *run.metrics("epoch")]
    before = max((line for line in lines if line["step"] <= progress.step), key=lambda line: line["step"], default=None)
    return f"{rate:.3g} {until}" + (f"; the last logged was {before['lr']:.3g}" if before else "")
