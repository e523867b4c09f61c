"""The console for log files: plain lines, one at a time."""

from __future__ import annotations

import time
from typing import Any, TextIO

from ..text import UNKNOWN, clock
from .base import PLAIN_SECONDS, Console


class PlainConsole(Console):
    """Plain lines, each whole on its own: for log files, CI and dumb terminals. ASCII only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.next_line = time.monotonic() + PLAIN_SECONDS[0]

    def say(self, text: str) -> None:
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def on_start(self, lines: list[str]) -> None:
        for line in lines:
            self.say(line)

    def on_progress(self) -> None:
        if time.monotonic() < self.next_line:
            return
        self.next_line = time.monotonic() + PLAIN_SECONDS[1 if self.epoch else 0]
        if self.scored is not None:
            self.say(f"epoch {self.epoch + 1}/{self.epochs}  scoring {self.scored}")
            return
        epoch_left, run_left = self.times_left()
        position = f"epoch {self.epoch + 1}/{self.epochs} {100 * self.epoch_share:3.0f} %"
        left = [f"left {epoch_left} (run {run_left})"] if run_left != UNKNOWN else []
        self.say("  ".join([position, *self.number_texts(), *left]))

    on_count = on_progress

    def epoch_row(self, line: dict[str, Any]) -> None:
        texts = [f"epoch {line['epoch'] + 1}/{self.epochs or line['epoch'] + 1} done"]
        for split in ("train", "dev"):
            if line.get(f"{split}_loss") is not None:
                accuracy = 100 * line[f"{split}_accuracy"]
                texts.append(f"{split} loss {line[f'{split}_loss']:.4f} frame accuracy {accuracy:.2f} %")
        texts += [f"lr {line['lr']:.1e}", clock(line.get("seconds"))] + ["* best"] * bool(line.get("best"))
        self.say("  ".join(texts))
