"""sweep: trains a recipe under many settings, each trial an ordinary run, with optuna's search and median pruning.

A sweep is a folder: `journal.log`, in which optuna keeps the trials of all processes that work on it, and the runs. The
same command goes on with it, on this machine or beside others on another one that sees the folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import xxhash

from phonedata import files

from ..config.sections import duration
from ..console.base import Console
from ..display.tables import Shown, text_table
from ..errors import ConfigError, PhonetrainError, TrainingStopped
from ..runs import next_commands
from ..runs.directory import Run
from ..text import percent
from ..training.fit import fit
from ..training.resume import resume
from ..training.stopping import StopRequest, noticed_signals
from .search_space import SearchSpace, same_command, told

SWEEPS = Path("sweeps")
STARTUP_TRIALS = 4  # of a combination, before the median of the others ends one
TRIALS = 20  # of a combination whose ranges are searched


def sweep(
    recipe: str | os.PathLike[str] = "default",
    *texts: str,
    trials: int | None = None,
    jobs: int | None = None,
    max_time: str | None = None,
    corpus: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Search ranges (`"optimizer.lr=1e-4..1e-2"`) in each combination of lists (`"model.depth=3,4,5"`).

    trials: samples of each combination; without ranges there is one. jobs: processes that train at a time; default: one
    for each GPU. max_time: as "3h", after which no trial is begun and those that train are left, to be gone on with by
    the same call. out: the sweep's folder; default sweeps/RECIPE-DIGEST, the same for the same recipe and texts.
    `"seed=0,1,2"` repeats each sample; its score is the mean over the seeds.

    Returns folder, seeds, trials (the best first: settings, state, accuracies, one a seed, mean, spread, epochs, runs),
    best, the run of the best trial whose seed scored best, None before a trial is complete, and next, a command.
    Raises ConfigError, and PhonetrainError where optuna is missing or every trial failed.
    """
    space = SearchSpace.of(recipe, texts, corpus)
    samples = (TRIALS if trials is None else trials) if space.ranges else 1
    if samples < 1:
        raise ConfigError(f"trials: got {trials}, wanted 1 or more")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: got {jobs}, wanted 1 or more")
    end = None if max_time is None else time.monotonic() + seconds_of(max_time)
    folder = Path(out) if out is not None else SWEEPS / folder_name(recipe, texts)
    folder.mkdir(parents=True, exist_ok=True)
    here = Sweep(folder, space, samples)
    devices = gpus()
    jobs = jobs or max(1, len(devices))
    if jobs > 1:
        words = [os.fspath(recipe), *texts, "--trials", str(samples), "--jobs", "1", "--out", str(folder), "--quiet"]
        words += ["--max-time", max_time] if max_time else []
        words += ["--corpus", os.fspath(corpus)] if corpus else []
        in_processes(words, jobs, devices)
    else:
        here.work(end)
    return Shown(here.result(), sweep_text)


