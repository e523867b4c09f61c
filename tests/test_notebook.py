"""The notebook console: one output, rewritten in place, escaped, and left as a plain record when training ends."""

import sys
import types

import pytest

from phonetrain.console import HEADER, in_notebook, open_console, row_text
from tests.test_console import LINE, life


class Shown:
    """Stands where IPython's display stands: keeps what a notebook would show."""

    def __init__(self):
        self.contents = []

    def display(self, content, raw, display_id):
        self.contents.append(content)
        return self

    def update(self, content, raw):
        self.contents.append(content)


@pytest.fixture
def shown(monkeypatch):
    shown = Shown()
    shell = types.SimpleNamespace(kernel=object())
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: shell
    room = types.ModuleType("IPython.display")
    room.display = shown.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", room)
    return shown


def test_a_kernel_is_a_notebook_and_a_terminal_is_none(shown, monkeypatch):
    assert in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace())
    assert not in_notebook()


def test_bars_while_training_and_a_plain_record_after(shown):
    console = open_console()
    life(console)
    assert "<progress" in shown.contents[0]["text/html"]
    last = shown.contents[-1]
    assert "<progress" not in last["text/html"]
    assert last["text/plain"].splitlines() == ["run: runs/a-1", "model: 5 x 640", HEADER, row_text(LINE), "saved",
                                               "warning: wandb: died"]  # fmt: skip


def test_what_is_shown_is_escaped(shown):
    with open_console() as console:
        console.start({"run": "<b>", "epochs": 1})
        console.say("<script>")
    assert "<script>" not in shown.contents[-1]["text/html"] and "&lt;script&gt;" in shown.contents[-1]["text/html"]


def test_a_front_end_that_has_gone_away_costs_its_picture_only(shown, monkeypatch):
    def gone(*_, **__):
        raise OSError("the socket is closed")

    monkeypatch.setattr(shown, "update", gone)
    with open_console() as console:
        life(console)
    assert len(shown.contents) == 1
    monkeypatch.setattr(sys.modules["IPython.display"], "display", gone)
    with open_console() as console:
        life(console)
    assert shown.contents and console.handle is None
