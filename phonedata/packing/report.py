"""PackReport: what a pack has done, for people and for programs."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import files_below
from ..format.corpus import PackedCorpus
from ..raw.base import Labelling

_SHOWN = 20  # utterances left out that people are shown
_ADVICE = re.compile(r"(,? or|,) (use |leave such utterances out with )?skip_bad=True")


def reason_left_out(message: str) -> str:
    """What is wrong with an utterance that was left out: the message without the advice to leave it out."""
    return _ADVICE.sub("", message)


def labelling_table(labelling: dict[str, Labelling]) -> list[str]:
    """A table of what alignments leave unlabelled, as lines: one for each partition that has labels."""
    if not labelling:
        return []
    head = ("labels from alignments", "nothing covers", "no phone", "unknown words", "left out for them")
    lines = [f"{head[0]:<22} {head[1]:>22} {head[2]:>16} {head[3]:>16} {head[4]:>18}"]
    for name, found in labelling.items():
        share = f"{found.uncovered:,} of {found.frames:,}"
        counts = (f"{found.without_phone:,} utterances", f"{found.unknown:,} frames", f"{found.skipped:,} utterances")
        lines.append(f"{name:<22} {share:>22} {counts[0]:>16} {counts[1]:>16} {counts[2]:>18}")
    if any(found.uncovered for found in labelling.values()):
        lines.append("frames that nothing covers are labelled silence")
    return lines


@dataclass(frozen=True, order=True)
class LeftOut:
    """An utterance that was left out, and why; the reason's path begins at the raw folder.

    frames: how many rows of zeros keep its place, in partitions without labels; 0 for what is no utterance of its own,
    such as a second copy; None where it has no place.
    """

    partition: str
    utterance: str
    reason: str
    frames: int | None = None

    def __str__(self) -> str:
        kept = f"; {self.frames:,} frames of zeros keep its place" if self.frames else ""
        return f"left out: {self.partition}/{self.utterance}: {self.reason}{kept}"


@dataclass(repr=False)
class PackReport:
    """Partitions (dicts with name, utterances, frames, rows, labelled, left_out, ...), sizes, time."""

    path: Path
    layout: str
    partitions: list[dict[str, Any]]
    left_out: list[LeftOut]
    frame_shift_ms: float
    bytes_written: int
    digest: str
    notes: tuple[str, ...] = ()
    labelling: dict[str, Labelling] = field(default_factory=dict)
    chunks_reused: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        corpus: PackedCorpus,
        notes: tuple[str, ...] = (),
        labelling: dict[str, Labelling] | None = None,
        chunks_reused: int = 0,
    ) -> "PackReport":
        """The report of a finished corpus, from its attributes."""
        left_out = [LeftOut(**one) for one in corpus.attributes["left_out"]]
        missing = [one.partition for one in left_out]
        partitions = corpus.partitions.items()
        return cls(
            path=corpus.path,
            layout=corpus.attributes["layout"],
            partitions=[{**p.attributes, "name": name, "left_out": missing.count(name)} for name, p in partitions],
            left_out=left_out,
            frame_shift_ms=corpus.frame_shift_ms,
            bytes_written=sum(file.stat().st_size for file in files_below(corpus.path)),
            digest=corpus.digest,
            notes=notes,
            labelling=labelling or {},
            chunks_reused=chunks_reused,
        )

    @property
    def num_frames(self) -> int:
        return sum(p["frames"] for p in self.partitions)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        wanted = ("name", "utterances", "frames", "labelled", "left_out")
        return {
            "path": str(self.path),
            "layout": self.layout,
            "digest": self.digest,
            "partitions": [
                {**{k: p[k] for k in wanted}, "hours": p["frames"] * self.frame_shift_ms / 3.6e6}
                for p in self.partitions
            ],
            "left_out": [asdict(one) for one in self.left_out],
            "labelling": {name: found._asdict() for name, found in self.labelling.items()},
            "notes": list(self.notes),
            "bytes": self.bytes_written,
            "chunks_reused": self.chunks_reused,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        lines = [f"{'partition':<20} {'utterances':>10} {'frames':>12} {'hours':>8} {'left out':>9}  labels"]
        for p in [*self.to_dict()["partitions"]]:
            lines.append(
                f"{p['name']:<20} {p['utterances']:>10,} {p['frames']:>12,} {p['hours']:>8.2f} {p['left_out']:>9,}  "
                f"{'yes' if p['labelled'] else 'no'}"
            )
        megabytes = self.bytes_written / 1e6
        again = f", {self.chunks_reused} chunks kept from an interrupted call" if self.chunks_reused else ""
        seconds = max(self.seconds, 1e-9)
        rates = f"({megabytes / seconds:,.0f} MB/s, {self.num_frames / seconds:,.0f} frames/s)"
        lines.append(f"layout {self.layout}: {megabytes:,.1f} MB in {self.seconds:.2f} s {rates}{again}")
        lines += labelling_table(self.labelling)
        lines += [f"note: {note}" for note in self.notes]
        lines += map(str, self.left_out[:_SHOWN])
        if len(self.left_out) > _SHOWN:
            lines.append(f"left out: and {len(self.left_out) - _SHOWN:,} more; the corpus and --json list them all")
        lines.append(f"{self.path}  {self.digest}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook shows