def seconds_of(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise ConfigError(f"max_time: {error}") from None


def folder_name(recipe: str | os.PathLike[str], texts: Sequence[str]) -> str:
    digest = xxhash.xxh3_64_hexdigest(same_command(recipe, texts).encode())[:8]
    return f"{Path(os.fspath(recipe)).stem}-{digest}"


def gpus() -> list[str]:
    """Numbers of the GPUs that this process may use, where there are several."""
    import torch

    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (seen.split(",") if seen else [str(number) for number in range(count)]) if count > 1 else []


def in_processes(words: Sequence[str], jobs: int, devices: Sequence[str]) -> None:
    """Let `jobs` processes work on the sweep, each on a GPU of its own where there are several.

    A signal that asks to end is passed on; each saves, all are waited for, and then the signal does what it does.
    """
    started: list[subprocess.Popen[bytes]] = []
    for job in range(jobs):
        place = {"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]} if devices else {}
        command = [sys.executable, "-m", "phonetrain", "sweep", *words]
        started.append(subprocess.Popen(command, env={**os.environ, **place}, stdout=subprocess.DEVNULL))
    with noticed_signals(PassedOn(started)) as request:
        codes = [process.wait() for process in started]
    if request.reason:
        signal.raise_signal(getattr(signal, request.reason))
    if all(codes):
        raise PhonetrainError(f"sweep: all {jobs} processes failed; their messages stand above")


class PassedOn(StopRequest):
    """Sends signals on to processes."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        super().__init__()
        self.processes = processes

    def receive(self, number: int, frame: object) -> None:
        self.reason = signal.Signals(number).name
        # Ctrl-C reaches all processes of a terminal, and a second one would end them unsaved.
        for process in self.processes if number != signal.SIGINT else ():
            process.send_signal(number)


class Sweep:
    """One process's part in a sweep."""

    def __init__(self, folder: Path, space: SearchSpace, samples: int) -> None:
        try:
            import optuna
        except ImportError:
            raise PhonetrainError("sweep needs optuna: `pip install optuna`") from None
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.folder, self.space, self.samples = optuna, folder, space, samples
        journal = str(folder / "journal.log")
        # A lock by exclusive creation works on NFS too, where others do not.
        storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.studies = [
            optuna.create_study(
                storage=storage,
                study_name=f"{place}: {told(combination)}",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
            )
            for place, combination in enumerate(space.combinations)
        ]
        self.failures: list[PhonetrainError] = []

    def work(self, end: float | None) -> None:
        """Train trials until all are done, or `end` (monotonic) has come. Raises KeyboardInterrupt after Ctrl-C."""
        for place, study in enumerate(self.studies):
            while end is None or time.monotonic() < end:
                with self.claimed(study, place) as trial:
                    if trial is None:
                        break
                    self.train(study, place, trial, end)
        complete = [trial for study in self.studies for trial in study.trials if trial.state.is_finished()]
        if self.failures and not any(trial.value is not None for trial in complete):
            raise self.failures[0]

    @contextlib.contextmanager
    def claimed(self, study: Any, place: int) -> Iterator[Any]:
        """A trial that only this process works on: one that was left, else a new one; None where there is no more."""
        states = self.optuna.trial.TrialState
        with contextlib.ExitStack() as mine:
            with self.held("claim", waits=True):
                known = study.get_trials(deepcopy=False)
                trial = None
                for left in known:
                    if left.state == states.RUNNING and mine.enter_context(self.held(f"{place}-{left.number}")):
                        trial = self.optuna.Trial(study, left._trial_id)
                        break
                if trial is None and len(known) < self.samples:
                    trial = study.ask()
                    mine.enter_context(self.held(f"{place}-{trial.number}"))
            yield trial

    @contextlib.contextmanager
    def held(self, name: str, waits: bool = False) -> Iterator[bool]:
        """Hold what goes by this name; False where another process does. The lock ends with its process."""
        with open(self.folder / f".{name}.lock", "ab") as file:
            while not (free := files.try_lock(file.fileno())) and waits:
                time.sleep(0.05)
            try:
                yield free
            finally:
                if free:
                    files.unlock(file.fileno())

    def train(self, study: Any, place: int, trial: Any, end: float | None) -> None:
        """Train a trial with every seed and tell optuna how it ended, or leave it to be gone on with."""
        states = self.optuna.trial.TrialState
        settings = self.space.combinations[place] | self.sampled(study, trial)
        scores: list[float] = []
        try:
            for order, seed in enumerate(self.space.seeds):
                run = self.run_of(place, trial.number, seed)
                console = Watching(run, trial, order * self.space.config.epochs, scores, end)
                self.trained(run, settings | {"seed": seed}, console)
                best = run.best()
                if run.status.startswith("SIG"):
                    signal.raise_signal(getattr(signal, run.status))  # the run only saved: it is meant for the sweep
                if run.status == "pruned":
                    study.tell(trial, state=states.PRUNED)
                    self.say(settings, f"pruned after epoch {len(run.metrics('epoch'))}")
                    return
                if run.status not in ("finished", "early_stopped"):
                    return  # its time was up: it stays as it is, and the same command goes on with it
                if best is None:
                    raise TrainingStopped(f"{run.path}: ended without a score")
                scores.append(best["dev_accuracy"])
        except (ConfigError, TrainingStopped) as error:
            print(f"warning: trial {trial.number} ({told(settings)}) failed: {error}", file=sys.stderr)
            self.failures.append(error)
            study.tell(trial, state=states.FAIL)
            return
        study.tell(trial, mean(scores))
        self.say(settings, f"{percent(mean(scores))} % of dev right")

    def say(self, settings: dict[str, Any], ended: str) -> None:
        """A line on stderr for each trial that is over: a sweep may take a night."""
        over = sum(trial.state.is_finished() for study in self.studies for trial in study.get_trials(deepcopy=False))
        print(f"trial {over} of {self.samples * len(self.studies)}: {told(settings)}: {ended}", file=sys.stderr)

    def sampled(self, study: Any, trial: Any) -> dict[str, Any]:
        """The trial's values of the ranges; those of a trial that was left are as they were."""
        # From the trial's number, so that two processes never draw the same numbers, and one draws them again.
        study.sampler = self.optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        found: dict[str, Any] = {}
        for each in self.space.ranges:
            if each.whole:
                found[each.key] = trial.suggest_int(each.key, each.low, each.high)
            else:
                found[each.key] = trial.suggest_float(each.key, each.low, each.high, log=each.logarithmic)
        return found

    def run_of(self, place: int, number: int, seed: int) -> Run:
        combination = f"c{place}-" if len(self.space.combinations) > 1 else ""
        return Run(self.folder / f"{combination}t{number}-s{seed}")

    def trained(self, run: Run, settings: dict[str, Any], console: Watching) -> None:
        """Train a run, or go on with it where it was left."""
        if not run.has_trained:
            fit(config=self.space.config.replaced(settings), run=run.path, console=console)
        elif run.status not in ("finished", "early_stopped", "pruned"):
            resume(run.path, console=console)

    def result(self) -> dict[str, Any]:
        """What `sweep` returns."""
        rows: list[dict[str, Any]] = []
        for place, study in enumerate(self.studies):
            for trial in study.get_trials(deepcopy=False):
                if trial.number >= self.samples:
                    continue
                runs = [self.run_of(place, trial.number, seed) for seed in self.space.seeds]
                scores = [line["dev_accuracy"] for run in runs if run.holds_run and (line := run.best()) is not None]
                rows.append({
                    "settings": self.space.combinations[place] | trial.params,
                    "state": trial.state.name.lower(),
                    "accuracies": scores,
                    "mean": mean(scores) if scores else None,
                    "spread": stdev(scores) if len(scores) > 1 else None,
                    "epochs": sum(len(run.metrics("epoch")) for run in runs if run.holds_run),
                    "runs": [str(run.path) for run in runs if run.holds_run],
                })  # fmt: skip
        rows.sort(key=lambda row: (row["state"] != "complete", -(row["mean"] or 0.0)))
        first = rows[0] if rows and rows[0]["state"] == "complete" else None
        best = max(map(Run, first["runs"]), key=score_of) if first is not None else None
        longer = next_commands.longer(best, self.space.config, 2 * self.space.config.epochs) if best else None
        return {"folder": str(self.folder), "trials": rows, "best": None if best is None else str(best.path),
                "next": longer, "seeds": list(self.space.seeds)}  # fmt: skip


def score_of(run: Run) -> float:
    line = run.best()
    return line["dev_accuracy"] if line is not None else -math.inf


class Watching(Console):
    """The quiet console of a trial's run: tells optuna every score, and stops the run that is pruned or out of time.

    before: epochs of the seeds before; scores: of these seeds.
    """

    def __init__(self, run: Run, trial: Any, before: int, scores: Sequence[float], end: float | None) -> None:
        super().__init__()
        self.run, self.trial, self.before, self.scores, self.end = run, trial, before, scores, end

    def epoch_row(self, line: dict[str, Any]) -> None:
        step = self.before + int(line["epoch"])
        if step in self.trial.study.trials[self.trial.number].intermediate_values:
            return  # a run that was resumed before this epoch tells the same score again
        # With the seeds that are done, so that what is compared at a step is the same for all trials.
        self.trial.report(mean([*self.scores, line["dev_accuracy"]]), step)
        is_last = int(line["epoch"]) + 1 >= self.epochs
        if not is_last and self.trial.should_prune():
            self.stop = "pruned"

    def warn(self, text: str) -> None:
        super().warn(f"{self.run.path}: {text}")

    def on_count(self) -> None:
        if self.end is not None and time.monotonic() > self.end:
            self.stop = "deadline"

    on_progress = on_count


def sweep_text(result: dict[str, Any]) -> str:
    """The table for people, and the command that trains the best longer."""
    header = ("settings", "state", "dev %", "spread", "epochs", "run")
    rows = [
        (told(row["settings"]) or "as the recipe", row["state"], percent(row["mean"]), percent(row["spread"]),
         str(row["epochs"]), row["runs"][0] if row["runs"] else "-")
        for row in result["trials"]
    ]  # fmt: skip
    seeds = len(result["seeds"])
    over = f"dev % is the mean of {seeds} seeds, spread their standard deviation" if seeds > 1 else "one seed each"
    lines = [*text_table(header, rows, left=2), f"{result['folder']}: best frame accuracies on dev; {over}"]
    if result["next"]:
        lines.append(f"next: {result['next']}    # trains the best longer")
    else:
        lines.append("next: the same command goes on; no trial is complete yet")
    return "\n".join(lines)
