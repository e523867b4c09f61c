"""One process of a run: prepares, trains and records how it ended."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phonedata import PackedCorpus

from ..config.run_config import RunConfig, StagePlan
from ..console.base import Console, SilentConsole
from ..console.open import open_console
from ..device import DeviceSpec, choose_device, describe_machine, version
from ..distributed import ProcessGroup, current
from ..errors import ConfigError, TrainingStopped
from ..kernels import layer
from ..model.custom import faster_precision
from ..runs import verdict
from ..runs.directory import ReadOnlyRun, Run
from ..runs.history import where_scored
from ..runs.tracker import Tracker, open_tracker
from ..text import short
from .build import TrainingSetup, assemble, describe, training_selection
from .data import Roles, check_window, choose_roles, place_from_run, warnings_before_training
from .memory import lacking
from .starting_weights import StartingWeights, start_from
from .stopping import StopRequest, noticed_signals
from .trainer import Trainer

PACKAGES = ("torch", "numpy", "numba", "zarr", "wandb", "rich", "safetensors")


def seen_by(ranks: ProcessGroup, run: Run | None) -> Run:
    """Rank 0's run, which only rank 0 writes. run: on rank 0."""
    path = ranks.share(None if run is None else run.path)
    return Run(path) if ranks.is_main else ReadOnlyRun(path)


def shown_by(ranks: ProcessGroup, console: Console | None) -> Console:
    """The console given or found, on rank 0; the others say nothing."""
    return (console or open_console()) if ranks.is_main else SilentConsole()


@dataclass(frozen=True)
class Prepared:
    """All that is known before a run is written: the first stage's parts, warnings about the data of all stages, and
    which weights of another run they start from."""

    setup: TrainingSetup
    warnings: list[str]
    start: StartingWeights | None


def prepare(config: RunConfig, corpus: PackedCorpus, *, only_planned: bool = False) -> Prepared:
    """Choose roles and device, look through the data of every stage, build the first stage; writes nothing.

    only_planned: build it around a model without values; one that memory is too small for is then a warning.
    Raises ConfigError where the run could not train. The caller closes `setup`.
    """
    roles = choose_roles(corpus, config.data)
    check_window(corpus, config.window)
    device_spec, too_large = device_for(config, corpus, only_planned=only_planned)
    warnings = looked_through(corpus, roles, config.plans) + ([] if too_large is None else [too_large])
    if device_spec.device.type == "mps":
        warnings.append("device=mps is untested; compare the first epoch with one on device=cpu")
    elif (reason := layer.why_not(device_spec.device)) is not None:
        compiler = "Triton" if device_spec.device.type == "cuda" else "numba"
        warnings.append(f"{compiler} makes no kernels here, so layers take torch's own, which is slower ({reason})")
    setup = assemble(config, config.plans[0], corpus, roles, device_spec, only_planned=only_planned)
    start = None
    if config.model.from_run is not None:
        try:
            start = start_from(setup, config.model.from_run)
        except BaseException:
            setup.close()
            raise
        warnings += start.warnings
    return Prepared(setup, warnings, start)


def device_for(
    config: RunConfig, corpus: PackedCorpus, before: Mapping[str, Any] | None = None, *, only_planned: bool = False
) -> tuple[DeviceSpec, str | None]:
    """Where and in which precision this process trains, and a sentence where its memory is too small for that.

    On a CPU `precision = auto` times a model of the user's own in bf16 and fp32. before: the machine of the checkpoint
    that a run goes on from, whose answer holds for the whole run: a stopwatch may give another one next time.
    Raises ConfigError with that sentence unless `only_planned`.
    """
    ranks = current()
    spec = choose_device(ranks.device(config.device), config.precision)
    # Before anything of that size is built, and before other processes have begun to.
    too_large = ranks.share(lacking(config, corpus, spec) if ranks.is_main else None)
    if too_large is not None and not only_planned:
        raise ConfigError(too_large)
    factory = config.model.factory
    if factory is None or config.precision != "auto" or spec.device.type != "cpu" or too_large is not None:
        return spec, too_large
    if before is not None and before.get("gpu") is None:
        told = f"cpu, {before['precision']} as the run began"
        return replace(spec, precision=before["precision"], reason=told), None
    measured = None
    if ranks.is_main:
        sizes = corpus.feature_dim, config.window.width, len(corpus.phonemes)
        measured = faster_precision(factory, *sizes, config.batch_size)
    precision, reason = ranks.share(measured)
    return replace(spec, precision=precision, reason=f"cpu; {reason}"), None


