"""A run's life in plain sentences, from events.jsonl and metrics.jsonl: segments, changes, ends, what to do next."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any

from phonedata.files import named

from ..text import clock, command, counted, short
from .directory import Run, RunName
from .experiment import ENDED, shown
from .history import where_scored
from .verdict import verdict

SIGNALS = {
    "SIGINT": "Ctrl-C was pressed",
    "SIGTERM": "the system asked it to end (SIGTERM)",
    "SIGHUP": "its terminal was closed",
    "SIGUSR1": "its time on the cluster was nearly over (SIGUSR1)",
    "KeyboardInterrupt": "Ctrl-C was pressed twice",
    "deadline": "its time was up (--max-time or --stop-at)",
    "early_stopped": "the dev score had not improved for stop.patience epochs",
    "finished": "all its epochs were done",
    "pruned": "the sweep's other trials were better at this epoch",
    "TrainingStopped": "it stopped itself, for the reason told above or on its terminal",
}


class Sentences(list):
    """A list of sentences that a notebook shows one under the other."""

    def __repr__(self) -> str:
        return "\n".join(self)


def explain(run: RunName = None) -> list[str]:
    """The sentences, in the order in which things happened; the last ones say where the run stands and what is next.

    run: a Run, its directory or name; None takes the newest. Raises RunNotFound.
    """
    run = Run.open(run)
    return Sentences(life(run) + _next_steps(run))


def life(run: Run) -> list[str]:
    """What happened to a run and where it stands, without what is next."""
    events = run.events()
    sentences = [_beginning(run, events)]
    segments = _by_segment(events)
    reached: dict[int | None, int] = {}
    for line in run.all_metrics():
        reached[line.get("segment")] = max(int(line.get("step", 0)), reached.get(line.get("segment"), 0))
    for index, own in enumerate(segments):
        is_last = index == len(segments) - 1
        step = reached.get(own[0]["segment"], 0)
        sentences += _segment(own, run, step, None if is_last else segments[index + 1])
    return sentences + _standing(run)


def _by_segment(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The events of each segment (one process, or what follows a rollback), in order."""
    segments: list[list[dict[str, Any]]] = []
    for event in events:
        if event["event"] == "segment_started":
            segments.append([])
        if segments:
            segments[-1].append(event)
    return segments


def _beginning(run: Run, events: list[dict[str, Any]]) -> str:
    """When the run began, from which recipe, with how large a model and how much data, on what device."""
    started = next((event for event in events if event["event"] == "run_started"), {})
    built, environment = run.read_json(run.built_path), run.read_json(run.environment_path)
    recipe = started.get("recipe", "(not recorded)")
    source = "a config that was given" if recipe is None else f"the recipe {recipe}"
    sentence = f"{run.path} began {_day(started.get('time'))} with {source}"
    model, loader = built.get("model") or {}, built.get("loader") or {}
    if model.get("parameters"):
        sentence += f": {model['parameters']:,} parameters"
    if loader.get("frames"):
        sentence += f", {loader['frames']:,} training frames of {loader.get('partitions')}"
    if environment.get("device"):
        sentence += f", on {environment['device']} in {built.get('precision')}"
    return sentence + "."


def _segment(events: list[dict[str, Any]], run: Run, reached: int, following: list[dict[str, Any]] | None) -> list[str]:
    """One segment: how it started, what happened in it, how far it came and why it ended.

    reached: its last logged step. following: the events of the segment after it, None of the last one.
    """
    start, last = events[0], events[-1]
    number = int(start["segment"]) + 1
    steps = [reached, *(int(event["step"]) for event in events if "step" in event)]
    sentences = []
    if start.get("by") == "rollback":
        sentences.append(f"Part {number} went back to step {start['step']:,}, to the last good checkpoint.")
    elif start.get("step") or start.get("parent") is not None:
        saved = start.get("checkpoint", f"step {start['step']:,}")
        sentences.append(f"Part {number} was resumed {_day(start.get('time'))} from {saved}.")
    sentences += [_happening(event, run) for event in events if event["event"] in HAPPENINGS]
    saved = [event for event in events if event["event"] == "checkpoint_saved"]
    sentence = f"Part {number} trained from step {start.get('step', 0):,} to step {max(steps):,}"
    if (seconds := _seconds(start, last)) is not None:
        sentence += f" in {clock(seconds)}"
    if saved:
        sentence += f", saved {counted(len(saved), 'checkpoint')} (the last has {short(saved[-1]['bytes'])}B)"
    end = next((event for event in events if event["event"] in ("segment_ended", "run_finished")), None)
    if end is not None:
        reason = str(end.get("reason", "finished"))
        sentence += f", and ended because {_why(reason, str(end.get('message') or ''))}."
    elif following is not None and following[0].get("by") == "rollback":
        sentence += ", and was rolled back."
    elif following is None and run.is_held():
        sentence += ", and is running now."
    else:
        sentence += ", and was killed: no end is recorded (kill -9, out of memory, a crash, or power)."
    sentences.append(sentence)
    if following is not None and following[0].get("step", 0) < max(steps):
        went = "again" if following[0].get("by") == "rollback" else "on"
        sentences.append(
            f"Its steps after {following[0]['step']:,} were left aside: training went {went} from step "
            f"{following[0]['step']:,}. Their lines stay in the files; reports follow what was kept."
        )
    return sentences


