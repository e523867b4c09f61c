"""pack_utterances: what a program hands over becomes the corpus that a folder of the same becomes."""

import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from phonedata import (
    ARPABET,
    CorpusExists,
    PackedCorpus,
    PhonedataError,
    PhonemeSet,
    RawDataError,
    SpecError,
    pack,
    pack_utterances,
)
from tests.conftest import TINY_DIM, TINY_LENGTHS, place_features, place_label

SYMBOLS = np.array(ARPABET.symbols)


def tiny(order=1, labels="text"):
    """The utterances of `tiny_raw`, with their speakers, partition by partition or mixed (`order` -1: backwards)."""
    number, found = 0, []
    for partition, lengths in TINY_LENGTHS.items():
        for frames in lengths:
            speaker = str(number // 3 + 100)
            classes = place_label(number, frames)
            given = {"text": SYMBOLS[classes], "numbers": classes, "list": SYMBOLS[classes].tolist()}[labels]
            given = None if partition == "test-clean" else given
            utterance = f"{speaker}-{number:03d}-0000"
            found.append((partition, utterance, place_features(number, frames, TINY_DIM), given, speaker))
            number += 1
    return found[::order]


@pytest.mark.parametrize("labels", ["text", "numbers", "list"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cmvn": "speaker"},
        {"cmvn": "train", "train_partition": "train-clean + train-other"},
        {"cmvn": "none", "dtype": "float32"},
    ],
)
def test_rows_are_those_of_a_folder_with_the_same_utterances(tiny_raw, tmp_path, options, labels):
    symbols = ARPABET.symbols if labels == "numbers" else None
    given = iter(tiny(labels=labels))
    pack_utterances(given, tmp_path / "given", symbols=symbols, context=12, workers=3, **options)
    assert next(given, None) is None
    pack(tiny_raw, tmp_path / "folder", context=12, **options)
    ours, folder = PackedCorpus(tmp_path / "given"), PackedCorpus(tmp_path / "folder")
    ours.verify()
    assert ours.attributes["layout"] == "python" and ours.cmvn == folder.cmvn and ours.phonemes == folder.phonemes
    for name, partition in folder.partitions.items():
        assert ours[name].attributes["order"] == "given"
        wanted = {**partition.attributes["files"]}
        assert ours[name].attributes["files"] == wanted
        assert (ours[name].mean == partition.mean).all() and ours[name].lengths == partition.lengths
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "given"]


def test_rows_keep_the_order_given_within_their_partition(tmp_path):
    given = tiny(order=-1)
    pack_utterances(given, tmp_path / "packed", cmvn="none", dtype="float32", context=3)
    corpus = PackedCorpus(tmp_path / "packed")
    for name, partition in corpus.partitions.items():
        mine = [one for one in given if one[0] == name]
        assert partition.utterance_ids == [one[1] for one in mine] and partition.speakers == [one[4] for one in mine]
        for row, (_, _, features, labels, _) in zip(partition.utterance_start_row, mine):
            np.testing.assert_array_equal(partition.features[row : row + len(features)], features)
            if labels is not None:
                np.testing.assert_array_equal(SYMBOLS[partition.labels[row : row + len(features)]], labels)


def test_an_array_may_be_used_again_for_the_next_utterance(tmp_path):
    def given():
        features, labels = np.empty((4, 2), np.float32), np.empty(4, np.int64)
        for number in range(5):
            features[:], labels[:] = place_features(number, 4, 2), number
            yield "train", f"u{number}", features, labels, None

    pack_utterances(given(), tmp_path / "packed", cmvn="none", dtype="float32", context=0)
    partition = PackedCorpus(tmp_path / "packed")["train"]
    np.testing.assert_array_equal(partition.features, np.concatenate([place_features(n, 4, 2) for n in range(5)]))
    assert partition.labels.tolist() == [n for n in range(5) for _ in range(4)]
    assert partition.speakers == partition.utterance_ids


FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (FEATURES.astype(np.float16), ["a", "b", "b", "a"]),
        (FEATURES.astype(">f4"), np.array(["a", "b", "b", "a"], object)),
        (FEATURES.astype(np.float64).tolist(), np.array([b"a", b"b", b"b", b"a"])),
        (np.asfortranarray(FEATURES), np.array([b"a", b"b", b"b", b"a"], object)),
        (np.repeat(FEATURES, 2, axis=0)[::2], ["[SOS]", "a", "b", "b", "a", "[EOS]"]),
        (np.repeat(FEATURES, 2, axis=1)[:, ::2], np.array([0, 1, 1, 0], np.uint16)),
    ],
)
def test_arrays_may_be_of_any_kind_that_holds_the_values(tmp_path, features, labels):
    pack_utterances(
        [("dev", "1", features, labels, None)], tmp_path / "packed", symbols=["a", "b"], cmvn="none", context=0
    )
    partition = PackedCorpus(tmp_path / "packed")["dev"]
    np.testing.assert_array_equal(partition.features, FEATURES)
    assert partition.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "symbols", "classes"),
    [
        ([["AA", "SIL", "ZH", "AA"], ["AE"] * 4], ARPABET.symbols, [1, 0, 39, 1, 2, 2, 2, 2]),
        ([["b", "ə", "ə", "b"], ["a"] * 4], ("a", "b", "ə"), [1, 2, 2, 1, 0, 0, 0, 0]),
        ([["zz", "[zz]", "y", "zz"], ["[y]"] * 4], ("[zz]", "y"), [0, 0, 1, 0, 1, 1, 1, 1]),
        ([[5, 0, 2, 2], [3] * 4], tuple("012345"), [5, 0, 2, 2, 3, 3, 3, 3]),
        ([[300, 0, 2, 2], [3] * 4], tuple(map(str, range(301))), [300, 0, 2, 2, 3, 3, 3, 3]),
    ],
)
def test_classes_that_nobody_named_come_from_all_of_the_data(tmp_path, labels, symbols, classes):
    given = [("train", str(n), FEATURES, one, None) for n, one in enumerate(labels)]
    report = pack_utterances(given, tmp_path / "packed", context=0)
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.phonemes.symbols == symbols and corpus["train"].labels.tolist() == classes
    assert (symbols == ARPABET.symbols) == (not report.notes)


def given(features=FEATURES, labels=(0, 1, 1, 0), utterance="2", speaker=None, partition="train"):
    """A good utterance and then another."""
    yield "train", "1", FEATURES, [0, 1, 1, 0], "s"
    yield partition, utterance, features, labels, speaker


NAN = FEATURES.copy()
NAN[2, 1] = np.nan

