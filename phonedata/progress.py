"""Progress on standard error: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class ProgressLine:
    """A progress callback: on a terminal a bar that is taken away at the end, elsewhere a line every ten seconds.

    Call it with (stage, done, total, unit); a new stage starts a new bar. Use it as a context manager.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self._terminal = self.stream.isatty()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        screen = Console(file=self.stream)
        self._bar = Progress(*columns, console=screen, transient=True)
        self._task = self._bar.add_task("", visible=False, rate="")
        self._stage, self._started, self._first, self._shown = "", 0.0, 0, 0.0

    def __enter__(self) -> ProgressLine:
        if self._terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._terminal:  # a bar of rich 13 that is not shown ends with an empty line all the same
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, unit: str = "frames") -> None:
        now = time.monotonic()
        if stage != self._stage:
            # What an earlier call had done says nothing about the rate of this one.
            self._stage, self._started, self._first, self._shown = stage, now, done, now
            return
        if now - self._shown < (0.1 if self._terminal else 10.0):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = (total - done) / rate if rate > 0 else 0.0
        minutes, seconds = divmod(round(left), 60)
        text = f"{rate:,.0f} {unit}/s  {minutes}:{seconds:02d} left"
        if self._terminal:
            self._bar.update(self._task, description=stage, completed=done, total=total, rate=text, visible=True)
        else:
            self.stream.write(f"{stage} {100 * done / max(total, 1):5.1f} %  {text}\n")
            self.stream.flush()
