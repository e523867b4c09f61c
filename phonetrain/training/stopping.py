"""Asking a run to stop: signals and deadlines, noticed between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from ..config.sections import clock_time

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Set by the first signal; `reason` is its name, such as "SIGTERM", and `code` the exit status 128 + number."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.code = 0

    def receive(self, number: int, frame: object) -> None:
        """Handle a signal: note the first, obey the second Ctrl-C at once."""
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason, self.code = signal.Signals(number).name, 128 + number


@contextlib.contextmanager
def noticed_signals(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Within the block SIGINT, SIGTERM, SIGHUP and SIGUSR1 (Slurm's warning) only set the yielded StopRequest.

    Handlers belong to the main thread; elsewhere (some notebooks) signals keep the meaning that they had. SIGHUP stays
    ignored where the caller ignores it: that is what `nohup` asks for.
    """
    request = request or StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            before[number] = signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class Deadline:
    """The moment by which a run must have saved and evaluated.

    max_seconds: from `began` (monotonic; now) on, or None. clock: "23:30", today or tomorrow, whichever comes next, or
    None.
    Time is monotonic, so that a clock that jumps (suspend, NTP) moves neither.
    """

    def __init__(self, max_seconds: float | None = None, clock: str | None = None, began: float | None = None) -> None:
        ends = []
        if max_seconds is not None:
            ends.append((time.monotonic() if began is None else began) + max_seconds)
        if clock is not None:
            now = datetime.now()
            end = datetime.combine(now, clock_time(clock))
            end += timedelta(days=1) * (end <= now)
            ends.append(time.monotonic() + (end - now).total_seconds())
        self.end = min(ends, default=None)

    def reached(self, reserve: float) -> bool:
        """Whether only `reserve` seconds, or less, are left."""
        return self.end is not None and time.monotonic() + reserve >= self.end
