"""Learning-rate range test: train with a rate that grows from step to step and see where the loss falls, and breaks.

Smith, "Cyclical learning rates for training neural networks" (2017); the losses are smoothed with a running mean
(factor 0.9, its start corrected), and a tenth of the rate of the lowest loss is suggested, as fast.ai does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phonedata.files import write_file

from ..config.resolve import resolve
from ..console.open import show_picture
from ..console.panel import bar
from ..display.tables import Shown
from ..errors import ConfigError, writing
from ..step.metrics import FrameSums
from ..training.build import TrainingSetup
from ..training.data import open_corpus
from ..training.session import prepare

SMOOTHING = 0.9
DIVERGED = 2.0  # times the lowest smoothed loss
PICTURE = "lr-range.png"


def find_lr(
    recipe: str | os.PathLike[str] = "default",
    *overrides: str,
    corpus: str | os.PathLike[str] | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    out: str | os.PathLike[str] = PICTURE,
    **settings: object,
) -> dict[str, Any]:
    """Train a fresh model of the recipe for up to `steps` steps; step i at low * (high / low) ** (i / (steps - 1)).

    Returns rates, losses (nats a frame, as the step saw them) and smoothed as lists; lowest and steepest, the rates
    where the smoothed loss is lowest and falls fastest per decade; diverged, the rate at which it broke (None where it
    never did); suggested; configured, what the recipe has. Writes the picture to `out`, and no run.
    """
    if not (0 < low < high and steps >= 20):
        raise ConfigError(f"find_lr: got low {low:g}, high {high:g}, {steps} steps; wanted 0 < low < high, 20 or more")
    config = resolve(recipe, overrides, corpus, settings=settings)
    packed = open_corpus(config)
    setup = prepare(config, packed).setup
    try:
        with bar("trying learning rates", steps) as show:
            rates, losses = sweep(setup, np.geomspace(low, high, steps), show)
    finally:
        setup.close()
    result = judge(rates, losses) | {"recipe": str(recipe), "configured": config.optimizer.lr, "picture": str(out),
                                   "batch_size": config.batch_size}  # fmt: skip
    with writing(Path(out), "run it in a folder that can be written"):
        write_file(Path(out), draw(result))
    show_picture(Path(out).read_bytes)
    return Shown(result, find_lr_text)


def sweep(setup: TrainingSetup, rates: np.ndarray, show: Callable[[int], None]) -> tuple[list[float], list[float]]:
    """(rates, losses) of the steps made; ends early where a loss is not finite or far above the lowest.

    show: told how many steps are made.
    """
    losses: list[float] = []
    before, lowest, epoch = FrameSums(), math.inf, 0
    while len(losses) < len(rates):
        for batch in setup.train.epoch(epoch):
            step = len(losses)
            show(step)
            setup.step(batch.windows, batch.labels, batch.frames, epoch=epoch, step=step, rate=float(rates[step]))
            sums = setup.state.metrics.sums()
            bad = int(setup.step.status.nonfinite_at) >= 0
            losses.append(math.inf if bad else (sums - before).result()["loss"])
            before = sums
            level = smooth(losses)[-1]
            lowest = min(lowest, level) if math.isfinite(level) else lowest
            if bad or (step > 10 and level > DIVERGED * lowest) or len(losses) == len(rates):
                return rates[: len(losses)].tolist(), losses
        epoch += 1
    return rates.tolist(), losses


def smooth(losses: list[float]) -> np.ndarray:
    """Running means, sum of SMOOTHING ** age * loss over sum of SMOOTHING ** age."""
    total = weight = 0.0
    means = []
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1.0
        means.append(total / weight)
    return np.array(means)


def judge(rates: list[float], losses: list[float]) -> dict[str, Any]:
    """What the curve says; see find_lr."""
    means = smooth(losses)
    finite = np.isfinite(means)
    known = means[finite]
    if len(known) < 5:
        at = f"{rates[len(known)]:.1e}"
        raise ConfigError(f"find_lr: the loss is not finite from step {len(known)} on, at rate {at}; try a lower `low`")
    lowest_at = int(known.argmin())
    slope = np.gradient(known, np.log10(np.array(rates)[finite]))
    steepest = int(slope[: lowest_at + 1].argmin())
    broke = len(known) < len(means) or known[-1] > DIVERGED * known[lowest_at]
    return {
        "rates": rates, "losses": losses, "smoothed": means.tolist(), "lowest": rates[lowest_at],
        "steepest": rates[steepest], "diverged": rates[-1] if broke else None, "suggested": rates[lowest_at] / 10,
    }  # fmt: skip


def draw(result: dict[str, Any]) -> bytes:
    """The curve as a PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    from ..display.plots import BAD, DEV, MARK, STYLE, TRAIN, as_png

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(result["rates"], result["losses"], color=TRAIN, linewidth=0.8, label="loss of each step")
        axes.plot(result["rates"], result["smoothed"], color=DEV, linewidth=1.6, label="smoothed")
        axes.set_xscale("log")
        lines = (("suggested", "suggested", MARK), ("configured", "the recipe's", TRAIN), ("diverged", "breaks", BAD))
        for name, words, colour in lines:
            if (rate := result[name]) is not None:
                axes.axvline(rate, color=colour, linewidth=1.0, linestyle=(0, (3, 3)), label=f"{words} {rate:.1e}")
        known = [loss for loss in result["smoothed"] if math.isfinite(loss)]
        spread = max(known) - min(known)
        axes.set_ylim(min(known) - 0.1 * spread - 1e-6, max(known[0], min(known) + spread) + 0.1 * spread + 1e-6)
        axes.set(title="Loss while the learning rate grows", xlabel="learning rate", ylabel="nats a frame")
        axes.legend(loc="best", fontsize=8)
    return as_png(figure)


def find_lr_text(result: dict[str, Any]) -> str:
    """The result for people."""
    broke = "never broke" if result["diverged"] is None else f"broke at {result['diverged']:.1e}"
    return (
        f"{result['recipe']}: {len(result['rates'])} steps of {result['batch_size']:,} frames, learning rates "
        f"{result['rates'][0]:.1e} to {result['rates'][-1]:.1e}\n"
        f"the loss fell fastest at {result['steepest']:.1e}, was lowest at {result['lowest']:.1e} and {broke}\n"
        f"suggested: optimizer.lr={result['suggested']:.1e} (a tenth of the lowest); "
        f"the recipe has {result['configured']:.1e}\n"
        f"{result['picture']}"
    )
