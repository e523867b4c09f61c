"""The experiment that a run belongs to: its settings and changes by hand, without those that change no number.

Runs of one experiment differ in the seed alone; their scores are a sample of what the experiment gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .directory import Run
from .next_commands import settings

# Settings that change no number of an epoch; and those that change one by rounding, or as chance does.
NO_NUMBER = ("version", "data.corpus", "tracking.", "checkpoint.", "stop.", "schedule.on_extend")
NO_EXPERIMENT = ("seed", "device", "capture", *NO_NUMBER)
T = TypeVar("T")
ENDED = ("finished", "early_stopped")


def experiment(run: Run) -> dict[str, Any]:
    """Setting -> value; what was changed while it trained, and the epochs of a run that is not at its end, too."""
    table = {key: value for key, value in settings(run).items() if not key.startswith(NO_EXPERIMENT)}
    by_hand = [
        f"{event['key']} {shown(event['old'])} → {shown(event['new'])} at step {event.get('step', 0):,}"
        for event in run.kept_events("config_changed")
        if event.get("by") != "stage" and event.get("step") and not event["key"].startswith(NO_EXPERIMENT)
    ]
    if by_hand:
        table["changed by hand"] = "; ".join(by_hand)
    if run.status not in ENDED:
        table["epochs trained"] = len(run.metrics("epoch"))
    return table


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one experiment together, in the order in which experiments come first."""
    return grouped(runs, experiment)


def grouped(items: Sequence[T], about: Callable[[T], Any]) -> list[list[T]]:
    """Items with equal `about(item)` together, in order of first appearance; `about` need not return hashables."""
    groups: list[tuple[Any, list[T]]] = []
    for item in items:
        known = about(item)
        group = next((group for others, group in groups if others == known), None)
        if group is None:
            groups.append((known, [item]))
        else:
            group.append(item)
    return [group for _, group in groups]


def group_name(first: str, count: int) -> str:
    """Of `count` runs of one experiment, the first of which is called `first`."""
    return first + (f" ({count} seeds)" if count > 1 else "")


def changes(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in the first, value in the other) of all that differs; None where it is not set."""
    both = [(key, first.get(key), other.get(key)) for key in dict.fromkeys([*first, *other])]
    return [change for change in both if change[1] != change[2]]


def shown(value: Any) -> str:
    """A setting's value as people read it; none where it is not set."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {shown(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)
