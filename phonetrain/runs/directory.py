"""Run: the directory of one run. Its paths are made only here; its files are whole or absent, its logs only grow.

runs/NAME/
  config.toml        what was asked for, resolved           built.json        what was really built
  environment.json   versions, device, corpus digests       checkpoints/step-N/   best, last, before_nonfinite
  metrics.jsonl      numbers, a line each                    evidence/         what the guard kept
  events.jsonl       what happened, a line each              predictions/  evaluations/  report.html  wandb/
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from phonedata import files

from ..errors import CheckpointError, RunDamaged, RunExists, RunNotFound, TrainingStopped
from ..text import command, counted, percent, to_json
from . import recorded
from .history import History, where_scored

RUNS = Path("runs")
RunName = str | os.PathLike[str] | None  # a Run, which stands for its path, a directory or a name; None: the newest
LOOK_SECONDS = 0.1


class Run(History):
    """One run directory. `Run.create` makes one, `Run.open` finds one; both cost a few directory reads."""

    writes = True

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_path = self.path / "config.toml"
        self.environment_path = self.path / "environment.json"
        self.built_path = self.path / "built.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.evidence = self.path / "evidence"
        self.predictions = self.path / "predictions"
        self.evaluations = self.path / "evaluations"
        self.report_path = self.path / "report.html"
        self.curves_path = self.path / "curves.png"
        self.tracker_path = self.path / "tracker.json"
        self.lock_path = self.path / ".lock"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def __fspath__(self) -> str:
        """A Run stands wherever the path of one is wanted: `resume(run)`."""
        return str(self.path)

    @classmethod
    def create(cls, path: str | os.PathLike[str] | None = None, recipe: str = "default", root: Path = RUNS) -> Run:
        """Make the directory of a new run: `path`, or `root/<recipe>-<n>` with the first n above all that are there.

        Raises RunExists where `path` already holds a run that trained (an empty directory, one with other files, or
        one whose run never trained, is taken).
        """
        if path is not None:
            run = cls(path)
            # A config.toml alone may be anybody's.
            ours = run.events_path.is_file() or run.lock_path.is_file()
            if run.has_trained or (run.holds_run and not ours):
                raise run.exists_already()
            _make_directory(run.path)
            return run
        stem = re.sub(r"[^\w.-]+", "-", Path(recipe).stem) or "run"
        _make_directory(root)
        taken = [re.fullmatch(re.escape(stem) + r"-(\d+)", entry.name) for entry in root.iterdir()]
        number = 1 + max((int(match[1]) for match in taken if match), default=0)
        while True:
            path = root / f"{stem}-{number}"
            # Another process may take the name since the listing.
            with contextlib.suppress(FileExistsError):
                _make_directory(path, exist_ok=False)
                return cls(path)
            number += 1

    @classmethod
    def open(cls, path: RunName = None, root: Path = RUNS) -> Run:
        """The run at `path` (a directory, or the bare name of one under `root`); None takes the newest under `root`.

        A Run is given back as it is.

        Newest is the one trained last, by the time of its last event: looking at an old run, or copying directories,
        changes nothing.
        Raises RunNotFound.
        """
        if isinstance(path, Run):
            return path
        if path is None:
            runs = runs_in(root)
            if not runs:
                raise RunNotFound(
                    f"no run under {root}{os.sep}; `{command('fit')}` starts one, or give the run's directory"
                )
            return max(runs, key=cls._last_sign_of_life)
        for run in (cls(path), cls(root / path)):
            if run.holds_run:
                return run
        if Path(path).is_dir():
            raise RunNotFound(f"{path} holds no run (no config.toml in it); give the directory that `fit` printed")
        names = [run.path.name for run in runs_in(root)]
        near = get_close_matches(Path(path).name, names, n=1)
        hint = f"did you mean {root / near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
        raise RunNotFound(f"no run at {path}; {hint}")

    @classmethod
    def open_all(cls, runs: RunName | Sequence[RunName] = None) -> list[Run]:
        """Each of `runs`, which may be one; none at all is the newest. Raises RunNotFound."""
        return [cls.open(name) for name in cls.each_of(runs)]

    @staticmethod
    def each_of(runs: RunName | Sequence[RunName]) -> list[RunName]:
        return [runs] if runs is None or isinstance(runs, (str, os.PathLike)) else list(runs) or [None]

    @property
    def holds_run(self) -> bool:
        return self.config_path.is_file() or self.events_path.is_file()

    @property
    def has_trained(self) -> bool:
        """Whether it has a checkpoint, made before the first step already, or logged a number."""
        return self.metrics_path.is_file() or bool(files.named(self.checkpoints, "step-*"))

    @property
    def resume_command(self) -> str:
        return self.resume_with()

    def resume_with(self, *settings: str) -> str:
        """The command that goes on with the run, changed by `settings`."""
        return command("resume", self.path, *settings)

    @property
    def start_again_command(self) -> str:
        """The command that starts the run anew in its own directory, which is allowed if it never trained."""
        return command("fit", self.config_path, run=self.path)

    def goes_on(self) -> str:
        with contextlib.suppress(RunDamaged, OSError):
            if self.status in ("finished", "early_stopped"):  # what was to be changed is recorded nowhere yet
                return "the same command does it again"
        if files.named(self.checkpoints, "step-*"):
            return f"`{self.resume_command}` continues from the last checkpoint"
        if self.config_path.is_file():
            return f"`{self.start_again_command}` starts it again"
        return "the same command starts it"

    def exists_already(self) -> RunExists:
        return RunExists(
            f"{self.path} already holds a run; `{self.resume_command}` continues it, another `--run` starts a new one"
        )

    def set_aside(self) -> str | None:
        """Rename the events of a run that never trained, so that the run that begins here has a life of its own.

        Returns a sentence where there was one. To be called under the lock, which nobody who trains it can hold then.
        Raises RunExists where it trained since it was looked at.
        """
        if self.has_trained:
            raise self.exists_already()
        if not self.events_path.is_file():
            return None
        number = 1 + len(files.named(self.path, "events.before-*.jsonl"))
        aside = self.path / f"events.before-{number}.jsonl"
        with self.writing(aside):
            files.rename(self.events_path, aside)
        return f"{self.path}: the run that was here ended before its first checkpoint; its events are in {aside.name}"

    def _last_sign_of_life(self) -> tuple[str, float]:
        times: list[str] = []
        with contextlib.suppress(RunDamaged, OSError):  # of another run than the one that is asked for, perhaps
            times = [event["time"] for event in self.events() if "time" in event]
        return max(times, default=""), self.path.stat().st_mtime

    # Checkpoints and small files

    def checkpoint_dir(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def put_back(self) -> None:
        """Rename back checkpoints that were moved aside for a newer one that was never finished."""
        for old in files.named(self.checkpoints, ".step-*.old"):
            name = self.checkpoints / old.name.removeprefix(".").removesuffix(".old")
            if not name.exists():
                with contextlib.suppress(OSError):
                    old.rename(name)

    def write_pointer(self, name: str, step: int) -> None:
        """Let checkpoints/<name> ("best", "last") name step-<step>: a one-line file, since symlinks fail on Drive."""
        self.write_text(self.checkpoints / name, f"step-{step}\n")

    def drop_pointer(self, name: str) -> None:
        with self.writing(self.checkpoints / name):
            (self.checkpoints / name).unlink(missing_ok=True)

    def read_pointer(self, name: str) -> int | None:
        """The step that checkpoints/<name> names; None where there is no such file. Raises CheckpointError."""
        try:
            text = files.read_file(self.checkpoints / name).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        match = re.fullmatch(r"step-([0-9]{1,18})", text)
        if not match:
            raise CheckpointError(
                f"{self.checkpoints / name}: got {text[:40]!r}, wanted one line like step-1200; "
                f"`{self.resume_command}` writes it anew"
            )
        return int(match[1])

    def read_json(self, path: Path) -> dict[str, Any]:
        """A JSON file of the run, the types of its values checked; {} where there is none yet. Raises RunDamaged."""
        kept = path.parent == self.evaluations
        return recorded.read_json(path, recorded.KeptEvaluation if kept else recorded.SHAPES[path.name])

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        self.write_text(path, to_json(content) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the run, whole or not at all. Raises TrainingStopped."""
        with self.writing(path):
            files.write_file(path, text.encode())

    # One process per run directory

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory for this process. Raises TrainingStopped, naming the other process, if it is held.

        The operating system owns the lock, so it ends with its process, kill -9 included. A file system that knows no
        locks (some network and Drive mounts) is used without.
        """
        with self.writing(self.lock_path):
            files.make_folder(self.path)
            file = open(self.lock_path, "a+b", buffering=0)  # noqa: SIM115
        try:
            free = files.try_lock(file.fileno())
            if not free:  # who only looks (`is_held`) holds it for a moment, who trains for longer
                time.sleep(LOOK_SECONDS)
                free = files.try_lock(file.fileno())
            if not free:
                file.seek(0)
                holder = file.read(40).decode(errors="replace").strip() or "unknown"
                who = "this very process" if holder == str(os.getpid()) else f"process {holder}"
                raise TrainingStopped(
                    f"{self.path} is being trained by {who}; wait for it or stop it, then `{self.resume_command}`"
                )
            with self.writing(self.lock_path):
                file.truncate(0)
                file.write(f"{os.getpid()}\n".encode())
            # What a process that was killed left half-written.
            for leftover in (*files.named(self.path, ".*.tmp"), *files.named(self.checkpoints, ".*.tmp")):
                with contextlib.suppress(OSError):  # they are in nobody's way
                    leftover.unlink(missing_ok=True)
            self.put_back()
            try:
                yield
            finally:
                files.unlock(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # nobody reads it again, and it is free even where close fails
                file.close()

    def is_held(self) -> bool:
        """Whether a process is training this run now."""
        try:
            with open(self.lock_path, "rb") as file:
                # Shared: two who ask do not take each other for a training.
                held = not files.try_lock(file.fileno(), shared=True)
                if not held:
                    files.unlock(file.fileno())
        except OSError:
            return False
        return held

    def __repr__(self) -> str:
        epochs, best = self.metrics("epoch"), self.best()
        summary = f", {counted(len(epochs), 'epoch')}" if epochs else ""
        if best and isinstance(best.get("dev_accuracy"), float):
            summary += f", best dev frame accuracy {percent(best['dev_accuracy'])} % in {where_scored(best)}"
        return f"Run({str(self.path)!r}{summary})"


class ReadOnlyRun(Run):
    """A run as the ranks other than 0 see it: everything can be read, nothing is written."""

    writes = False

    def append(self, path: Path, line: dict[str, Any], sync: bool = False) -> None:
        """Nothing."""

    def sync_metrics(self) -> None:
        """Nothing."""

    def drop_pointer(self, name: str) -> None:
        """Nothing."""

    def write_text(self, path: Path, text: str) -> None:
        """Nothing."""

    def set_aside(self) -> str | None:
        """Nothing."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Rank 0 holds it for all."""
        yield


def runs_in(folder: str | os.PathLike[str]) -> list[Run]:
    """The runs in `folder`, by name."""
    entries = files.named(Path(folder), "*")
    return [run for entry in entries if files.is_folder(entry) and (run := Run(entry)).holds_run]


def _make_directory(path: Path, exist_ok: bool = True) -> None:
    try:
        files.make_folder(path.parent)
        path.mkdir(exist_ok=exist_ok)
        files.sync_folder(path.parent)
    except FileExistsError:
        if path.is_dir():
            raise
        raise TrainingStopped(
            f"{path}: a file is in the way of the run's directory; give another `--run DIR`"
        ) from None
    except OSError as error:
        raise TrainingStopped(
            f"{path}: the directory could not be made ({error.strerror or error}); "
            "give one that you may write to with `--run DIR`"
        ) from error
