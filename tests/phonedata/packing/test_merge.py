"""Parts of a job array become, byte for byte, the corpus of an undivided pack."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from phonedata import (
    ARPABET,
    CorpusExists,
    CorpusNotFound,
    FormatError,
    PackedCorpus,
    RawDataError,
    SpecError,
    merge,
    pack,
)
from phonedata.files import staging_path
from phonedata.packing.parts import part_path, part_range
from phonedata.raw.hw1p2 import Hw1p2Partition
from phonedata.raw.open import open_raw
from tests.conftest import place_features, place_label, write_hw1p2


def tree_bytes(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Speakers whose utterances fall into different parts; a partition smaller than the number of parts; two chunks."""
    root = tmp_path_factory.mktemp("parts") / "raw"
    random = np.random.default_rng(0)
    for name, count, frames in (("dev", 2, 30), ("test", 5, 40), ("train", 9, 8000)):
        utterances = {
            f"{'ab'[i % 2]}-{i}-{name}": (random.normal(size=(frames + i, 2)) + i, random.integers(0, 40, frames + i))
            for i in range(count)
        }
        write_hw1p2(root, name, utterances, labelled=name != "test")
    return root


OPTIONS = {
    "utterance": {},
    "none": {"cmvn": "none", "context": 0},
    "speaker": {"cmvn": "speaker"},
    "train": {"cmvn": "train", "train_partition": "train", "dtype": "float32"},
    "several": {"cmvn": "train", "train_partition": "train + dev"},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_merged_parts_have_the_bytes_of_an_undivided_pack(raw, tmp_path, kind):
    options = OPTIONS[kind]
    pack(raw, tmp_path / "whole", **options)
    if "cmvn" in options and kind != "none":
        for i in (3, 1, 2):
            pack(raw, tmp_path / "packed", part=(i, 3), stats_only=True, **options)
    for i in (2, 3, 1):
        pack(raw, tmp_path / "packed", part=(i, 3), **options)
    report = merge(tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")
    assert report.num_frames == sum(p.num_frames for p in PackedCorpus(tmp_path / "whole").partitions.values())


def test_training_partitions_are_one_group_however_they_are_named(raw, tmp_path):
    for name, given in (("one", "train + dev"), ("other", "dev+train")):
        pack(raw, tmp_path / name, cmvn="train", train_partition=given)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "other")
    said = PackedCorpus(tmp_path / "one").cmvn
    values = [np.load(f).astype(np.float64) for name in ("dev", "train") for f in (raw / name / "mfcc").iterdir()]
    rows = np.concatenate(values)
    assert said["partition"] == "dev + train" and said["frames"] == len(rows)
    np.testing.assert_allclose(said["mean"], rows.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(said["std"], rows.std(axis=0), rtol=1e-9)
    with pytest.raises(SpecError, match="'test2' is not there"):
        pack(raw, tmp_path / "third", cmvn="train", train_partition="train + test2")


def test_a_part_that_is_there_is_kept(raw, tmp_path):
    """A job array that is sent again does only what is missing."""
    first = pack(raw, tmp_path / "packed", part=(1, 2))
    before = (first.path / "zarr.json").stat()
    again = pack(raw, tmp_path / "packed", part=(1, 2))
    assert again.digest == first.digest and again.notes[0].startswith("kept: it was packed before")
    assert again.kept and not first.kept and "MB/s" in str(first) and "MB/s" not in str(again)
    assert again.to_dict()["partitions"] == first.to_dict()["partitions"]
    assert (first.path / "zarr.json").stat() == before
    left = staging_path(first.path) / "corpus/train"  # as a kill just after the exchange leaves it
    left.mkdir(parents=True)
    (left.parents[1] / "lock").touch()
    assert pack(raw, tmp_path / "packed", part=(1, 2)).notes[0].startswith("kept")
    assert [p.name for p in first.path.parent.iterdir()] == ["1-of-2"]
    with pytest.raises(CorpusExists, match="replace=True"):
        pack(raw, tmp_path / "packed", part=(1, 2), context=10)
    assert not pack(raw, tmp_path / "packed", part=(1, 2), replace=True).notes
    assert (first.path / "zarr.json").stat().st_ino != before.st_ino


def test_statistics_are_reported_and_name_the_command_that_follows(raw, tmp_path):
    options = {"cmvn": "train", "train_partition": "train", "context": 7, "skip_bad": True}
    command = f"phonedata pack {raw} {tmp_path / 'my packed'} --layout hw1p2 --cmvn train --train-partition train"
    command = command.replace(str(tmp_path / "my packed"), f"'{tmp_path / 'my packed'}'") + " --context 7 --skip-bad"
    with pytest.raises(SpecError) as refused:
        pack(raw, tmp_path / "my packed", part=(1, 2), **options)
    assert f"{command} --part 1/2 --stats-only" in str(refused.value)
    report = pack(raw, tmp_path / "my packed", part=(1, 2), stats_only=True, **options)
    assert report.path.is_file() and report.bytes_written == report.path.stat().st_size
    assert f"{command} --part 1/2" in report.notes[0]
    (row,) = report.to_dict()["partitions"]
    assert (row["name"], row["utterances"]) == ("train", 4) and row["frames"] == sum(8000 + i for i in (0, 2, 4, 6))


def test_merging_twice_changes_nothing(raw, tmp_path):
    for i in (1, 2):
        pack(raw, tmp_path / "packed", part=(i, 2))
    merge(tmp_path / "packed")
    before = (tmp_path / "packed/zarr.json").stat().st_mtime_ns
    assert "merged before" in str(merge(tmp_path / "packed"))
    assert (tmp_path / "packed/zarr.json").stat().st_mtime_ns == before
    merge(tmp_path / "packed", remove_parts=True)
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]
    assert "merged before" in str(merge(tmp_path / "packed", remove_parts=True))
    with pytest.raises(CorpusNotFound, match="no parts"):
        merge(tmp_path / "packed", replace=True)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc")
def test_parts_are_closed_before_they_are_removed(raw, tmp_path, monkeypatch):
    mapped = []

    def look(folder):
        mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line)
        return ()

    for i in (1, 2):
        pack(raw, tmp_path / "packed", part=(i, 2))
    monkeypatch.setattr("phonedata.packing.merge.remove_folder", look)
    merge(tmp_path / "packed", remove_parts=True)
    assert not mapped


