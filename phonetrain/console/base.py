"""What a person sees while a run trains: a live panel on a terminal, plain lines in a log file, one cell in a notebook.

Everything here goes to stderr (results go to stdout), and nothing here can end a run: a terminal that was closed only
makes the console silent. Epochs count from 0 in the files and from 1 for people.

A caller does, in this order:

    console.start({"run": "runs/default-1", "epochs": 8, "steps_per_epoch": 900, "model": "5 x 640, 2.1 M parameters"})
    console.count(epoch=0, step_in_epoch=7, steps_per_epoch=900)               # about once a second
    console.progress(epoch=0, step_in_epoch=50, loss=1.9, accuracy=0.42, lr=1e-3, frames_per_second=48e3)
    with console.scoring("dev-clean"): ...
    console.epoch_row({"epoch": 0, "train_loss": 1.7, ..., "best": True})      # the "epoch" line of metrics.jsonl
    console.say("saved"); console.warn("wandb: ..."); console.close()
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

from ..text import clock, short

Kind = Literal["auto", "panel", "plain", "notebook", "quiet"]
HEADER = "epoch train loss  acc %  dev loss  acc %      lr    time"
PLAIN_SECONDS = (10.0, 30.0)
NUMBERS: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "accuracy": lambda value: f"frame accuracy {100 * value:.2f} %",
    "lr": lambda value: f"lr {value:.1e}",
    "frames_per_second": lambda value: f"{short(value)} frames/s",
    "loss_scale": lambda value: f"loss scale {value:g}",
    "skipped": lambda value: f"skipped steps {100 * value:.1f} %",
    "memory": lambda value: f"memory {short(value)}B",
}


COUNT_SECONDS = 1.0  # between two calls of `Console.count`


class Console:
    """The quiet console, and what all consoles share: where training stands and how much time is left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = SafeStream(stream if stream is not None else sys.stderr)
        self.facts: dict[str, Any] = {}
        self.epoch = self.step_in_epoch = 0
        self.scored: str | None = None  # the partition that is being scored
        self.stop: str | None = None  # a reason to end the run here, from who looks on: one of distributed.REASONS
        self.numbers: dict[str, Any] = {}
        self.pace = Pace()

    @property
    def epochs(self) -> int:
        return int(self.facts.get("epochs") or 0)

    @property
    def steps_per_epoch(self) -> int:
        return int(self.facts.get("steps_per_epoch") or 0)

    @property
    def epoch_share(self) -> float:
        """How much of this epoch is done, 0 to 1."""
        return min(1.0, self.step_in_epoch / self.steps_per_epoch) if self.steps_per_epoch else 0.0

    def start(self, facts: dict[str, Any]) -> None:
        """Show what will run. epochs and steps_per_epoch drive the clock; every other key is shown as `key: value`."""
        self.facts = dict(facts)
        self.pace = Pace()
        self.on_start([f"{key}: {value}" for key, value in facts.items() if key not in ("epochs", "steps_per_epoch")])

    def progress(self, *, epoch: int, step_in_epoch: int, steps_per_epoch: int | None = None, **numbers: Any) -> None:
        """What a log line says: training stands at `step_in_epoch` of `steps_per_epoch` batches, with these numbers.

        numbers: loss (nats a frame), accuracy (0 to 1), lr, frames_per_second, loss_scale, skipped (0 to 1), memory
        (bytes; by default this process's own). None leaves one out.
        """
        self._stands(epoch, step_in_epoch, steps_per_epoch, numbers)
        self.on_progress()

    def count(self, *, epoch: int, step_in_epoch: int, steps_per_epoch: int | None = None, **numbers: Any) -> None:
        """Show the position between log lines, about every COUNT_SECONDS, however rare the lines are."""
        self._stands(epoch, step_in_epoch, steps_per_epoch, numbers)
        self.on_count()

    def _stands(self, epoch: int, step_in_epoch: int, steps_per_epoch: int | None, numbers: dict[str, Any]) -> None:
        if steps_per_epoch is not None:
            self.facts["steps_per_epoch"] = steps_per_epoch
        self.epoch, self.step_in_epoch = epoch, step_in_epoch
        self.pace.mark(epoch + self.epoch_share)
        self.numbers |= numbers

    @contextlib.contextmanager
    def scoring(self, partition: str) -> Iterator[None]:
        """Within the block `partition` is scored."""
        self.scored = partition
        self.on_count()
        try:
            yield
        finally:
            self.scored = None
            self.on_count()

    def picture(self, draw: Callable[[], bytes]) -> None:
        """Show a PNG, where pictures can be shown; `draw` makes it."""

    def epoch_row(self, line: dict[str, Any]) -> None:
        """Show an ended epoch, given its line of metrics.jsonl."""

    def say(self, text: str) -> None:
        """One line of news."""

    def warn(self, text: str) -> None:
        """One line that a person should read, whatever the console."""
        self.stream.write(f"warning: {text}\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal as it was; harmless when repeated."""

    def on_start(self, lines: list[str]) -> None: ...

    def on_progress(self) -> None: ...

    def on_count(self) -> None: ...

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def number_texts(self) -> list[str]:
        """The latest numbers as people read them, in the order of NUMBERS; unknown ones are left out."""
        numbers = {"memory": own_memory()} | self.numbers
        return [text(numbers[name]) for name, text in NUMBERS.items() if numbers.get(name) is not None]

    def times_left(self) -> tuple[str, ...]:
        """Time left in this epoch and in the run, as people read it; "?" while unknown."""
        done = self.epoch + self.epoch_share
        left = (self.pace.seconds(self.epoch + 1 - done), self.pace.seconds(self.epochs - done))
        return tuple(clock(None if seconds is None else math.ceil(seconds)) for seconds in left)

    def bars(self) -> list[tuple[str, float, str]]:
        """The two bars: name, share that is done (0 to 1), and words on what is left or done now."""
        epoch_left, run_left = self.times_left()
        run_share = (self.epoch + self.epoch_share) / self.epochs if self.epochs else 0.0
        now = f"{epoch_left} left" if self.scored is None else f"scoring {self.scored}"
        return [
            (f"epoch {self.epoch + 1}/{self.epochs or '?'}", self.epoch_share, now),
            ("run", run_share, f"{run_left} left"),
        ]


class SilentConsole(Console):
    """The console of every process but the first: of several that train as one, only the first shows anything."""

    def warn(self, text: str) -> None:
        """Nothing."""


class Pace:
    """Seconds per epoch, measured over the last two minutes, evaluation and checkpoints between epochs included."""

    WINDOW = 120.0

    def __init__(self) -> None:
        self.marks: deque[tuple[float, float]] = deque()

    def mark(self, epochs_done: float) -> None:
        now = time.monotonic()
        if self.marks and epochs_done < self.marks[-1][1]:  # went back: a rollback, or a new segment
            self.marks.clear()
        self.marks.append((now, epochs_done))
        while len(self.marks) > 2 and now - self.marks[1][0] > self.WINDOW:
            self.marks.popleft()

    def seconds(self, epochs: float) -> float | None:
        """Time for `epochs` epochs from the last mark, above 0 as long as any is to be done; None while unknown."""
        if len(self.marks) < 2:
            return None
        (first_time, first_done), (last_time, last_done) = self.marks[0], self.marks[-1]
        if last_done <= first_done or last_time - first_time < 1.0:
            return None
        per_epoch = (last_time - first_time) / (last_done - first_done)
        whole = epochs * per_epoch
        # A step may take longer than those before: what is not done yet is never said to take no time.
        return max(whole - (time.monotonic() - last_time), min(whole, COUNT_SECONDS))


class SafeStream:
    """A text stream that never raises: a closed terminal or a full log disk must not end a training run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            return self.stream.write(text.encode("ascii", "replace").decode())
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def row_text(line: dict[str, Any]) -> str:
    """An epoch line as one row under HEADER, 58 characters wide; a missing number is a dash."""

    def cell(name: str, width: int, text: Callable[[float], str]) -> str:
        return (text(line[name]) if line.get(name) is not None else "-").rjust(width)

    return " ".join(
        [
            f"{line['epoch'] + 1:>5}",
            cell("train_loss", 10, "{:.4f}".format),
            cell("train_accuracy", 6, lambda share: f"{100 * share:.2f}"),
            cell("dev_loss", 9, "{:.4f}".format),
            cell("dev_accuracy", 6, lambda share: f"{100 * share:.2f}"),
            cell("lr", 7, "{:.1e}".format),
            cell("seconds", 7, clock),
            "*" if line.get("best") else "",
        ]
    ).rstrip()


def own_memory() -> int | None:
    """Bytes this process holds for itself; the memory-mapped corpus is not counted where the system tells it apart."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return 1024 * int(fields["RssAnon"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    except ImportError:
        return None
