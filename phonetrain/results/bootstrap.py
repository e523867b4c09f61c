"""How sure a number is: intervals by resampling utterances, since frames are not independent.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (2004).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
DRAWS = 2000
FEWEST_SPEAKERS = 50  # from here on speakers are drawn: the interval then holds for others too
_CHUNK = 100


def weights(units: int) -> Iterator[npt.NDArray[np.float64]]:
    """(<= 100, units) float64 chunks, DRAWS rows in all: how often each unit was drawn, with replacement."""
    random = np.random.default_rng(0)
    for begin in range(0, DRAWS, _CHUNK):
        drawn = random.multinomial(units, np.full(units, 1.0 / units), size=min(_CHUNK, DRAWS - begin))
        yield drawn.astype(np.float64)


def units_of(speakers: Sequence[str]) -> tuple[Ints, str]:
    """(U,) the unit each utterance is drawn with, and what a unit is: "speakers" from 50 on, else "utterances"."""
    names, index = np.unique(np.array(speakers), return_inverse=True)
    if len(names) >= FEWEST_SPEAKERS:
        return index.astype(np.int64), "speakers"
    return np.arange(len(speakers)), "utterances"


def resampled(parts: npt.NDArray[Any], whole: Ints, units: Ints) -> npt.NDArray[np.float64]:
    """(DRAWS, K) float64 sum(part) / sum(whole) over the utterances of each draw; the draws are always the same ones.

    parts: (U, K) counts of utterances. whole: (U,). units: as of `units_of`.
    """
    columns = np.zeros((int(units.max()) + 1, parts.shape[1] + 1))
    np.add.at(columns, units, np.column_stack([parts, whole]))
    sums = np.concatenate([drawn @ columns for drawn in weights(len(columns))])
    whole_drawn = np.where(sums[:, -1:] > 0, sums[:, -1:], np.nan)  # of silent utterances alone nothing has a rate
    return np.asarray(sums[:, :-1] / whole_drawn, np.float64)


def seed_weights(seeds: int, stream: int, draws: int = DRAWS) -> npt.NDArray[np.float64]:
    """(draws, S) float64 weight of each seed in the mean over seeds of a draw; rows sum to 1.

    Seeds are drawn with replacement, and how far a draw is from the plain mean is widened by sqrt(S / (S - 1)): else
    the variance of a mean of few would come out too small (Rao and Wu, "Resampling inference with complex survey
    data", 1988). stream: another one for each group of runs, whose seeds have nothing to do with each other.
    """
    if seeds == 1:
        return np.ones((draws, 1))
    drawn = np.random.default_rng([stream, seeds]).multinomial(seeds, np.full(seeds, 1.0 / seeds), size=draws)
    return (1.0 + math.sqrt(seeds / (seeds - 1)) * (drawn - 1.0)) / seeds


def bounds(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """The 95 % percentile interval of (draws,) values; draws without a value do not count."""
    low, high = np.nanquantile(values, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def two_sided_p(differences: npt.NDArray[np.float64]) -> float:
    """How often (draws,) differences fall on the rarer side of 0, twice; never below 2 / (draws + 1).

    Efron and Tibshirani, "An introduction to the bootstrap" (1993), 15.4. It is below 0.05 where `bounds` leave 0 out.
    """
    rarer = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2.0 * (rarer + 1) / (len(differences) + 1))


def interval(part: Ints, whole: Ints, units: Ints) -> dict[str, Any]:
    """The 95 % interval of sum(part) / sum(whole). part, whole: (U,) counts of utterances. units: as of `units_of`."""
    ratios = resampled(part[:, None], whole, units)
    return bounds(ratios) | {"draws": DRAWS, "units": int(units.max()) + 1}