def rewrite(file, change):
    """Write an .npy file again: same size, other values, a later time."""
    np.save(file, change(np.load(file)))
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))


def swap_labels(text):
    text[1:-1] = np.where(text[1:-1] == "AA", "AE", "AA")
    return text


def test_corrected_labels_of_the_same_size_reach_every_part(raw, tmp_path):
    """Half of a merged corpus had the old labels: a part sent again was kept, and merge saw no difference."""
    shutil.copytree(raw, tmp_path / "raw")
    labels = sorted((tmp_path / "raw/train/transcript").iterdir())[0]
    before = PackedCorpus(pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2)).path)["train"].label_histogram
    rewrite(labels, swap_labels)
    pack(tmp_path / "raw", tmp_path / "packed", part=(2, 2))
    with pytest.raises(FormatError, match="raw files were written between it and .*1-of-2; send all parts again"):
        merge(tmp_path / "packed")
    again = pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2))
    assert again.notes[0].startswith("packed again")
    assert not np.array_equal(PackedCorpus(again.path)["train"].label_histogram, before)
    assert pack(tmp_path / "raw", tmp_path / "packed", part=(2, 2)).notes[0].startswith("kept")
    merge(tmp_path / "packed")
    pack(tmp_path / "raw", tmp_path / "whole")
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["speaker", "train"])
def test_statistics_of_features_that_were_written_again_are_refused(raw, tmp_path, kind):
    """They are found out where the features are read anyway, though names and sizes are the same."""
    shutil.copytree(raw, tmp_path / "raw")
    options = OPTIONS[kind]
    for i in (1, 2):
        pack(tmp_path / "raw", tmp_path / "packed", part=(i, 2), stats_only=True, **options)
    pack(tmp_path / "raw", tmp_path / "packed", part=(2, 2), **options)
    features = sorted((tmp_path / "raw/train/mfcc").iterdir())[1]
    rewrite(features, lambda values: np.concatenate([values[:-1], values[-1:] * 1.5]))
    with pytest.raises(RawDataError) as refused:
        pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2), **options)
    assert str(refused.value).startswith(f"{features}: has other values than when statistics were taken; run: phone")
    assert str(refused.value).endswith("--part 1/2 --stats-only")
    pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2), stats_only=True, **options)
    pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2), **options)
    with pytest.raises(FormatError, match="other statistics|made from cmvn"):
        merge(tmp_path / "packed")
    assert pack(tmp_path / "raw", tmp_path / "packed", part=(2, 2), **options).notes[0].startswith("packed again")
    merge(tmp_path / "packed")
    pack(tmp_path / "raw", tmp_path / "whole", **options)
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")


