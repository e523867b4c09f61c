"""A random alignment, written in every format, unit, rate and tree that is read, packs to the labels that it means."""

import pytest

pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
pytest.importorskip("soundfile", reason="the extra [audio] is not installed")

from tests.alignments import try_case


def test_every_frame_gets_the_phone_that_its_alignment_means(tmp_path):
    assert sum(try_case(tmp_path / str(seed), seed) for seed in range(12)) > 5000


@pytest.mark.long
def test_2_000_corpora_of_alignments(tmp_path):
    assert sum(try_case(tmp_path / str(seed), seed) for seed in range(10_000, 12_000)) > 1_000_000
