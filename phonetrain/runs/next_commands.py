"""Commands for what to do next, as text that works when pasted; only what the run did not have already."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..config.changes import diff, extension_question, lengthened
from ..config.run_config import RunConfig, load_recipe
from ..config.stages import flattened
from ..config.toml import read_toml, toml_value
from ..errors import ConfigError
from ..text import command, shell_command
from .directory import Run


def longer(run: Run, config: RunConfig, epochs: int) -> str:
    """The command that trains a run on up to `epochs` epochs, with the answer its schedule will ask for."""
    asks = extension_question(config, lengthened(config, epochs)) is not None
    return run.resume_with(f"epochs={epochs}", *["schedule.on_extend=stretch"] * asks)


def evaluate(run: Run) -> str:
    return command("evaluate", run.path)


def fit_again(run: Run, *changes: str) -> str:
    """The command that trains under the run's settings again, with `changes` as key=value."""
    words, options = fit_words(run, *changes)
    return command("fit", *words, **options)


def fit_words(run: Run, *changes: str, config: RunConfig | None = None) -> tuple[list[str], dict[str, str]]:
    """What follows `phonetrain fit` to train under the run's settings again, with `changes`: words, options.

    config: in place of the run's settings, those it began with.

    It is the run's recipe and how the settings differ from it, tried here: where that gives other settings (the recipe
    is gone or unknown, or a difference cannot be said as `key=value`), it is the run's own config.toml.
    """
    own = RunConfig.from_toml(run.config_path)
    wanted = (config or own).override(changes)
    options = {} if wanted.data.corpus is None else {"corpus": wanted.data.corpus}
    recipe = next(iter(run.events("run_started")), {}).get("recipe")
    with contextlib.suppress(ConfigError):
        if recipe and (words := _said(load_recipe(recipe), wanted)) is not None:
            return [recipe, *words], options
    words = _said(own, wanted)
    return [run.config_path.as_posix(), *(changes if words is None else words)], options


def train_again(run: Run) -> str:
    """The commands, for a POSIX shell, that train the run again stage by stage: the start, and each change by hand.

    A change made in the middle of an epoch needs a stop at the same step, which no command gives: a comment says so.
    """
    changed = changed_on_resume(run)
    config = RunConfig.from_toml(run.config_path)
    for event in reversed(changed):
        with contextlib.suppress(ConfigError):  # a stage's own key, or one that the change brought along
            config = config.replaced({event["key"]: event["old"]})
    words, options = fit_words(run, config=config)
    if not changed:
        return shell_command("fit", *words, **options)
    name = (run.path.parent / f"{run.name}-again").as_posix()
    lines = [shell_command("fit", *words, **options, run=name)]
    ends = {line["step"] for line in run.metrics("epoch")}
    for segment in dict.fromkeys(event["segment"] for event in changed):
        events = [event for event in changed if event["segment"] == segment]
        step = events[0]["step"]
        last = max(line["step"] for line in run.all_metrics() if line.get("segment", 0) < segment)
        back = {"from": f"step-{step}"} if last > step else {}
        changes = [f"{event['key']}={setting_text(event['new'])}" for event in events]
        told = shell_command("resume", name, *changes, **back)
        lines.append(told if step in ends else f"{told}    # after a stop at step {step:,} (Ctrl-C)")
    return "\n".join(lines)


def changed_on_resume(run: Run) -> list[dict[str, Any]]:
    """Events of settings that were changed by hand when a run, begun already, went on; of its kept life."""
    changes = run.kept_events("config_changed")
    return [event for event in changes if event.get("by") == "resume" and event.get("step", 0) > 0]


def _said(base: RunConfig, wanted: RunConfig) -> list[str] | None:
    """The settings that make `wanted` of `base`, the corpus aside; None where `key=value` cannot say them."""
    # A setting is left out of a config because it is none, which is said, or because nothing reads it.
    told = [(key, new) for key, _, new in diff(base, wanted) if new is not None or wanted.setting(key) is None]
    words = [f"{key}={setting_text(new)}" for key, new in told if key not in ("data.corpus", "version")]
    try:
        return words if _elsewhere(base.override(words)) == _elsewhere(wanted) else None
    except ConfigError:
        return None


def setting_text(value: Any) -> str:
    """A value as a `key=value` on the command line has it."""
    return value if isinstance(value, str) else "none" if value is None else toml_value(value)


def _elsewhere(config: RunConfig) -> RunConfig:
    """The settings without the place of the corpus."""
    return config.replaced({"data.corpus": None})


def after_bad_numbers(run: Run, ways: Mapping[str, str], where: str) -> str:
    """What can continue a run after a NaN or infinity, as a sentence with commands.

    ways: what a resume is given, words with a space between -> what that does; where: a NonfiniteReport's.
    """
    told = ", or ".join(f"`{run.resume_with(*words.split())}` {does}" for words, does in ways.items())
    if where == "windows":
        return f"the net is not at fault: {told}{'; better, ' * bool(ways)}mend the features and pack them again"
    return told or (
        "no setting that a resume may change mends that: begin a new run with a norm (model.norm=batch), "
        "another model.init or a lower optimizer.lr"
    )


def settings(run: Run) -> dict[str, Any]:
    """Dotted key -> value of config.toml; what is none is left out."""
    return dict(flattened(read_toml(run.config_path)))
