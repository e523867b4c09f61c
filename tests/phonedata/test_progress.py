"""Progress shows rate and time left, and stays out of the way of results."""

import io

from phonedata import progress as terminal
from phonedata.progress import ProgressLine


class Screen(io.StringIO):
    def isatty(self):
        return True


def feed(stream, monkeypatch, events):
    clock = iter(range(1000))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: float(next(clock)))
    with ProgressLine(stream) as line:
        for event in events:
            line(*event)
    return stream.getvalue()


def test_terminal_shows_a_bar_with_rate_and_time_left_that_is_taken_away(monkeypatch):
    text = feed(Screen(), monkeypatch, [("packing", 0, 1000), ("packing", 100, 1000), ("packing", 200, 1000)])
    last = text.splitlines()[-1]
    assert "packing" in text and "20%" in text and "100 frames/s  0:08 left" in text
    assert last.endswith("\x1b[2K")  # wiped: results follow on a clean line


def test_work_of_an_earlier_call_is_not_counted_as_speed(monkeypatch):
    text = feed(Screen(), monkeypatch, [("packing", 900, 1000), ("packing", 910, 1000)])
    assert "91%" in text and "10 frames/s  0:09 left" in text


def test_files_and_pipes_get_plain_lines_every_ten_seconds(monkeypatch):
    events = [("verifying", n, 100, "bytes") for n in range(31)]
    text = feed(io.StringIO(), monkeypatch, events)
    assert text.splitlines() == [
        "verifying  10.0 %  1 bytes/s  1:30 left",
        "verifying  20.0 %  1 bytes/s  1:20 left",
        "verifying  30.0 %  1 bytes/s  1:10 left",
    ]
