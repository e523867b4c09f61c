"""PhonemeSet: symbol <-> class index, order fixed and fingerprinted."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from .errors import SpecError

# Start and end marks that course transcripts carry around the frames; they are never classes.
START_MARKS = frozenset({"[SOS]", "SOS", "<sos>", "<SOS>", "<s>"})
END_MARKS = frozenset({"[EOS]", "EOS", "<eos>", "<EOS>", "</s>"})


def spellings(symbol: str) -> tuple[str, ...]:
    """The ways one symbol is written in the field: itself, and with or without the square brackets."""
    if symbol.startswith("[") and symbol.endswith("]") and len(symbol) > 2:
        return symbol, symbol[1:-1]
    return symbol, f"[{symbol}]"


@dataclass(frozen=True)
class PhonemeSet:
    """The classes of a corpus: class index = position in `symbols`.

    Raises SpecError for an empty set, a symbol that is empty, not a string or holds white space or control characters,
    a repeated symbol, or more than 65,535 of them (the largest uint16 is the label of padding rows).
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(self.symbols))
        if not 1 <= len(self.symbols) <= 65535:
            raise SpecError(f"{len(self.symbols)} phonemes, but a phoneme set holds 1 to 65535; check the symbol list")
        for position, symbol in enumerate(self.symbols):
            if not isinstance(symbol, str) or symbol.split() != [symbol] or not symbol.isprintable():
                raise SpecError(
                    f"phoneme {position} is {symbol!r:.80}, but a symbol is printable text without white space"
                )
        if len(set(self.symbols)) != len(self.symbols):
            twice = next(s for s in self.symbols if self.symbols.count(s) > 1)
            raise SpecError(f"phoneme {twice!r} is listed twice, but class index = position; remove one")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def classes(self) -> dict[str, int]:
        """Every accepted spelling -> class index; a symbol's own spelling wins over another's bracketed one."""
        classes: dict[str, int] = {}
        for index, symbol in enumerate(self.symbols):
            for spelling in spellings(symbol):
                classes.setdefault(spelling, index)
        classes.update({symbol: index for index, symbol in enumerate(self.symbols)})
        return classes

    def index(self, symbol: str) -> int:
        """Class index of `symbol`, with or without brackets; raises SpecError when it is not in the set."""
        try:
            return self.classes[symbol]
        except KeyError:
            known = " ".join(self.symbols[:45]) + (" ..." if len(self) > 45 else "")
            raise SpecError(f"phoneme {symbol!r} is not in the set of {len(self)}: {known}") from None

    @cached_property
    def fingerprint(self) -> str:
        """xxh3_128 (hex) over the symbols joined by newlines: equal for equal sets in equal order."""
        return xxhash.xxh3_128_hexdigest("\n".join(self.symbols).encode())

    @property
    def label_dtype(self) -> np.dtype:
        """uint8 up to 255 classes, else uint16."""
        return np.dtype(np.uint8 if len(self) <= 255 else np.uint16)

    @property
    def padding_label(self) -> int:
        """The label of padding rows: the largest value of `label_dtype`."""
        return int(np.iinfo(self.label_dtype).max)


# The order of the CMU 11-785 course, which every published HW1P2 number uses.
_COURSE_ORDER = """
    [SIL] AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH
    K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH
"""
ARPABET = PhonemeSet(tuple(_COURSE_ORDER.split()))
