"""Pictures: learning curves of one run with its segments, of several runs over each other, and a confusion matrix."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .runs.directory import Run

TRAIN, DEV, MARK, BAD = "#8da0b6", "#c2410c", "#475569", "#b91c1c"
# Okabe and Ito's palette: told apart with any colour vision.
MANY = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#a0a000")
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
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
MOST_MARKS = 8
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

    @classmethod
    def of(cls, run: Run) -> Curves:
        """Read a run's life (its lineage, not what was left aside)."""
        train, epochs = run.metrics("train"), run.metrics("epoch")
        to_epochs = epoch_scale(train, epochs)
        names = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy")
        scores = run.scores()
        best = [place for place, line in enumerate(scores) if line.get("best")]
        return cls(
            name=run.name,
            train_x=thinned(to_epochs([line["step"] for line in train]), np.max),
            train={name: thinned(column(train, name), np.mean) for name in ("loss", "accuracy", "lr")},
            epoch_x=to_epochs([line["step"] for line in scores]),
            epochs={name: column(scores, name) for name in names},
            best=best[-1] if best else None,
            marks=marks(run, to_epochs),
        )


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
            words = f"{event['key'].rpartition('.')[2]} {event['old']} → {event['new']}"
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
        figure = Figure(figsize=(9.6, 5.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(3, 1.3))
        loss, accuracy, rate = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
        draw_score(loss, told, "loss", 1.0)
        loss.set(title="Loss (nats a frame)", xlabel="epochs")
        draw_score(accuracy, told, "accuracy", 100.0)
        accuracy.set(title="Frame accuracy (%)", xlabel="epochs")
        rate.plot(told.train_x, told.train["lr"], color=TRAIN, linewidth=1.4)
        if not told.train_x.size and told.epoch_x.size:
            # With a marker: of a run of one epoch there is no line.
            rate.plot(told.epoch_x, column(run.scores(), "lr"), color=TRAIN, linewidth=1.4, marker="s", markersize=3.0)
        positive = told.train["lr"][told.train["lr"] > 0]
        # A cosine reads best on a plain axis, rates that were cut again and again on a logarithmic one.
        if positive.size and positive.max() > 20 * np.median(positive):
            rate.set_yscale("log")
        rate.set(title="Learning rate", xlabel="epochs")
        for axes in (loss, accuracy, rate):
            draw_marks(axes, told, words=axes is rate)
            axes.set_xlim(left=0.0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.legend(loc="upper right")
    return figure


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


def draw_marks(axes: Axes, told: Curves, words: bool) -> None:
    for place, text, colour in told.marks[-MOST_MARKS:]:
        axes.axvline(place, color=colour, linewidth=0.9, linestyle=(0, (3, 3)))
        if words:
            short = text if len(text) <= 46 else text[:45] + "…"
            axes.annotate(short, (place, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0), va="top",
                          textcoords="offset points", fontsize=7, color=colour)  # fmt: skip


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Dev loss and dev accuracy of several runs over epochs, one colour each."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for place, run in enumerate(runs):
            told = Curves.of(run)
            colour = MANY[place % len(MANY)]
            style = "-" if place < len(MANY) else "--"
            for axes, name, scale in ((loss, "dev_loss", 1.0), (accuracy, "dev_accuracy", 100.0)):
                axes.plot(told.epoch_x, scale * told.epochs[name], style, color=colour, linewidth=1.4, marker="o",
                          markersize=2.5, label=told.name)  # fmt: skip
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.set(title="Dev loss (nats a frame)", xlabel="epochs")
        accuracy.set(title="Dev frame accuracy (%)", xlabel="epochs")
        accuracy.legend(loc="lower right", fontsize=8)
    return figure


def draw_confusion(confusion: np.ndarray, symbols: Sequence[str]) -> Figure:
    """The (C, C) counts as shares of each true phoneme, square-root scale so that errors show beside the diagonal."""
    counts = np.asarray(confusion, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    size = max(4.0, 0.19 * len(symbols) + 1.2)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(np.sqrt(shares), cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_xticks(range(len(symbols)), symbols, rotation=90, fontsize=7)
        axes.set_yticks(range(len(symbols)), symbols, fontsize=7)
        axes.set(xlabel="heard as", ylabel="phoneme")
        axes.tick_params(length=0)
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
    return f'{head} role="img" aria-label="{label}">{rest}'


def as_png(figure: Figure, dots_per_inch: int = 150) -> bytes:
    data = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(data, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return data.getvalue()


def as_image(figure: Figure, label: str) -> str:
    """An <img> with the picture inside."""
    return f'<img alt="{label}" src="data:image/png;base64,{base64.b64encode(as_png(figure)).decode()}">'
