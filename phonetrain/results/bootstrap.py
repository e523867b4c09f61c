"""How sure a number is: intervals by resampling utterances, since frames are not independent.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
DRAWS = 2000
FEWEST_SPEAKERS = 50  # from here on speakers are drawn: the interval then holds for others too
_CHUNK = 100


def weights(units: int, draws: int = DRAWS, seed: int = 0) -> Iterator[npt.NDArray[np.float64]]:
    """(<= 100, units) float64 chunks, `draws` rows in all: how often each unit was drawn, with replacement."""
    random = np.random.default_rng(seed)
    for begin in range(0, draws, _CHUNK):
        drawn = random.multinomial(units, np.full(units, 1.0 / units), size=min(_CHUNK, draws - begin))
        yield drawn.astype(np.float64)


def units_of(speakers: Sequence[str]) -> tuple[Ints, str]:
    """(U,) the unit each utterance is drawn with, and what a unit is: "speakers" from 50 on, else "utterances"."""
    names, index = np.unique(np.array(speakers), return_inverse=True)
    if len(names) >= FEWEST_SPEAKERS:
        return index.astype(np.int64), "speakers"
    return np.arange(len(speakers)), "utterances"


def interval(part: Ints, whole: Ints, units: Ints, draws: int = DRAWS) -> dict[str, Any]:
    """The 95 % interval of sum(part) / sum(whole). part, whole: (U,) counts of utterances. units: as of `units_of`."""
    parts, wholes = (np.bincount(units, values) for values in (part, whole))
    with np.errstate(invalid="ignore"):  # a draw of nothing but silent utterances has no rate of phone errors
        ratios = np.concatenate([(drawn @ parts) / (drawn @ wholes) for drawn in weights(len(parts), draws)])
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    return {"low": float(low), "high": float(high), "draws": draws, "units": len(parts)}