BAD = {
    "frames": (given(FEATURES[:3]), "train/2: 3 feature frames but 4 labels"),
    "coefficients": (given(FEATURES[:, :2]), "train/2: 2 coefficients a frame, wanted 3 as in train/1"),
    "none": (given(FEATURES[:0], labels=[]), r"train/2: no frames \(T = 0\)"),
    "nan": (given(NAN), "train/2: nan at frame 2, coefficient 1, wanted finite numbers"),
    "integers": (
        given(FEATURES.astype(int)),
        r"train/2: features of shape \(4, 3\) and type <i8, wanted \(T, D\) float32",
    ),
    "one axis": (given(FEATURES[0]), r"train/2: features of shape \(3,\)"),
    "ragged": (given([[1.0], [2.0, 3.0]]), "train/2: setting an array element with a sequence"),
    "objects": (given(np.array([[None]])), "train/2: features of shape .* type .O"),
    "class": (given(labels=[0, 1, 2, 0]), r"train/2: class 2 at frame 2, wanted 0\.\.1"),
    "negative": (given(labels=[0, 1, -1, 0]), r"train/2: class -1 at frame 2, wanted 0\.\.1"),
    "symbol": (given(labels=list("abca")), "train/2: unknown symbol 'c' at frame 2"),
    "floats": (given(labels=[0.0, 1.0, 1.0, 0.0]), "train/2: transcript of type <f8, wanted text or integers"),
    "two axes": (given(labels=np.zeros((4, 1), int)), r"train/2: transcript of shape \(4, 1\)"),
    "mixed": (given(labels=["a", 1, None, "b"]), "train/2: transcript of type .O, wanted text or integers"),
    "one mark": (given(labels=["[SOS]", "a", "b", "b", "a"]), r"train/2: .* wanted both marks"),
    "labels missing": (given(labels=None), "train/2: has no labels, but those before it in train have some"),
    "twice": (given(utterance="1"), "train/1: the id 1 was seen already in train"),
    "speaker": (given(speaker="\x1b[2J"), r"train/2: speaker '\\x1b\[2J' is empty or has control characters"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_utterance_is_named_and_nothing_stays(tmp_path, kind):
    utterances, message = BAD[kind]
    with pytest.raises(RawDataError, match=message):
        pack_utterances(utterances, tmp_path / "packed", symbols="ab")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["nan", "frames", "class", "ragged", "twice", "labels missing"])
def test_skip_bad_leaves_out_and_lists(tmp_path, kind):
    bad = {
        "nan": {"features": NAN},
        "frames": {"features": FEATURES[:3]},
        "class": {"labels": [0, 1, 2, 0]},
        "ragged": {"features": [[1.0], [2.0, 3.0]]},
        "twice": {"utterance": "1"},
        "labels missing": {"labels": None},
    }
    report = pack_utterances(given(**bad[kind]), tmp_path / "packed", symbols="ab", skip_bad=True)
    (left_out,) = report.left_out
    assert left_out.partition == "train" and left_out.reason.startswith(f"train/{left_out.utterance}: ")
    assert PackedCorpus(tmp_path / "packed")["train"].utterance_ids == ["1"]


@pytest.mark.parametrize(
    ("utterances", "message"),
    [
        (given(partition="../x"), r"utterances: partition name '\.\./x' cannot be used"),
        (given(utterance="a\x1bb"), r"train: utterance id 'a\\x1bb' cannot be used"),
        (iter([]), r"utterances: there are none, wanted \(partition, id, features"),
        ([("train", "1", FEATURES)], r"utterance 1 is \(str, str, ndarray\), wanted"),
        (["train"], r"utterance 1 is \(str\), wanted"),
        ([3], r"utterance 1 is \(int\), wanted"),
        ([("train", 7, FEATURES, None, None)], "utterance 1: its id is 7, wanted text"),
        ([("train", "7", FEATURES, None, 7)], "utterance 1: its speaker is 7, wanted text"),
        ([(None, "7", FEATURES, None, None)], "utterance 1: its partition is None, wanted text"),
    ],
)
def test_what_is_no_utterance_is_refused_also_where_bad_ones_are_skipped(tmp_path, utterances, message):
    with pytest.raises((RawDataError, SpecError), match=message):
        pack_utterances(utterances, tmp_path / "packed", skip_bad=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmvn": "global"}, "cmvn 'global' is unknown"),
        ({"symbols": []}, "0 phonemes"),
        ({"symbols": ["a", "a"]}, "'a' is listed twice"),
        ({"symbols": ["a", "b\x1b"]}, "phoneme 1 is"),
        ({"frontend": {"frame_shift_ms": 0}}, "frontend: frame_shift_ms = 0, wanted milliseconds"),
        ({"cmvn": "speaker"}, "cmvn speaker, but no utterance of train has a known speaker"),
        ({"cmvn": "train", "train_partition": "dev"}, "train partition 'dev' is not there; partitions: train"),
        ({"workers": 0}, "workers 0, wanted at least 1"),
    ],
)
def test_options_are_those_of_pack(tmp_path, options, message):
    utterances = [("train", "1", FEATURES, [0, 1, 1, 0], None)]
    with pytest.raises(PhonedataError, match=message):
        pack_utterances(utterances, tmp_path / "packed", **{"symbols": "ab", **options})
    assert os.listdir(tmp_path) == []


