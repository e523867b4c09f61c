"""Files of phone intervals: what each format means, and what is refused in which words."""

import pytest

from phonedata.errors import RawDataError
from phonedata.raw.alignments import likely_unit, read_alignment

K_AE = [(0.0, 0.5, "k"), (0.5, 1.0, "ae")]


def read(tmp_path, suffix, text, tier=None, unit=None):
    """(start, end, symbol) of each interval that a file with `text` holds."""
    file = tmp_path / f"u.{suffix}"
    file.write_text(text, encoding="utf-8", newline="")
    found = read_alignment(str(file), 16000, tier, unit)
    return list(zip(found.starts.tolist(), found.ends.tolist(), found.symbols))


def grid(*tiers, kind="IntervalTier"):
    """A TextGrid in Praat's short format; a tier is (name, intervals)."""
    lines = ['"ooTextFile"', '"TextGrid"', 0, 1, "<exists>", len(tiers)]
    for name, rows in tiers:
        lines += [f'"{kind}"', f'"{name}"', 0, 1, len(rows)]
        lines += [f'"{value}"' if isinstance(value, str) else value for row in rows for value in row]
    return "\n".join(map(str, lines)) + "\n"


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("lab", "0 5000000 k\n5000000 10000000 ae\n"),
        ("lab", "0 5000000 k\r5000000 10000000 ae\r"),
        ("lab", "0.5 125 k\n1.0 125 ae\n"),
        ("lab", "#\n0.5 k\n1.0 ae\n"),
        ("lab", "#\n 0.5 26\tk ; \n 1.0 26\tae ; \n"),
        ("lab", "0.0 0.5 k\n0.5 1.0 ae\n1.0 1.0 x\n"),
        ("lab", "1.0 1.0 x\n0.0 0.5 k\n0.5 1.0 ae\n"),
        ("lab", "0.5 0 k\n1.0 0 ae\n"),
        ("lab", "0e0 5e-1 k\n5e-1 1e0 ae\n"),
        ("lab", "0.5 1.0 ae\n0.0 0.5 k\n"),
        ("phn", "0\t8000\tk\n\n8000\t16000\tae\n"),
        ("phn", "0 0 x\n0 8000 k\n8000 16000 ae\n"),
        ("TextGrid", grid(("phones", K_AE))),
        ("TextGrid", grid(("words", [(0, 1, "5 xmin = 3")]), ("phones", K_AE))),
        ("TextGrid", grid(("phones", [(0.0, 0.5, "x-k+ae"), (0.5, 1.0, "k-ae+x")]))),
    ],
)
def test_two_phones_of_half_a_second_are_the_same_in_every_format(tmp_path, suffix, text):
    assert read(tmp_path, suffix, text) == K_AE


@pytest.mark.parametrize("unit", [1000, 44100, 1e7])
@pytest.mark.parametrize("suffix", ["lab", "phn", "TextGrid"])
def test_a_named_unit_holds_for_every_format(tmp_path, suffix, unit):
    rows = [(start * unit, end * unit, symbol) for start, end, symbol in K_AE]
    text = grid(("phones", rows)) if suffix == "TextGrid" else "".join(f"{a} {b} {s}\n" for a, b, s in rows)
    assert read(tmp_path, suffix, text, unit=unit) == K_AE


def test_what_rounding_explains_is_no_overlap(tmp_path):
    assert read(tmp_path, "lab", "0.0 0.515 k\n0.5 1.0 ae\n") == K_AE
    assert read(tmp_path, "lab", "-0.001 0.5 k\n0.500001 0.5 x\n0.5 1.0 ae\n") == K_AE


@pytest.mark.parametrize("name", ["Phones", "phn", "A - phones", "phones - A", "spk1_phones", "phonemes (auto)", "MAU"])
def test_tiers_that_hold_phones_by_their_name_are_found(tmp_path, name):
    assert read(tmp_path, "TextGrid", grid(("words", [(0, 1, "cat")]), (name, K_AE), ("KAN-MAU", []))) == K_AE


def test_a_phone_may_be_called_by_a_number(tmp_path):
    """X-SAMPA's 5 is the dark l; beside Festival's colour a pause may have no name."""
    assert read(tmp_path, "lab", "#\n0.5 5\n1.0 ae\n") == [(0.0, 0.5, "5"), (0.5, 1.0, "ae")]
    assert read(tmp_path, "lab", "#\n0.5 125\n1.0 125 ae\n") == [(0.0, 0.5, ""), (0.5, 1.0, "ae")]


