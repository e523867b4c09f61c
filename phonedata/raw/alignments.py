"""Time alignments of phones: Praat TextGrid, TIMIT .phn, Festival and HTK .lab -> intervals in seconds."""

import os
import re
from typing import NamedTuple

import numpy as np

from ..errors import RawDataError
from ..phonemes import ARPABET

SUFFIXES = (".textgrid", ".phn", ".lab")
SILENCE = frozenset(
    ["", "sil", "sp", "pau", "silb", "sile", "h#", "#h", "epi", "<eps>", "<sil>", "ssil", "brth", "[sil]", "silence"]
    + ["#", "<p:>", "<p>"]
)
"""What alignment tools write where nobody speaks, in lower case."""
UNKNOWN = frozenset(["spn", "<spn>", "[spn]", "unk", "<unk>", "[unk]", "oov", "<oov>", "[oov]", "<usb>"])
"""What they write for a word that they do not know, in lower case: speech, whose phones nobody can tell."""
_LARGEST = 1 << 26  # bytes; a day of speech has smaller alignments
_ROUNDING = 0.01  # seconds; times are often written with two decimals: less is no claim about speech
_HTK_RATE = 10_000_000  # HTK counts time in units of 100 ns
_UNITS = {1: "seconds", 1000: "milliseconds", 1_000_000: "microseconds", _HTK_RATE: "units of 100 ns"}
_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
_PHONE_TIER = re.compile(r"(.*\W)?(phones?|phonemes?|segments?)|mau|phonalign", re.IGNORECASE)
_TEXTGRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\S)')
_DECIMAL = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+")
_FULL_CONTEXT = re.compile(r"[^\s^]+\^[^\s^]+?-(.+?)\+.+?=.+")  # HTS: a^b-C+d=e/A:...
_TRIPHONE = re.compile(r"([^-+\s]+)-([^-+\s]+)\+([^-+\s]+)")
_STATE = re.compile(r"s\d+")

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
    point are seconds. `unit` replaces all three: how many of the file's units are a second. `tier` names the tier of a
    TextGrid, or gives its number from 1. Raises RawDataError.
    """
    suffix = os.path.splitext(path)[1].lower()
    text = _read_text(path)
    try:
        if suffix == ".textgrid":
            rows, unit = _textgrid(text, tier), 1
        else:
            lines = [line.split() for line in text.split("\n")]
            _refuse_other_formats(lines)
            rows, unit = _phn(lines, unit or rate_hz) if suffix == ".phn" else _lab(lines, unit)
    except _Unreadable as error:
        raise RawDataError(f"{path}: {error}") from None
    return _checked(path, rows, unit or 1)


class _Unreadable(Exception):
    """What is wrong in a file and what helps; `read_alignment` puts the file's name before it."""


def _read_text(path: str) -> str:
    try:
        if not os.path.isfile(path):
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
        # Praat writes UTF-16 with a byte-order mark wherever a label is not ASCII.
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise RawDataError(f"{path}: is neither UTF-8 nor UTF-16 text; save it again as UTF-8") from None


def _checked(path: str, rows: list[Row], unit: float) -> Intervals:
    starts = np.array([row[0] for row in rows], dtype=np.float64)
    ends = np.array([row[1] for row in rows], dtype=np.float64)
    if not np.isfinite(starts).all() or not np.isfinite(ends).all() or (starts < -_ROUNDING).any():
        raise RawDataError(f"{path}: an interval begins before 0 or has no finite times; correct its times")
    if (ends < starts).any():
        start = float(starts[ends < starts][0])
        raise RawDataError(f"{path}: the interval at {start:.3f} s ends before it starts; correct its times")
    kept = ends > starts
    starts, ends, symbols = starts[kept], ends[kept], [row[2] for row, keep in zip(rows, kept) if keep]
    overlaps = starts[1:] < ends[:-1] - _ROUNDING
    if overlaps.any():
        start = float(starts[1:][overlaps][0])
        raise RawDataError(f"{path}: intervals overlap at {start:.3f} s, wanted one phone at a time; correct the times")
    starts = np.maximum.accumulate(np.maximum(starts, 0)) if len(starts) else starts
    ends[:-1] = np.minimum(ends[:-1], starts[1:])
    return Intervals(starts, ends, symbols, unit)


def _textgrid(text: str, tier: str | None) -> list[Row]:
    """The rows of one tier. A TextGrid is the numbers and the quoted texts in it that stand by themselves; all else,
    which the long format has and the short has not, is comment (Praat's manual, "TextGrid file formats")."""
    tokens = [
        (m[1].replace('""', '"').strip() if m[1] is not None else float(m[2])) for m in _TEXTGRID_TOKEN.finditer(text)
    ]
    tiers: list[tuple[str, list[Row]]] = []
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
    return _choose_tier(tiers, tier)


