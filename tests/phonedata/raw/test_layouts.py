"""libriphone and Kaldi: every frame and label as written, and a hostile file ends in one line of our own."""

import gc
import gzip
import os
import pickle
import random
import shutil
import struct
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from phonedata import PackedCorpus, RawDataError, pack
from phonedata.errors import MissingReader, PhonedataError
from phonedata.raw.libriphone import load_tensor
from phonedata.raw.open import open_raw
from tests.conftest import place_features, place_label

torch = pytest.importorskip("torch")
kaldiio = pytest.importorskip("kaldiio", reason="the extra [kaldi] is not installed")
LENGTHS = {"a-1-0": 31, "b-1-0": 1, "c-2-0": 57, "c-2-1": 5}
DIM = 7


def utterances(lengths=LENGTHS):
    """id -> (features (T, D), classes (T,)) whose values name their place."""
    return {u: (place_features(n, t, DIM), place_label(n, t)) for n, (u, t) in enumerate(lengths.items())}


def write_libriphone(root, told, test=()):
    """Write the layout; `test` names the ids of the test split, in that order."""
    for kind in ("train", "test"):
        (root / "feat" / kind).mkdir(parents=True)
    train = [u for u in told if u not in test]
    for u, (features, _) in told.items():
        torch.save(torch.from_numpy(features.copy()), root / "feat" / ("test" if u in test else "train") / f"{u}.pt")
    (root / "train_split.txt").write_text("".join(f"{u}\n" for u in reversed(train)))
    if test:
        (root / "test_split.txt").write_text("".join(f"{u}\n" for u in test))
    (root / "train_labels.txt").write_text("".join(f"{u} {' '.join(map(str, told[u][1]))}\n" for u in train))


def write_kaldi(folder, told, compression=None, alignment="ali.txt"):
    """Write a data directory with one ark, text alignments and utt2spk."""
    folder.mkdir(parents=True)
    ark = folder / "feats.ark"
    arrays = {u: features for u, (features, _) in told.items()}
    with np.errstate(all="ignore"):  # kaldiio divides by the range of constant columns
        kaldiio.save_ark(str(ark), arrays, scp=str(folder / "feats.scp"), compression_method=compression)
    text = (folder / "feats.scp").read_text().replace(str(ark), "mfcc/feats.ark")  # as if Kaldi had run elsewhere
    (folder / "feats.scp").write_text(text)
    (folder / alignment).write_text("".join(f"{u} {' '.join(map(str, labels))}\n" for u, (_, labels) in told.items()))
    (folder / "utt2spk").write_text("".join(f"{u} spk-{u[0]}\n" for u in told))


def read_all(raw):
    return {p.name: {u: p.read(i) for i, u in enumerate(p.utterance_ids)} for p in raw.partitions}


def test_libriphone_gives_every_frame_and_label_as_written(tmp_path):
    told = utterances()
    write_libriphone(tmp_path, told, test=("c-2-1", "c-2-0"))
    raw = open_raw(tmp_path)
    got = read_all(raw)
    assert raw.layout == "libriphone" and raw.phonemes.symbols == tuple(map(str, range(41)))
    assert list(got["train"]) == ["a-1-0", "b-1-0"] and list(got["test"]) == ["c-2-1", "c-2-0"]
    for u, (features, labels) in {**got["train"], **got["test"]}.items():
        np.testing.assert_array_equal(features, told[u][0])
        if u in got["train"]:
            np.testing.assert_array_equal(labels, told[u][1])
        else:
            assert labels is None
    assert [p.order for p in raw.partitions] == ["test_split.txt", "sorted"]


def test_libriphone_dev_split_is_read_from_the_training_folder(tmp_path):
    told = utterances()
    write_libriphone(tmp_path, told, test=("c-2-1",))
    (tmp_path / "train_split.txt").write_text("a-1-0\nb-1-0\n")
    (tmp_path / "dev_split.txt").write_text("c-2-0\n")
    got = read_all(open_raw(tmp_path))
    np.testing.assert_array_equal(got["dev"]["c-2-0"][1], told["c-2-0"][1])
    (tmp_path / "dev_split.txt").write_text("b-1-0\n")
    with pytest.raises(RawDataError, match="b-1-0 is in the split lists of train and dev"):
        open_raw(tmp_path)


