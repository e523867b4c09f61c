"""The notebook console: one output, rewritten in place, escaped, and left as a plain record when training ends."""

import sys
import types
from pathlib import Path

import pytest

from phonetrain.console.base import HEADER, row_text
from phonetrain.console.notebook import BAR, EMPTY
from phonetrain.console.open import in_notebook, open_console
from tests.phonetrain.console.test_console import LINE, life
from tests.training import TINY


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
    assert "font-family:monospace" in shown.contents[0]["text/html"] and BAR * EMPTY in shown.contents[0]["text/html"]
    last = shown.contents[-1]
    assert EMPTY not in last["text/html"]
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


def test_a_real_kernel_trains_resumes_and_shows_what_happened(learnable_corpus, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="a real notebook needs: pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="a real notebook needs: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="a real notebook needs: pip install nbclient ipykernel")
    settings = ", ".join(map(repr, [*TINY[1:], "epochs=1"]))
    cells = [
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); import phonetrain",
        f"run = phonetrain.fit('default', {settings}, corpus={str(learnable_corpus.path)!r}, run='run')\nrun",
        "phonetrain.resume(run, epochs=2, schedule={'on_extend': 'stretch'})",
        "phonetrain.evaluate(run)",
        "phonetrain.explain(run)",
        "phonetrain.fit('demo', optimizer={'rate': 3})",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(book, timeout=300, allow_errors=True, resources={"metadata": {"path": tmp_path}})
    client.execute()
    shown = [
        "\n".join(str(out.get("data", {}).get("text/plain", "")) + out.get("evalue", "") for out in cell.outputs)
        for cell in book.cells
    ]
    pictures = [sum("image/png" in out.get("data", {}) for out in cell.outputs) for cell in book.cells]
    assert pictures[:4] == [0, 1, 1, 0]
    assert "next: phonetrain.evaluate('run')    # scores the best checkpoint" in shown[1]
    assert "epoch train loss" in shown[1] and "Run('run', 1 epoch," in shown[1]
    assert "resuming run" in shown[2] and "changed: epochs 1 -> 2" in shown[2] and "Run('run', 2 epochs," in shown[2]
    assert "frame error rate" in shown[3] and "Part 2 was resumed" in shown[4]
    assert shown[5] == "optimizer.rate: unknown setting; did you mean optimizer.lr?"
