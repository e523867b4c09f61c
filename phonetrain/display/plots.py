"""Pictures: learning curves of a run with its segments, of several runs, a confusion matrix, an utterance."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator

from ..config.run_config import RunConfig
from ..optim.schedule import Schedule
from ..runs.directory import Run
from ..runs.experiment import group_name, group_runs, shown

TRAIN, DEV, MARK, BAD = "#8da0b6", "#c2410c", "#475569", "#b91c1c"
# Okabe and Ito's palette: told apart with any colour vision.
MANY = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#a0a000")
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "text.color": "#1e293b",
    "axes.titlecolor": "#1e293b",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "phonetrain",
}
# Colours of the pictures -> variables of the page, which gives them other values in the dark.
VARIABLES = {
    "#1e293b": "--ink", "#334155": "--ink", "#64748b": "--soft", "#94a3b8": "--soft", "#e2e8f0": "--line",
    "#8da0b6": "--train", "#c2410c": "--mark", "#475569": "--soft", "#b91c1c": "--mark", "#000000": "--ink",
}  # fmt: skip
MOST_MARKS = 8
WIDER = 1.3  # a browser's font may be that much wider than the one measured with
MOST_POINTS = 1500  # of a curve that is at most 1,440 dots wide


@dataclass
class Curves:
    """The numbers of one run as arrays, x in epochs."""

    name: str
    train_x: np.ndarray
    train: dict[str, np.ndarray]
    epoch_x: np.ndarray
    epochs: dict[str, np.ndarray]
    best: int | None
    marks: list[tuple[float, str, str]] = field(default_factory=list)
    rate_x: np.ndarray = field(default_factory=lambda: np.empty(0))
    rates: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, run: Run) -> Curves:
        """Read the metrics of a run's lineage, without abandoned segments."""
        train, epochs = run.metrics("train"), run.metrics("epoch")
        to_epochs = epoch_scale(train, epochs)
        names = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy")
        scores = run.scores()
        best = [place for place, line in enumerate(scores) if line.get("best")]
        logged = sorted((line["step"], line["lr"]) for line in [*train, *epochs] if "lr" in line)
        steps, rates = scheduled_rates(run) or np.array(logged, np.float64).reshape(-1, 2).T
        return cls(
            name=run.name,
            train_x=thinned(to_epochs([line["step"] for line in train]), np.max),
            train={name: thinned(column(train, name), np.mean) for name in ("loss", "accuracy", "lr")},
            epoch_x=to_epochs([line["step"] for line in scores]),
            epochs={name: column(scores, name) for name in names},
            best=best[-1] if best else None,
            marks=marks(run, to_epochs),
            rate_x=to_epochs(steps.tolist()),
            rates=rates,
        )


