"""Selection: the utterances that are used, from one or more partitions, as one corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import numpy.typing as npt
import xxhash

from ..errors import SpecError
from .corpus import PackedCorpus, Partition


@dataclass(frozen=True, eq=False)
class Selection:
    """U utterances with N frames, numbered 0..N-1 in the order of the partitions and of their utterances.

    Attributes:
        corpus: the packed corpus.
        partitions: the sources, in the order they were named.
        utterance_end: (U,) int64 cumulative frame counts of the selection.
        utterance_source: (U,) int64 index into `partitions`.
        utterance_start_row: (U,) int64 row of the first frame in the source's features.
        utterance_index: (U,) int64 index of the utterance in its source.
    """

    corpus: PackedCorpus
    partitions: tuple[Partition, ...]
    utterance_end: np.ndarray
    utterance_source: np.ndarray
    utterance_start_row: np.ndarray
    utterance_index: np.ndarray
    subset: float = 1.0
    seed: int = 0

    @classmethod
    def of(
        cls, corpus: PackedCorpus, partitions: str | Sequence[str], subset: float = 1.0, seed: int = 0
    ) -> "Selection":
        """The utterances of `partitions` ("train-clean-100", a list, or "train-clean-100 + train-clean-360").

        `subset` keeps round(subset * U) utterances, at least one: those with the smallest hash of (seed, partition,
        id), so that smaller subsets of one seed lie inside larger ones. Raises SpecError.
        """
        names = partitions.split("+") if isinstance(partitions, str) else partitions
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise SpecError(f"partitions {partitions!r}: wanted a name or a list of names, which are text")
        names = [name.strip() for name in names]
        if not names or len(set(names)) != len(names):
            raise SpecError(
                f"partitions {partitions!r}: wanted one or more different names; it has {', '.join(corpus.partitions)}"
            )
        if isinstance(subset, bool) or not isinstance(subset, Real) or not 0.0 < subset <= 1.0:
            raise SpecError(f"subset {subset!r}: wanted a share above 0 and up to 1")
        sources = tuple(corpus[name] for name in names)
        if len({p.labelled for p in sources}) > 1:
            bare = ", ".join(p.name for p in sources if not p.labelled)
            raise SpecError(f"partitions {', '.join(names)}: {bare} has no labels and the others do; use them apart")
        lengths = np.concatenate([np.diff(p.utterance_end, prepend=0) for p in sources])
        source = np.repeat(np.arange(len(sources)), [p.num_utterances for p in sources])
        start = np.concatenate([p.utterance_start_row for p in sources])
        index = np.concatenate([np.arange(p.num_utterances) for p in sources])
        whole = cls(corpus, sources, np.cumsum(lengths), source, start, index, subset, seed)
        if subset == 1.0:
            return whole
        ranks = [xxhash.xxh3_64_intdigest(f"{seed}/{p.name}/{i}".encode()) for p in sources for i in p.utterance_ids]
        chosen = np.zeros(len(ranks), bool)
        chosen[np.argsort(np.array(ranks, np.uint64), kind="stable")[: max(1, round(subset * len(ranks)))]] = True
        return whole.only(chosen)

    def only(self, keep: np.ndarray) -> "Selection":
        """The utterances where `keep` (U,) is true, numbered anew. Raises SpecError where that is none."""
        chosen = np.flatnonzero(keep)
        if not len(chosen):
            raise SpecError(f"none of {self.num_utterances} utterances of {', '.join(self.names)} is left")
        lengths = np.diff(self.utterance_end, prepend=0)[chosen]
        return replace(
            self,
            utterance_end=np.cumsum(lengths),
            utterance_source=self.utterance_source[chosen],
            utterance_start_row=self.utterance_start_row[chosen],
            utterance_index=self.utterance_index[chosen],
        )

    @property
    def num_utterances(self) -> int:
        return len(self.utterance_end)

    @property
    def num_frames(self) -> int:
        return int(self.utterance_end[-1])

    @property
    def labelled(self) -> bool:
        return self.partitions[0].labelled

    @property
    def names(self) -> tuple[str, ...]:
        """Partition names, in order."""
        return tuple(p.name for p in self.partitions)

    @property
    def utterance_ids(self) -> list[str]:
        """U ids in selection order."""
        ids = [p.utterance_ids for p in self.partitions]
        return [ids[s][i] for s, i in zip(self.utterance_source.tolist(), self.utterance_index.tolist())]

    @property
    def speakers(self) -> list[str]:
        """U speakers in selection order."""
        speakers = [p.speakers for p in self.partitions]
        return [speakers[s][i] for s, i in zip(self.utterance_source.tolist(), self.utterance_index.tolist())]

    def locate(self, frames: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where frames lie: (source, row, utterance), each int64 of the shape of `frames`.

        `row` is in `partitions[source].features`, `utterance` in the selection. Frames outside 0..N-1 are a SpecError.
        """
        frames = np.asarray(frames, np.int64)
        if frames.size and (frames.min() < 0 or frames.max() >= self.num_frames):
            raise SpecError(f"frames {frames.min()}..{frames.max()}: wanted 0..{self.num_frames - 1}")
        utterance = np.searchsorted(self.utterance_end, frames, side="right")
        start = np.where(utterance > 0, self.utterance_end[utterance - 1], 0)
        return self.utterance_source[utterance], self.utterance_start_row[utterance] + frames - start, utterance
