"""Time alignments of phones: Praat TextGrid (MFA), TIMIT .phn, Festival and HTK .lab -> intervals in seconds."""

import os
import re
from typing import NamedTuple

import numpy as np

from ..errors import MissingReader, RawDataError
from ..phonemes import ARPABET

SUFFIXES = (".textgrid", ".phn", ".lab")
_LARGEST = 1 << 26  # bytes; a day of speech has smaller alignments
_OVERLAP = 0.0015  # seconds; rounding in the files, not a claim about speech
# What alignment tools write where nobody speaks.
SILENCE = frozenset(
    {"", "sil", "sp", "spn", "pau", "h#", "#h", "epi", "<eps>", "<sil>", "ssil", "brth", "[sil]", "silence", "#"}
)


class Intervals(NamedTuple):
    """Phones of one utterance: starts, ends (S,) float64 in seconds, sorted, not overlapping, and S symbols."""

    starts: np.ndarray
    ends: np.ndarray
    symbols: list[str]


def read_alignment(path: str, rate_hz: int) -> Intervals:
    """Intervals of the file at `path`; `rate_hz`, the audio's own, is the unit of .phn. Raises RawDataError."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if not os.path.isfile(path):
            raise RawDataError(f"{path}: is not a file; remove or mend it")
        if os.path.getsize(path) > _LARGEST:
            raise RawDataError(f"{path}: larger than 64 MB, wanted an alignment of one utterance; check the file")
        if suffix == ".textgrid":
            rows = _textgrid(path)
        else:
            with open(path, encoding="utf-8") as lines:
                words = [line.split() for line in lines.read().split("\n")]
            rows = _phn(words, rate_hz) if suffix == ".phn" else _lab(words)
    except OSError as error:
        raise RawDataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
    except UnicodeDecodeError:
        raise RawDataError(f"{path}: is not UTF-8 text; save it again as UTF-8") from None
    except ValueError as error:
        raise RawDataError(f"{path}: {str(error).splitlines()[0][:200]}; make the alignment again") from None
    starts = np.array([row[0] for row in rows], dtype=np.float64)
    ends = np.array([row[1] for row in rows], dtype=np.float64)
    if not np.isfinite(starts).all() or not np.isfinite(ends).all() or (starts < 0).any() or (ends < starts).any():
        raise RawDataError(
            f"{path}: an interval ends before it starts or has no finite times; make the alignment again"
        )
    if (starts[1:] < ends[:-1] - _OVERLAP).any():
        where = float(starts[1:][starts[1:] < ends[:-1] - _OVERLAP][0])
        raise RawDataError(f"{path}: intervals overlap at {where:.3f} s, wanted one phone at a time; make it again")
    ends[:-1] = np.minimum(ends[:-1], starts[1:])
    return Intervals(starts, ends, [row[2] for row in rows])


def _textgrid(path: str) -> list[tuple[float, float, str]]:
    try:
        from praatio import textgrid
    except ImportError:
        raise MissingReader(
            "reading TextGrids needs praatio, which is not installed; pip install 'phonedata[audio]'"
        ) from None
    try:
        grid = textgrid.openTextgrid(path, includeEmptyIntervals=True, reportingMode="silence")
        tiers = [name for name in grid.tierNames if re.search(r"(^|\W)(phones?|phonemes?|segments?)$", name.lower())]
        chosen = [grid.getTier(name) for name in tiers]
        rows = [[(float(e.start), float(e.end), e.label.strip()) for e in tier.entries] for tier in chosen[:1]]
    except OSError:
        raise
    except Exception as error:  # praatio's parser meets damage with whatever Python raises
        kind = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise ValueError(f"praatio cannot read it ({kind})") from None
    if len(tiers) != 1:
        raise ValueError(f"tiers {list(grid.tierNames)} hold {len(tiers)} phone tiers, wanted one named `phones`")
    return rows[0]


def _phn(words: list[list[str]], rate_hz: int) -> list[tuple[float, float, str]]:
    rows = []
    for line in filter(None, words):
        if len(line) != 3:
            raise ValueError(f"line {' '.join(line)[:60]!r}, wanted `first-sample end-sample phone`")
        rows.append((int(line[0]) / rate_hz, int(line[1]) / rate_hz, line[2]))
    return rows


def _lab(words: list[list[str]]) -> list[tuple[float, float, str]]:
    """Festival: a header up to `#`, then `end colour phone`. HTK: `start end phone ...` in units of 100 ns."""
    header = next((number for number, line in enumerate(words) if line == ["#"]), None)
    rows, end = [], 0.0
    for line in filter(None, words[0 if header is None else header + 1 :]):
        if len(line) < 2 + (header is None):
            raise ValueError(
                f"line {' '.join(line)[:60]!r}, wanted `end colour phone` after a # or HTK's `start end phone`"
            )
        if header is None:
            rows.append((int(line[0]) * 1e-7, int(line[1]) * 1e-7, line[2]))
        else:
            start, end = end, float(line[0])
            rows.append((start, end, line[2] if len(line) > 2 else ""))
    return rows


def as_arpabet(symbol: str) -> str | None:
    """The ARPABET class of a phone as MFA or CMUdict writes it (`AH0`, `sil`), or None where it is another set's."""
    if symbol.lower() in SILENCE:
        return ARPABET.symbols[0]
    bare = re.sub(r"[0-2]$", "", symbol).upper()
    return bare if bare in ARPABET.symbols else None
