"""A phoneme set is an order; its fingerprint is that order."""

import numpy as np
import pytest

from phonedata import ARPABET, PhonemeSet, SpecError


def test_course_order_is_fixed():
    assert len(ARPABET) == 40
    assert [ARPABET.index(s) for s in ("[SIL]", "AA", "N", "ZH")] == [0, 1, 23, 39]
    assert ARPABET.fingerprint == PhonemeSet(ARPABET.symbols).fingerprint
    assert ARPABET.fingerprint != PhonemeSet(ARPABET.symbols[::-1]).fingerprint


def test_brackets_are_one_spelling_of_a_symbol():
    assert ARPABET.index("SIL") == ARPABET.index("[SIL]") == 0
    assert ARPABET.index("[AA]") == 1
    both = PhonemeSet(("[x]", "x"))
    assert (both.index("[x]"), both.index("x")) == (0, 1)


def test_labels_grow_to_uint16_and_padding_is_no_class():
    small, large = PhonemeSet(tuple(map(str, range(255)))), PhonemeSet(tuple(map(str, range(256))))
    assert (small.label_dtype, small.padding_label) == (np.uint8, 255)
    assert (large.label_dtype, large.padding_label) == (np.uint16, 65535)


@pytest.mark.parametrize("symbols", [(), ("a", "a"), ("a", ""), ("a b",), (3,), tuple(map(str, range(65536)))])
def test_impossible_sets_are_refused(symbols):
    with pytest.raises(SpecError):
        PhonemeSet(symbols)


def test_unknown_symbol_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match=r"'AX' is not in the set of 40: \[SIL\] AA"):
        ARPABET.index("AX")
