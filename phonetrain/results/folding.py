"""Scores in fewer classes than a net was trained on: posteriors and labels folded by a map, as TIMIT's 61 into 39."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phonedata import PackedCorpus, fold_classes

from ..errors import ConfigError
from .smoothing import LabelCounts

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Folding:
    """What a map makes of a corpus's C classes.

    Attributes:
        name: of the map, or its file.
        symbols: the K classes that they become.
        target: (C,) int64 which of them each becomes; -1: its frames are not scored.
    """

    name: str
    symbols: tuple[str, ...]
    target: Ints

    @classmethod
    def of(cls, corpus: PackedCorpus, name: str) -> Folding:
        """The map `name`, as `phonedata pack --map` takes it. Raises phonedata's SpecError, RawDataError."""
        phonemes, target = fold_classes(corpus.phonemes.symbols, name)
        return cls(name, phonemes.symbols, target)

    def apply(self, rows: Floats, labels: Ints, utterance: str) -> tuple[Floats, Ints]:
        """Log posteriors (N, C) and labels (N,) as those of the M frames that are scored: (M, K), (M,).

        The probabilities of the classes that become one are added up; those of classes that are left out are divided
        among the others. Raises ConfigError where no frame is left.
        """
        kept = self.target[labels] >= 0
        if not kept.any():
            raise ConfigError(f"map {self.name!r} leaves out every frame of {utterance}; give another map")
        rows = rows[kept]
        folded = [
            np.logaddexp.reduce(rows[:, self.target == place], axis=1, initial=-np.inf)
            for place in range(len(self.symbols))
        ]
        joint = np.stack(folded, axis=1)
        joint -= np.logaddexp.reduce(joint, axis=1, keepdims=True)
        return joint.astype(np.float32), self.target[labels[kept]]

    def fold_counts(self, counts: LabelCounts) -> LabelCounts:
        """Counts of (C,) classes as those of the K; what is next to a frame that is left out is not counted."""
        member = np.equal.outer(np.arange(len(self.symbols)), self.target).astype(np.int64)
        return LabelCounts(member @ counts.frames, member @ counts.first, member @ counts.pairs @ member.T)
