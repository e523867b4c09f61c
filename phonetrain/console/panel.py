"""The console of a terminal: a live panel with two bars and the latest numbers, above it one table row per epoch.

Also `bar`, a progress bar for commands that take seconds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

import rich.console
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .base import HEADER, Console, row_text

WIDEST = 100
DRAW_SECONDS = 0.5
PANEL_ROWS = 7  # at most


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how much of `total` is done: a bar that vanishes at the end, on terminals only."""
    screen = rich.console.Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


class PanelConsole(Console):
    """Calm: twice a second, one colour, and gone at the end; rows and news stay in the scrollback."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.screen = rich.console.Console(file=cast(TextIO, self.stream), highlight=False, force_terminal=True)
        self.live: Live | None = None
        self.drawing = threading.RLock()
        self.closed = threading.Event()
        self.printed: deque[Text] = deque(maxlen=200)
        self.width = 0  # of the screen, when the panel was drawn
        self.header_shown = False
        self.best = ""

    def say(self, text: str) -> None:
        self.print(Text(text))

    def warn(self, text: str) -> None:
        self.print(Text(f"warning: {text}", style="yellow"))

    def print(self, text: Text) -> None:
        """Print above the panel."""
        with self.drawing:
            self.printed.append(text)
            # Left to the terminal to wrap: a command in it must stay one line when it is copied.
            self.screen.print(text, soft_wrap=True)

    def on_start(self, lines: list[str]) -> None:
        self.close()
        for line in lines:
            key, _, value = line.partition(": ")
            self.print(Text.assemble((f"{key}: ", "dim"), value))
        self.open_live()
        self.closed = threading.Event()
        threading.Thread(target=self.keep_drawn, args=(self.closed,), name="phonetrain-panel", daemon=True).start()

    def open_live(self) -> None:
        self.width = self.screen.width
        # A print() of somebody else's must not tear the panel; results on a redirected stdout must not move to stderr.
        self.live = Live(
            get_renderable=self.render,
            console=self.screen,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        self.live.start()

    def keep_drawn(self, closed: threading.Event) -> None:
        """The thread that draws, until `closed`."""
        while not closed.wait(DRAW_SECONDS):
            self.draw()

    def draw(self) -> None:
        with self.drawing:
            if self.live is None:
                return
            if self.screen.width < self.width:
                self.draw_anew()
            self.width = self.screen.width
            self.live.refresh()

    def draw_anew(self) -> None:
        """Redraw after the terminal has become narrower.

        Some terminals have wrapped the panel's lines by then and some have cut them, so nobody knows how many rows it
        takes: the screen is cleared, and as much is printed again of what was above as it has room for.
        """
        live, self.live = self.live, None
        if live is not None:
            live.stop()
        self.screen.clear()
        room, shown = self.screen.height - PANEL_ROWS, []
        for text in reversed(self.printed):
            room -= sum(max(1, -(-len(line) // self.screen.width)) for line in text.plain.split("\n"))
            if room < 0:
                break
            shown.append(text)
        for text in reversed(shown):
            self.screen.print(text, soft_wrap=True)
        self.open_live()

    def epoch_row(self, line: dict[str, Any]) -> None:
        if not self.header_shown:
            self.header_shown = True
            self.print(Text(HEADER, style="dim"))
        self.print(Text(row_text(line), style="bold" if line.get("best") else ""))
        if line.get("best") and line.get("dev_accuracy") is not None:
            self.best = f"best {100 * line['dev_accuracy']:.2f} % after epoch {line['epoch'] + 1}"

    def close(self) -> None:
        self.closed.set()
        with self.drawing:
            live, self.live = self.live, None
            if live is not None:
                live.stop()

    def render(self) -> Panel:
        # Narrower than the terminal: the ^C that it echoes must not wrap, or the panel could not be taken away cleanly.
        width = min(self.screen.width - len("^C^C"), WIDEST)
        bars = Table.grid(padding=(0, 1), expand=True)
        bars.add_column(no_wrap=True)
        bars.add_column(ratio=1)
        bars.add_column(justify="right", no_wrap=True)
        bars.add_column(justify="right", no_wrap=True, min_width=12)
        for name, share, words in self.bars():
            bar = ProgressBar(total=1.0, completed=share, style="dim", complete_style="cyan", finished_style="cyan")
            bars.add_row(name, bar, f"{100 * share:.0f} %", words)
        content = Table.grid(expand=True)
        content.add_row(bars)
        content.add_row(Text("\n".join(flow(self.number_texts() or ["starting"], width - 4))))
        title = str(self.facts.get("run", ""))
        return Panel(
            content,
            title=Text(title),
            title_align="left",
            subtitle=Text(self.best),
            subtitle_align="right",
            border_style="dim",
            width=width,
        )


def flow(pieces: list[str], width: int) -> list[str]:
    """`pieces` in lines of at most `width` characters, three spaces between two, none broken."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + 3 + len(piece) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + piece
    return lines
