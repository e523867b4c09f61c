"""Packing works through the raw protocol alone: layouts without length hints cost a pass, not a frame."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from phonedata import PackedCorpus, RawDataError, SpecError, pack
from phonedata.packing.checks import LARGEST_DIM, find_feature_dim
from phonedata.packing.chunk_writer import copy_for_worker
from phonedata.packing.plan import PartitionPlan
from phonedata.raw.open import open_raw
from tests.conftest import place_features, place_label, tree_bytes, write_hw1p2


@pytest.fixture
def raw(tmp_path):
    utterances = {f"1-{u}-0": (place_features(u, 20 + 9 * u, 3), place_label(u, 20 + 9 * u)) for u in range(5)}
    write_hw1p2(tmp_path / "raw", "train", utterances)
    return tmp_path / "raw"


@pytest.mark.parametrize("options", [{}, {"cmvn": "speaker"}, {"cmvn": "train", "train_partition": "train"}])
@pytest.mark.parametrize("hint", ["none", "wrong"])
def test_lengths_need_no_hint(raw, tmp_path, monkeypatch, options, hint):
    pack(raw, tmp_path / "hinted", **options)

    def open_without_hints(*given):
        corpus = open_raw(*given)
        for p in corpus.partitions:
            p.lengths_hint = None if hint == "none" else [t * 3 + 1 for t in p.lengths_hint]
        return replace(corpus, notes=())

    monkeypatch.setattr("phonedata.packing.pack.open_raw", open_without_hints)
    pack(raw, tmp_path / "packed", **options)
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "hinted")


def test_systems_without_readv_pack_the_same_bytes(raw, tmp_path, monkeypatch):
    pack(raw, tmp_path / "usual")
    monkeypatch.delattr(os, "readv", raising=False)
    monkeypatch.setattr("phonedata.files.exchange", lambda a, b: False)
    pack(raw, tmp_path / "packed", workers=3)
    pack(raw, tmp_path / "packed", workers=3, replace=True)
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "usual")


def test_ids_in_two_partitions_are_noted(raw, tmp_path):
    write_hw1p2(raw, "dev", {"1-2-0": (place_features(9, 12, 3), place_label(9, 12))})
    assert "1 utterance ids are in both dev and train, e.g. 1-2-0" in str(pack(raw, tmp_path / "packed"))


def test_workers_share_lists_and_nothing_else(raw):
    for u in range(150):
        write_hw1p2(raw, "train", {f"2-{u:04d}-0": (place_features(u, 3, 3), place_label(u, 3))})
    partition = open_raw(raw).partitions[0]
    partition.read(0)
    copy = copy_for_worker(partition)
    assert copy.utterance_ids is partition.utterance_ids
    mine, _ = partition.read(3)
    before = mine.copy()
    theirs, _ = copy.read(100)
    assert not np.shares_memory(mine, theirs)
    assert np.array_equal(mine, before)


def test_one_odd_file_does_not_rule_the_others(raw):
    file = sorted((raw / "train/mfcc").iterdir())[0]
    np.save(file, np.ones((20, 7), np.float32))
    dim, where = find_feature_dim(open_raw(raw))
    assert dim == 3 and where.endswith("1-1-0.npy")


def test_absurd_dimensions_are_refused(raw, tmp_path):
    for file in (raw / "train/mfcc").iterdir():
        np.save(file, np.ones((20, LARGEST_DIM + 1), np.float32))
    with pytest.raises(RawDataError, match="4097 coefficients a frame, wanted 1 to 4096"):
        pack(raw, tmp_path / "packed")


def rewrite(file, change):
    """Write an .npy file again: same size, other values, a later time."""
    np.save(file, change(np.load(file)))
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("options", [{"cmvn": "speaker"}, {"cmvn": "train", "train_partition": "train"}])
def test_features_that_were_written_after_they_were_measured_are_refused(raw, tmp_path, options):
    """Names and sizes are the same; it shows where the features are read anyway."""
    file = sorted((raw / "train/mfcc").iterdir())[1]

    def change(stage, done, total, unit="frames"):
        if stage == "packing" and done == 0:
            rewrite(file, lambda values: np.concatenate([values[:-1], values[-1:] * 1.5]))

    with pytest.raises(RawDataError, match="has other values than when statistics were taken; pack again") as refused:
        pack(raw, tmp_path / "packed", progress=change, **options)
    assert str(refused.value).startswith(f"{file}: ") and [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_training_partitions_are_one_group_however_they_are_named(raw, tmp_path):
    write_hw1p2(raw, "dev", {"2-0-0": (place_features(7, 30, 3), place_label(7, 30))})
    for name, given in (("one", "train + dev"), ("other", "dev+train")):
        pack(raw, tmp_path / name, cmvn="train", train_partition=given)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "other")
    cmvn = PackedCorpus(tmp_path / "one").cmvn
    values = [np.load(f).astype(np.float64) for name in ("dev", "train") for f in (raw / name / "mfcc").iterdir()]
    rows = np.concatenate(values)
    assert cmvn["partition"] == "dev + train" and cmvn["frames"] == len(rows)
    np.testing.assert_allclose(cmvn["mean"], rows.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(cmvn["std"], rows.std(axis=0), rtol=1e-9)
    with pytest.raises(SpecError, match="'test2' is not there"):
        pack(raw, tmp_path / "third", cmvn="train", train_partition="train + test2")


@pytest.mark.parametrize("options", [{}, {"cmvn": "speaker"}, {"cmvn": "train", "train_partition": "dev"}])
def test_a_partition_without_a_good_utterance_is_refused_and_a_speaker_without_one_is_not(raw, tmp_path, options):
    write_hw1p2(raw, "train", {"x-0-0": (np.full((20, 3), np.nan, np.float32), np.zeros(20, int))})
    write_hw1p2(raw, "dev", {"2-0-0": (place_features(7, 30, 3), place_label(7, 30))})
    report = pack(raw, tmp_path / "packed", skip_bad=True, **options)
    assert [one.utterance for one in report.left_out] == ["x-0-0"]
    (raw / "dev/mfcc/2-0-0.npy").write_bytes(b"spoiled")
    with pytest.raises(RawDataError, match="partition dev has no utterance left to pack; first: dev/mfcc/2-0-0"):
        pack(raw, tmp_path / "packed", skip_bad=True, replace=True, **options)
    assert PackedCorpus(tmp_path / "packed")["dev"].num_utterances == 1


@pytest.mark.parametrize("cmvn", ["utterance", "speaker"])
def test_an_utterance_that_cannot_be_packed_keeps_its_place_in_a_partition_without_labels(tmp_path, cmvn):
    utterances = {f"{u}-{u}-0": (place_features(u, 20 + u, 3), place_label(u, 20 + u)) for u in range(6)}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    file = tmp_path / "raw/test/mfcc/2-2-0.npy"
    file.write_bytes(file.read_bytes()[:-1])
    shutil.copy(tmp_path / "raw/test/mfcc/1-1-0.npy", tmp_path / "raw/test/mfcc/1-1-0 (1).npy")
    report = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True, cmvn=cmvn)
    assert [(one.utterance, one.frames) for one in report.left_out] == [("1-1-0 (1)", 0), ("2-2-0", 22)]
    partition = PackedCorpus(tmp_path / "packed")["test"]
    partition.corpus.verify()
    assert partition.utterance_ids == list(utterances)
    start = int(partition.utterance_start_row[2])
    assert not np.any(partition.features[start : start + 22]) and np.any(partition.features[start - 51])


def test_the_tasks_of_960_hours_hold_no_arrays_of_their_own():
    """Each once kept the lengths of the whole corpus alive: 12 GB at 960 h."""
    lengths = np.full(272_000, 1270)
    plan = PartitionPlan("train", 50, lengths, np.arange(len(lengths)), "float16")
    tracemalloc.start()
    tasks = [plan.task(chunk) for chunk in range(plan.chunks)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tasks) > 5000 and peak < 20e6
    assert sum(task.own_frames for task in tasks) == lengths.sum()


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_memory_stays_flat(tmp_path):
    """680 MB of raw files (hard links to one) through four workers: under 500 MB, and no more than a tenth of it."""
    features, classes = np.random.default_rng(0).normal(size=(1270, 28)).astype("f4"), np.arange(1270) % 40
    peaks = []
    for count in (40, 4000):
        root = tmp_path / str(count)
        write_hw1p2(root / "raw", "train", {"0-0-0": (features, classes)})
        for u in range(1, count):
            for folder in ("mfcc", "transcript"):
                os.link(root / f"raw/train/{folder}/0-0-0.npy", root / f"raw/train/{folder}/{u}-0-0.npy")
        code = (
            "import sys, phonedata; phonedata.pack(sys.argv[1] + '/raw', sys.argv[1] + '/packed', workers=4);"
            # Not getrusage: its peak is inherited from the process of the tests.
            "status = open('/proc/self/status').read().split(); print(int(status[status.index('VmHWM:') + 1]) / 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        shutil.rmtree(root)
    print(peaks)
    assert peaks[1] < 500 and peaks[1] - peaks[0] < 68