@pytest.mark.parametrize("compression", [None, 2, 3, 5])
def test_kaldi_gives_every_frame_and_label_as_written(tmp_path, compression):
    told = utterances()
    write_kaldi(tmp_path / "train", told, compression)
    write_kaldi(tmp_path / "dev", told, compression)
    raw = open_raw(tmp_path)
    got = read_all(raw)
    assert raw.layout == "kaldi" and list(got) == ["dev", "train"]
    span = max(np.ptp(features) for features, _ in told.values())
    for u, (features, labels) in got["train"].items():
        # 8 bits over each matrix's range, or over the percentiles of a column: 1/64 of it at the worst.
        np.testing.assert_allclose(features, told[u][0], rtol=0, atol=0 if not compression else span / 64)
        np.testing.assert_array_equal(labels, told[u][1])
    assert raw.partitions[0].speakers == ["spk-a", "spk-b", "spk-c", "spk-c"]


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    """Editors on Windows write one; lists with it were read already."""
    told = utterances()
    write_libriphone(tmp_path / "l", told)
    write_kaldi(tmp_path / "k/train", told)
    for file in (tmp_path / "l/train_labels.txt", tmp_path / "k/train/ali.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    for root in ("l", "k"):
        got = read_all(open_raw(tmp_path / root))["train"]
        for u, (_, labels) in told.items():
            np.testing.assert_array_equal(got[u][1], labels)


def test_libriphone_names_the_table_that_it_reads(tmp_path):
    write_libriphone(tmp_path, utterances({"a": 3, "b": 2}))
    (tmp_path / "train_labels.txt").write_text("a 1 2 41\nb 1 XX\n")
    (partition,) = open_raw(tmp_path).partitions
    for index, wanted in ((0, "outside 0..40; list all symbols in phonemes.txt"), (1, "a phonemes.txt that lists it")):
        with pytest.raises(RawDataError, match=wanted):
            partition.read(index)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("full", [True, False], ids=["full", "gone"])
def test_a_temporary_folder_that_is_full_or_gone_is_named(tmp_path, monkeypatch, full):
    """It was the alignment file that one was told to check."""
    write_kaldi(tmp_path / "raw/train", utterances())
    text = tmp_path / "raw/train/ali.txt"
    text.with_name("ali.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
    text.unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if full else tmp_path / "nowhere"))
    if full:
        mkstemp = tempfile.mkstemp

        def make_full(**options):
            descriptor, path = mkstemp(**options)
            os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
            return descriptor, path

        monkeypatch.setattr(tempfile, "mkstemp", make_full)
    with pytest.raises(RawDataError, match=r"ali.txt.gz: cannot be unpacked into .* \(No s.*; free .* TMPDIR"):
        open_raw(tmp_path / "raw")
    assert not list(tmp_path.glob("phonedata-*"))


def test_kaldi_alignments_of_another_name_are_noted(tmp_path):
    write_kaldi(tmp_path / "train", utterances(), alignment="train_ali.txt")
    (tmp_path / "train/text").write_text("a-1-0 realism\n")
    raw = open_raw(tmp_path)
    assert not raw.partitions[0].labelled
    assert [note for note in raw.notes if "train_ali.txt is not read; alignments are ali*.txt" in note]
    assert [note for note in raw.notes if note.startswith("train has no labels")]


def test_kaldi_folders_that_keep_their_arks_in_mfcc_are_kaldi_folders(tmp_path):
    told = utterances()
    write_kaldi(tmp_path / "train", told)
    (tmp_path / "train/mfcc").mkdir()
    (tmp_path / "train/feats.ark").rename(tmp_path / "train/mfcc/feats.ark")
    raw = open_raw(tmp_path)
    assert raw.layout == "kaldi"
    np.testing.assert_array_equal(read_all(raw)["train"]["c-2-0"][0], told["c-2-0"][0])


