"""History: a run's two append-only logs, and which of their lines belong to its life.

A *segment* is what one process trained without a break. It starts at a step of an earlier segment (its parent), so the
segments form a tree and the run's life is the path from the last segment back to the root: `History.lineage`.
"""

from __future__ import annotations

import abc
import contextlib
import json
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phonedata import files

from ..errors import writing_run
from ..text import to_json
from . import recorded

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class LineageSpan:
    """The part of a run's life that one segment holds: steps `after <= step <= until` (None: up to its end)."""

    segment: int
    after: int
    until: int | None

    def holds(self, step: int) -> bool:
        return step >= self.after and (self.until is None or step <= self.until)


class History(abc.ABC):
    """What happened to a run (events.jsonl) and its numbers (metrics.jsonl)."""

    metrics_path: Path
    events_path: Path

    @abc.abstractmethod
    def goes_on(self) -> str:
        """How the run goes on, in words with a command that works as the run is now."""

    def writing(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Raise TrainingStopped where the block cannot write `path`, a file of this run."""
        return writing_run(path, self.goes_on)

    def append_metric(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl: at least kind, segment, epoch, step. Numbers that are not finite become the
        strings "NaN", "Infinity", "-Infinity" (JSON has no such numbers) and are numbers again when read here."""
        self.append(self.metrics_path, line)

    def sync_metrics(self) -> None:
        """Before a checkpoint, so that no power cut leaves one that is ahead of the lines up to it."""
        with self.writing(self.metrics_path), contextlib.suppress(FileNotFoundError):
            files.sync_file(self.metrics_path)

    def append_event(self, event: str, **fields: Any) -> dict[str, Any]:
        """Add one line to events.jsonl, `{"event": event, "time": UTC, **fields}`, safely on disk; returns it.

        `segment_started` needs segment, step (the last step that its checkpoint holds; 0 from scratch) and, unless it
        continues the segment before it, parent (the segment that wrote the checkpoint): they make the lineage.
        """
        fields = {name: without_home(value) for name, value in fields.items()}
        line = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        self.append(self.events_path, line, sync=True)
        return line

    def append(self, path: Path, line: dict[str, Any], sync: bool = False) -> None:
        """Add one line to a log. sync: it survives a power cut."""
        with self.writing(path):
            files.append_line(path, to_json(line, indent=None).encode(), sync)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """All events, or those of one name, in the order in which they happened, abandoned segments included."""
        lines = _read_lines(self.events_path, recorded.Event)
        return [line for line in lines if event is None or line.get("event") == event]

    def kept_events(self, event: str | None = None) -> list[dict[str, Any]]:
        """`events` of the segments that are this run's life."""
        kept = {span.segment for span in self.lineage()}
        return [line for line in self.events(event) if line.get("segment") in kept]

    def lineage(self) -> list[LineageSpan]:
        """The path from the first step to the last segment: which steps of which segments are this run's life."""
        started: dict[int, tuple[int, int | None]] = {}
        for event in self.events("segment_started"):
            parent = event.get("parent", max(started, default=None))
            started[int(event["segment"])] = int(event.get("step", 0)), parent
        path: list[LineageSpan] = []
        segment: int | None = max(started, default=None)
        until: int | None = None
        while segment is not None and segment in started:
            step, earlier = started.pop(segment)
            path.append(LineageSpan(segment, step, until))
            segment, until = (earlier, step) if until is None else (earlier, min(step, until))
        return path[::-1]

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that belong to the run's life, in step order.

        Kept are the lines of the lineage; for the same kind, epoch, step and partition the last one written wins.
        """
        spans = {span.segment: span for span in self.lineage()}
        kept: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in self.all_metrics(kind):
            step = line.get("step", 0)
            if spans and (line.get("segment") not in spans or not spans[line["segment"]].holds(step)):
                continue
            kept[line.get("kind"), line.get("epoch"), step, line.get("partition")] = line
        return sorted(kept.values(), key=lambda line: (line.get("step", 0), line.get("epoch", 0)))

    def all_metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every readable line of metrics.jsonl in file order, also of abandoned segments."""
        lines = _read_lines(self.metrics_path, recorded.Metric)
        return [line for line in lines if kind is None or line.get("kind") == kind]

    @property
    def status(self) -> str:
        """How the last segment ended: finished, early_stopped, deadline, a signal's or an error's name; "running" where
        no end is recorded, which is also what kill -9 leaves."""
        for event in reversed(self.events()):
            if event["event"] in ("run_finished", "segment_ended"):
                return str(event.get("reason", "finished"))
            if event["event"] == "segment_started":
                break
        return "running"

    def scores(self) -> list[dict[str, Any]]:
        """The lines with a dev score, in step order: one an epoch, and those made inside one before a deadline."""
        return [line for line in self.metrics() if line.get("kind") in ("epoch", "evaluate")]

    def best(self) -> dict[str, Any] | None:
        """The line with the best score so far, an epoch's or one made inside an epoch; None before the first."""
        return next((line for line in reversed(self.scores()) if line.get("best")), None)


def without_home(value: Any) -> Any:
    """Text in which the home folder is `~`: a record goes to others, and whose home it is, is private."""
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    return value.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else value


def where_scored(line: dict[str, Any]) -> str:
    """A line of `Run.scores` placed for people, who count epochs from 1."""
    return f"epoch {line['epoch'] + 1}" + ", before its end" * (line.get("kind") == "evaluate")


def _read_lines(path: Path, shape: Any) -> list[dict[str, Any]]:
    """The lines of a JSONL file; a torn one (kill -9, full disk) is left out. Raises RunDamaged for a whole one that is
    wrong."""
    try:
        content = files.read_file(path)
    except FileNotFoundError:
        return []
    lines = []
    for number, text in enumerate(content.split(b"\n"), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # also covers undecodable bytes
            continue
        if isinstance(line, dict):
            if (found := recorded.line_problem(line, shape)) is not None:
                raise recorded.damaged(path, f"line {number}: {found}")
            lines.append({key: _number(value) for key, value in line.items()})
    return lines


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
