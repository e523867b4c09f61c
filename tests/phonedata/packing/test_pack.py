"""Laws of packing: every frame and label lands where the format says, whatever the files look like."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phonedata import ARPABET, PackedCorpus, RawDataError, pack
from phonedata.format.zarr_files import CHUNK_ROWS
from tests.conftest import REAL_RAW, TINY_DIM, TINY_LENGTHS, place_features, place_label, tree_bytes, write_hw1p2
from tests.reference import cmvn_truth, packed_rows

SYMBOLS = np.array(ARPABET.symbols)


def random_utterances(seed, lengths, dim, dtype=np.float32):
    random = np.random.default_rng(seed)
    return {
        f"{i}-0-{i:04d}": ((random.normal(size=(t, dim)) * 9 + 3).astype(dtype), random.integers(0, 40, t))
        for i, t in enumerate(lengths)
    }


def assert_packed(corpus, name, utterances, normalise=cmvn_truth):
    """Compare a partition with the truth: exact labels and places, float16 or float32 within half a unit."""
    partition, ids = corpus[name], sorted(utterances)
    assert partition.utterance_ids == ids
    truth = packed_rows([normalise(utterances[i][0]) for i in ids], corpus.context, 0.0)
    labels = packed_rows([utterances[i][1] for i in ids], corpus.context, corpus.phonemes.padding_label)
    assert partition.num_rows == len(truth)
    rounding = 2.0**-11 if corpus.dtype == np.float16 else 2.0**-22
    assert np.all(np.abs(partition.features - truth) <= rounding * np.maximum(np.abs(truth), 2.0**-14) * 1.001 + 1e-9)
    assert np.array_equal(partition.labels, labels)


def test_every_frame_lies_at_its_row(tiny_exact_corpus):
    number = 0
    for name, lengths in TINY_LENGTHS.items():
        partition = tiny_exact_corpus[name]
        assert partition.num_frames == sum(lengths)
        rows = np.zeros((partition.num_rows, TINY_DIM), np.float32)
        labels = np.full(partition.num_rows, 255, np.uint8)
        row = tiny_exact_corpus.context
        for u, frames in enumerate(lengths):
            assert partition.utterance_start_row[u] == row
            rows[row : row + frames] = place_features(number, frames, TINY_DIM)
            labels[row : row + frames] = place_label(number, frames)
            row += frames + tiny_exact_corpus.context
            number += 1
        assert np.array_equal(partition.features, rows)
        if partition.labelled:
            assert np.array_equal(partition.labels, labels)
        else:
            assert partition.labels is None


def test_attributes_describe_what_is_stored(learnable_corpus):
    train = learnable_corpus["train-clean"]
    spoken = train.labels[train.labels != 255]
    frames = np.asarray(train.features, np.float64)[train.labels != 255]
    assert np.array_equal(train.label_histogram, np.bincount(spoken, minlength=40))
    assert np.allclose(train.mean, frames.mean(axis=0), atol=1e-4)
    assert np.allclose(train.std, frames.std(axis=0), atol=1e-4)
    assert train.lengths["max"] == np.diff(train.utterance_end, prepend=0).max()
    assert learnable_corpus["test-clean"].label_histogram is None
    assert train.speakers[0] == "t0"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    lengths=st.lists(st.one_of(st.integers(1, 60), st.integers(1, 5000)), min_size=1, max_size=6),
    dim=st.integers(1, 80),
    size=st.sampled_from([2, 4, 4, 8]),
    swapped=st.booleans(),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    texts=st.sampled_from(["marked", "bare", "bytes", "integers", "marked integers"]),
    cmvn=st.sampled_from(["utterance", "utterance", "speaker", "train", "none"]),
    dtype=st.sampled_from(["float16", "float32"]),
    context=st.integers(0, 60),
    workers=st.integers(1, 3),
)
def test_any_corpus_is_packed_frame_for_frame(
    tmp_path_factory, seed, lengths, dim, size, swapped, fortran, version, texts, cmvn, dtype, context, workers
):
    """Speakers are every third utterance; the truth of each kind of normalisation is taken over all their frames."""
    root = tmp_path_factory.mktemp("any")
    stored = np.dtype(f"f{size}").newbyteorder(">" if swapped else "<")
    drawn = random_utterances(seed, lengths, dim, stored)
    utterances = {f"{n % 3}-0-{n:04d}": one for n, one in enumerate(drawn.values())}
    write_hw1p2(root / "raw", "train", utterances)
    for i, (features, classes) in utterances.items():
        with open(root / f"raw/train/mfcc/{i}.npy", "wb") as file:
            np.lib.format.write_array(file, features.copy(order="F" if fortran else "C"), version=version)
        bare = np.char.strip(SYMBOLS[classes], "[]")
        text = {
            "marked": np.concatenate([["[SOS]"], SYMBOLS[classes], ["[EOS]"]]),
            "bare": np.concatenate([["<sos>"], bare, ["<eos>"]]),
            "bytes": bare.astype("S"),
            "integers": classes.astype("i2"),
            "marked integers": np.concatenate([[40], classes, [41]]),
        }
        np.save(root / f"raw/train/transcript/{i}.npy", text[texts])
    train = {"train_partition": "train"} if cmvn == "train" else {}
    pack(root / "raw", root / "packed", cmvn=cmvn, dtype=dtype, context=context, workers=workers, **train)
    groups = {"utterance": lambda i, j: i == j, "speaker": lambda i, j: i[0] == j[0], "train": lambda i, j: True}

    def truth(features):
        own = next(i for i, (f, _) in utterances.items() if f is features)
        if cmvn == "none":
            return features
        return cmvn_truth(features, np.concatenate([f for j, (f, _) in utterances.items() if groups[cmvn](own, j)]))

    assert_packed(PackedCorpus(root / "packed"), "train", utterances, truth)


def test_chunk_borders_inside_utterances_lose_nothing(tmp_path):
    """Three inner chunks; one utterance longer than a chunk, others cut by its borders."""
    utterances = random_utterances(1, (40_000, 30_000, 70_000, 1, 900), 2)
    write_hw1p2(tmp_path / "raw", "train", utterances)
    pack(tmp_path / "raw", tmp_path / "packed", workers=2)
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus["train"].num_rows > 2 * CHUNK_ROWS
    assert_packed(corpus, "train", utterances)
    assert corpus.verify() > 0


def test_bytes_do_not_depend_on_workers_or_place(tmp_path):
    write_hw1p2(tmp_path / "raw", "train", random_utterances(2, [4000] * 40, 3))
    write_hw1p2(tmp_path / "raw", "dev", random_utterances(3, [70], 3))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw").rename(tmp_path / "elsewhere/raw2")
    trees = []
    for workers in (1, 2, 5):
        pack(tmp_path / "elsewhere/raw2", tmp_path / f"packed{workers}", workers=workers)
        trees.append(tree_bytes(tmp_path / f"packed{workers}"))
    assert trees[0] == trees[1] == trees[2]
    assert not any(str(tmp_path).encode() in data for data in trees[0].values())


def test_speaker_statistics_are_those_of_all_its_utterances(tmp_path):
    utterances = random_utterances(4, (30, 50, 20, 90), 3)
    renamed = {f"{'ab'[n % 2]}-{n}-0": u for n, u in enumerate(utterances.values())}
    write_hw1p2(tmp_path / "raw", "train", renamed)
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="speaker", dtype="float32")
    groups = {s: np.concatenate([f for i, (f, _) in renamed.items() if i[0] == s]) for s in "ab"}
    found = {id(f): groups[i[0]] for i, (f, _) in renamed.items()}
    assert_packed(PackedCorpus(tmp_path / "packed"), "train", renamed, lambda f: cmvn_truth(f, found[id(f)]))


def test_train_statistics_come_from_the_training_partition_only(tmp_path):
    train, dev = random_utterances(5, (30, 50), 3), random_utterances(6, (40,), 3)
    write_hw1p2(tmp_path / "raw", "train", train)
    write_hw1p2(tmp_path / "raw", "dev", dev)
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="train", train_partition="train", dtype="float32")
    corpus = PackedCorpus(tmp_path / "packed")
    group = np.concatenate([f for f, _ in train.values()])
    assert_packed(corpus, "dev", dev, lambda f: cmvn_truth(f, group))
    assert np.allclose(corpus.cmvn["mean"], group.mean(axis=0, dtype=np.float64))
    assert np.allclose(corpus.cmvn["std"], group.std(axis=0, dtype=np.float64))


def test_constant_coefficients_and_single_frames_stay_finite(tmp_path):
    constant = np.full((300, 4), 0.1, np.float32)
    constant[:, 1] = np.arange(300)
    constant[:, 2] = 1e30
    constant[:, 3] = 0
    constant[7, 3] = 1e-44  # a deviation whose inverse is no number
    write_hw1p2(
        tmp_path / "raw",
        "train",
        {"a": (constant, np.zeros(300, int)), "b": (np.full((1, 4), 7e8, np.float32), np.ones(1, int))},
    )
    pack(tmp_path / "raw", tmp_path / "packed")
    rows = np.asarray(PackedCorpus(tmp_path / "packed")["train"].features, np.float64)
    assert np.all(np.isfinite(rows))
    assert np.all(rows[:, [0, 2, 3]] == 0)


def test_integer_transcripts_with_and_without_marks(tmp_path):
    utterances = random_utterances(7, (20, 30), 2)
    write_hw1p2(tmp_path / "raw", "train", utterances)
    for n, (i, (_, classes)) in enumerate(utterances.items()):
        marked = np.concatenate([[40], classes, [41]]) if n else classes
        np.save(tmp_path / f"raw/train/transcript/{i}.npy", marked)
    pack(tmp_path / "raw", tmp_path / "packed")
    assert_packed(PackedCorpus(tmp_path / "packed"), "train", utterances)


def test_any_inventory_is_packed_in_its_order(tmp_path):
    symbols = [f"senone_{i}" for i in range(300)]
    write_hw1p2(tmp_path / "raw", "train", {"a": (np.ones((300, 2), np.float32), np.zeros(300, int))})
    np.save(tmp_path / "raw/train/transcript/a.npy", np.array(symbols[::-1]))
    (tmp_path / "raw/phonemes.txt").write_text("\n".join(symbols) + "\n")
    pack(tmp_path / "raw", tmp_path / "packed", context=3)
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.phonemes.symbols == tuple(symbols)
    assert corpus["train"].labels.dtype == np.uint16
    assert corpus["train"].labels.tolist() == [65535] * 3 + list(range(299, -1, -1)) + [65535] * 3


def test_given_test_order_is_kept(tmp_path):
    utterances = {i: (np.ones((n + 3, 2), np.float32), None) for n, i in enumerate(("a", "b", "c"))}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    (tmp_path / "raw/test/test_order.csv").write_text("file\nc.npy\na.npy\nb.npy\n")
    pack(tmp_path / "raw", tmp_path / "packed")
    partition = PackedCorpus(tmp_path / "packed")["test"]
    assert partition.utterance_ids == ["c", "a", "b"]
    assert np.diff(partition.utterance_end, prepend=0).tolist() == [5, 3, 4]
    assert partition.attributes["order"] == "test_order.csv"


@pytest.mark.parametrize("place", ["raw/test", "raw", "."])
@pytest.mark.parametrize(
    "text", ["\ufefffile\nc.npy\na.npy\nb.npy\n", "file,id\nc.npy,0\na.npy,1\nb.npy,2\n", "c\na\nb\n"]
)
def test_test_order_is_taken_from_wherever_courses_put_it(tmp_path, place, text):
    utterances = {i: (np.ones((n + 3, 2), np.float32), None) for n, i in enumerate(("a", "b", "c"))}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    write_hw1p2(tmp_path / "raw", "train", {"d": (np.ones((4, 2), np.float32), np.zeros(4, int))})
    (tmp_path / place / "test_order.csv").write_text(text, encoding="utf-8")
    report = pack(tmp_path / "raw", tmp_path / "packed")
    partition = PackedCorpus(tmp_path / "packed")["test"]
    assert partition.utterance_ids == ["c", "a", "b"]
    assert np.diff(partition.utterance_end, prepend=0).tolist() == [5, 3, 4]
    assert any("test is in the order of" in note for note in report.notes)


def test_an_id_that_is_not_there_is_no_header(tmp_path):
    """A list without a header whose first utterance was lost: the line was dropped, and the list taken as complete."""
    utterances = {i: (np.ones((3, 2), np.float32), None) for i in ("a", "b")}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    (tmp_path / "raw/test/test_order.csv").write_text("lost\nb\na\n")
    with pytest.raises(RawDataError, match="the list lists 'lost', and mfcc/ holds the contrary"):
        pack(tmp_path / "raw", tmp_path / "packed")
    (tmp_path / "raw/test/test_order.csv").write_text("Utterance_ID\nb\na\n")
    pack(tmp_path / "raw", tmp_path / "packed")
    assert PackedCorpus(tmp_path / "packed")["test"].utterance_ids == ["b", "a"]


def test_test_order_that_fits_nothing_is_refused_inside_the_raw_folder_only(tmp_path):
    utterances = {i: (np.ones((3, 2), np.float32), None) for i in ("a", "b", "c")}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    wrong = "file\nc.npy\na.npy\n"
    (tmp_path / "test_order.csv").write_text(wrong)
    pack(tmp_path / "raw", tmp_path / "packed")
    assert PackedCorpus(tmp_path / "packed")["test"].utterance_ids == ["a", "b", "c"]
    for place, message in (("raw", "nearest: test, the list does not list 'b'"), ("raw/test", "does not list 'b'")):
        (tmp_path / place / "test_order.csv").write_text(wrong)
        with pytest.raises(RawDataError, match=message):
            pack(tmp_path / "raw", tmp_path / "other")
        (tmp_path / place / "test_order.csv").unlink()


def test_files_that_are_no_utterances_are_passed_over(tmp_path):
    utterances = random_utterances(8, (20,), 2)
    write_hw1p2(tmp_path / "raw", "train", utterances)
    for name in ("._0-0-0000.npy", ".DS_Store", "notes.txt"):
        (tmp_path / "raw/train/mfcc" / name).write_bytes(b"x")
    pack(tmp_path / "raw", tmp_path / "packed")
    assert_packed(PackedCorpus(tmp_path / "packed"), "train", utterances)


def test_front_end_travels_into_the_attributes(tmp_path):
    write_hw1p2(tmp_path / "raw", "train", random_utterances(9, (20,), 2))
    (tmp_path / "raw/frontend.toml").write_text("sample_rate = 16000\nlibrary = 'kaldi-native-fbank'\n")
    pack(tmp_path / "raw", tmp_path / "packed")
    found = PackedCorpus(tmp_path / "packed").attributes["frontend"]
    assert found == {"sample_rate": 16000, "library": "kaldi-native-fbank"}


def test_lying_sizes_cost_a_pass_and_no_frame(tmp_path):
    """Lengths are guessed from file sizes; float64 files among float32 ones make the guess wrong by half."""
    utterances = random_utterances(10, (20, 30, 40), 2)
    utterances["1-0-0001"] = utterances["1-0-0001"][0].astype(np.float64), utterances["1-0-0001"][1]
    write_hw1p2(tmp_path / "raw", "train", utterances)
    pack(tmp_path / "raw", tmp_path / "packed")
    assert_packed(PackedCorpus(tmp_path / "packed"), "train", utterances)


def test_progress_ends_at_its_total(tmp_path):
    write_hw1p2(tmp_path / "raw", "train", random_utterances(11, (20, 30), 2))
    seen = []
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="speaker", progress=lambda *event: seen.append(event))
    assert seen[-1] == ("packing", 50, 50)
    assert ("measuring", 2, 2, "utterances") in seen


@pytest.mark.skipif(sys.platform == "win32", reason="no resource")
@pytest.mark.parametrize("cmvn", ["utterance", "speaker"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, cmvn):
    """115 MB of features more take none of it: packing keeps what a worker needs, and a few numbers an utterance."""
    one = {"0-0-0": (np.random.default_rng(0).normal(size=(9000, 16)).astype(np.float32), np.zeros(9000, int))}
    for name, count in (("small", 24), ("large", 224)):
        write_hw1p2(tmp_path / name, "train", one)
        for kind in ("mfcc", "transcript"):
            for u in range(1, count):
                os.link(tmp_path / f"{name}/train/{kind}/0-0-0.npy", tmp_path / f"{name}/train/{kind}/{u}-0-0.npy")
    code = (
        "import resource, sys, phonedata\n"
        "def peak(name):\n"
        f"    phonedata.pack(name, f'packed-{{name}}', cmvn={cmvn!r}, workers=2)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        "print(peak('small'), peak('large'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    small, large = map(int, done.stdout.split())
    assert large - small < 30e6


def test_report_counts_and_serialises(tmp_path, tiny_raw):
    report = pack(tiny_raw, tmp_path / "packed")
    assert report.num_frames == sum(map(sum, TINY_LENGTHS.values()))
    assert report.to_dict()["partitions"][1]["utterances"] == len(TINY_LENGTHS["test-clean"])
    assert "layout hw1p2" in str(report) and repr(report) == str(report)
    assert report.digest == PackedCorpus(tmp_path / "packed").digest


@pytest.mark.skipif(not REAL_RAW.is_dir(), reason="the real corpus is not beside the project")
def test_real_corpus_is_packed_frame_for_frame(tmp_path):
    """Its development partition, whole: 480 utterances against the truth."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dev-clean").symlink_to(REAL_RAW / "dev-clean", target_is_directory=True)
    pack(tmp_path / "raw", tmp_path / "packed")
    utterances = {}
    for file in sorted((REAL_RAW / "dev-clean/mfcc").iterdir()):
        text = np.load(REAL_RAW / "dev-clean/transcript" / file.name)[1:-1]
        utterances[file.stem] = np.load(file), np.array([ARPABET.index(str(s)) for s in text])
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus["dev-clean"].num_frames == 142_468
    assert_packed(corpus, "dev-clean", utterances)


def test_reading_a_pipe_never_waits(tmp_path):
    """A FIFO among the files is refused; opening it would wait for a writer for ever."""
    write_hw1p2(tmp_path / "raw", "train", random_utterances(12, (20,), 2))
    os.mkfifo(tmp_path / "raw/train/mfcc/pipe.npy")
    with pytest.raises(RawDataError, match=r"pipe\.npy: is not a file"):
        pack(tmp_path / "raw", tmp_path / "packed")


def test_frame_shift_comes_from_the_front_end(tiny_raw, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw, raw)
    (raw / "frontend.toml").write_text('frame_shift_ms = 12.5\nlibrary = "ours"\n')
    pack(raw, tmp_path / "packed", context=3)
    assert PackedCorpus(tmp_path / "packed").frame_shift_ms == 12.5
    (raw / "frontend.toml").write_text('frame_shift_ms = "ten"\n')
    with pytest.raises(RawDataError, match="frame_shift_ms"):
        pack(raw, tmp_path / "other", context=3)