def test_a_kaldi_recipe_is_read_from_its_own_folder_or_named(tmp_path):
    """s5/ has its data directories in data/, its arks in mfcc/, and paths in its scp files begin at s5/."""
    told = utterances()
    write_kaldi(tmp_path / "s5/data/train", told)
    (tmp_path / "s5/mfcc").mkdir()
    (tmp_path / "s5/data/train/feats.ark").rename(tmp_path / "s5/mfcc/feats.ark")
    raw = open_raw(tmp_path / "s5")
    assert raw.layout == "kaldi"
    np.testing.assert_array_equal(read_all(raw)["train"]["c-2-0"][0], told["c-2-0"][0])
    with pytest.raises(RawDataError, match=rf"not inside .*; did you mean {tmp_path}/s5\?"):
        open_raw(tmp_path / "s5/data")


def test_libriphone_features_that_no_list_names_are_noted(tmp_path):
    write_libriphone(tmp_path, utterances({"a": 3, "b": 4}), test=["b"])
    (tmp_path / "feat/train/a (1).pt").write_bytes(b"")
    (note,) = [note for note in open_raw(tmp_path).notes if "feat" in note]
    assert note == f"{tmp_path}/feat/train: 1 files are not read, as no split list names them, e.g. a (1).pt"


def test_threads_leave_the_warning_filters_as_they_were(tmp_path, monkeypatch):
    """One thread's "ignore" was what the other put back at its end, and stayed for the session."""
    write_libriphone(tmp_path, utterances({"a": 3, "b": 4}))
    first_loads, second_has_begun, loading = threading.Event(), threading.Event(), torch.load

    def load(path, **options):
        first_loads.set()
        if "a.pt" in path:
            second_has_begun.wait(0.5)  # the second one is now inside too, if it can be
        else:
            second_has_begun.set()
            time.sleep(0.1)
        return loading(path, **options)

    monkeypatch.setattr(torch, "load", load)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(load_tensor, str(tmp_path / "feat/train/a.pt"))
        first_loads.wait(5)
        b = pool.submit(load_tensor, str(tmp_path / "feat/train/b.pt"))
        assert len(a.result()) == 3 and len(b.result()) == 4
    assert warnings.filters == before


def test_kaldi_pdf_ids_by_the_thousand_become_uint16_labels(tmp_path):
    told = {u: (features, labels * 150 + 3) for u, (features, labels) in utterances().items()}
    write_kaldi(tmp_path / "raw/train", told, alignment="pdf.txt")
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="none", dtype="float32")
    corpus = PackedCorpus(tmp_path / "packed")
    train = corpus["train"]
    assert (
        train.labels.dtype == np.uint16 and len(corpus.phonemes) == max(labels.max() for _, labels in told.values()) + 1
    )
    for u, start in zip(train.utterance_ids, train.utterance_start_row):
        features, labels = told[u]
        np.testing.assert_array_equal(train.features[start : start + len(labels)], features)
        np.testing.assert_array_equal(train.labels[start : start + len(labels)], labels)


def test_kaldi_phones_table_names_the_classes_and_symbols_may_stand_for_them(tmp_path):
    told = utterances({"a": 3, "b": 2})
    write_kaldi(tmp_path / "train", told)
    (tmp_path / "phones.txt").write_text("<eps> 0\nSIL 1\nAA 2\n#0 3\n#1 4\n")
    (tmp_path / "train/ali.txt").write_text("a 1 2 1\nb SIL AA\n")
    raw = open_raw(tmp_path)
    assert raw.phonemes.symbols == ("<eps>", "SIL", "AA")
    got = read_all(raw)["train"]
    assert got["a"][1].tolist() == [1, 2, 1] and got["b"][1].tolist() == [1, 2]
    (tmp_path / "train/ali.txt").write_text("a 1 2 3\nb SIL XX\n")
    partition = open_raw(tmp_path).partitions[0]
    for index, wanted in ((0, "label 3 is outside 0..2"), (1, "'XX' is neither")):
        with pytest.raises(RawDataError, match=wanted):
            partition.read(index)


