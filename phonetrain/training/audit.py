"""audit: trains from one kept checkpoint to the next again and compares bit for bit.

A step is a pure function of the state before it, so that training needs no checksums of its own: memory or a disk that
changed a number silently shows when a part of the run is made once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import checkpoint, series
from ..checkpoints.state import Progress
from ..config.run_config import RunConfig
from ..config.stages import flattened
from ..console.base import Console
from ..device import describe_machine, determinism
from ..errors import CheckpointError, ConfigError, TrainingStopped
from ..model.trust import check_trusted
from ..runs.directory import ReadOnlyRun, Run
from ..runs.tracker import Tracker
from ..text import counted, to_json
from .build import TrainingSetup, assemble, identity
from .data import choose_roles, corpus_of
from .resume import check_identity, restore_setup
from .session import device_for
from .stopping import StopRequest
from .trainer import Pause, Trainer

CLOCK = {"seconds", "scoring_seconds", "frames_per_second", "segment"}  # of a line, what no second time is equal


def audit(
    run: str | os.PathLike[str] | None = None,
    step: int | None = None,
    *,
    corpus: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Train from the newest kept checkpoint before `step` to the next kept one, writing nothing, and compare.

    Parameters
    ----------
    run: run directory or name; default: the newest. step: default: that of the newest checkpoint.
    corpus: the packed corpus, where it has moved; it is recognised by its digest. console: where progress is shown.
    trust_code: run the code of a model.factory that this user has not trusted here before, and remember it.

    Returns
    -------
    equal; from and to, steps of the two checkpoints; tensors (of weights, averaged weights, moments and sums) and
    lines (of the log between them), how many were compared; differences, a sentence each.

    Raises RunNotFound, CheckpointError (none is kept there, or one is damaged), ConfigError where bits cannot be equal:
    another machine type, number of threads or processes, other code, or a part of the run that was led by hand.
    """
    found = ReadOnlyRun(Run.open(run).path)
    first, last = endpoints(found, step)
    begin, end = (checkpoint.read(found.checkpoint_dir(step)) for step in (first, last))
    # A resume that changes something saves where it stands once more: each checkpoint has the settings from it on.
    config, stage_start = RunConfig.from_dict(begin.identity["config"]), begin.identity["stage"]
    refuse_led_by_hand(found, first, last)
    packed = corpus_of(found, config, corpus)
    roles = choose_roles(packed, config.data)
    for saved in (begin, end):
        check_identity(saved, identity(packed, config, roles), found)
    check_trusted(config.model.factory, found.path, trust_code)
    device_spec, _ = device_for(config, packed, end.identity["machine"])
    for saved in (begin, end):
        refuse_other_machine(found, saved.identity["machine"], describe_machine(device_spec))
    with determinism(config.deterministic), console or Console() as shown:
        plan = next(plan for plan in reversed(config.plans) if plan.start <= stage_start)
        setup = assemble(config, plan, packed, roles, device_spec)
        shown.start({"run": str(found.path), "epochs": config.epochs, "steps_per_epoch": setup.train.batches_per_epoch,
                     "audit": f"training again from step-{first} to step-{last}"})  # fmt: skip
        record, stopped = Lines(found.path), []
        try:
            if setup.factory != begin.identity.get("factory"):
                raise ConfigError(
                    f"{found.path}: {config.model.factory} is not the code that the run was trained with; bring it back"
                )
            restore_setup(setup, begin, [])
            setup.state.progress.segment, setup.state.progress.finished = end.progress.segment, False
            again = Again(record, setup, shown, last)
            again.train()
            setup = again.setup
        except TrainingStopped as error:
            stopped.append(f"training again stopped: {error}")
        finally:
            setup.close()
    was = values(end.model, end.averaged, end.training, end.progress)
    state, parts = setup.state, {name: part.state_dict() for name, part in setup.state.training_parts().items()}
    averaged = None if state.averaged is None else state.averaged.state_dict()
    now = values(state.model.state_dict(), averaged, parts, state.progress)
    if changed_at(found, last, end.progress.segment):  # rates, averages and sums may be those of after the change
        common = [name for name in was if name in now and name.startswith(("model.", "averaged.", "optimizer."))]
        was, now = {name: was[name] for name in common}, {name: now[name] for name in common}
    lines = numbers(found.metrics(), first, last)
    differences = (
        stopped + differing(was, now, "") + differing(lines, numbers(record.lines, first, last), " in the log")
    )
    return {
        "run": str(found.path),
        "from": first,
        "to": last,
        "equal": not differences,
        "tensors": sum(isinstance(value, Tensor) for value in was.values()),
        "lines": len(lines),
        "differences": differences,
    }


