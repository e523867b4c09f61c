"""What differs between two configs, and what must be asked when a run is made longer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .run_config import RunConfig, StagePlan
from .validation import joined


def diff(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every setting that differs; None where a config leaves it out.

    Of stages, where there are as many, by number: `stage.1.optimizer.lr`. That the last stage takes the epochs that
    `epochs` has gained is one change and not two.
    """
    table = new.to_dict()
    beyond = {key for key, _, _ in differing(lengthened(old, new.epochs).to_dict(), table)}
    return [change for change in differing(old.to_dict(), table) if change[0] == "epochs" or change[0] in beyond]


def stage_diff(old: StagePlan, new: StagePlan) -> list[tuple[str, Any, Any]]:
    """`diff` of the settings under which two stages train; a rate that a stage carries over is "previous".

    Without `epochs`, which here is how far the schedule reaches and not the run's setting of this name.
    """
    changes = [change for change in diff(old.config, new.config) if change[0] not in ("epochs", "optimizer.lr")]
    return changes + [("optimizer.lr", old.lr, new.lr)] * (old.lr != new.lr)


def differing(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) of all that differs in nested tables; as many tables in a list are compared by number."""
    if are_tables(old) and are_tables(new) and len(old) == len(new):
        old, new = ({str(number): table for number, table in enumerate(tables)} for tables in (old, new))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [(where, old, new)] if old != new else []
    names = dict.fromkeys([*old, *new])
    return [change for name in names for change in differing(old.get(name), new.get(name), joined(where, name))]


def are_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def lengthened(config: RunConfig, epochs: int) -> RunConfig:
    """`config` with more epochs, which its last stage takes; `config` itself where they are not more."""
    return config.replaced({"epochs": epochs}) if epochs > config.epochs else config


def extension_question(old: RunConfig, new: RunConfig) -> str | None:
    """The sentence to put to somebody who changes `epochs` under a schedule whose length depends on them; else None.

    None too when `schedule.on_extend` answers it, or when the rate or the schedule is set anew by the same change.
    """
    changed = [re.sub(r"^stage\.\d+\.", "", key) for key, _, _ in diff(old, new)]
    if any(key == "optimizer.lr" or (key.startswith("schedule.") and key != "schedule.on_extend") for key in changed):
        return None
    lengths = {plan.schedule_start: plan.schedule_stop for plan in old.plans}
    for plan in new.plans:
        before = lengths.get(plan.schedule_start, plan.schedule_stop)
        schedule = plan.config.schedule
        if before != plan.schedule_stop and schedule.name in schedule.LAID_OUT and schedule.on_extend is None:
            hold = "keep it, then hold its last rate"
            if plan.schedule_stop < before:
                hold = f"keep it: the run ends at epoch {plan.schedule_stop}, before the rate is down"
            return (
                f"epochs {old.epochs} -> {new.epochs}: {schedule.name} was laid out to end at epoch {before}; say "
                f"schedule.on_extend=stretch (lay it out to epoch {plan.schedule_stop}: the rate jumps now) or "
                f"schedule.on_extend=hold ({hold})"
            )
    return None