@pytest.mark.parametrize("names", [["ali.txt.gz"], ["ali.1.gz", "ali.2.gz"], ["ali.1.txt", "ali.2.txt.gz"]])
def test_gzipped_alignments_are_read_like_plain_ones(tmp_path, monkeypatch, names):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = utterances()
    write_kaldi(tmp_path / "raw/train", told)
    lines = (tmp_path / "raw/train/ali.txt").read_bytes().splitlines(keepends=True)
    (tmp_path / "raw/train/ali.txt").unlink()
    for n, name in enumerate(names):
        text = b"".join(lines[n :: len(names)])
        (tmp_path / "raw/train" / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    raw = open_raw(tmp_path / "raw")
    got = read_all(raw)["train"]
    copy = pickle.loads(pickle.dumps(raw.partitions[0]))
    for n, u in enumerate(copy.utterance_ids):
        np.testing.assert_array_equal(got[u][1], told[u][1])
        np.testing.assert_array_equal(copy.read(n)[1], told[u][1])
    assert list(tmp_path.glob("phonedata-*"))
    del raw, copy
    gc.collect()
    assert not list(tmp_path.glob("phonedata-*"))  # what was unpacked goes with who needed it


HOSTILE_GZIP = {
    "cut": (lambda text: gzip.compress(text)[:-9], "damaged or cut"),
    "flipped": (lambda text: bytes(b ^ (255 * (n == 20)) for n, b in enumerate(gzip.compress(text))), "damaged or cut"),
    "no gzip": (lambda text: text, "damaged or cut"),
    "wrong sum": (lambda text: gzip.compress(text)[:-8] + b"12345678", "damaged or cut"),
    "bomb of lines": (lambda text: gzip.compress(b"\n" * (100 << 20)), "unpacks to more than 200 times"),
    "one long line": (lambda text: gzip.compress(b"a " + b"1 " * (34 << 20)), "unpacks to more|longer than 64 MB"),
    "binary ark": (lambda text: gzip.compress(b"a \0B\4\3\0\0\0" + bytes(15)), "binary archive.*ali-to-phones"),
}


@pytest.mark.parametrize("case", HOSTILE_GZIP)
def test_hostile_gzip_files_end_in_our_own_error(tmp_path, monkeypatch, case):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, wanted = HOSTILE_GZIP[case]
    write_kaldi(tmp_path / "raw/train", utterances({"a": 3}))
    text = (tmp_path / "raw/train/ali.txt").read_bytes()
    (tmp_path / "raw/train/ali.txt").unlink()
    (tmp_path / "raw/train/ali.txt.gz").write_bytes(make(text))
    with pytest.raises(RawDataError, match=wanted) as caught:
        open_raw(tmp_path / "raw")
    assert "\n" not in str(caught.value) and "ali.txt.gz" in str(caught.value)
    del caught
    gc.collect()
    assert not list(tmp_path.glob("phonedata-*"))


@pytest.mark.parametrize(
    "entry, wanted",
    [
        ("touch RAN |", "command"),
        ("| touch RAN", "command"),
        ("cat feats.ark |:0", "command"),
        ("/etc/passwd:0", "not inside"),
        ("../../secret.ark:0", "not inside"),
        ("feats.ark", "wanted file.ark:offset"),
        ("feats.ark:0[0:2]", "range"),
        ("feats.ark:-3", "wanted file.ark:offset"),
    ],
)
def test_scp_entries_never_run_commands_nor_leave_the_folder(tmp_path, monkeypatch, entry, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path.parent / "secret.ark").write_bytes(b"\0BFM ")
    write_kaldi(tmp_path / "raw/train", utterances({"a": 3}))
    (tmp_path / "raw/train/feats.scp").write_text(f"a {entry}\n")
    with pytest.raises(RawDataError, match=wanted):
        open_raw(tmp_path / "raw")
    assert not list(tmp_path.rglob("RAN"))


def test_a_copied_folder_has_the_same_stamp_and_a_rewritten_file_another_time(tmp_path):
    write_kaldi(tmp_path / "kaldi/train", utterances())
    write_libriphone(tmp_path / "libriphone", utterances())
    for layout, file in (("kaldi", "train/feats.ark"), ("libriphone", "feat/train/a-1-0.pt")):
        shutil.copytree(tmp_path / layout, tmp_path / "copy" / layout, copy_function=shutil.copyfile)
        mine, copy = (open_raw(place / layout).partitions[0] for place in (tmp_path, tmp_path / "copy"))
        assert mine.stamp == copy.stamp
        os.utime(tmp_path / layout / file, ns=(0, 0))
        assert open_raw(tmp_path / layout).partitions[0].written != mine.written


@pytest.mark.parametrize("name", ["raw", "."])
def test_reasons_name_paths_from_the_raw_folder_on(tmp_path, monkeypatch, name):
    """The corpus is the same wherever it was packed, so no path in it may say where."""
    told = utterances()
    told["c-2-0"][0][3, 1] = np.nan
    monkeypatch.chdir(tmp_path)
    write_kaldi(tmp_path / "raw/my-raw", told)
    monkeypatch.chdir(tmp_path / "raw" if name == "." else tmp_path)
    pack(name, tmp_path / "packed", skip_bad=True)
    (left,) = PackedCorpus(tmp_path / "packed").attributes["left_out"]
    assert left["reason"].startswith("my-raw/feats.ark:") and str(tmp_path) not in left["reason"]


def test_lists_with_hostile_ids_are_refused(tmp_path):
    write_libriphone(tmp_path / "l", utterances({"a": 3}))
    write_kaldi(tmp_path / "k/train", utterances({"a": 3}))
    for bad in ("../a", "/etc/passwd", "a\x07", "a" * 300):
        (tmp_path / "l/train_split.txt").write_text(f"{bad}\n")
        (tmp_path / "k/train/feats.scp").write_text(f"{bad} feats.ark:2\n")
        for root in ("l", "k"):
            with pytest.raises(RawDataError):
                open_raw(tmp_path / root)


def test_missing_partners_are_named(tmp_path):
    told = utterances()
    write_libriphone(tmp_path / "l", told)
    (tmp_path / "l/feat/train/a-1-0.pt").unlink()
    labels = (tmp_path / "l/train_labels.txt").read_text().splitlines()
    (tmp_path / "l/train_labels.txt").write_text("\n".join(labels[:-1]) + "\n")
    write_kaldi(tmp_path / "k/train", told)
    (tmp_path / "k/train/ali.txt").write_text("a-1-0 1\nzz 1 2\n")
    problems = {p.utterance_id for p in open_raw(tmp_path / "l").partitions[-1].problems}
    assert problems == {"a-1-0", labels[-1].split()[0]}
    (kaldi,) = open_raw(tmp_path / "k").partitions
    assert {p.utterance_id for p in kaldi.problems} == {"b-1-0", "c-2-0", "c-2-1", "zz"}
    with pytest.raises(RawDataError, match="1 labels, but .* has 31 frames; both must count the same frames"):
        kaldi.read(0)


def test_alignments_by_phone_and_length_are_refused_by_the_option_that_made_them(tmp_path):
    write_kaldi(tmp_path / "train", utterances())
    (tmp_path / "train/ali.txt").write_text("a-1-0 1 3 ; 2 5 ; 1 4\n")
    with pytest.raises(RawDataError, match="a phone and how many frames it lasts, .*without --write-lengths"):
        open_raw(tmp_path)


def test_the_folder_above_is_named_where_an_ark_lies_there(tmp_path):
    """Arks of a recipe lie in s5/mfcc, and its scps name them by the machine on which it ran."""
    write_kaldi(tmp_path / "s5/data/train", utterances())
    (tmp_path / "s5/data/train/feats.ark").rename(tmp_path / "s5/raw_train.ark")
    (tmp_path / "s5/mfcc").mkdir()
    (tmp_path / "s5/raw_train.ark").rename(tmp_path / "s5/mfcc/raw_train.ark")
    scp = tmp_path / "s5/data/train/feats.scp"
    lines = [line.split(":") for line in scp.read_text().splitlines()]
    scp.write_text("".join(f"{line[0].split()[0]} /home/me/s5/mfcc/raw_train.ark:{line[-1]}\n" for line in lines))
    assert open_raw(tmp_path / "s5").partitions[0].name == "train"
    with pytest.raises(RawDataError, match=rf"which is not inside .*; did you mean {tmp_path}/s5\?"):
        open_raw(tmp_path / "s5/data")


def test_lists_of_symbols_may_be_utf_16(tmp_path):
    """Windows' Notepad calls it Unicode."""
    write_libriphone(tmp_path, utterances())
    symbols = [f"p\u02b0{n}" for n in range(41)]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "phonemes.txt").write_text("\n".join(symbols) + "\n", encoding=encoding)
        assert open_raw(tmp_path).phonemes.symbols == tuple(symbols)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, ("RAN", "w"))

    write_libriphone(tmp_path / "l", utterances({"a": 3, "b": 4}))
    torch.save(Evil(), tmp_path / "l/feat/train/a.pt")
    (tmp_path / "l/feat/train/b.pt").write_bytes(pickle.dumps(Evil()))
    write_kaldi(tmp_path / "k/train", utterances({"a": 3}))
    (tmp_path / "k/train/feats.ark").write_bytes(b"PKL" + pickle.dumps(Evil()))
    (tmp_path / "k/train/feats.scp").write_text("a feats.ark:0\n")
    for partition in (*open_raw(tmp_path / "l").partitions, *open_raw(tmp_path / "k").partitions):
        for index in range(len(partition.utterance_ids)):
            with pytest.raises(RawDataError):
                partition.read(index)
    assert not list(tmp_path.rglob("RAN"))


