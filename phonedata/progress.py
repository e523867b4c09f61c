"""Progress on the terminal: one line with rate and time left, on standard error."""

import sys
import time


class ProgressLine:
    """A progress callback that keeps one line on standard error up to date: at most ten times a second on a
    terminal, every ten seconds elsewhere."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self._terminal = self.stream.isatty()
        self._stage, self._started, self._first, self._shown, self._width = None, 0.0, 0, 0.0, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._terminal and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()

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
        text = f"{stage} {100 * done / max(total, 1):5.1f} %  {rate:,.0f} {unit}/s  {minutes}:{seconds:02d} left"
        self._width = max(self._width, len(text))
        self.stream.write("\r" + text.ljust(self._width) if self._terminal else text + "\n")
        self.stream.flush()
