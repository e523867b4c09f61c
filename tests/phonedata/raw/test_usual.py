"""The way of the usual files: same bytes as the ordinary way, taken for usual files and for no other."""

import os

import numpy as np
import pytest

from phonedata import pack
from phonedata.packing.chunk_writer import copy_for_worker
from phonedata.phonemes import ARPABET
from phonedata.raw import usual
from phonedata.raw.open import open_raw
from tests.conftest import place_features, place_label, write_hw1p2
from tests.phonedata.packing.test_pack import random_utterances, tree_bytes

pytestmark = pytest.mark.skipif(not usual.AVAILABLE, reason="the ordinary way serves this system")
ODD = {
    "float64": lambda f, t: np.save(f, np.load(f).astype(np.float64)),
    "big-endian": lambda f, t: np.save(f, np.load(f).astype(">f4")),
    "Fortran": lambda f, t: np.save(f, np.asfortranarray(np.load(f))),
    "not finite": lambda f, t: np.save(f, np.load(f) * np.float32(np.nan)),
    "too large": lambda f, t: np.save(f, np.load(f) * np.float32(1e30)),
    "longer than told": lambda f, t: f.write_bytes(f.read_bytes() + b"more"),
    "cut": lambda f, t: f.write_bytes(f.read_bytes()[:-1]),
    "header only": lambda f, t: f.write_bytes(f.read_bytes()[:100]),
    "gone": lambda f, t: f.unlink(),
    "a pipe": lambda f, t: (f.unlink(), os.mkfifo(f)),
    "wide text": lambda f, t: np.save(t, np.load(t).astype("<U6")),
    "numbers": lambda f, t: np.save(t, np.arange(9) % 40),
    "unknown symbol": lambda f, t: np.save(t, np.array(["[??]"] * 9, "<U5")),
    "one mark": lambda f, t: np.save(t, np.load(t)[:-1]),
    "both marks, too short": lambda f, t: np.save(t, np.delete(np.load(t), [3, 4])),
    "too few labels": lambda f, t: np.save(t, np.load(t)[1:-2]),
    "labels gone": lambda f, t: t.unlink(),
}


def taken_as_usual(partition):
    """Which of the utterances, told to have 9 frames each and not normalised, are taken as usual."""
    count = len(partition.utterance_ids)
    statistics = np.zeros((4, count, 3))
    statistics[3] = 1.0
    rows, labels = np.zeros((9 * count, 3), np.uint16), np.zeros(9 * count, np.uint8)
    chunk = rows, labels, np.arange(count) * 9, np.full(count, 9), statistics, False, 65504.0
    return partition.fill_fast(list(range(count)), *chunk).tolist()


@pytest.mark.parametrize("kind", ODD)
def test_an_unusual_file_is_left_to_the_ordinary_way(tmp_path, kind):
    told = {f"{u}-0-0": (place_features(0, 9, 3), place_label(u, 9)) for u in range(3)}
    write_hw1p2(tmp_path, "train", told)
    (partition,) = open_raw(tmp_path).partitions
    assert taken_as_usual(copy_for_worker(partition)) == [True] * 3
    ODD[kind](tmp_path / "train/mfcc/1-0-0.npy", tmp_path / "train/transcript/1-0-0.npy")
    assert taken_as_usual(partition) == [True, False, True]


@pytest.mark.parametrize("marks", [("[SOS]", "[EOS]"), ("<sos>", "<eos>"), None])
@pytest.mark.parametrize("options", [{}, {"cmvn": "speaker"}, {"dtype": "float32", "cmvn": "none"}])
def test_both_ways_write_the_same_bytes(tmp_path, monkeypatch, marks, options):
    """Three inner chunks with utterances across their borders; every fourth file is of a kind that is not usual."""
    told = random_utterances(3, (40_000, 30_000, 70_000, 1, 900, 2, 77, 1), 2)
    write_hw1p2(tmp_path / "raw", "train", told)
    write_hw1p2(tmp_path / "raw", "test", {"x-0-0": told["4-0-0004"]}, labelled=False)
    for u, (_, classes) in told.items():
        text = np.array(ARPABET.symbols)[classes]
        text = text if marks is None else np.concatenate([marks[:1], text, marks[1:]])
        np.save(tmp_path / f"raw/train/transcript/{u}.npy", text.astype("<U5"))
    np.save(tmp_path / "raw/train/mfcc/1-0-0001.npy", told["1-0-0001"][0].astype(">f4"))
    np.save(tmp_path / "raw/train/transcript/4-0-0004.npy", told["4-0-0004"][1])
    taken = []
    fill = usual.UsualFiles.fill
    monkeypatch.setattr(usual.UsualFiles, "fill", lambda *a: taken.append(fill(*a)) or taken[-1])
    pack(tmp_path / "raw", tmp_path / "usual", workers=2, **options)
    assert sum(map(np.count_nonzero, taken)) >= 8 and not all(map(np.all, taken))
    monkeypatch.setattr(usual, "AVAILABLE", False)
    pack(tmp_path / "raw", tmp_path / "ordinary", workers=1, **options)
    assert tree_bytes(tmp_path / "usual") == tree_bytes(tmp_path / "ordinary")


def test_headers_are_those_of_numpy(tmp_path):
    for shape, kind in (((7, 28), "<f4"), ((12345, 1), "<f4"), ((9,), "<U5"), ((123456,), "<U5")):
        array = np.zeros(shape, kind)
        np.save(tmp_path / "a.npy", array)
        assert (tmp_path / "a.npy").read_bytes()[:128] == usual._header(array.dtype.str, *array.shape)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 10])
def test_buffers_are_long_enough_for_chunks_of_growing_length(tmp_path, dim):
    """A longest utterance within the slack of the file buffer was written past the end of the label buffer."""
    told = {f"{n:03d}-0-0": (place_features(n, n, dim), place_label(n, n)) for n in range(1, 120)}
    write_hw1p2(tmp_path, "train", told)
    (partition,) = open_raw(tmp_path).partitions
    for index, (features, classes) in enumerate(told.values()):
        frames = len(features)
        rows, labels = np.zeros((frames, dim), np.float32), np.zeros(frames, np.uint8)
        statistics = np.zeros((4, 1, dim))
        statistics[3] = 1.0
        chunk = rows, labels, np.zeros(1, int), np.array([frames]), statistics, False, 1e30
        assert partition.fill_fast([index], *chunk).tolist() == [True]
        assert len(partition._usual._classes) >= frames
        np.testing.assert_array_equal(rows, features)
        np.testing.assert_array_equal(labels, classes)
