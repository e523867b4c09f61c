"""Small real runs for tests: a corpus, a few overrides, and what two runs must have in common.

As a program, `python -m tests.training RUN CORPUS` starts or resumes one and says "training" when it begins: what the
tests kill.
"""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from phonetrain import checkpoint
from phonetrain.config import load_recipe
from phonetrain.console import Console
from phonetrain.fit import fit, resume
from phonetrain.run import Run

# Nets this small only wait for each other's threads; one thread also keeps tests fast beside other work.
torch.set_num_threads(1)

TIMES = {"seconds", "scoring_seconds", "frames_per_second", "segment"}
TINY = (
    "epochs=3", "batch_size=256", "model.hidden=32", "model.depth=2", "window.left=5", "window.right=5",
    "tracking.wandb=off", "tracking.log_every=4", "device=cpu", "schedule.warmup_steps=5", "averaging.decay=0.9",
    "augment.time_mask=3", "augment.freq_mask=2",
)


class StopAt(Console):
    """A quiet console that sends this process a signal once training has reported a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        super().__init__()
        self.step, self.number = step, number

    def on_progress(self) -> None:
        if self.phase == "train" and self.step is not None and self.seen() >= self.step:
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


def numbers(run: Run) -> list[dict]:
    """The run's metrics without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]


class Announcing(Console):
    """Says on stdout that training begins."""

    def on_start(self, facts: list[str]) -> None:
        print("training", flush=True)


def start_or_resume(path: Path, corpus: Path) -> None:
    """Train in `path` until finished; a run that was killed before its first checkpoint starts again."""
    if (path / "checkpoints" / "last").exists():
        resume(path, console=Announcing())
        return
    if path.exists():
        shutil.rmtree(path)
    fit("default", *TINY, "checkpoint.every_minutes=0.002", corpus=corpus, run=path, console=Announcing())


if __name__ == "__main__":
    start_or_resume(Path(sys.argv[1]), Path(sys.argv[2]))