def _choose_tier(tiers: list[tuple[str, list[Row]]], tier: str | None) -> list[Row]:
    names = ", ".join(repr(name) for name, _ in tiers) or "none"
    if tier is None:
        chosen = [(name, rows) for name, rows in tiers if _PHONE_TIER.fullmatch(name.strip())]
    else:
        chosen = [(name, rows) for name, rows in tiers if name == tier]
        if not chosen and tier.isdecimal() and 1 <= int(tier) <= len(tiers):
            chosen = [tiers[int(tier) - 1]]
    if not chosen:
        wanted = "a tier named phones" if tier is None else f"tier {tier!r}"
        raise _Unreadable(f"has interval tiers {names}, wanted {wanted}; name the tier of the phones with tier='NAME'")
    labelled = [rows for _, rows in chosen if any(row[2] for row in rows)] or [chosen[0][1]]
    if any(rows != labelled[0] for rows in labelled):
        raise _Unreadable(
            f"has {len(labelled)} tiers of phones among {names}; name one with tier='NAME', or by its number with "
            "tier='1'"
        )
    return labelled[0]


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
    words = [word for line in lines for word in line]
    if words and not any(map(_is_number, words)):
        raise _Unreadable(
            f"holds words ({' '.join(words)[:40]!r}), which is what MFA reads, and no times; give the alignments that "
            "were made of it (TextGrids), beside the audio or with alignments='DIR'"
        )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _seconds(words: list[str], unit: float | None, default: float, line: list[str]) -> tuple[list[float], float]:
    """Times in seconds, and the unit they were counted in: that of whole numbers is `default`."""
    if not all(map(_is_number, words)):
        raise _Unreadable(f"line {' '.join(line)[:60]!r} has no times where they are wanted; correct the line")
    seconds = any(map(_DECIMAL.fullmatch, words))
    unit = unit or (1 if seconds else default)
    return [float(word) / unit for word in words], unit


def _phn(lines: list[list[str]], rate: float) -> tuple[list[Row], float]:
    rows, unit = [], rate
    decimal = any(_DECIMAL.fullmatch(word) for line in lines for word in line[:2])
    for line in filter(None, lines):
        if len(line) != 3:
            raise _Unreadable(f"line {' '.join(line)[:60]!r}, wanted `first-sample end-sample phone`; correct the line")
        (start, end), unit = _seconds(line[:2], 1 if decimal else rate, rate, line)
        rows.append((start, end, line[2]))
    return rows, unit


def _lab(lines: list[list[str]], unit: float | None) -> tuple[list[Row], float]:
    """Festival: a header up to `#`, then `end colour phone`. HTK: `start end phone ...`, of HTS with full contexts,
    of HVite -f with states."""
    header = next((number for number, line in enumerate(lines) if line == ["#"]), None)
    lines = [line for line in lines[0 if header is None else header + 1 :] if line and line != ["."]]
    rows: list[Row] = []
    if header is not None:
        end = 0.0
        for line in lines:
            if len(line) < 2:
                raise _Unreadable(
                    f"line {' '.join(line)[:60]!r}, wanted `end colour phone` after the #; correct the line"
                )
            start, ((end,), _) = end, _seconds(line[:1], unit or 1, 1, line)
            rows.append((start, end, line[2] if len(line) > 2 else ""))
        return rows, unit or 1
    decimal = any(_DECIMAL.fullmatch(word) for line in lines for word in line[:2])
    divisor = unit or (1 if decimal else _HTK_RATE)
    for line in lines:
        if len(line) < 3:
            raise _Unreadable(
                f"line {' '.join(line)[:60]!r}, wanted `end colour phone` after a # or HTK's `start end phone`; "
                "correct the line"
            )
        (start, end), _ = _seconds(line[:2], divisor, divisor, line)
        rows.append((start, end, line[2]))
    return _phones_of_models(rows, lines), divisor


def _phones_of_models(rows: list[Row], lines: list[list[str]]) -> list[Row]:
    """The phone in what HTK's tools call a model: HVite's states, HTS's full contexts, triphones."""
    symbols = [row[2] for row in rows]
    if symbols and all(map(_STATE.fullmatch, symbols)):
        # `start end s2 score phone [score word]`: the phone stands at its first state only.
        phone, phones = None, []
        for line in lines:
            phone = line[4] if len(line) > 4 else phone
            if phone is None:
                raise _Unreadable("holds HVite's states (s2 s3 s4) without their phones; write it with HVite -f -o S")
            phones.append(phone)
        symbols = phones
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
    """A sentence on the unit that makes an alignment up to `end` seconds, counted in `unit`, fit the audio; or ""."""
    if not end or not seconds:
        return ""
    wanted = end * unit / seconds
    for candidate, name in _UNITS.items():
        if candidate != unit and abs(wanted / candidate - 1) < 0.02:
            return f"are its times in {name}? (alignment_unit={candidate})"
    for rate in _RATES:
        if rate != unit and unit == rate_hz and abs(wanted / rate - 1) < 0.02:
            return f"its times fit {rate / 1000:g} kHz, the file has {rate_hz / 1000:g} kHz (alignment_unit={rate})"
    return ""


def as_arpabet(symbol: str) -> str | None:
    """The ARPABET class of a phone as MFA, Kaldi or CMUdict write it (`AH0`, `AH0_B`), or None where it has none."""
    if symbol.lower() in SILENCE:
        return ARPABET.symbols[0]
    bare = re.sub(r"[0-2]?(_[BIES])?$", "", symbol).upper()
    return bare if bare in ARPABET.symbols else None