@pytest.mark.parametrize("when", ["verifying", "merging"])
def test_a_part_that_is_packed_again_during_the_merge_is_noticed(raw, tmp_path, when):
    """Labels were mapped before and features after: a corpus of both, whose digests were right."""
    shutil.copytree(raw, tmp_path / "raw")
    for i in (1, 2):
        pack(tmp_path / "raw", tmp_path / "packed", part=(i, 2))
    changed = []

    def replace_a_part(stage, done, total, unit):
        if stage == when and not changed and (done == total or when == "merging"):
            changed.append(stage)
            for file in (tmp_path / "raw/train/transcript").iterdir():
                rewrite(file, swap_labels)
            for i in (1, 2):
                pack(tmp_path / "raw", tmp_path / "packed", part=(i, 2))

    with pytest.raises(FormatError, match="1-of-2: no longer holds the corpus that was opened; open it again"):
        merge(tmp_path / "packed", progress=replace_a_part)
    assert changed and not (tmp_path / "packed").exists()
    merge(tmp_path / "packed")
    pack(tmp_path / "raw", tmp_path / "whole")
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")


def test_a_partition_without_a_good_utterance_is_refused_in_parts_too(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    for file in (tmp_path / "raw/dev/mfcc").iterdir():
        file.write_bytes(b"spoiled")
    for i in (1, 2):
        pack(tmp_path / "raw", tmp_path / "packed", part=(i, 2), skip_bad=True)
    for work in (lambda: pack(tmp_path / "raw", tmp_path / "whole", skip_bad=True), lambda: merge(tmp_path / "packed")):
        with pytest.raises(RawDataError, match=r"partition dev has no utterance left to \w+; first: .*mfcc/a-0-dev"):
            work()
    assert not (tmp_path / "packed").exists()


def test_training_partitions_without_a_good_utterance_are_named(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    for file in (tmp_path / "raw/dev/mfcc").iterdir():
        file.write_bytes(b"spoiled")
    options = {"cmvn": "train", "train_partition": "dev", "skip_bad": True}
    for i in (1, 2):
        pack(tmp_path / "raw", tmp_path / "packed", part=(i, 2), stats_only=True, **options)
    with pytest.raises(RawDataError, match="training partition dev has no utterance left .* first: dev/mfcc/a-0-dev"):
        pack(tmp_path / "raw", tmp_path / "packed", part=(1, 2), **options)


def test_missing_parts_are_named_with_their_command(raw, tmp_path):
    with pytest.raises(CorpusNotFound, match="--part I/N"):
        merge(tmp_path / "packed")
    pack(raw, tmp_path / "packed", part=(1, 3))
    pack(raw, tmp_path / "packed", part=(3, 3))
    with pytest.raises(SpecError, match=r"1 of 3 parts are missing \(first: 2/3\)"):
        merge(tmp_path / "packed")
    pack(raw, tmp_path / "packed", part=(1, 2))
    with pytest.raises(SpecError, match=r"parts of \[2, 3\] are mixed"):
        merge(tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_statistics_come_before_parts_that_need_them(raw, tmp_path):
    pack(raw, tmp_path / "packed", cmvn="speaker", part=(1, 2), stats_only=True)
    with pytest.raises(SpecError, match=r"statistics of 1 of 2 parts are missing .* --part 2/2 --stats-only"):
        pack(raw, tmp_path / "packed", cmvn="speaker", part=(1, 2))


def test_parts_that_do_not_belong_together_are_refused(raw, tmp_path):
    pack(raw, tmp_path / "packed", part=(1, 2))
    pack(raw, tmp_path / "packed", part=(2, 2), dtype="float32")
    with pytest.raises(FormatError, match="made from dtype 'float32'"):
        merge(tmp_path / "packed")
    shutil.copytree(raw, tmp_path / "other")
    file = next((tmp_path / "other/train/mfcc").iterdir())
    np.save(file, np.load(file).astype("f4"))
    pack(tmp_path / "other", tmp_path / "packed", part=(2, 2), replace=True)
    with pytest.raises(FormatError, match="other raw files or options"):
        merge(tmp_path / "packed")
    pack(raw, tmp_path / "packed", part=(2, 2), replace=True, cmvn="none")
    with pytest.raises(FormatError, match="made from cmvn {'kind': 'none'"):
        merge(tmp_path / "packed")
    (tmp_path / "other/phonemes.txt").write_text("\n".join(reversed(ARPABET.symbols)))
    pack(tmp_path / "other", tmp_path / "packed", part=(2, 2), replace=True)
    with pytest.raises(FormatError, match="made from phonemes {'symbols': \\['ZH'"):
        merge(tmp_path / "packed")
    shutil.rmtree(part_path(tmp_path / "packed", (2, 2)))
    shutil.copytree(part_path(tmp_path / "packed", (1, 2)), part_path(tmp_path / "packed", (2, 2)))
    with pytest.raises(FormatError, match="is not part 2 of 2"):
        merge(tmp_path / "packed")


def test_parts_may_come_from_copies_of_the_raw_folder(raw, tmp_path):
    """Array tasks copy the raw folder to their node: other paths, other times, the same files."""
    shutil.copytree(raw, tmp_path / "copy", copy_function=shutil.copyfile)
    pack(raw, tmp_path / "packed", part=(1, 2))
    pack(tmp_path / "copy", tmp_path / "packed", part=(2, 2))
    pack(raw, tmp_path / "whole")
    assert merge(tmp_path / "packed").digest == PackedCorpus(tmp_path / "whole").digest


def test_damaged_part_is_refused_and_nothing_is_merged(raw, tmp_path):
    for i in (1, 2):
        pack(raw, tmp_path / "packed", part=(i, 2))
    with open(part_path(tmp_path / "packed", (2, 2)) / "train/labels/c/0", "r+b") as file:
        file.seek(1000)
        file.write(b"\0")
    with pytest.raises(FormatError, match="2-of-2/train/labels/c/0: rows from 0 on"):
        merge(tmp_path / "packed")
    assert [p.name for p in tmp_path.iterdir()] == ["packed.parts"]


def test_merge_replaces_another_corpus_only_on_demand(raw, tmp_path):
    pack(raw, tmp_path / "packed", context=2)
    for i in (1, 2):
        pack(raw, tmp_path / "packed", part=(i, 2))
    with pytest.raises(CorpusExists, match="replace=True"):
        merge(tmp_path / "packed")
    merge(tmp_path / "packed", replace=True)
    assert PackedCorpus(tmp_path / "packed").context == 50


def test_left_out_utterances_are_listed_once(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    files = sorted((tmp_path / "raw/train/mfcc").iterdir())
    files[0].write_bytes(b"spoiled")
    files[7].unlink()
    pack(tmp_path / "raw", tmp_path / "whole", skip_bad=True)
    for i in (1, 2, 3):
        pack(tmp_path / "raw", tmp_path / "packed", part=(i, 3), skip_bad=True)
    merge(tmp_path / "packed")
    assert len(PackedCorpus(tmp_path / "packed").attributes["left_out"]) == 2
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")


def test_a_speaker_without_a_good_utterance_stops_no_part(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    spoiled = {"x-0-0": (np.full((20, 2), np.nan, np.float32), np.zeros(20, int))}
    write_hw1p2(tmp_path / "raw", "train", spoiled)
    pack(tmp_path / "raw", tmp_path / "whole", cmvn="speaker", skip_bad=True)
    for stats_only in (True, False):
        for i in (1, 2):
            options = {"cmvn": "speaker", "skip_bad": True, "part": (i, 2), "stats_only": stats_only}
            pack(tmp_path / "raw", tmp_path / "packed", **options)
    merge(tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "whole")


def test_parts_read_each_file_once_after_their_statistics(raw, tmp_path, monkeypatch):
    """Layouts without length hints know the lengths from the statistics, and need no second measuring."""
    reads = []

    def open_without_hints(path, layout=None):
        corpus = open_raw(path, layout)
        for p in corpus.partitions:
            p.lengths_hint = None
        return corpus

    monkeypatch.setattr("phonedata.packing.pack.open_raw", open_without_hints)
    monkeypatch.setattr("phonedata.packing.pack.find_feature_dim", lambda corpus: (2, "a file"))
    read = Hw1p2Partition.read
    noted = lambda self, index: reads.append(self.where(index)) or read(self, index)  # noqa: E731
    monkeypatch.setattr(Hw1p2Partition, "read", noted)
    for i in range(1, 10):
        pack(raw, tmp_path / "packed", cmvn="speaker", part=(i, 9), stats_only=True)
    reads.clear()
    pack(raw, tmp_path / "packed", cmvn="speaker", part=(2, 9))
    assert len(reads) == len(set(reads)) > 0


def test_parts_cover_every_utterance_once():
    for count in (0, 1, 5, 100):
        for of in (1, 2, 3, 7, 150):
            assert [u for i in range(of) for u in part_range(count, (i + 1, of))] == list(range(count))
    assert part_range(5, None) == range(5)


@pytest.mark.parametrize("cmvn", ["utterance", "speaker"])
def test_an_utterance_that_cannot_be_packed_keeps_its_place_in_a_partition_without_labels(tmp_path, cmvn):
    utterances = {f"{u}-{u}-0": (place_features(u, 20 + u, 3), place_label(u, 20 + u)) for u in range(6)}
    write_hw1p2(tmp_path / "raw", "test", utterances, labelled=False)
    file = tmp_path / "raw/test/mfcc/2-2-0.npy"
    file.write_bytes(file.read_bytes()[:-1])
    shutil.copy(tmp_path / "raw/test/mfcc/1-1-0.npy", tmp_path / "raw/test/mfcc/1-1-0 (1).npy")
    report = pack(tmp_path / "raw", tmp_path / "whole", skip_bad=True, cmvn=cmvn)
    assert [(one.utterance, one.frames) for one in report.left_out] == [("1-1-0 (1)", 0), ("2-2-0", 22)]
    partition = PackedCorpus(tmp_path / "whole")["test"]
    partition.corpus.verify()
    assert partition.utterance_ids == list(utterances)
    start = int(partition.utterance_start_row[2])
    assert not np.any(partition.features[start : start + 22]) and np.any(partition.features[start - 51])
    options = {"skip_bad": True, "cmvn": cmvn}
    for stats_only in [True, False] if cmvn == "speaker" else [False]:
        for i in (1, 2):
            pack(tmp_path / "raw", tmp_path / "parts", part=(i, 2), stats_only=stats_only, **options)
    assert merge(tmp_path / "parts").digest == report.digest