class Lines(ReadOnlyRun):
    """The run as it is read, and the lines that training it again would have logged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.lines: list[dict[str, Any]] = []

    def append_metric(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


class Again(Trainer):
    """Trains up to a step, whatever else would have stopped it; its run is not written."""

    def __init__(self, run: Lines, setup: TrainingSetup, console: Console, until: int) -> None:
        super().__init__(run, setup, console, Tracker(), StopRequest(), time.monotonic())
        self.until = until

    def save(self) -> None:
        """Nothing."""

    def pause_due(self) -> Pause | None:
        return Pause("audited") if self.progress.step >= self.until else None


def endpoints(run: Run, step: int | None) -> tuple[int, int]:
    """Steps of the newest kept checkpoint before `step` and of the next kept one. Raises CheckpointError."""
    steps = sorted(series.life(run)[0])
    wanted = step if step is not None else steps[-1] if steps else 0
    before, after = [kept for kept in steps if kept < wanted], [kept for kept in steps if kept >= wanted]
    if before and after:
        return before[-1], after[0]
    there = ", ".join(map(str, steps)) or "none"
    raise CheckpointError(
        f"{run.path}: no checkpoint {'after' if before else 'before'} step {wanted} is kept (kept: {there}); give a "
        "--step above the first and up to the last of them, and checkpoint.keep to the next run"
    )


def refuse_led_by_hand(run: Run, first: int, last: int) -> None:
    """Raises ConfigError where what happened between two checkpoints is not in the second one alone."""
    for event in run.kept_events():
        if not first <= event.get("step", -1) <= last:
            continue
        what, inside = None, first < event["step"] < last
        if event["event"] == "recovered":
            what = "bad numbers were met, and batches left out or weights gone back to"
        elif event["event"] == "config_changed" and event.get("by") == "resume" and inside:
            what = f"{event['key']} was changed by hand"
        elif event["event"] == "warning" and event.get("message", "").startswith("this machine is not") and inside:
            what = "it went on on another machine"
        if what is not None:
            raise ConfigError(
                f"{run.path}: between step-{first} and step-{last}, at step {event['step']}, {what}, so that this part "
                "cannot be trained again by itself; give another --step"
            )


def changed_at(run: Run, step: int, segment: int) -> bool:
    """Whether the segment began at this step with settings that were changed by hand."""
    changes = (event for event in run.events("config_changed") if event.get("by") == "resume")
    return any((event.get("step"), event.get("segment")) == (step, segment) for event in changes)


def refuse_other_machine(run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError where sums may be rounded otherwise than they were."""
    others = [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
    if not others:
        return
    threads = f", with OMP_NUM_THREADS={then.get('threads')}" if now["threads"] != then.get("threads") else ""
    raise ConfigError(
        f"{run.path}: was trained on another machine ({', '.join(others)}), which rounds otherwise; audit it where it "
        f"was trained{threads}"
    )


def values(
    model: Mapping[str, Any], averaged: Mapping[str, Any] | None, training: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """All that steps change, by name: tensors on the CPU, and plain numbers. Rates are in the schedule."""
    parts = {name: part["state"] if name == "optimizer" else part for name, part in training.items()}
    standing = {name: getattr(progress, name) for name in ("epoch", "batch", "step", "logged", "rate_scale")}
    named = flattened({"model": model, "averaged": averaged or {}, **parts, "progress": standing})
    return {name: value.detach().cpu() if isinstance(value, Tensor) else value for name, value in named}


def numbers(lines: Sequence[Mapping[str, Any]], first: int, last: int) -> dict[str, Any]:
    """The numbers of the lines of training and of epochs after step `first` up to `last`, by step and name."""
    return {
        f"step {line['step']}, {line['kind']}": {key: value for key, value in line.items() if key not in CLOCK}
        for line in lines
        if line.get("kind") in ("train", "epoch") and first < line["step"] <= last
    }


def differing(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """A sentence for each name whose value was another, in the order of `now`."""
    told = []
    for name in dict.fromkeys([*now, *then]):
        was, found = then.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(found, Mapping):
            keys = [key for key in dict.fromkeys([*found, *was]) if to_json(was.get(key)) != to_json(found.get(key))]
            told += [f"{name}{where}: {key} was {was.get(key)}, is {found.get(key)}" for key in keys[:1]]
        elif isinstance(was, Tensor) and isinstance(found, Tensor) and same_kind(was, found):
            unequal = bits(was) != bits(found)
            if count := int(unequal.any(-1).sum()):
                told.append(f"{name}: {count:,} of {counted(was.numel(), 'value')} differ")
        elif (name in then, to_json(str(was))) != (name in now, to_json(str(found))):
            told.append(f"{name}{where}: was {_shown(was)}, is {_shown(found)}")
    return told


def same_kind(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of each value, (values, bytes of one): -0 is not 0, and NaN is itself."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def _shown(value: Any) -> str:
    return (
        f"{value.dtype} {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else "absent"
        if value is None
        else str(value)
    )


def audit_text(result: dict[str, Any]) -> str:
    """An audit for people."""
    about = (
        f"{result['run']}: steps {result['from']} to {result['to']} trained again; "
        f"{counted(result['tensors'], 'tensor')} and {counted(result['lines'], 'logged line')} compared"
    )
    if result["equal"]:
        return f"{about}: all bits are equal"
    found = result["differences"]
    more = [f"and {counted(len(found) - 10, 'more')}"] if len(found) > 10 else []
    told = f"{counted(len(found), 'difference')}: a number changed in memory or on disk, in training or since"
    return "\n".join([f"{about}; {told}", *(f"  {line}" for line in (*found[:10], *more))])
