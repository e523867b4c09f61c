"""Consoles: plain lines are whole, rows fit 60 columns, a closed terminal ends nothing."""

import io
import re

import pytest

import phonetrain.console.base as console_room
from phonetrain.console.base import HEADER, NUMBERS, Console, Pace, row_text
from phonetrain.console.open import open_console
from phonetrain.console.panel import PanelConsole, flow
from phonetrain.console.plain import PlainConsole
from phonetrain.text import clock, short

LINE = {"epoch": 2, "train_loss": 1.23456, "train_accuracy": 0.61234, "dev_loss": 1.5, "dev_accuracy": 0.55,
        "lr": 1e-3, "seconds": 3725.4, "frames": 10, "best": True}  # fmt: skip


def life(console):
    with console:
        console.start({"run": "runs/a-1", "epochs": 3, "steps_per_epoch": 100, "model": "5 x 640"})
        console.progress(epoch=2, step_in_epoch=50, loss=1.2, accuracy=0.5, lr=1e-3, frames_per_second=48_000)
        with console.scoring("dev-clean"):
            pass
        console.epoch_row(LINE)
        console.say("saved")
        console.warn("wandb: died")


def test_row_fits_60_columns_and_stands_under_its_header():
    assert len(row_text(LINE)) < 60 and len(HEADER) < 60
    assert row_text(LINE).split() == ["3", "1.2346", "61.23", "1.5000", "55.00", "1.0e-03", "1:02:05", "*"]
    ends = [HEADER.index(word) + len(word) for word in ("epoch", "train loss", "dev loss", "lr", "time")]
    row = row_text(LINE)
    assert all(row[end - 1] != " " and row[end : end + 1] in (" ", "") for end in ends)


def test_missing_and_bad_numbers_are_shown_not_hidden():
    assert row_text({"epoch": 0, "train_loss": float("nan")}).split() == ["1", "nan", "-", "-", "-", "-", "-"]


def test_plain_lines_are_ascii_and_whole(monkeypatch):
    monkeypatch.setattr("phonetrain.console.plain.PLAIN_SECONDS", (0.0, 0.0))
    stream = io.StringIO()
    life(PlainConsole(stream))
    text = stream.getvalue()
    assert text.isascii() and text.endswith("\n")
    lines = text.splitlines()
    assert lines[:2] == ["run: runs/a-1", "model: 5 x 640"]
    assert any(line.startswith("epoch 3/3  50 %  loss 1.2000  frame accuracy 50.00 %") for line in lines)
    assert any(line.startswith("epoch 3/3 done") and line.endswith("* best") for line in lines)
    assert lines[-1] == "warning: wandb: died"


def test_quiet_console_prints_warnings_only():
    stream = io.StringIO()
    life(Console(stream))
    assert stream.getvalue() == "warning: wandb: died\n"


def test_panel_keeps_rows_and_news_in_the_scrollback():
    stream = io.StringIO()
    life(PanelConsole(stream))
    text = stream.getvalue()
    assert "5 x 640" in text and row_text(LINE) in text and "warning: wandb: died" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_panel_is_never_wider_than_the_terminal(width):
    console = PanelConsole(io.StringIO())
    console.screen.width = width
    console.facts = {"run": "runs/" + "long" * 20, "epochs": 12, "steps_per_epoch": 10}
    console.numbers = dict.fromkeys(NUMBERS, 0.123456)
    with console.screen.capture() as captured:
        console.screen.print(console.render())
    lines = console_lines(captured.get())
    assert lines and max(map(len, lines)) <= width


def console_lines(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()


@pytest.mark.parametrize("make", [Console, PlainConsole, PanelConsole])
def test_closed_terminal_ends_nothing(make):
    stream = io.StringIO()
    console = make(stream)
    stream.close()
    life(console)


def test_terminal_that_raises_ends_nothing():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            self.write("")

    life(PlainConsole(Gone()))


def test_without_a_terminal_lines_are_plain(capsys):
    assert type(open_console()) is PlainConsole and type(open_console("quiet")) is Console


def test_time_left_is_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_room.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.seconds(1.0) is None
    for step in range(11):
        now[0] = 2.0 * step
        pace.mark(step / 10)
    assert pace.seconds(1.0) == pytest.approx(20.0)
    now[0] += 5
    assert pace.seconds(1.0) == pytest.approx(15.0)
    now[0] += 60  # one step that takes a minute
    assert pace.seconds(0.14) == 1.0 and pace.seconds(0.0) == 0.0
    pace.mark(0.5)  # a rollback
    assert pace.seconds(1.0) is None


def test_durations_and_counts_are_short_and_lines_break_between_pieces():
    assert [clock(value) for value in (None, 42, 65, 3725)] == ["?", "42 s", "1:05", "1:02:05"]
    assert [short(value) for value in (7, 12_345, 2_100_000)] == ["7", "12.3 k", "2.1 M"]
    assert flow(["aaaa", "bbbb", "cccc"], 12) == ["aaaa   bbbb", "cccc"]


def test_the_panel_says_scoring_only_while_it_scores():
    console = PanelConsole(io.StringIO())
    console.facts = {"epochs": 3, "steps_per_epoch": 10}
    console.count(epoch=0, step_in_epoch=10)

    def shown() -> str:
        with console.screen.capture() as captured:
            console.screen.print(console.render())
        return captured.get()

    with console.scoring("dev-clean"):
        assert "scoring dev-clean" in shown() and "100 %" in shown()
    assert "scoring" not in shown()


def test_a_terminal_that_becomes_narrower_is_drawn_anew_without_shreds():
    pyte = pytest.importorskip("pyte")
    stream, terminal = io.StringIO(), pyte.Screen(90, 20)
    feed = pyte.Stream(terminal)
    console = PanelConsole(stream)

    def drawn() -> list[str]:
        console.draw()
        feed.feed(stream.getvalue().replace("\n", "\r\n"))
        stream.seek(0)
        stream.truncate()
        return [line.rstrip() for line in terminal.display if line.strip()]

    console.screen.size = (90, 20)
    with console:
        console.start({"run": "runs/a-1", "epochs": 3, "steps_per_epoch": 100, "model": "5 x 640"})
        console.progress(epoch=2, step_in_epoch=50, loss=1.2, accuracy=0.5, lr=1e-3, frames_per_second=48_000)
        console.epoch_row(LINE)
        for width in (90, 60, 45, 100):
            terminal.resize(20, width)
            console.screen.size = (width, 20)
            lines = drawn()
            above = ["run: runs/a-1", "model: 5 x 640", HEADER[:width].rstrip()]
            assert [line for line in lines if line[0] not in "╭│╰"][:2] == above[:2]
            assert [line[0] for line in lines if line[0] in "╭╰"] == ["╭", "╰"]
            assert {len(line) for line in lines if line[0] in "╭│╰"} == {min(width - 4, 100)}