def scheduled_rates(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, learning rate of each) as the schedule gives them, for the epochs that are over.

    None where the settings alone do not say them: plateau goes by scores, a rollback cuts the rate, a resume may have
    changed it.
    """
    epochs = run.metrics("epoch")
    by_hand = any(
        event["event"] == "recovered" or (event["event"] == "config_changed" and event.get("by") != "stage")
        for event in run.kept_events()
    )
    if not epochs or by_hand or not run.config_path.is_file():
        return None
    plans = RunConfig.from_toml(run.config_path).plans
    if any(plan.config.schedule.name == "plateau" for plan in plans):
        return None
    steps, rates = [], []
    before, schedule, last = 0, None, 0.0
    for line in epochs:
        plan = next(plan for plan in plans if plan.start <= line["epoch"] < plan.stop)
        batches = int(line["step"]) - before
        if schedule is None or (plan.starts_schedule and line["epoch"] == plan.start):
            schedule = Schedule(plan.config, batches, plan.schedule_start)
            if plan.carries_rate:
                schedule.carry_over(last)
        rates.append(schedule.rates(line["epoch"], batches))
        steps.append(np.arange(before, before + batches))
        before, last = int(line["step"]), float(rates[-1][-1])
    together = np.concatenate(rates)
    thin = np.unique(np.linspace(0, len(together) - 1, MOST_POINTS).astype(int))
    return np.concatenate(steps)[thin], together[thin]


def column(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    """One number of every line as float64, NaN where it is missing."""
    return np.array([math.nan if line.get(name) is None else float(line[name]) for line in lines], np.float64)


def thinned(values: np.ndarray, summary: Any) -> np.ndarray:
    """`summary` of each of at most MOST_POINTS equal stretches; a stretch with a NaN stays NaN."""
    if len(values) <= MOST_POINTS:
        return values
    edges = np.linspace(0, len(values), MOST_POINTS + 1).astype(int)
    return np.array([summary(values[start:stop]) for start, stop in zip(edges, edges[1:])])


def epoch_scale(train: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> Callable[[Sequence[float]], np.ndarray]:
    """A function from steps to epochs: exact at the ends of epochs, straight in between and beyond."""
    knots = [(0.0, 0.0), *((float(line["step"]), line["epoch"] + 1.0) for line in epochs)]
    if len(knots) > 1:
        (step, epoch), (before, earlier) = knots[-1], knots[-2]
        pace = (step - before) / (epoch - earlier) if epoch > earlier else step
    else:  # the first epoch is not over: its length is not known yet
        pace = max((float(line["step"]) for line in train), default=1.0)
    last_step, last_epoch = knots[-1]
    steps, values = zip(*knots, (last_step + 1e6 * max(pace, 1.0), last_epoch + 1e6))
    return lambda wanted: np.interp(np.array(wanted, np.float64), steps, values)


def marks(run: Run, to_epochs: Any) -> list[tuple[float, str, str]]:
    """(epoch, words, colour) of what a reader of the curves must know: resumes, changes, numbers that went bad."""
    kept = {stretch.segment for stretch in run.lineage()}
    found: dict[float, list[str]] = {}
    bad = set()
    for event in run.events():
        place = float(to_epochs([event.get("step", 0)])[0])
        name = event["event"]
        if name == "segment_started" and event.get("step") and event["segment"] in kept:
            found.setdefault(place, []).append("rolled back" if event.get("by") == "rollback" else "resumed")
        elif name == "config_changed" and event.get("segment", 0) in kept:
            words = f"{event['key'].rpartition('.')[2]} {shown(event['old'])} → {shown(event['new'])}"
            if words not in found.setdefault(place, []):
                found[place].append(words)
        elif name == "nonfinite":
            found.setdefault(place, []).append("not finite")
            bad.add(place)
    return [(place, ", ".join(words), BAD if place in bad else MARK) for place, words in sorted(found.items())]


def draw_run(run: Run) -> Figure:
    """Loss, frame accuracy and learning rate of one run over its epochs."""
    told = Curves.of(run)
    with matplotlib.rc_context(STYLE):
        texts = [text if len(text) <= 46 else text[:45] + "…" for _, text, _ in told.marks[-MOST_MARKS:]]
        last = max([*told.epoch_x, *told.train_x, *(place for place, _, _ in told.marks), 1e-9])
        rows = text_rows([place / last for place, _, _ in told.marks[-MOST_MARKS:]], texts, 9.0)
        strip = 0.17 * (1 + max(rows, default=-1))
        figure = Figure(figsize=(9.6, 5.6 + strip), layout="constrained")
        grid = figure.add_gridspec(3, 2, height_ratios=(3, 0.01 + strip, 1.3))
        loss, accuracy, rate = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[2, :]))
        names = figure.add_subplot(grid[1, :])
        draw_score(loss, told, "loss", 1.0)
        loss.set(title="Loss (nats a frame)", xlabel="epochs")
        draw_score(accuracy, told, "accuracy", 100.0)
        accuracy.set(title="Frame accuracy (%)", xlabel="epochs")
        # With a marker where there is no line: of a run of one epoch without lines in it.
        rate.plot(told.rate_x, told.rates, color=TRAIN, linewidth=1.4, marker="s" if len(told.rates) < 2 else "")
        positive = told.rates[told.rates > 0]
        # A cosine reads best on a plain axis, rates that were cut again and again on a logarithmic one.
        if positive.size and positive.max() > 20 * np.median(positive):
            rate.set_yscale("log")
        rate.set(title="Learning rate", xlabel="epochs")
        for axes in (loss, accuracy, rate):
            for place, _, colour in told.marks[-MOST_MARKS:]:
                axes.axvline(place, color=colour, linewidth=0.9, linestyle=(0, (3, 3)))
            axes.set_xlim(left=0.0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.legend(loc="upper right")
        names.set_axis_off()
        names.set(xlim=rate.get_xlim(), ylim=(-0.5 - max(rows, default=0), 0.5))
        for (place, _, colour), text, row in zip(told.marks[-MOST_MARKS:], texts, rows):
            right = place > 0.5 * last
            names.text(place, -row, text, ha="right" if right else "left", va="center", fontsize=7, color=colour)
    return figure


def text_rows(places: Sequence[float], texts: Sequence[str], inches: float) -> list[int]:
    """The row for each text, the first free one, so that none overlaps another.

    places: of 0 to 1 in a width of `inches`, where a text begins or, in the right half, ends.
    """
    measure = FigureCanvasAgg(Figure(dpi=72)).get_renderer()
    rows: list[int] = []
    taken: list[list[tuple[float, float]]] = []
    for place, text in zip(places, texts):
        width = WIDER * measure.get_text_width_height_descent(text, FontProperties(size=7), False)[0] / 72 / inches
        span = (place - width, place) if place > 0.5 else (place, place + width)
        free = next((row for row, spans in enumerate(taken)
                     if all(span[1] < begin or span[0] > end for begin, end in spans)), len(taken))  # fmt: skip
        if free == len(taken):
            taken.append([])
        taken[free].append(span)
        rows.append(free)
    return rows


def draw_score(axes: Axes, told: Curves, name: str, scale: float) -> None:
    axes.plot(told.train_x, scale * told.train[name], color=TRAIN, linewidth=0.9, alpha=0.8, label="train, learning")
    # Epochs that are over before two log lines are written would leave no train curve at all.
    if told.train_x.size < 2 * told.epoch_x.size:
        axes.plot(told.epoch_x, scale * told.epochs[f"train_{name}"], color=TRAIN, linewidth=1.2, marker="s",
                  markersize=3.0, label="train, mean of the epoch")  # fmt: skip
    axes.plot(told.epoch_x, scale * told.epochs[f"dev_{name}"], color=DEV, linewidth=1.6, marker="o", markersize=3.2,
              label="dev, after each epoch")  # fmt: skip
    if told.best is not None:
        x, y = told.epoch_x[told.best], scale * told.epochs[f"dev_{name}"][told.best]
        axes.plot([x], [y], color=DEV, marker="*", markersize=12, linestyle="none", label="best")
        if name == "accuracy":
            axes.annotate(f"{y:.2f} %", (x, y), xytext=(4, -16), textcoords="offset points", ha="right", color=DEV)
    # The first steps' losses would flatten all that follows.
    seen = np.concatenate([told.train[name][told.train_x > 0.15], told.epochs[f"dev_{name}"]])
    seen = scale * seen[np.isfinite(seen)]
    if seen.size > 4:
        low, high = seen.min(), seen.max()
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9)


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Dev loss and dev accuracy of several runs over epochs, one colour an experiment.

    Of runs that differ only in the seed the mean, and a band of one standard deviation on either side.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for place, group in enumerate(group_runs(runs)):
            told = [Curves.of(run) for run in group]
            colour = MANY[place % len(MANY)]
            style = "-" if place < len(MANY) else "--"
            for axes, name, scale in ((loss, "dev_loss", 1.0), (accuracy, "dev_accuracy", 100.0)):
                x, mean, spread = pooled([(each.epoch_x, scale * each.epochs[name]) for each in told])
                axes.plot(x, mean, style, color=colour, linewidth=1.4, marker="o", markersize=2.5,
                          label=group_name(told[0].name, len(told)))  # fmt: skip
                if len(told) > 1:
                    axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.set(title="Dev loss (nats a frame)", xlabel="epochs")
        accuracy.set(title="Dev frame accuracy (%)", xlabel="epochs")
        accuracy.legend(loc="lower right", fontsize=8)
    return figure


def pooled(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, standard deviation) of curves (x, y) where all of them have a point: another set of seeds at every
    point would bend the mean. The deviation of one curve is 0."""
    common = reduce(np.intersect1d, [x for x, _ in curves])
    values = np.array([y[np.searchsorted(x, common)] for x, y in curves])
    return common, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(common))