def looked_through(corpus: PackedCorpus, roles: Roles, plans: Sequence[StagePlan]) -> list[str]:
    """Warnings about the data that each stage trains on, said once; raises ConfigError for a stage that cannot train.

    All stages before the first one trains: hours later is late to learn that the last one cannot.
    """
    said: dict[str, str] = {}
    for number, plan in enumerate(plans):
        stage = f"stage.{number}: " if number else ""
        selection = training_selection(corpus, roles, plan.config)
        try:
            told = warnings_before_training(corpus, roles, selection, plan.config)
        except ConfigError as error:
            raise ConfigError(f"{stage}{error}") from None
        for message in told:
            said.setdefault(message, f"{stage}{message}")
    return list(said.values())


def environment(corpus: PackedCorpus, device_spec: DeviceSpec, run: Run) -> dict[str, Any]:
    """Versions, device, commit, corpus digests and where the corpus lies from the run; no host and no user name."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": device_spec.reason,
        "machine": describe_machine(device_spec),
        "commit": commit(),
        "corpus": {
            "digest": corpus.digest,
            "from_run": place_from_run(corpus, run),
            "phonemes": corpus.phonemes.fingerprint,
            "cmvn": corpus.cmvn,
            "frontend": corpus.attributes.get("frontend"),
            "frame_shift_ms": corpus.frame_shift_ms,
            "partitions": {name: part.digest for name, part in corpus.partitions.items()},
        },
    }


def commit() -> str | None:
    """The git commit of this package's checkout, `-dirty` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            text=True,
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None


def train(
    run: Run,
    setup: TrainingSetup,
    console: Console,
    warnings: Sequence[str],
    save_first: bool,
    ranks: ProcessGroup,
    began: float,
) -> None:
    """Run the loop under signal handlers, and record how it ended, whatever happens.

    save_first: the present state is in no checkpoint yet; with one, a process that is killed at once can be resumed.
    began: as in Trainer.
    """
    config = setup.run_config
    ranks.barrier()  # all have read what rank 0 is about to write
    settings = {"config": config.to_dict()}
    tracker = open_tracker(config.tracking, run, settings, console.say, console.warn) if ranks.is_main else Tracker()
    plan = {
        "run": str(run.path),
        "epochs": config.epochs,
        "steps_per_epoch": setup.train.batches_per_epoch,
        "model": f"{describe(setup)['model']['parameters']:,} parameters",
        "data": f"{setup.train.num_frames:,} frames of {setup.roles.train}; scored on {setup.roles.dev} "
        f"in {setup.device_spec.precision}",
        "device": f"{setup.device_spec.reason}, {setup.device_spec.precision}",
        "loader": setup.train.reason,
    }
    with noticed_signals() as request:
        trainer = Trainer(run, setup, console, tracker, request, began)
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
                end(trainer, type(error).__name__, request, message=message, **trainer.end_record)
            raise
        end(trainer, reason, request)
    ranks.barrier()  # the end is recorded: exit codes of all go by it


def end(trainer: Trainer, reason: str, request: StopRequest, **fields: Any) -> None:
    """Close what is open, record the end of the segment, say what comes next. fields: more for the record."""
    trainer.setup.close()
    try:
        # Before the tracker is waited for, up to a minute in which the machine may be taken away.
        trainer.event("run_finished" if reason == "finished" else "segment_ended", reason=reason, **fields)
        if trainer.saved is not None or trainer.progress.finished:
            trainer.mirror.offer()
        trainer.mirror.finish()
        for problem in trainer.mirror.problems():
            trainer.warn(problem)
    finally:
        say_end(trainer, reason, request, fields.get("ways"))


def say_end(trainer: Trainer, reason: str, request: StopRequest, ways: dict[str, str] | None) -> None:
    """Tell the tracker, wait for it, and say what comes next. ways: as in `verdict.after_end`."""
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
        told += [f"next: {way}" for way in verdict.after_end(run, reason, best is not None, ways)]
    if told:
        console.say("\n".join(told))
    show_curves(run, console)


def show_curves(run: Run, console: Console) -> None:
    """The learning curves, where there are scores and the console can show pictures."""
    if run.scores():
        console.picture(lambda: curves_of(run))


def curves_of(run: Run) -> bytes:
    """The run's learning curves as a PNG for a notebook."""
    from ..display.plots import as_png, draw_run  # matplotlib, which nobody else who trains needs

    return as_png(draw_run(run), 100)