def test_tensors_of_the_wrong_kind_are_refused(tmp_path):
    write_libriphone(tmp_path, utterances({"a": 3}))
    (partition,) = (p for p in open_raw(tmp_path).partitions if p.name == "train")
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    for wrong in (
        huge,
        torch.zeros(3),
        torch.zeros(3, 7, dtype=torch.int64),
        {"x": torch.zeros(3, 7)},
        [1],
        torch.eye(3).to_sparse(),
    ):
        torch.save(wrong, tmp_path / "feat/train/a.pt")
        with pytest.raises(RawDataError):
            partition.read(0)


def test_ark_headers_that_lie_are_refused(tmp_path):
    write_kaldi(tmp_path / "train", utterances({"a": 3}))
    ark = tmp_path / "train/feats.ark"
    (tmp_path / "train/feats.scp").write_text("a feats.ark:0\n")
    (partition,) = open_raw(tmp_path).partitions
    huge = (1 << 31) - 1
    for rows, columns in ((huge, huge), (-1, 5), (3, 0), (3, -7), (1000, 1)):
        for entry in (
            b"\0BFM \4" + struct.pack("<i", rows) + b"\4" + struct.pack("<i", columns),
            b"\0BCM " + struct.pack("<ffii", 0, 1, rows, columns),
            b"\0BCM2 " + struct.pack("<ffii", 0, 1, rows, columns),
        ):
            ark.write_bytes(entry + bytes(100))
            with pytest.raises(RawDataError):
                partition.read(0)
            partition = pickle.loads(pickle.dumps(partition))  # a fresh handle on the new file


