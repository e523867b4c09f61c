"""What a notebook cell shows while a run trains: one output, rewritten in place.

No widgets: it works in Jupyter, Colab, Kaggle and VS Code alike, does not flicker, and survives in a saved notebook.
"""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Callable, Iterator
from typing import Any

from .base import HEADER, Console, row_text

BAR = 30  # characters
FULL, EMPTY = "\N{FULL BLOCK}", "\N{LIGHT SHADE}"


class NotebookConsole(Console):
    """At most one rewrite a second, in a fixed-width font: news, the epoch table, the bars and the latest numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.handle: Any = None
        self.lines: list[str] = []
        self.header_shown = False
        self.next_update = 0.0
        self.running = False

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.update(at_once=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def on_start(self, lines: list[str]) -> None:
        self.running = True
        self.lines += lines
        self.update(at_once=True)

    def on_progress(self) -> None:
        self.update()

    on_count = on_progress

    def epoch_row(self, line: dict[str, Any]) -> None:
        self.lines += [] if self.header_shown else [HEADER]
        self.header_shown = True
        self.lines.append(row_text(line))
        self.update(at_once=True)

    def close(self) -> None:
        if self.running:
            self.running = False
            self.update(at_once=True)

    def update(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now < self.next_update:
            return
        self.next_update = now + 1.0
        from IPython.display import display

        content = {"text/html": self.as_html(), "text/plain": "\n".join(self.as_text())}
        # A front end that has gone away costs its picture, not the run; the next update may find it again.
        with contextlib.suppress(Exception):
            if self.handle is None:
                self.handle = display(content, raw=True, display_id=True)
            else:
                self.handle.update(content, raw=True)

    def as_text(self) -> Iterator[str]:
        yield from self.lines
        if self.running:
            for name, share, words in self.bars():
                done = round(BAR * share)
                yield f"{name:<12} {FULL * done}{EMPTY * (BAR - done)} {100 * share:3.0f} %  {words}"
            yield "   ".join(self.number_texts())

    def as_html(self) -> str:
        text = html.escape("\n".join(self.as_text()))
        return f'<pre style="font-family:monospace;line-height:1.3;margin:0">{text}</pre>'

    def picture(self, draw: Callable[[], bytes]) -> None:
        """Below the text, in an output of its own; a picture that cannot be drawn costs nothing but itself."""
        from IPython.display import Image, display

        with contextlib.suppress(Exception):
            display(Image(data=draw(), width=720))
