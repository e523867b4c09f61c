"""Labels are looked up by hash and compared in full: no foreign symbol slips through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonedata import ARPABET, PhonemeSet, RawDataError
from phonedata.raw.label_table import SymbolTable

TABLE = SymbolTable(ARPABET)


@settings(max_examples=60, deadline=None)
@given(classes=st.lists(st.integers(0, 39), min_size=1, max_size=50), width=st.integers(5, 9), swap=st.booleans())
def test_table_agrees_with_a_dictionary(classes, width, swap):
    text = np.array([ARPABET.symbols[c] for c in classes], f"{'>' if swap else '<'}U{width}")
    assert TABLE.encode(text, "f").tolist() == classes
    assert TABLE.encode(text.astype("S9"), "f").tolist() == classes


@settings(max_examples=200, deadline=None)
@given(symbol=st.text(max_size=6), at=st.integers(0, 3))
def test_unknown_symbols_never_become_a_class(symbol, at):
    text = np.array(["AA", "AA", "B", "ZH"], "<U6")
    text[at] = symbol
    if str(text[at]) in ARPABET.classes:
        assert TABLE.encode(text, "f")[at] == ARPABET.index(str(text[at]))
    elif at in (1, 2) or str(text[at])[:1] not in "[<S E":
        with pytest.raises(RawDataError, match=f"at frame {at}|wanted both marks"):
            TABLE.encode(text, "f")


@pytest.mark.parametrize("width", [1, 5])  # numpy's own item() raises SystemError for symbols of one character
@pytest.mark.parametrize("frame", [0, 1, 2])
@pytest.mark.parametrize("value", [0x110000, 0xFFFFFFFF])
def test_damaged_code_points_are_an_error_not_a_crash(width, frame, value):
    text = np.array(["B", "B", "B"], f"<U{width}")
    text.view(np.uint32)[width * frame + width // 2] = value
    with pytest.raises(RawDataError, match=f"unknown symbol .*\ufffd' at frame {frame}"):
        TABLE.encode(text, "f")


def test_text_after_a_hidden_end_is_no_match():
    """Code points after a zero are invisible in numpy's str, and still make it another symbol."""
    text = np.array(["AA", "B"], "<U5")
    text.view(np.uint32)[9] = ord("x")
    with pytest.raises(RawDataError, match="unknown symbol"):
        TABLE.encode(text, "f")


@settings(max_examples=25, deadline=None)
@given(st.sets(st.text("abcdefgh_0123", min_size=1, max_size=12), min_size=1, max_size=400))
def test_any_inventory_is_found_in_its_order(symbols):
    phonemes = PhonemeSet(tuple(sorted(symbols)))
    encoded = SymbolTable(phonemes).encode(np.array(phonemes.symbols), "f")
    assert encoded.tolist() == list(range(len(phonemes)))
    assert encoded.dtype == phonemes.label_dtype


def test_marks_are_stripped_only_in_pairs():
    for first, last in (("[SOS]", "[EOS]"), ("<sos>", "<eos>")):
        assert TABLE.encode(np.array([first, "AA", last]), "f").tolist() == [1]
        for half in (np.array([first, "AA"]), np.array(["AA", last])):
            with pytest.raises(RawDataError, match="wanted both marks"):
                TABLE.encode(half, "f")
    with pytest.raises(RawDataError, match=r"unknown symbol '\[SOS\]' at frame 1"):
        TABLE.encode(np.array(["AA", "[SOS]", "B"]), "f")


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2), "U3"), np.zeros(3, np.float32), np.zeros(3, "M8[s]"), np.array("AA")]
)
def test_other_shapes_and_types_are_refused(labels):
    with pytest.raises(RawDataError):
        TABLE.encode(labels, "f")