def test_an_ark_of_the_same_name_is_not_taken_for_a_missing_one(tmp_path):
    """Two arks of other folders led to the one of their name in the raw folder: features of one under ids of both."""
    write_kaldi(tmp_path / "dev", utterances({"d-1-0": 31, "d-1-1": 4}))
    write_kaldi(tmp_path / "train", utterances({"t-1-0": 31, "t-1-1": 4}))
    (tmp_path / "train/feats.ark").unlink()
    (tmp_path / "dev/feats.ark").rename(tmp_path / "feats.ark")
    dev, train = open_raw(tmp_path).partitions  # both scp files say mfcc/feats.ark
    np.testing.assert_array_equal(dev.read(0)[0], place_features(0, 31, DIM))
    for index, key in ((0, "d-1-0"), (1, "d-1-1")):
        with pytest.raises(RawDataError, match=f"is t-1-{index} in feats.scp, but the ark has '{key}' there"):
            train.read(index)
    scp = tmp_path / "train/feats.scp"
    scp.write_text(scp.read_text().replace("mfcc/feats.ark", "/cluster/train/feats.ark"))
    with pytest.raises(RawDataError, match="names '/cluster/train/feats.ark', but only .* is 'mfcc/feats.ark' else"):
        open_raw(tmp_path)
    scp.write_text(scp.read_text().replace("/cluster/train/feats.ark", "/cluster/exp/mfcc/feats.ark"))
    assert open_raw(tmp_path).partitions  # one ark, seen from two folders


