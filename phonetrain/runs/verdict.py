"""The rules of advice: what a run's scores say, and the one command that they support. All rules are here.

`explain`, the end of `fit` and the report use them, so that no two of them advise against each other; overfitting is
never followed by longer training. The first rule that holds decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phonedata.files import named

from ..config.run_config import RunConfig
from ..errors import ConfigError
from ..text import counted, percent
from .directory import Run
from .experiment import ENDED
from .next_commands import after_bad_numbers, evaluate, fit_again, longer, settings

LOOKED_BACK = 2  # epochs over which a gain is measured
GAIN = 0.001  # frame accuracy gained over them that still counts as learning
LOSS_RISE = 0.002  # of the lowest dev loss; less is noise
RISES = 2  # epochs in a row
FAR_ABOVE = 0.10  # train accuracy over dev
CLOSE = 0.02  # train accuracy over dev, where a net that could learn more would have more
NO_RATE = 1e-3  # of the highest rate
HIGH_RATE = 0.3  # of the highest rate
MOST_WARMUP = 0.5  # of all updates
FITTING_WARMUP = 0.05


@dataclass(frozen=True)
class Scores:
    """What the rules look at: of every epoch its scores and its highest learning rate.

    warmup: share of the updates so far that were warm-up.
    """

    train_loss: list[float]
    train_accuracy: list[float]
    dev_loss: list[float]
    dev_accuracy: list[float]
    rates: list[float]
    warmup: float = 0.0

    @classmethod
    def of(cls, run: Run) -> Scores:
        epochs = run.metrics("epoch")
        columns = {
            name: [float(line.get(name, math.nan)) for line in epochs]
            for name in ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy")
        }
        rates = []
        before = 0.0  # the rate at the end of the epoch before is the first of this one
        lines = [(line["epoch"], float(line["lr"])) for line in run.metrics("train") if "lr" in line]
        for line in epochs:
            last = float(line.get("lr", math.nan))
            rates.append(max([rate for epoch, rate in lines if epoch == line["epoch"]] or [before, last]))
            before = last
        updates = epochs[-1]["step"] if epochs else 0
        return cls(**columns, rates=rates, warmup=_warmup_updates(run, len(epochs)) / updates if updates else 0.0)

    @property
    def looked_back(self) -> int:
        return min(LOOKED_BACK, len(self.dev_accuracy) - 1)

    @property
    def gained(self) -> float:
        """The best dev accuracy of the last epochs over the best before them."""
        before, last = self.dev_accuracy[: -self.looked_back], self.dev_accuracy[-self.looked_back :]
        return max(last) - max(before)

    @property
    def gap(self) -> float:
        return self.train_accuracy[-1] - self.dev_accuracy[-1]

    @property
    def gain_in_words(self) -> str:
        last = "epoch" if self.looked_back == 1 else counted(self.looked_back, "epoch")
        return f"{100 * self.gained:+.2f} points of dev accuracy in the last {last}"


def overfitting(scores: Scores) -> str | None:
    """The dev loss rises, epoch by epoch or for long, while the train loss falls; or train is far above a dev that
    gains no more."""
    losses = scores.dev_loss
    lowest = losses.index(min(losses)) if all(map(math.isfinite, losses)) else len(losses) - 1
    rises = 0
    while rises + 1 < len(losses) and losses[-rises - 1] > losses[-rises - 2]:
        rises += 1
    since = len(losses) - 1 - lowest
    lasting = rises >= RISES or since > 2 * RISES
    if lasting and losses[-1] > (1 + LOSS_RISE) * losses[lowest] and scores.train_loss[-1] < scores.train_loss[lowest]:
        return (
            f"it overfits, since the dev loss rose from {losses[lowest]:.4f} to {losses[-1]:.4f} in the last {since} "
            "epochs while the train loss fell"
        )
    if scores.looked_back and scores.gap > FAR_ABOVE and scores.gained <= GAIN:
        return (
            f"it overfits, since train accuracy ({percent(scores.train_accuracy[-1])} %) is far above dev "
            f"({percent(scores.dev_accuracy[-1])} %), which gains no more"
        )
    return None


def no_rate(scores: Scores) -> str | None:
    """The last epochs, a tenth of all and at least two, ended at learning rate 0; no schedule does that by itself."""
    idle = 0
    while idle < len(scores.rates) and scores.rates[-idle - 1] <= NO_RATE * max(scores.rates):
        idle += 1
    if idle >= max(2, math.ceil(len(scores.rates) / 10)):
        return f"its learning rate was at zero for the last {idle} epochs, in which nothing more is learnt"
    return None


def warmup_filled_run(scores: Scores) -> str | None:
    if scores.warmup >= MOST_WARMUP:
        return (
            f"warm-up took {100 * min(scores.warmup, 1.0):.0f} % of its updates, so it hardly trained at its full rate"
        )
    return None


def one_epoch(scores: Scores) -> str | None:
    return "a single epoch does not say where it goes" if len(scores.dev_accuracy) == 1 else None


def rising(scores: Scores) -> str | None:
    return f"it was still gaining ({scores.gain_in_words})" if scores.gained > GAIN else None


def plateau(scores: Scores) -> str | None:
    """No gain, and the rate is not down: a lower one often gains at once."""
    if scores.rates[-1] >= HIGH_RATE * max(scores.rates):
        return f"it stands still at a high learning rate ({scores.gain_in_words})"
    return None


def underfitting(scores: Scores) -> str | None:
    """The rate is down, and train is no better than dev: the net cannot take in more."""
    if scores.gap < CLOSE:
        return (
            f"it underfits, since train accuracy ({percent(scores.train_accuracy[-1])} %) is hardly above dev "
            f"({percent(scores.dev_accuracy[-1])} %) and neither gains"
        )
    return None


def converged(scores: Scores) -> str | None:
    return f"it has converged ({scores.gain_in_words})"


@dataclass(frozen=True)
class Verdict:
    """name: of the rule, or of the state of a run that has not ended. sentence: what the numbers say; command: what to
    type, None where there is nothing to do; does: what the command does, as the end of a sentence about it."""

    name: str
    sentence: str
    command: str | None = None
    does: str = ""

    def __str__(self) -> str:
        words = self.sentence if self.command is None else f"{self.sentence}: {self.command} {self.does}"
        return f"{words[0].upper()}{words[1:]}."


def verdict(run: Run) -> Verdict:
    """What to do with a run next, by its state and, where that leaves a choice, by its scores."""
    status = run.status
    if status == "running" and run.is_held():
        return Verdict("training", "it is training; Ctrl-C, once, lets it save and say how to go on")
    judged = verdict_of_scores(run)
    if status in ENDED:
        return judged or Verdict("unscored", "no epoch is scored", fit_again(run), "starts it anew")
    if not named(run.checkpoints, "step-*"):
        if run.has_trained:
            return Verdict("no checkpoint", "its checkpoints are gone", fit_again(run), "trains it anew")
        return Verdict("no checkpoint", "it ended before the first one", run.start_again_command, "starts it again")
    if (end := _end_of_bad_numbers(run)) is not None:
        return Verdict("bad numbers", after_bad_numbers(run, end["ways"], end["where"]))
    if judged is not None and judged.name == "overfitting":
        return judged
    return Verdict("unfinished", "it has not ended", run.resume_command, "goes on from the last checkpoint")


def verdict_of_scores(run: Run) -> Verdict | None:
    """The first rule that holds, with its command; None before the first epoch is scored."""
    scores = Scores.of(run)
    if not scores.dev_accuracy:
        return None
    config = RunConfig.from_toml(run.config_path)
    for rule, command in RULES.items():
        if (sentence := rule(scores)) is not None:
            return Verdict(rule.__name__, sentence, *command(run, config, scores))
    raise AssertionError("the last rule always holds")


def after_end(run: Run, reason: str, scored: bool, ways: Mapping[str, str] | None = None) -> list[str]:
    """What comes next when a segment has ended, as commands whose explanation a shell takes for a comment.

    scored: there is a best checkpoint. ways: as in `after_bad_numbers`, where those ended it.
    """
    scoring = [f"{evaluate(run)}    # scores the best checkpoint, in fp32"] if scored else []
    if ways is not None:
        return [*(f"{run.resume_with(*words.split())}    # {does}" for words, does in ways.items()), *scoring]
    judged = verdict_of_scores(run)
    if judged is not None and (reason in ENDED or judged.name == "overfitting"):
        return [f"{judged.command}    # {judged.sentence}", *scoring]
    if reason in ENDED:
        return scoring
    limits = [f"stop.{name}=none" for name in ("max_time", "stop_at") if settings(run).get(f"stop.{name}")]
    if reason == "deadline" and limits:
        return [f"{run.resume_with(*limits)}    # goes on, without the limit", *scoring]
    return [f"{run.resume_command}    # goes on where it stopped", *scoring]


def _end_of_bad_numbers(run: Run) -> dict[str, Any] | None:
    """The event of the last segment that says what may be done about bad numbers."""
    for event in reversed(run.events()):
        if "ways" in event or event["event"] == "segment_started":
            return event if "ways" in event else None
    return None


def _warmup_updates(run: Run, epochs: int) -> int:
    """Updates of warm-up in the epochs that a run has behind it."""
    with_steps = run.metrics("epoch")
    config = RunConfig.from_toml(run.config_path).plans[0].config
    schedule = config.schedule
    if schedule.warmup_share is not None:
        return round(schedule.warmup_share * config.epochs * with_steps[0]["step"])
    if schedule.warmup_epochs is not None:
        return int(with_steps[min(schedule.warmup_epochs, epochs) - 1]["step"])
    return schedule.warmup_steps or 0


def _regularised(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    """The first thing against overfitting that the run did not have, or had little of."""
    model, augment = config.model, config.augment
    tried = [
        (config.subset < 1, ["subset=1.0"], "trains on all of the data"),
        (not augment.time_mask and not augment.freq_mask,
         [f"augment.time_mask={max(1, config.window.width // 5)}", "augment.freq_mask=4"], "masks parts of windows"),
        (model.dropout < 0.5, [f"model.dropout={min(0.5, round(model.dropout + 0.1, 2))}"], "drops more"),
        (config.averaging.decay is None, ["averaging.decay=0.999"], "averages the weights"),
        (True, [f"optimizer.weight_decay={max(0.05, 5 * config.optimizer.weight_decay):g}"], "lets the weights decay"),
    ]  # fmt: skip
    return _first_that_fits(run, config, tried)


def _widened(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    """A net that can take in more, by its width or by dropping less."""
    model = config.model
    tried = [
        (model.hidden is not None and model.max_parameters is None, [f"model.hidden={2 * (model.hidden or 1)}"],
         "trains a wider net"),
        (model.widths is not None and model.max_parameters is None,
         [f"model.widths={[2 * width for width in model.widths or ()]}"], "trains a wider net"),
        (model.dropout > 0, [f"model.dropout={round(model.dropout / 2, 3):g}"], "drops less"),
        (config.augment.time_mask > 0, ["augment.time_mask=0", "augment.freq_mask=0"], "leaves the masks out"),
        (True, [f"epochs={2 * config.epochs}"], "trains anew, twice as long"),
    ]  # fmt: skip
    return _first_that_fits(run, config, tried)


def _first_that_fits(run: Run, config: RunConfig, tried: list[tuple[bool, list[str], str]]) -> tuple[str, str]:
    for missing, changes, does in tried:
        if missing:
            try:
                config.override(changes)
            except ConfigError:  # a model of one's own, or one that is given width by width, does not read it
                continue
            return fit_again(run, *changes), does
    raise AssertionError("the last change is one that every config takes")


def _prolonged(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    return longer(run, config, config.epochs + max(5, len(scores.dev_accuracy) // 2)), "may gain more"


def _at_a_lower_rate(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    rate = f"optimizer.lr={max(scores.rates) / 10:.3g}"
    return run.resume_with(f"epochs={config.epochs + 5}", rate), "goes on at a tenth of the rate"


def _with_a_rate(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    more = config.epochs + max(5, len(scores.rates) // 2)
    schedule = config.plans[-1].config.schedule
    if schedule.name in schedule.LAID_OUT:
        stretched = run.resume_with(f"epochs={more}", "schedule.on_extend=stretch")
        return stretched, "lays its schedule out over more epochs"
    return run.resume_with(f"epochs={more}", f"optimizer.lr={max(scores.rates) / 10:.3g}"), "gives it a rate again"


def _with_less_warmup(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    steps = max(1, round(FITTING_WARMUP * run.metrics("epoch")[-1]["step"]))
    others_off = [f"{name}=none" for name in config.schedule.warmups if name != "schedule.warmup_steps"]
    return fit_again(run, *others_off, f"schedule.warmup_steps={steps}"), "warms up for a twentieth of it"


def _another_seed(run: Run, config: RunConfig, scores: Scores) -> tuple[str, str]:
    return fit_again(run, f"seed={config.seed + 1}"), "tells how much of the score is luck, and can be averaged with it"


# In the order in which they are asked, each with what makes its command.
RULES: dict[Callable[[Scores], str | None], Callable[[Run, RunConfig, Scores], tuple[str, str]]] = {
    overfitting: _regularised,
    no_rate: _with_a_rate,
    warmup_filled_run: _with_less_warmup,
    one_epoch: _prolonged,
    rising: _prolonged,
    plateau: _at_a_lower_rate,
    underfitting: _widened,
    converged: _another_seed,
}
