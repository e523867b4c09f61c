"""Small real runs for tests: a corpus, a few overrides, and what two runs must have in common."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from phonetrain.checkpoints import checkpoint, series
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.runs.directory import Run
from phonetrain.step import scoring
from phonetrain.step.train_step import TrainStep
from phonetrain.training.fit import fit
from phonetrain.training.resume import resume

# Nets this small only wait for each other's threads; one thread also keeps tests fast beside other work.
torch.set_num_threads(1)

# `TEST_DEVICE=cuda make test` trains the tests' runs there.
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
TIMES = {"seconds", "scoring_seconds", "frames_per_second", "segment"}
TINY = (
    "epochs=3",
    "batch_size=256",
    "model.hidden=32",
    "model.depth=2",
    "window.left=5",
    "window.right=5",
    "tracking.wandb=off",
    "tracking.log_every=4",
    f"device={DEVICE}",
    "schedule.warmup_steps=5",
    "averaging.decay=0.9",
    "augment.time_mask=3",
    "augment.freq_mask=2",
    "augment.warp=0.0",
)


class StopAt(Console):
    """A quiet console that sends this process a signal once training has reported a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        super().__init__()
        self.step, self.number = step, number

    def on_progress(self) -> None:
        if self.step is not None and self.seen() >= self.step:
            self.step = None
            signal.raise_signal(self.number)

    def seen(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step_in_epoch


def fit_tiny(corpus, path: Path, *overrides: str, console: Console | None = None) -> Run:
    config = load_recipe("default").override(TINY).override(overrides)
    return fit(config=config, corpus=corpus.path, run=path, console=console or Console())


def resume_tiny(run: Run, *overrides: str, console: Console | None = None, **options) -> Run:
    return resume(run.path, *overrides, console=console or Console(), **options)


def weights(run: Run, which: str = "last") -> bytes:
    """The bytes of a checkpoint's weights: training ones and averaged ones."""
    directory = run.checkpoint_dir(run.read_pointer(which))
    return b"".join((directory / name).read_bytes() for name in ("model.safetensors", "averaged.safetensors"))


def change_state(directory: Path, change: Callable[[dict], object]) -> None:
    """Change what a checkpoint's state.json holds, in place, as if it had been written so."""
    state = json.loads((directory / "state.json").read_text())
    change(state)
    (directory / "state.json").write_text(checkpoint.state_text(state))


def tree(root: Path) -> dict[Path, bytes]:
    """Every file below a folder, by its name there."""
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def numbers(run: Run) -> list[dict]:
    """The run's metrics without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]


class Announcing(Console):
    """Says on stdout that training begins."""

    def on_start(self, facts: list[str]) -> None:
        print("training", flush=True)


class Struck(Console):
    """Strikes `seconds` after training began, wherever it is by then."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def on_start(self, facts: list[str]) -> None:
        timer = threading.Timer(self.seconds, strike)
        timer.daemon = True
        timer.start()


def strike() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike_at(place: str) -> Console:
    """Let this process be killed at `place`, whose number counts from here; returns the console to train with.

    step-N: in the N-th update, weights changed and sums not. score-N: in the N-th batch that is scored. write-N: at the
    N-th change of the file system while a checkpoint is written. moment-N: N ms after training began.
    """
    kind, _, number = place.partition("-")
    left, saving = int(number or 0), False

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            strike()

    def struck_after(act):
        return lambda *arguments, **more: (act(*arguments, **more), reached())[0]

    def watched(*arguments):
        nonlocal saving
        saving = True
        try:
            return save(*arguments)
        finally:
            saving = False

    save = series.save
    if kind == "step":
        TrainStep.step_optimizer = struck_after(TrainStep.step_optimizer)
    elif kind == "score":
        scoring.frame_loss = struck_after(scoring.frame_loss)
    elif kind == "write":
        series.save = watched
        changes = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
        sys.addaudithook(lambda event, details: reached() if saving and event in changes else None)
    return Struck(int(number) / 1000) if kind == "moment" else Console()


def killed_and_resumed(path: Path, corpus: Path, places: list[str]) -> None:
    """Start or resume one run in a process for each place, forked from here, and once more to its end; prints a line
    each that says how it ended."""
    for place in [*places, ""]:
        child = os.fork()
        if not child:
            start_or_resume(path, corpus, strike_at(place))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(place, "was killed" if killed else f"ended with {os.waitstatus_to_exitcode(status)}", flush=True)


def start_or_resume(path: Path, corpus: Path, console: Console) -> None:
    """Train in `path` until finished; a run that was killed before its first checkpoint starts again."""
    if (path / "checkpoints" / "last").exists():
        resume(path, console=console)
        return
    if path.exists():
        shutil.rmtree(path)
    fit("default", *TINY, "checkpoint.every_minutes=0.0005", corpus=corpus, run=path, console=console)