@pytest.mark.parametrize("compression", [None, 2, 3, 5])
def test_ids_that_copy_data_dir_has_changed_are_those_of_the_ark(tmp_path, compression):
    """A prefix before the key or a suffix behind it; not so much as a letter may be part of another name."""
    told = utterances({"a-1": 31, "ab-1": 9, "b-1": 5})
    write_kaldi(tmp_path / "train", told, compression)
    scp, plain = tmp_path / "train/feats.scp", (tmp_path / "train/feats.scp").read_text()
    (tmp_path / "train/ali.txt").unlink()
    truth = [features for _, (features, _) in sorted(read_all(open_raw(tmp_path))["train"].items())]
    for pattern in ("sp0.9-{}", "{}-rev", "x_{}_y"):
        scp.write_text(
            "".join(
                pattern.format(*line.split(" ", 1)) + " " + line.split(" ", 1)[1] + "\n" for line in plain.splitlines()
            )
        )
        partition = open_raw(tmp_path).partitions[0]
        for index, features in enumerate(truth):
            np.testing.assert_array_equal(partition.read(index)[0], features)
    for utterance in ("xa-1", "a-12", "b-2"):
        scp.write_text(plain.replace("a-1 ", f"{utterance} ", 1))
        partition = open_raw(tmp_path).partitions[0]
        with pytest.raises(RawDataError, match="but the ark has 'a-1' there"):
            partition.read(partition.utterance_ids.index(utterance))
    place = plain.splitlines()[1].rsplit(":", 1)
    scp.write_text(f"{place[0]}:{int(place[1]) + 1}\n")
    with pytest.raises(RawDataError):
        open_raw(tmp_path).partitions[0].read(0)


def test_an_ark_that_promises_more_than_any_memory_is_one_bad_utterance(tmp_path):
    write_kaldi(tmp_path / "raw/train", utterances({"a": 3, "b": 4}))
    ark = tmp_path / "raw/train/huge.ark"
    rows, columns = (1 << 31) - 1, 400
    for head in (
        b"c \0BFM \4" + struct.pack("<i", rows) + b"\4" + struct.pack("<i", columns),
        b"c \0BCM2 " + struct.pack("<ffii", 0, 1, rows, columns),
    ):
        ark.write_bytes(head)
        os.truncate(ark, 4 * rows * columns + 100)
        (tmp_path / "raw/train/feats.scp").write_text("a mfcc/feats.ark:2\nc huge.ark:2\n")
        (tmp_path / "raw/train/ali.txt").write_text("a 1 2 3\nc 1\n")
        with pytest.raises(RawDataError, match=f"a matrix of {rows} x 400 does not fit into memory"):
            pack(tmp_path / "raw", tmp_path / "packed", replace=True)
        report = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True, replace=True)
        assert [one.utterance for one in report.left_out] == ["c"]


def test_a_missing_kaldiio_names_the_extra(tmp_path, monkeypatch):
    write_kaldi(tmp_path / "train", utterances({"a": 9}), compression=2)
    (partition,) = open_raw(tmp_path).partitions
    monkeypatch.setitem(__import__("sys").modules, "kaldiio.matio", None)
    with pytest.raises(MissingReader, match=r"phonedata\[kaldi\]"):
        partition.read(0)


def damage(path, choice):
    """Flip bits of, cut or lengthen the file at `path`, as `choice` (random.Random) says."""
    data = bytearray(path.read_bytes())
    kind = choice.randrange(3)
    if kind == 0 and data:
        for _ in range(choice.randint(1, 8)):
            data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    elif kind == 1:
        del data[choice.randrange(len(data) + 1) :]
    else:
        at = choice.randrange(len(data) + 1)
        data[at:at] = choice.randbytes(choice.randint(1, 40))
    path.write_bytes(bytes(data))


def matrix_truth(where, utterance):
    """What the layout's own library finds in a .pt file, or at `ark:offset` behind the utterance's key."""
    if where.endswith(".pt"):
        return torch.load(where, map_location="cpu", weights_only=True).float().numpy()
    ark, _, offset = where.rpartition(":")
    with open(ark, "rb") as file:
        before = file.read(int(offset))
    assert not before or before.endswith(f"{utterance} ".encode()), f"{where} is not {utterance}"
    with np.errstate(all="ignore"):
        return kaldiio.load_mat(where)


