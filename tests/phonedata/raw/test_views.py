"""Folding symbols into classes and splitting by speaker: what a pack of the same data by hand would hold."""

import numpy as np
import pytest

from phonedata import ARPABET, PackedCorpus, RawDataError, SpecError, inspect, pack
from phonedata.raw.open import open_raw
from phonedata.raw.views import fold, read_map, split
from tests.conftest import place_features, place_label, write_hw1p2


@pytest.fixture
def raw(tmp_path):
    """12 speakers with 2 utterances each in one partition, and a test partition without labels."""
    utterances = {
        f"{speaker}-{n}-0": (place_features(2 * speaker + n, 20 + n, 3), place_label(speaker, 20 + n))
        for speaker in range(12)
        for n in range(2)
    }
    write_hw1p2(tmp_path / "raw", "all", utterances)
    write_hw1p2(tmp_path / "raw", "blind", {"x-1-0": (place_features(99, 7, 3), place_label(0, 7))}, labelled=False)
    return tmp_path / "raw"


def test_lee_and_hon_fold_61_phones_into_48_and_39_without_the_glottal_stop():
    both = [read_map(name) for name in ("timit-48", "timit-39")]
    assert [(len(table), len({*table.values()} - {None})) for table in both] == [(61, 48), (61, 39)]
    assert all([symbol for symbol, target in table.items() if target is None] == ["q"] for table in both)
    folded = {"zh": "sh", "ao": "aa", "el": "l", "hv": "hh", "dcl": "sil", "pau": "sil", "ix": "ih", "ux": "uw"}
    assert {symbol: both[1][symbol] for symbol in folded} == folded


def test_labels_are_folded_and_frames_of_what_is_left_out_are_left_out(raw, tmp_path):
    lines = [f"{s.strip('[]').lower()} {'x' if n % 2 else 'y'}" for n, s in enumerate(ARPABET.symbols[:39])]
    (tmp_path / "map").write_text("\n".join([*lines, "zh"]) + "\n")
    whole = open_raw(raw)
    folded = fold(whole, str(tmp_path / "map"))
    assert folded.phonemes.symbols == ("y", "x")
    for before, after in zip(whole.partitions[0].read(23), folded.partitions[0].read(23), strict=True):
        kept = whole.partitions[0].read(23)[1] != 39
        expected = before[kept] if before.ndim == 2 else before[kept] % 2
        np.testing.assert_array_equal(after, expected)
    report = pack(raw, tmp_path / "packed", phone_map=str(tmp_path / "map"))
    corpus = PackedCorpus(tmp_path / "packed")
    corpus.verify()
    frames = sum((np.array(p.read(i)[1]) != 39).sum() for p in whole.partitions[:1] for i in range(24))
    assert corpus["all"].num_frames == frames and "frames of ZH are left out" in str(report)


def test_a_map_without_a_line_for_a_symbol_is_refused(raw, tmp_path):
    (tmp_path / "map").write_text("AA a\n")
    with pytest.raises(SpecError, match=r"has no line for '\[SIL\]', 'AE', .* and 31 more"):
        pack(raw, tmp_path / "packed", phone_map=str(tmp_path / "map"))
    (tmp_path / "map").write_text("AA a b\n")
    with pytest.raises(RawDataError, match="line 'AA a b', wanted `symbol class`"):
        pack(raw, tmp_path / "packed", phone_map=str(tmp_path / "map"))
    with pytest.raises(SpecError, match="is no file, and none of timit-48, timit-39"):
        pack(raw, tmp_path / "packed", phone_map="timit")


def test_a_split_puts_each_speaker_into_one_part_and_is_recorded(raw, tmp_path):
    pack(raw, tmp_path / "packed", split="dev=0.2,test=0.1", cmvn="none", dtype="float32")
    corpus = PackedCorpus(tmp_path / "packed")
    corpus.verify()
    assert list(corpus.partitions) == ["blind", "dev", "test", "train"]
    speakers = {name: set(corpus[name].speakers) for name in ("train", "dev", "test")}
    assert [len(found) for found in speakers.values()] == [9, 2, 1]
    assert len(set.union(*speakers.values())) == 12
    assert corpus.attributes["derived"] == {"split": "split by a hash of speakers: dev 2, test 1 of 12"}
    assert "\nsplit by a hash of speakers: dev 2, test 1 of 12\n" in str(inspect(tmp_path / "packed"))
    dev = corpus["dev"]
    for utterance, row in zip(dev.utterance_ids, dev.utterance_start_row.tolist()):
        speaker, n, _ = map(int, utterance.split("-"))
        np.testing.assert_array_equal(dev.features[row : row + 20], place_features(2 * speaker + n, 20, 3))
        np.testing.assert_array_equal(dev.labels[row : row + 20], place_label(speaker, 20))


def test_a_split_leaves_what_is_no_training_data_alone(raw):
    (raw / "all").rename(raw / "TRAIN")
    for n, name in enumerate(("TEST", "dev-clean")):
        write_hw1p2(raw, name, {f"{30 + n}-1-0": (place_features(0, 9, 3), place_label(0, 9))})
    found = {p.name: len(p.utterance_ids) for p in split(open_raw(raw), "valid=0.25").partitions}
    assert found == {"TEST": 1, "TRAIN": 18, "blind": 1, "dev-clean": 1, "valid": 6}
    with pytest.raises(SpecError, match="has a partition TEST already"):
        split(open_raw(raw), "TEST=0.1")


def test_folders_of_speakers_become_one_corpus(tmp_path):
    for speaker in ("p225", "p226", "p227"):
        write_hw1p2(tmp_path, speaker, {f"{u:03}": (place_features(u, 5, 3), place_label(u, 5)) for u in range(2)})
    found = {p.name: p for p in split(open_raw(tmp_path), "dev=0.3").partitions}
    assert len(found["train"].utterance_ids) == 4 and len(found["dev"].utterance_ids) == 2
    assert {*found["train"].speakers, *found["dev"].speakers} == {"p225", "p226", "p227"}
    assert not {*found["train"].utterance_ids} & {*found["dev"].utterance_ids}


def test_without_speakers_utterances_are_split_and_that_is_said(tmp_path):
    write_hw1p2(tmp_path, "all", {f"u{u}": (place_features(u, 5, 3), place_label(u, 5)) for u in range(10)})
    corpus = split(open_raw(tmp_path), "dev=0.2")
    assert [len(p.utterance_ids) for p in corpus.partitions] == [2, 8]
    assert "no speaker is known, so one may be in several parts" in corpus.notes[-1]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ("dev", "wanted NAME=SHARE"),
        ("dev=10", "wanted NAME=SHARE"),
        ("dev=0.6,test=0.5", "leave something for training"),
        ("dev=0.1,dev=0.1", "wanted different names"),
        ("blind=0.1", "has a partition blind already"),
        ("train=0.9", "is what is left over"),
        ("dev=0.99", "12 speakers, which leaves none for train"),
    ],
)
def test_an_impossible_split_is_refused(raw, shares, said):
    with pytest.raises(SpecError, match=said):
        split(open_raw(raw), shares)