def _why(reason: str, message: str) -> str:
    """The words after "because"; message: the error's own."""
    if reason in SIGNALS and not (reason == "TrainingStopped" and message):
        return SIGNALS[reason]
    sentence = "it stopped itself" if reason == "TrainingStopped" else f"of an error ({reason})"
    return f"{sentence}: {message.rstrip('.')}" if message else sentence


def _changed(event: dict[str, Any]) -> str:
    by = "by the recipe's next stage" if event.get("by") == "stage" else "by hand"
    old, new = shown(event["old"]), shown(event["new"])
    return f"At step {event.get('step', 0):,} {event['key']} was changed from {old} to {new}, {by}."


def _recovered(event: dict[str, Any]) -> str:
    if event.get("by") == "rollback":
        return (f"It was rolled back from step {event.get('from_step', 0):,} and learning rates were multiplied by "
                f"{event.get('rate_scale')}.")  # fmt: skip
    return f"The batch before step {event.get('step', 0):,} was left out."


HAPPENINGS = {
    "config_changed": _changed,
    "warning": lambda event: f"At step {event.get('step', 0):,} it warned: {event['message']}.",
    "nonfinite": lambda event: f"A number went bad: {event['message']}.",
    "recovered": _recovered,
}


def _happening(event: dict[str, Any], run: Run) -> str:
    sentence, kept = HAPPENINGS[event["event"]](event), event.get("evidence")
    return f"{sentence[:-1]} (evidence/{kept})." if kept and (run.evidence / kept).is_dir() else sentence


def _standing(run: Run) -> list[str]:
    """How many epochs are scored, and the best score."""
    epochs, best = run.metrics("epoch"), run.best()
    if not epochs:
        if best is None:
            return ["No epoch has been scored yet."]
        scored = f"{100 * best['dev_accuracy']:.2f} % dev frame accuracy"
        return [f"The first epoch is not over; its weights so far scored {scored}."]
    sentence = f"{len(epochs)} epoch{'s are' if len(epochs) != 1 else ' is'} scored"
    if best is not None:
        sentence += (
            f"; the best score is {100 * best['dev_accuracy']:.2f} % dev frame accuracy, in {where_scored(best)}"
        )
    return [sentence + "."]


def _next_steps(run: Run) -> list[str]:
    """The verdict, and what has not been done with a run that has ended."""
    judged = verdict(run)
    if run.status not in ENDED:
        return [str(judged)]
    done = {"evaluate": named(run.evaluations, "*.json"), "predict": named(run.predictions, "*.csv"),
            "report": named(run.path, run.report_path.name)}  # fmt: skip
    # What was made before the best checkpoint is out of date.
    best = run.best()
    scored = None if best is None else run.checkpoint_dir(best["step"])
    since = scored.stat().st_mtime if scored is not None and scored.is_dir() else 0.0
    missing = [name for name, files in done.items() if not any(file.stat().st_mtime >= since for file in files)]
    look = ", ".join(command(name, run.path) for name in missing) or f"read {shlex.quote(str(run.report_path))}"
    return [f"Next: {look}.", str(judged)]


def _day(time: str | None) -> str:
    try:
        return f"on {datetime.fromisoformat(str(time)):%Y-%m-%d at %H:%M} UTC"
    except ValueError:
        return "at an unknown time"


def _seconds(start: dict[str, Any], last: dict[str, Any]) -> float | None:
    """Between two events, None where the clock went backwards or a time is missing."""
    try:
        passed = (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(start["time"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
    return passed if passed >= 0 else None