def draw_confusion(confusion: np.ndarray, symbols: Sequence[str]) -> Figure:
    """The (C, C) counts as shares of each true phoneme, square-root scale so that errors show beside the diagonal."""
    counts = np.asarray(confusion, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    size = max(4.0, 0.19 * len(symbols) + 1.2)
    colours = np.empty((*shares.shape, 4))
    colours[..., :3], colours[..., 3] = to_rgb(DEV), np.sqrt(shares)  # seen on white and on black
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(colours, interpolation="nearest")
        axes.set_xticks(range(len(symbols)), symbols, rotation=90, fontsize=7)
        axes.set_yticks(range(len(symbols)), symbols, fontsize=7)
        axes.set(xlabel="heard as", ylabel="phoneme")
        axes.tick_params(length=0)
    return figure


def draw_utterance(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, symbols: Sequence[str], shift_ms: float
) -> Figure:
    """An utterance: features (N, D), the true and the said phonemes, and the log posteriors `rows` (N, C) as shares.

    Only phonemes that are true or said somewhere have a row among the posteriors.
    """
    said = rows.argmax(1)
    there = sorted({*labels.tolist(), *said.tolist()})
    seconds = len(labels) * shift_ms / 1000
    box = (0.0, seconds)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(max(9.6, 3.2 * seconds), 3.0 + 0.17 * len(there)), layout="constrained")
        top, tiers, below = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 0.7, 0.17 * len(there)))
        low, high = np.quantile(features, (0.02, 0.98))
        top.imshow(features.T, aspect="auto", origin="lower", cmap="magma", vmin=low, vmax=high,
                   extent=(*box, 0, features.shape[1]))  # fmt: skip
        top.set(title="Features", ylabel="coefficient")
        for place, (name, classes) in enumerate((("said", said), ("true", labels))):
            edges = np.flatnonzero(np.diff(classes, prepend=-1, append=-1))
            for begin, end in zip(edges, edges[1:]):
                start, stop = begin * shift_ms / 1000, end * shift_ms / 1000
                wrong = name == "said" and (classes[begin] != labels[begin:end]).mean() > 0.5
                tiers.plot([start, start], [place - 0.4, place + 0.4], color=MARK, linewidth=0.5)
                # Nine points a letter; a phone too short for its name goes without.
                if (stop - start) * figure.get_figwidth() / seconds * 72 > 7 * WIDER * len(symbols[classes[begin]]):
                    tiers.text((start + stop) / 2, place, symbols[classes[begin]], ha="center", va="center",
                               fontsize=7, color=DEV if wrong else "#1e293b")  # fmt: skip
        tiers.set(ylim=(-0.6, 1.6), yticks=(0, 1))
        tiers.set_yticklabels(("said", "true"))
        colours = np.empty((len(there), len(rows), 4))
        colours[..., :3], colours[..., 3] = to_rgb(DEV), np.sqrt(np.exp(rows[:, there])).T
        below.imshow(colours, aspect="auto", interpolation="nearest", extent=(*box, len(there) - 0.5, -0.5))
        below.set_yticks(range(len(there)), [symbols[index] for index in there], fontsize=7)
        below.set(title="Posteriors", xlabel="seconds", xlim=box)
    return figure


def as_svg(figure: Figure, label: str) -> str:
    """An inline <svg> that scales with the page; `label` is read to those who do not see it."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r"#[0-9a-f]{6}", lambda hit: f"var({VARIABLES[hit[0]]})" if hit[0] in VARIABLES else hit[0], rest)
    rest = re.sub(r'base64,[^"]*', lambda hit: hit[0].replace("\n", ""), rest)  # one line, as other pictures in pages
    return f'{head} role="img" aria-label="{label}">{rest}'


def as_png(figure: Figure, dots_per_inch: int = 150) -> bytes:
    data = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(data, format="png", dpi=dots_per_inch, metadata={"Software": None}, facecolor="white")
    return data.getvalue()