def label_truth(root, utterance, classes):
    """The utterance's line in whichever label file has one, word by word."""
    for file in (*root.glob("*_labels.txt"), *root.glob("*/ali.txt*")):
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            words = line.split()
            if words[:1] == [utterance.encode()]:
                return [int(w) if w.isdigit() else classes[w.decode()] for w in words[1:]]
    raise AssertionError(f"{utterance} has no line")


def assert_packed_as_read(raw, packed):
    """Every utterance that `packed` has is bit for bit what `matrix_truth` and `label_truth` say; returns how many."""
    where = {(p.name, u): p.where(i) for p in raw.partitions for i, u in enumerate(p.utterance_ids)}
    count = 0
    for partition in PackedCorpus(packed).partitions.values():
        lengths = np.diff(partition.utterance_end, prepend=0)
        for u, start, length in zip(partition.utterance_ids, partition.utterance_start_row, lengths):
            rows, truth = partition.features[start : start + length], matrix_truth(where[partition.name, u], u)
            np.testing.assert_array_equal(rows, truth.astype(np.float32), err_msg=f"{packed}: {u}")
            if partition.labelled:
                labels = partition.labels[start : start + length].tolist()
                assert labels == label_truth(raw.path, u, raw.phonemes.classes), f"{packed}: {u}"
            count += 1
    return count


def fuzz(tmp_path, seeds):
    """Damaged files either raise our own error or give what is in them; returns how many utterances were packed."""
    packed, lengths = 0, {"aa": 9, "bb": 4, "cc": 6, "dd": 2}
    for seed in seeds:
        choice = random.Random(seed)
        root = tmp_path / str(seed)
        if choice.random() < 0.5:
            write_libriphone(root, utterances(lengths), test=("bb",))
        else:
            write_kaldi(root / "train", utterances(lengths), choice.choice([None, 2, 3, 5]))
            (root / "phones.txt").write_text("".join(f"p{i} {i}\n" for i in range(40)))
            if choice.random() < 0.5:
                text = root / "train/ali.txt"
                text.with_name("ali.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
                text.unlink()
        damage(choice.choice(sorted(f for f in root.rglob("*") if f.is_file())), choice)
        try:
            raw = open_raw(root)
            for partition in raw.partitions:
                for index in range(len(partition.utterance_ids)):
                    try:
                        features, labels = partition.read(index)
                    except PhonedataError as error:
                        assert "\n" not in str(error), seed
                        continue
                    assert features.ndim == 2 and features.dtype in (np.float32, np.float64), seed
                    assert labels is None or (
                        labels.shape == features.shape[:1] and labels.max(initial=0) < len(raw.phonemes)
                    ), seed
            pack(root, tmp_path / f"{seed}.packed", cmvn="none", dtype="float32", skip_bad=True, workers=1)
            packed += assert_packed_as_read(raw, tmp_path / f"{seed}.packed")
        except PhonedataError as error:
            assert "\n" not in str(error), seed
    return packed


def test_damaged_files_end_in_our_own_error_or_are_packed_as_they_are(tmp_path):
    assert fuzz(tmp_path, range(150)) > 150


@pytest.mark.long
def test_damaged_files_end_in_our_own_error_10_000_times(tmp_path):
    fuzz(tmp_path, range(1000, 11_000))


def test_a_loop_of_links_ends_in_our_own_error(tmp_path):
    write_libriphone(tmp_path / "l", utterances({"a": 3}))
    write_kaldi(tmp_path / "k/train", utterances({"a": 3}))
    for file in (tmp_path / "l/feat/train/a.pt", tmp_path / "k/train/feats.ark"):
        file.unlink()
        file.symlink_to(file.name)
    (libriphone,) = (p for p in open_raw(tmp_path / "l").partitions if p.name == "train")
    assert len(libriphone.problems) == 1 and not libriphone.utterance_ids
    with pytest.raises(RawDataError):
        open_raw(tmp_path / "k")
