"""Time alignments of phones: Praat TextGrid, TIMIT .phn, Festival and HTK .lab -> intervals in seconds."""

import os
import re
from typing import NamedTuple

import numpy as np

from ..errors import RawDataError
from ..files import is_file
from ..phonemes import ARPABET
from .base import decode

SUFFIXES = (".textgrid", ".phn", ".lab")
SILENCE = frozenset(
    ["", "sil", "sp", "pau", "silb", "sile", "h#", "#h", "epi", "<eps>", "<sil>", "ssil", "brth", "[sil]", "silence"]
    + ["#", "+", "<p:>", "<p>", "<pau>", "<sp>", "[pau]", "[sp]", "pause", "<silence>", "[silence]"]
)
"""What alignment tools write where nobody speaks, in lower case."""
UNKNOWN = frozenset(["spn", "<spn>", "[spn]", "unk", "<unk>", "[unk]", "oov", "<oov>", "[oov]", "<usb>"])
"""What they write for a word that they do not know, in lower case: speech, whose phones nobody can tell."""
_LARGEST = 1 << 26  # bytes; a day of speech has smaller alignments
# Seconds. Two decimals, or an end where the window of the last frame ends: less is no claim about speech.
_ROUNDING = 0.02 + 1e-6
_HTK_RATE = 10_000_000  # HTK counts time in units of 100 ns
_UNITS = {1: "seconds", 100: "frames of 10 ms", 1000: "milliseconds", 1_000_000: "microseconds"}
_UNITS |= {_HTK_RATE: "units of 100 ns"}
_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
_PHONE_TIER = re.compile(r"phones?|phonemes?|phn|segments?|mau|phonalign", re.IGNORECASE)
_LIKE_PHONE_TIER = re.compile(r"(.*[^a-z])?(phones?|phonemes?|phn|segments?)([^a-z].*)?", re.IGNORECASE | re.DOTALL)
_TEXTGRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\S)')
_DECIMAL = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+")
_FULL_CONTEXT = re.compile(r"[^\s^]+\^[^\s^]+?-(.+?)\+.+?=.+")  # HTS: a^b-C+d=e/A:...
_TRIPHONE = re.compile(r"([^-+\s]+)-([^-+\s]+)\+([^-+\s]+)")
_STATE = re.compile(r"s\d+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_COMMAS = re.compile(r"[-+]?\d+,\d+")
_POSITION = re.compile(r"_[BIES]$")  # Kaldi's: where in a word a phone stands

Row = tuple[float, float, str]


class Intervals(NamedTuple):
    """Phones of one utterance: starts, ends (S,) float64 in seconds, sorted, not overlapping, and S symbols.

    `unit` is what one second was counted as: the rate in Hz, 10,000,000 for HTK's 100 ns, 1 for seconds.
    """

    starts: np.ndarray
    ends: np.ndarray
    symbols: list[str]
    unit: float = 1


def read_alignment(path: str, rate_hz: int, tier: str | None = None, unit: float | None = None) -> Intervals:
    """Intervals of the file at `path`. Intervals of no length are left out: they cover no frame.

    `rate_hz`, the audio's own, is the unit of whole numbers in .phn; HTK's .lab counts 100 ns; numbers with a decimal
    point, and TextGrids, are in seconds. `unit` replaces them all: how many of the file's units are a second. `tier`
    names the tier of a TextGrid, or gives its number from 1. Raises RawDataError.
    """
    suffix = os.path.splitext(path)[1].lower()
    text = _read_text(path)
    try:
        if not text.strip():
            rows, unit = [], 1
        elif suffix == ".textgrid":
            unit = unit or 1
            rows = [(start / unit, end / unit, symbol) for start, end, symbol in _textgrid(text, tier)]
        else:
            lines = [line.split() for line in re.split(r"\r\n|\r|\n", text)]
            _refuse_other_formats(lines)
            rows, unit = _phn(lines, rate_hz, unit) if suffix == ".phn" else _lab(lines, unit)
        return _checked(_phones_of_models(rows), unit or 1)
    except _Unreadable as error:
        raise RawDataError(f"{path}: {error}") from None


class _Unreadable(Exception):
    """What is wrong in a file and what helps; `read_alignment` puts the file's name before it."""


def _read_text(path: str) -> str:
    try:
        if not is_file(path):
            raise RawDataError(f"{path}: is not a file; remove it, or put the alignment there")
        if os.path.getsize(path) > _LARGEST:
            raise RawDataError(f"{path}: larger than 64 MB, wanted an alignment of one utterance; check the file")
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise RawDataError(f"{path}: cannot be read ({error.strerror}); check its disk and permissions") from None
    if content.startswith(b"ooBinaryFile"):
        raise RawDataError(f"{path}: is a binary TextGrid; save it in Praat with `Save as text file...`")
    try:
        return decode(content)
    except UnicodeDecodeError:
        raise RawDataError(f"{path}: is neither UTF-8 nor UTF-16 text; save it again as UTF-8") from None


def _checked(rows: list[Row], unit: float) -> Intervals:
    """Sorted, without overlaps and intervals of no length. Raises _Unreadable for what rounding does not explain."""
    for start, _, symbol in rows:
        if symbol.split() != [symbol] * bool(symbol):
            raise _Unreadable(
                f"the interval at {start:.3f} s says {symbol[:40]!r}, which is several words and no phone; name the "
                "tier of the phones with tier='NAME', or correct it"
            )
        if not symbol.isprintable():
            raise _Unreadable(f"the phone {symbol!r} at {start:.3f} s has a character that cannot be shown; correct it")
    rows = sorted(rows, key=lambda row: row[0])
    starts = np.array([row[0] for row in rows], dtype=np.float64)
    ends = np.array([row[1] for row in rows], dtype=np.float64)
    if not np.isfinite(starts).all() or not np.isfinite(ends).all():
        raise _Unreadable("an interval has no finite times; correct them")
    if (starts < -_ROUNDING).any():
        raise _Unreadable(f"an interval begins at {starts.min():.3f} s, before the audio; correct its times")
    if (ends < starts - _ROUNDING).any():
        at = int(np.argmax(ends < starts - _ROUNDING))
        raise _Unreadable(
            f"an interval goes from {starts[at]:.3f} s to {ends[at]:.3f} s; correct its times (if the second number is "
            "how long it lasts, write where it ends)"
        )
    kept = ends > starts
    starts, ends, symbols = starts[kept], ends[kept], [row[2] for row, keep in zip(rows, kept) if keep]
    overlaps = starts[1:] < ends[:-1] - _ROUNDING
    if overlaps.any():
        at = int(np.argmax(overlaps))
        raise _Unreadable(
            f"{symbols[at]!r} lasts up to {ends[at]:.3f} s, but {symbols[at + 1]!r} begins at {starts[at + 1]:.3f} s, "
            "wanted one phone at a time; correct the times"
        )
    starts = np.maximum(starts, 0)
    ends[:-1] = np.minimum(ends[:-1], starts[1:])
    return Intervals(starts, ends, symbols, unit)


def _textgrid(text: str, tier: str | None) -> list[Row]:
    """The rows of one tier. A TextGrid is the numbers and the quoted texts in it that stand by themselves; all else,
    which the long format has and the short has not, is comment (Praat's manual, "TextGrid file formats")."""
    tokens = [
        (m[1].replace('""', '"').strip() if m[1] is not None else float(m[2])) for m in _TEXTGRID_TOKEN.finditer(text)
    ]
    tiers: list[tuple[str, list[Row]]] = []
    points: list[str] = []
    found = iter(tokens)

    def take(kind: type) -> object:
        token = next(found, None)
        if not isinstance(token, kind):
            raise _Unreadable(f"is no whole TextGrid (after {len(tiers)} tiers); save it again in Praat")
        return token

    if "TextGrid" not in tokens[:2]:
        raise _Unreadable("does not begin as a TextGrid; save it again in Praat, or give it the suffix it should have")
    while take(str) != "TextGrid":
        pass
    for _ in range(2):
        take(float)
    for _ in range(int(take(float))):  # type: ignore[call-overload]
        kind, name, _, _, count = take(str), take(str), take(float), take(float), int(take(float))  # type: ignore[call-overload]
        rows = []
        for _ in range(count):
            start = take(float)
            end = take(float) if kind == "IntervalTier" else start
            rows.append((start, end, take(str)))
        if kind == "IntervalTier":
            tiers.append((str(name), rows))  # type: ignore[arg-type]
        else:
            points.append(repr(name))
    if points and not tiers:
        raise _Unreadable(f"has tiers of points only ({', '.join(points)}), wanted one of intervals")
    return _choose_tier(tiers, tier)


def _choose_tier(tiers: list[tuple[str, list[Row]]], tier: str | None) -> list[Row]:
    names = ", ".join(repr(name) for name, _ in tiers) or "none"
    if tier is None:
        named, like = (
            [(name, rows) for name, rows in tiers if pattern.fullmatch(name.strip())]
            for pattern in (_PHONE_TIER, _LIKE_PHONE_TIER)
        )
        # A tier of the very name goes before those like it, unless it is empty.
        chosen = named if any(row[2] for _, rows in named for row in rows) else like or named
    else:
        chosen = [(name, rows) for name, rows in tiers if name == tier]
        if not chosen and tier.isdecimal() and 1 <= int(tier) <= len(tiers):
            chosen = [tiers[int(tier) - 1]]
    if not chosen:
        wanted = "a tier named phones" if tier is None else f"tier {tier!r}"
        raise _Unreadable(
            f"has interval tiers {names}, wanted {wanted}; name the tier of the phones with tier='NAME', or by its "
            "number with tier='1'"
        )
    labelled = [(name, rows) for name, rows in chosen if any(row[2] for row in rows)] or chosen[:1]
    if all(rows == labelled[0][1] for _, rows in labelled):
        return labelled[0][1]
    if len({name for name, _ in labelled}) < len(labelled):
        raise _Unreadable(f"has {len(labelled)} tiers of phones among {names}; give the number of one: tier='1'")
    return _one_after_the_other(labelled)


def _one_after_the_other(tiers: list[tuple[str, list[Row]]]) -> list[Row]:
    """The phones of several speakers, a tier each, who speak in turns, and a pause between them: a tier of intervals
    has no gaps. Raises _Unreadable where two speak at once."""
    spoken = sorted(
        (start, end, phone, name) for name, rows in tiers for start, end, phone in rows if not is_silence(phone)
    )
    pause = next((phone for _, rows in tiers for *_, phone in rows if phone and is_silence(phone)), "")
    merged: list[Row] = []
    last = min(row[0] for _, rows in tiers for row in rows)
    for (start, end, phone, name), (_, before, _, other) in zip(spoken, [*spoken[:1], *spoken[:-1]]):
        if name != other and start < before - _ROUNDING:
            raise _Unreadable(
                f"has phones of the tiers {other!r} and {name!r} at {start:.3f} s, wanted one speaker at a time; name "
                "one tier with tier='NAME'"
            )
        if start > last:
            merged.append((last, start, pause))
        merged.append((start, end, phone))
        last = max(last, end)
    end = max(row[1] for _, rows in tiers for row in rows)
    return [*merged, (last, end, pause)] if end > last else merged


def _refuse_other_formats(lines: list[list[str]]) -> None:
    """Refuse what is known and is no alignment of one utterance. Raises _Unreadable, naming the format."""
    first = next(filter(None, lines), [])
    if first[:1] == ["#!MLF!#"]:
        raise _Unreadable("is an HTK master label file (MLF); write one .lab an utterance, as HLEd -l does")
    if len(first) in (5, 6) and all(map(_is_number, first[2:4])) and not _is_number(first[0]):
        raise _Unreadable(
            "is a CTM file (ID channel start duration phone); write one .lab with `start end phone` lines"
        )
    if len(first) > 3 and all(word.isdigit() for line in lines for word in line[1:]):
        raise _Unreadable(
            "holds numbers only, such as Kaldi's transition ids; write phones with ali-to-phones --ctm-output"
        )
    filled = [line for line in lines if line]
    if ["#"] in lines or any(_is_number(line[0]) for line in filled):
        return
    text = " ".join(word for line in filled for word in line)[:40]
    if any(_COMMAS.fullmatch(line[0]) for line in filled):
        raise _Unreadable(f"has commas for decimal points ({text!r}); write points")
    if any(sum(map(_is_number, line[0].split(","))) > 1 for line in filled):
        raise _Unreadable(f"has commas between its columns ({text!r}); write `start end phone` with spaces")
    if not all(len(line) > 2 and all(map(_is_number, line[1:3])) for line in filled):
        raise _Unreadable(
            f"holds text without times ({text!r}), such as the transcripts that MFA reads; give the alignments that "
            "were made of it (TextGrids), beside the audio or with alignments='DIR'"
        )


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None


def _seconds(words: list[str], unit: float, line: list[str]) -> list[float]:
    """Times in seconds of `words`, which count `unit` for a second."""
    if not all(map(_is_number, words)):
        raise _Unreadable(f"line {' '.join(line)[:60]!r} has no times where they are wanted; correct the line")
    return [float(word) / unit for word in words]


def _unit(lines: list[list[str]], of_whole_numbers: float) -> float:
    """How many units are a second where nobody says it: numbers with a decimal point are seconds."""
    return 1 if any(_DECIMAL.fullmatch(word) for line in lines for word in line[:2]) else of_whole_numbers


def _phn(lines: list[list[str]], rate_hz: int, unit: float | None) -> tuple[list[Row], float]:
    rows, unit = [], unit or _unit(lines, rate_hz)
    for line in filter(None, lines):
        if len(line) != 3:
            raise _Unreadable(f"line {' '.join(line)[:60]!r}, wanted `first-sample end-sample phone`; correct the line")
        start, end = _seconds(line[:2], unit, line)
        rows.append((start, end, line[2]))
    return rows, unit


def _lab(lines: list[list[str]], unit: float | None) -> tuple[list[Row], float]:
    """Festival: a header up to `#`, then `end colour phone`. HTK: `start end phone ...`, of HTS with full contexts,
    of HVite -f with states."""
    header = next((number for number, line in enumerate(lines) if line == ["#"]), None)
    lines = [line for line in lines[0 if header is None else header + 1 :] if line and line != ["."]]
    if header is not None or _has_colours(lines):
        return _festival(lines, unit or 1), unit or 1
    rows: list[Row] = []
    unit = unit or _unit(lines, _HTK_RATE)
    for line in lines:
        if len(line) < 3:
            raise _Unreadable(
                f"line {' '.join(line)[:60]!r}, wanted `end colour phone` after a # or HTK's `start end phone`; "
                "correct the line"
            )
        start, end = _seconds(line[:2], unit, line)
        rows.append((start, end, line[2]))
    return _phones_of_states(rows, lines), unit


def _has_colours(lines: list[list[str]]) -> bool:
    """Whether lines are Festival's although no header says so: the second column is one whole number throughout, no
    phone ends at 0, and as HTK's `start end phone` they would overlap. (Phones of one length, `start length phone`,
    begin at 0.)"""
    if len(lines) < 2 or any(len(line) != 3 or not _is_number(line[0]) for line in lines):
        return False
    times, colour = [float(line[0]) for line in lines], lines[0][1]
    if not colour.isdecimal() or any(line[1] != colour for line in lines) or times[0] <= 0:
        return False
    return times[0] > float(colour) or any(time != float(colour) for time in times[1:])


def _festival(lines: list[list[str]], unit: float) -> list[Row]:
    """Rows of `end colour phone` or `end phone` lines; a pause may have no name."""
    end, rows = 0.0, []
    coloured = any(len(line) > 2 for line in lines) or len({line[-1] for line in lines}) == 1
    for line in lines:
        if len(line) < 2:
            raise _Unreadable(f"line {' '.join(line)[:60]!r}, wanted `end colour phone` after the #; correct the line")
        start, (end,) = end, _seconds(line[:1], unit, line)
        unnamed = coloured and len(line) == 2 and _is_number(line[1])
        rows.append((start, end, "" if unnamed else line[min(2, len(line) - 1)]))
    return rows


def _phones_of_states(rows: list[Row], lines: list[list[str]]) -> list[Row]:
    """HVite's states as the phones they are of: `start end s2 score phone [score word]`, where the phone stands at its
    first state only."""
    if not rows or not all(_STATE.fullmatch(row[2]) for row in rows):
        return rows
    phone, phones = None, []
    for line in lines:
        phone = line[4] if len(line) > 4 else phone
        if phone is None:
            raise _Unreadable("holds HVite's states (s2 s3 s4) without their phones; write it with HVite -f -o S")
        phones.append(phone)
    return [(start, end, symbol) for (start, end, _), symbol in zip(rows, phones)]


def _phones_of_models(rows: list[Row]) -> list[Row]:
    """The phone in what HTK's tools call a model: HTS's full contexts, triphones."""
    symbols = [row[2] for row in rows]
    contexts = [_FULL_CONTEXT.fullmatch(symbol) for symbol in symbols]
    if contexts and all(contexts):
        symbols = [match[1] for match in contexts if match]
    elif any(map(_TRIPHONE.fullmatch, symbols)):
        symbols = [symbol.rpartition("-")[2].partition("+")[0] or symbol for symbol in symbols]
    elif any(contexts):
        bad = symbols[[match is None for match in contexts].index(True)]
        raise _Unreadable(f"holds HTS full contexts, but also {bad[:40]!r}, which is none; write it again")
    return [(start, end, symbol) for (start, end, _), symbol in zip(rows, symbols)]


def likely_unit(end: float, unit: float, seconds: float, rate_hz: int) -> str:
    """A sentence on the unit that makes an alignment up to `end` seconds, counted in `unit`, fit the audio; or "".

    The alignment may end a tenth before the audio does.
    """
    if not end or not seconds:
        return ""
    wanted = end * unit / seconds
    candidates = [value for value in (*_UNITS, *_RATES) if value != unit and 0.9 < wanted / value < 1.03]
    if not candidates:
        return ""
    likely = min(candidates, key=lambda value: (value != rate_hz, abs(wanted / value - 1)))
    if likely in _UNITS:
        return f"are its times in {_UNITS[likely]}? (alignment_unit={likely})"
    if likely == rate_hz:
        return f"does it count samples of the audio? (alignment_unit={likely})"
    return f"its times fit {likely / 1000:g} kHz, the file has {rate_hz / 1000:g} kHz (alignment_unit={likely})"


def is_silence(symbol: str) -> bool:
    """Whether an alignment's symbol says that nobody speaks; with or without Kaldi's position in a word (`SIL_S`)."""
    return _POSITION.sub("", symbol).lower() in SILENCE


def is_unknown(symbol: str) -> bool:
    """Whether an alignment's symbol stands for a word that the aligner does not know."""
    return _POSITION.sub("", symbol).lower() in UNKNOWN


def as_arpabet(symbol: str) -> str | None:
    """The ARPABET class of a phone as MFA, Kaldi or CMUdict write it (`AH0`, `AH0_B`), or None where it has none."""
    if is_silence(symbol):
        return ARPABET.symbols[0]
    bare = re.sub(r"[0-2]?(_[BIES])?$", "", symbol).upper()
    return bare if bare in ARPABET.symbols else None
