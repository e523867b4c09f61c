"""Which console this process gets: panel, notebook cell or plain lines.

A file of its own, since it alone knows all of them, and rich and IPython are imported only where they are shown on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..text import in_notebook
from .base import Console, Kind
from .plain import PlainConsole


def open_console(kind: Kind = "auto") -> Console:
    """The console for where this process runs; `kind` overrides the choice. "quiet" still prints warnings."""
    if kind == "auto":
        if in_notebook():
            kind = "notebook"
        else:
            kind = "panel" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if kind == "panel":
        from .panel import PanelConsole

        return PanelConsole()
    if kind == "notebook":
        from .notebook import NotebookConsole

        return NotebookConsole()
    return PlainConsole() if kind == "plain" else Console()


def show_picture(draw: Callable[[], bytes]) -> None:
    """In a notebook the PNG that `draw` makes, elsewhere nothing."""
    if in_notebook():
        open_console("notebook").picture(draw)