def test_a_corpus_that_is_there_is_refused_before_anything_is_read_and_replaced_on_demand(tmp_path):
    pack_utterances(given(), tmp_path / "packed", frontend={"frame_shift_ms": 20, "library": "mine"})
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.frame_shift_ms == 20.0 and corpus.attributes["frontend"]["library"] == "mine"
    never = given()
    with pytest.raises(CorpusExists, match="replace=True"):
        pack_utterances(never, tmp_path / "packed")
    assert next(never)[1] == "1"

    def failing():
        yield from given()
        raise ConnectionError("the database went away")

    with pytest.raises(ConnectionError, match="went away"):
        pack_utterances(failing(), tmp_path / "packed", replace=True)
    assert os.listdir(tmp_path) == ["packed"] and PackedCorpus(tmp_path / "packed").digest == corpus.digest
    pack_utterances(given(), tmp_path / "packed", replace=True, symbols=PhonemeSet(("a", "b")))
    assert PackedCorpus(tmp_path / "packed").phonemes.symbols == ("a", "b")


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """5 and 40 MB of features; besides a buffer of a chunk, what grows is a few hundred bytes an utterance."""

    def peak(count):
        features = np.random.default_rng(0).normal(size=(2500, 20)).astype(np.float32)
        tracemalloc.start()
        pack_utterances(
            (("train", f"{n:05d}", features, None, None) for n in range(count)), tmp_path / f"{count}", workers=1
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(26)
    small, large = peak(27), peak(200)
    assert large < small + 2e6


def test_labels_of_a_longer_shift_are_repeated(tmp_path):
    frames = np.arange(21, dtype=np.float32).reshape(7, 3)
    both = [("train", "1", frames, list("abca"), None), ("train", "2", frames[:6], list("cab"), None)]
    pack_utterances(both, tmp_path / "packed", label_shift=20)
    corpus = PackedCorpus(tmp_path / "packed")
    symbols = ["".join(corpus.phonemes.symbols[c] for c in corpus["train"].labels[r : r + 6]) for r in (50, 107)]
    assert symbols == ["aabbcc", "ccaabb"]
    assert corpus.attributes["derived"] == {"label_shift": "labels every 20 ms, each for 2 frames"}
    with pytest.raises(RawDataError, match="train/1: 4 labels, but its array of features has 7 frames; wanted 2 or 3"):
        pack_utterances(both, tmp_path / "other", label_shift=30)


def test_fairseq_targets_are_packed_by_the_lines_in_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random, told = np.random.default_rng(0), {}
    for split, lengths in (("train", (40, 31)), ("valid", (25,))):
        rows = [random.normal(size=(n, 4)).astype(np.float32) for n in lengths]
        labels = [random.integers(0, 100, -(-n // 2)) for n in lengths]
        names = [f"{split}-{n}-0" for n in lengths]
        told |= {(split, name): np.repeat(one, 2)[:n] for name, n, one in zip(names, lengths, labels)}
        np.save(f"{split}_0_1.npy", np.concatenate(rows))
        Path(f"{split}_0_1.len").write_text("".join(f"{n}\n" for n in lengths))
        Path(f"{split}.tsv").write_text(
            "/audio\n" + "".join(f"s/{name}.flac\t{160 * n + 400}\n" for name, n in zip(names, lengths))
        )
        Path(f"{split}.km").write_text("".join(" ".join(map(str, one)) + "\n" for one in labels))
    docs = (Path(__file__).parents[3] / "docs/FORMAT.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    exec(compile(lines, "FORMAT.md", "exec"), {})
    corpus = PackedCorpus("packed")
    assert len(corpus.phonemes) == 100 and corpus["train"].speakers == ["train", "train"]
    for (split, name), labels in told.items():
        row = corpus[split].utterance_start_row[corpus[split].utterance_ids.index(name)]
        np.testing.assert_array_equal(corpus[split].labels[row : row + len(labels)], labels)