def test_phones_of_one_length_in_place_of_an_end_are_no_ends(tmp_path):
    with pytest.raises(RawDataError, match="if the second number is how long it lasts"):
        read(tmp_path, "lab", "0 90 k\n90 90 ae\n180 90 t\n", unit=1000)


def test_a_pause_that_two_speakers_share_keeps_a_name(tmp_path):
    pauses = [(0.0, 0.5, "sp"), (0.5, 1.0, "")], [(0.0, 0.5, ""), (0.5, 1.0, "sp")]
    found = read(tmp_path, "TextGrid", grid(("A - phones", pauses[0]), ("B - phones", pauses[1]), ("phones", [])))
    assert found == [(0.0, 1.0, "sp")]


def test_a_tier_of_the_very_name_goes_before_those_like_it(tmp_path):
    assert read(tmp_path, "TextGrid", grid(("phones (old)", [(0, 1, "x")]), ("phones", K_AE))) == K_AE


def test_speakers_who_take_turns_are_one_alignment(tmp_path):
    one, other = [(0.0, 0.4, "k"), (0.4, 1.0, "")], [(0.0, 0.5, ""), (0.5, 1.0, "ae")]
    found = read(tmp_path, "TextGrid", grid(("A - phones", one), ("B - phones", other)))
    assert found == [(0.0, 0.4, "k"), (0.4, 0.5, ""), (0.5, 1.0, "ae")]
    with pytest.raises(RawDataError, match="'A - phones' and 'B - phones' at 0.300 s, wanted one speaker at a time"):
        read(tmp_path, "TextGrid", grid(("A - phones", one), ("B - phones", [(0.3, 1.0, "ae")])))


@pytest.mark.parametrize(
    ("suffix", "text", "named"),
    [
        ("lab", "ROUTE 66 IS 1 OF 2\n", "text without times .*MFA"),
        ("lab", "0,0 0,5 k\n0,5 1,0 ae\n", "commas for decimal points"),
        ("lab", "start,end,phone\n0.0,0.5,k\n", "commas between its columns"),
        ("lab", "k 0.0 0.5\n", "'k 0.0 0.5' has no times where they are wanted"),
        ("lab", "0.0 nan k\n", "'0.0 nan k' has no times where they are wanted"),
        ("lab", "0.0 1_0 k\n", "'0.0 1_0 k' has no times where they are wanted"),
        ("lab", "0.0 0.5 k\n0.5 0.2 ae\n", "from 0.500 s to 0.200 s.*how long it lasts"),
        ("lab", "-0.5 0.5 k\n", "begins at -0.500 s, before the audio"),
        ("lab", "0.0 0.7 k\n0.5 1.0 ae\n", "'k' lasts up to 0.700 s, but 'ae' begins at 0.500 s"),
        ("lab", "0.0 0.5 k\x1b[31m\n", r"'k\\x1b\[31m' at 0.000 s has a character that cannot be shown"),
        ("phn", "0 8000 k\u200b\n", r"'k\\u200b' at 0.000 s has a character that cannot be shown"),
        ("TextGrid", grid(("phones", [(0, 1, "the cat")])), "'the cat', which is several words .*tier="),
        ("TextGrid", grid(("phones", [(0.5, "k")]), kind="TextTier"), "tiers of points only"),
        ("TextGrid", grid(("phones", K_AE), ("phones", [(0, 1, "x")])), "give the number of one: tier='1'"),
    ],
)
def test_what_is_wrong_is_said_in_our_own_words(tmp_path, suffix, text, named):
    with pytest.raises(RawDataError, match=rf"u.{suffix}: .*{named}"):
        read(tmp_path, suffix, text)


@pytest.mark.parametrize(
    ("unit", "counted", "said"),
    [
        (16000, 1000, "milliseconds"),
        (16000, 100, "frames of 10 ms"),
        (48000, 16000, "its times fit 16 kHz, the file has 48 kHz"),
        (10_000_000, 48000, "count samples of the audio"),
        (10_000_000, 1, "in seconds"),
        (1, 1000, "milliseconds"),
    ],
)
def test_the_likely_unit_is_named_although_the_alignment_ends_early(unit, counted, said):
    sentence = likely_unit(2.8 * counted / unit, unit, 3.0, 48000)
    assert said in sentence and f"alignment_unit={counted}" in sentence
