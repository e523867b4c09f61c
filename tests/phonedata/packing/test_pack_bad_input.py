"""Every kind of bad input is one clear line that names the file, and leaves nothing where the corpus should be."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from phonedata import (
    CorpusExists,
    CorpusNotFound,
    FormatError,
    PackedCorpus,
    PhonedataError,
    RawDataError,
    SpecError,
    pack,
)
from phonedata.raw.npy import NpyReader
from phonedata.raw.open import open_raw
from tests.conftest import place_features, place_label, write_hw1p2

BAD = "1-1-0001"


@pytest.fixture
def raw(tmp_path) -> Path:
    """Two partitions; the tests spoil utterance 1-1-0001 of train."""
    write_raw(tmp_path / "raw", range(4))
    return tmp_path / "raw"


def write_raw(root, numbers):
    utterances = {f"1-{u}-000{u}": (place_features(u, 20 + u, 3), place_label(u, 20 + u)) for u in numbers}
    write_hw1p2(root, "train", utterances)
    write_hw1p2(root, "test", {"9-0-0": (place_features(0, 9, 3), None)}, labelled=False)


@pytest.fixture(scope="module")
def without_the_bad_one(tmp_path_factory):
    """Digests of the partitions of a corpus that never had utterance 1-1-0001."""
    root = tmp_path_factory.mktemp("without")
    write_raw(root / "raw", (0, 2, 3))
    pack(root / "raw", root / "packed")
    return {name: p.digest for name, p in PackedCorpus(root / "packed").partitions.items()}


def mfcc(raw, utterance=BAD, partition="train"):
    return raw / partition / "mfcc" / f"{utterance}.npy"


def transcript(raw, utterance=BAD):
    return raw / "train/transcript" / f"{utterance}.npy"


def spoil_symbol(raw):
    text = np.load(transcript(raw))
    text[6] = "QQ"
    np.save(transcript(raw), text)


def spoil_values(raw, value, dtype=np.float32):
    features = np.load(mfcc(raw)).astype(dtype)
    features[4, 2] = value
    np.save(mfcc(raw), features)


def write_header(path, header: str, data=b""):
    text = header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)


# name -> (how to spoil, what the message says besides the file, which file it names)
SPOILED = {
    "missing transcript": (lambda r: transcript(r).unlink(), "no transcript", mfcc),
    "orphan transcript": (lambda r: mfcc(r).unlink(), "no features", transcript),
    "length mismatch": (
        lambda r: np.save(transcript(r), np.load(transcript(r))[1:-2]),
        "20 labels, but .* has 21 frames",
        transcript,
    ),
    "one mark only": (lambda r: np.save(transcript(r), np.load(transcript(r))[:-1]), "wanted both marks", transcript),
    "no frames": (
        lambda r: (np.save(mfcc(r), np.zeros((0, 3), np.float32)), np.save(transcript(r), np.array([], "<U5"))),
        "T = 0",
        mfcc,
    ),
    "other D": (lambda r: np.save(mfcc(r), np.zeros((21, 4), np.float32)), "4 coefficients a frame, wanted 3", mfcc),
    "one axis": (lambda r: np.save(mfcc(r), np.zeros(21, np.float32)), r"wanted \(T, D\) float32", mfcc),
    "integers": (lambda r: np.save(mfcc(r), np.zeros((21, 3), np.int16)), r"wanted \(T, D\) float32", mfcc),
    "nan": (lambda r: spoil_values(r, np.nan), "nan at frame 4, coefficient 2, wanted finite", mfcc),
    "inf": (lambda r: spoil_values(r, -np.inf), "-inf at frame 4, coefficient 2, wanted finite", mfcc),
    "beyond float64 sums": (lambda r: spoil_values(r, 1e308, np.float64), "too large", mfcc),
    "unknown symbol": (spoil_symbol, "unknown symbol 'QQ' at frame 5", transcript),
    "unknown class": (
        lambda r: np.save(transcript(r), np.full(21, 40)),
        r"class 40 at frame 0, wanted 0\.\.39",
        transcript,
    ),
    "truncated": (lambda r: os.truncate(mfcc(r), 300), "cut short", mfcc),
    "longer": (lambda r: mfcc(r).write_bytes(mfcc(r).read_bytes() + b"abc"), "too long", mfcc),
    "not npy": (lambda r: mfcc(r).write_bytes(b"RIFF....WAVE"), r"not an \.npy file", mfcc),
    "empty file": (lambda r: mfcc(r).write_bytes(b""), r"not an \.npy file", mfcc),
    "cut header": (lambda r: os.truncate(mfcc(r), 60), "header", mfcc),
    "bad header": (lambda r: write_header(mfcc(r), "{'descr': __import__('os')}"), "header", mfcc),
    "deep header": (lambda r: write_header(mfcc(r), "(" * 9000), "header", mfcc),
    "huge shape": (
        lambda r: write_header(mfcc(r), "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 28), }\n"),
        "cut short",
        mfcc,
    ),
    "size of terabytes": (lambda r: os.truncate(mfcc(r), 1 << 42), "too long: 4398046510976 bytes", mfcc),
    "transcript of terabytes": (lambda r: os.truncate(transcript(r), 1 << 42), "too long", transcript),
    "one number and megabytes": (lambda r: (np.save(mfcc(r), 1.5), os.truncate(mfcc(r), 1 << 25)), "too long", mfcc),
    "npy of records": (
        lambda r: np.save(mfcc(r), np.zeros(21, [("a", "f4"), ("b", "f4")])),
        "wanted numbers or text",
        mfcc,
    ),
    "pickled": (
        lambda r: np.save(mfcc(r), np.array([[1, "x"]], object), allow_pickle=True),
        "pickled Python objects, which are never loaded",
        mfcc,
    ),
    "plain pickle": (lambda r: mfcc(r).write_bytes(pickle.dumps([1.0])), r"not an \.npy file", mfcc),
    "folder": (lambda r: (mfcc(r).unlink(), mfcc(r).mkdir()), "is not a file", mfcc),
    "dangling link": (lambda r: (mfcc(r).unlink(), mfcc(r).symlink_to("nowhere")), "cannot be read", mfcc),
    "link in a circle": (lambda r: (mfcc(r).unlink(), mfcc(r).symlink_to(mfcc(r))), "cannot be read", mfcc),
    "endless device": (lambda r: (mfcc(r).unlink(), mfcc(r).symlink_to("/dev/zero")), "is not a file", mfcc),
    "duplicate id": (
        lambda r: (r / "train/mfcc" / f"{BAD}.NPY").write_bytes(mfcc(r).read_bytes()),
        f"{BAD} was seen already",
        lambda r: r / "train/mfcc" / BAD,
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_utterance_is_named_and_nothing_is_written(raw, tmp_path, name):
    spoil, message, file = SPOILED[name]
    spoil(raw)
    with pytest.raises(RawDataError, match=message) as caught:
        pack(raw, tmp_path / "packed")
    assert str(file(raw)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.mark.parametrize("name", SPOILED)
def test_skip_bad_packs_the_rest_and_lists_what_it_left_out(raw, tmp_path, name, without_the_bad_one):
    spoil, message, _ = SPOILED[name]
    spoil(raw)
    report = pack(raw, tmp_path / "packed", skip_bad=True)
    left_out = PackedCorpus(tmp_path / "packed").attributes["left_out"]
    assert [o.utterance for o in report.left_out] == [o["utterance"] for o in left_out] == [BAD]
    assert str(raw) not in left_out[0]["reason"]
    assert f"left out: train/{BAD}" in str(report)
    packed = PackedCorpus(tmp_path / "packed")
    assert {name: p.digest for name, p in packed.partitions.items()} == without_the_bad_one


def test_bad_utterance_leaves_a_good_corpus_untouched(raw, tmp_path):
    pack(raw, tmp_path / "packed")
    before = PackedCorpus(tmp_path / "packed").digest
    spoil_symbol(raw)
    with pytest.raises(RawDataError):
        pack(raw, tmp_path / "packed", replace=True)
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.digest == before
    corpus.verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "raw"]


def test_existing_corpus_is_replaced_only_on_demand(raw, tmp_path):
    pack(raw, tmp_path / "packed")
    with pytest.raises(CorpusExists, match="replace it with replace=True"):
        pack(raw, tmp_path / "packed")
    pack(raw, tmp_path / "packed", replace=True, context=7)
    assert PackedCorpus(tmp_path / "packed").context == 7


def test_foreign_folder_is_never_replaced(raw, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/thesis.tex").write_text("years of work")
    with pytest.raises(CorpusExists, match="never replaced"):
        pack(raw, tmp_path / "packed", replace=True)
    assert (tmp_path / "packed/thesis.tex").read_text() == "years of work"


def test_files_of_the_users_own_inside_a_corpus_are_not_replaced_with_it(raw, tmp_path):
    packed = tmp_path / "packed"
    pack(raw, packed)
    for name in ("notes.txt", "runs/one/best.pt", "train/mine.npy", "a", "b"):
        (packed / name).parent.mkdir(parents=True, exist_ok=True)
        (packed / name).write_text("mine")
    with pytest.raises(CorpusExists, match=r"packed: holds a, b, notes\.txt and 2 more besides.*move it first"):
        pack(raw, packed, replace=True)
    for name in ("a", "b", "notes.txt"):
        (packed / name).unlink()
    with pytest.raises(CorpusExists, match="holds runs, train/mine.npy besides"):
        pack(raw, packed, replace=True)
    assert (packed / "runs/one/best.pt").read_text() == "mine"
    shutil.rmtree(packed / "runs")
    (packed / "train/mine.npy").unlink()
    (packed / "train/zarr.json").write_text("damaged")
    pack(raw, packed, replace=True)
    PackedCorpus(packed).verify()


def test_empty_folder_is_a_fine_target(raw, tmp_path):
    (tmp_path / "packed").mkdir()
    pack(raw, tmp_path / "packed")
    PackedCorpus(tmp_path / "packed").verify()


def test_empty_partition_is_named(raw, tmp_path):
    (raw / "dev/mfcc").mkdir(parents=True)
    with pytest.raises(RawDataError, match=r"dev/mfcc: no \.npy files"):
        pack(raw, tmp_path / "packed")


def test_partition_with_nothing_good_is_refused_even_with_skip_bad(raw, tmp_path):
    for file in (raw / "train/mfcc").iterdir():
        file.write_bytes(b"spoiled")
    with pytest.raises(RawDataError, match="no utterance left|not an"):
        pack(raw, tmp_path / "packed", skip_bad=True)
    assert not (tmp_path / "packed").exists()


def test_a_partition_whose_labels_are_not_found_is_noted(raw, tmp_path):
    """A misspelt folder gave a training partition without labels, without a word; test partitions have none."""
    (raw / "train/transcript").rename(raw / "train/Transcipt")
    spare, bare = pack(raw, tmp_path / "packed").notes
    assert "its folders Transcipt are not read" in spare
    assert bare.startswith("train has no labels where its layout has them")


def test_people_are_shown_the_first_utterances_that_were_left_out_and_programs_all(tmp_path):
    told = {f"{n:03d}": (place_features(n, 9, 3), place_label(n, 9)) for n in range(60)}
    write_hw1p2(tmp_path / "raw", "train", told)
    for n in range(50):
        np.save(tmp_path / f"raw/train/transcript/{n:03d}.npy", np.arange(8))
    report = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True)
    assert str(report).count("left out: train/") == 20 and "left out: and 30 more" in str(report)
    assert len(report.to_dict()["left_out"]) == 50


def test_a_partition_that_a_sum_of_partitions_could_not_name_is_refused(raw, tmp_path):
    (raw / "train").rename(raw / "train+other")
    with pytest.raises(RawDataError, match=r"partition 'train\+other' cannot be named .* rename its folder"):
        pack(raw, tmp_path / "packed")


def test_missing_raw_folder_and_unknown_layout_are_explained(raw, tmp_path):
    with pytest.raises(CorpusNotFound, match="does not exist"):
        pack(tmp_path / "nothing", tmp_path / "packed")
    with pytest.raises(CorpusNotFound, match="looked for hw1p2: .*mfcc"):
        pack(raw / "train/mfcc", tmp_path / "packed")
    with pytest.raises(CorpusNotFound, match="did you mean"):
        pack(tmp_path, tmp_path / "packed")
    with pytest.raises(SpecError, match="layout 'hw1p3' is unknown"):
        pack(raw, tmp_path / "packed", layout="hw1p3")


def test_values_too_large_for_float16_name_the_way_out(raw, tmp_path):
    spoil_values(raw, 70_000.0)
    for utterance in (2, 3):
        mfcc(raw, f"1-{utterance}-000{utterance}").unlink()
        transcript(raw, f"1-{utterance}-000{utterance}").unlink()
    np.save(mfcc(raw), np.load(mfcc(raw)) % 70_001)
    with pytest.raises(RawDataError, match=r"1-1-0001.npy: a value of 70000 does not fit float16.*dtype='float32'"):
        pack(raw, tmp_path / "packed", cmvn="none")
    pack(raw, tmp_path / "packed", cmvn="none", dtype="float32")
    report = pack(raw, tmp_path / "packed", cmvn="none", skip_bad=True, replace=True)
    assert [one.utterance for one in report.left_out] == ["1-1-0001"]
    assert PackedCorpus(tmp_path / "packed")["train"].utterance_ids == ["1-0-0000"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cmvn": "global"}, "cmvn 'global' is unknown"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"context": -1}, "context -1"),
        ({"context": 12.5}, "context 12.5, wanted a whole number"),
        ({"context": True}, "context True, wanted a whole number"),
        ({"cmvn": "train"}, "train_partition='train'"),
        ({"cmvn": "train", "train_partition": "trian"}, "'trian' is not there"),
        ({"train_partition": "train"}, "add cmvn='train'"),
        ({"workers": -5}, "workers -5, wanted at least 1"),
        ({"workers": 0}, "workers 0"),
        ({"executor": "two"}, "executor str, wanted a concurrent.futures.Executor"),
        ({"executor": "two", "workers": 2}, "workers 2 and an executor"),
    ],
)
def test_impossible_options_are_refused(raw, tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        pack(raw, tmp_path / "packed", **options)


def test_a_file_that_really_promises_terabytes_does_not_end_in_a_traceback(raw, tmp_path):
    write_header(mfcc(raw), f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 38}, 3), }}")
    os.truncate(mfcc(raw), mfcc(raw).stat().st_size + (12 << 38))
    with pytest.raises(RawDataError, match="bytes do not fit into memory"):
        NpyReader().load(str(mfcc(raw)))
    with pytest.raises(PhonedataError, match="needs .* MB, but"):
        pack(raw, tmp_path / "packed", skip_bad=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(raw, tmp_path):
    mfcc(raw).chmod(0)
    with pytest.raises(RawDataError, match=r"1-1-0001.npy: cannot be read \(Permission denied\)"):
        pack(raw, tmp_path / "packed")


def test_missing_parent_of_the_target_is_named(raw, tmp_path):
    with pytest.raises(CorpusNotFound, match="does not exist; make it first"):
        pack(raw, tmp_path / "a/b/packed")


def test_another_format_version_is_refused_with_the_way_out(raw, tmp_path):
    pack(raw, tmp_path / "packed")
    file = tmp_path / "packed/zarr.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(FormatError, match=r"format version 3, .*--replace"):
        PackedCorpus(tmp_path / "packed")
    with pytest.raises(CorpusNotFound, match="phonedata pack RAW"):
        PackedCorpus(tmp_path / "nothing")


def run_cli(*arguments, cwd, **more):
    command = [sys.executable, "-m", "phonedata", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **more)


@pytest.mark.skipif(os.name == "nt", reason="no RLIMIT_FSIZE")
def test_full_disk_is_one_line_and_leaves_the_old_corpus(raw, tmp_path):
    import resource

    pack(raw, tmp_path / "packed")
    before = PackedCorpus(tmp_path / "packed").digest
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    done = run_cli("pack", "raw", "packed", "--replace", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    assert "disk full or size limit reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "raw"]
    assert PackedCorpus(tmp_path / "packed").digest == before


def test_no_room_is_seen_before_the_first_byte(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(PhonedataError, match="needs 0.1 MB, but 0.0 MB are free"):
        pack(raw, tmp_path / "packed")


def test_command_line_prints_one_line_for_our_errors_only(raw, tmp_path):
    spoil_symbol(raw)
    done = run_cli("pack", "raw", "packed", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("phonedata: raw/train/transcript/1-1-0001.npy: unknown symbol 'QQ'")
    assert done.stderr.count("\n") == 1


def test_front_end_is_checked_before_anything_is_written(raw, tmp_path):
    """JSON, in which it is carried, knows neither dates nor nan."""
    (raw / "frontend.toml").write_text("made = 2024-05-01\nat = 10:30:00\nnested = { when = [2024-05-01T10:30:00Z] }\n")
    pack(raw, tmp_path / "packed")
    found = PackedCorpus(tmp_path / "packed").attributes["frontend"]
    assert found == {"made": "2024-05-01", "at": "10:30:00", "nested": {"when": ["2024-05-01T10:30:00+00:00"]}}
    refused = (("low = nan\n", "low = nan, wanted a finite"), ("[mel]\nhigh = [1.0, -inf]\n", "mel.high = -inf"))
    for text, message in refused:
        (raw / "frontend.toml").write_text(text)
        with pytest.raises(RawDataError, match=message):
            pack(raw, tmp_path / "other")


def test_phonemes_are_one_word_a_line(raw, tmp_path):
    """Two columns doubled the classes without a word; Notepad's mark became part of the first symbol."""
    from phonedata import ARPABET

    text = "\ufeff" + "\r\n".join(ARPABET.symbols) + "\r\n\r\n"
    (raw / "phonemes.txt").write_text(text, encoding="utf-8", newline="")
    pack(raw, tmp_path / "packed")
    assert PackedCorpus(tmp_path / "packed").phonemes.symbols == ARPABET.symbols
    refused = [("AA\nB 1\n", "line 2 is 'B 1', wanted exactly one"), ("AA\n\nB\n", "line 2 is ''")]
    refused += [("[SOS]\nAA\n", r"line 1 is \[SOS\], which marks"), ("AA\n</s>\n", "line 2 is </s>, which marks")]
    for text, message in refused:
        (raw / "phonemes.txt").write_text(text)
        with pytest.raises(RawDataError, match=message):
            pack(raw, tmp_path / "other")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become another user")
def test_closed_folders_end_in_our_own_error(raw):
    """As another user, in a process of its own: a closed folder in the raw one is noted, a closed corpus named."""
    code = (
        "import os, sys\nimport phonedata.packing.packer, phonedata.progress, phonedata.raw.hw1p2\n"
        "import phonedata.packing.pack\n"
        "from phonedata.raw import audio, kaldi, libriphone\nfrom phonedata.cli import main\n"
        "os.seteuid(65534)\n"
        "for words in (['pack', 'raw', 'open/packed'], ['inspect', 'home/packed'], ['verify', 'home'],\n"
        "              ['pack', 'raw', 'home/new'], ['pack', 'home', 'open/x']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: print('code', end.code)\n"
    )
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(raw, place / "raw")
        for folder, mode in (("raw/closed", 0), ("home", 0), ("open", 0o777)):
            (place / folder).mkdir()
            (place / folder).chmod(mode)
        pack(raw, place / "home/packed")
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert "raw/closed cannot be looked into and is left out" in done.stdout
    assert done.stdout.count("code 1") == 4 and "Traceback" not in done.stderr, done
    assert done.stderr.count("phonedata: ") == 4


@pytest.mark.parametrize("copy", ["{} (1)", "{} copy", "{} copy 2", "{} - Copy", "{} - Copy (3)"])
@pytest.mark.parametrize("partition", ["train", "test"])
def test_second_copy_of_a_file_is_never_an_utterance(raw, tmp_path, copy, partition):
    utterance = BAD if partition == "train" else "9-0-0"
    for folder in (raw / partition).iterdir():
        shutil.copy(folder / f"{utterance}.npy", folder / f"{copy.format(utterance)}.npy")
    with pytest.raises(RawDataError, match=rf"is a second copy of {utterance}\.npy"):
        pack(raw, tmp_path / "packed")
    report = pack(raw, tmp_path / "packed", skip_bad=True)
    assert {left_out.utterance for left_out in report.left_out} == {copy.format(utterance)}
    assert len(PackedCorpus(tmp_path / "packed")[partition].utterance_ids) == (4 if partition == "train" else 1)


def test_a_name_like_a_copy_without_its_original_is_an_utterance(tmp_path):
    write_hw1p2(tmp_path / "raw", "train", {"take copy": (place_features(0, 20, 3), place_label(0, 20))})
    pack(tmp_path / "raw", tmp_path / "packed")
    assert PackedCorpus(tmp_path / "packed")["train"].utterance_ids == ["take copy"]


def test_files_in_folders_below_the_features_are_named(raw, tmp_path):
    for kind in ("mfcc", "transcript"):
        (raw / "train" / kind / "1/1").mkdir(parents=True)
        (raw / "train" / kind / f"{BAD}.npy").rename(raw / "train" / kind / f"1/1/{BAD}.npy")
    with pytest.raises(
        RawDataError, match=r"mfcc/1: 1 \.npy files are in this folder, but only files directly in mfcc/"
    ):
        pack(raw, tmp_path / "packed")


def test_cmvn_by_speaker_is_refused_where_no_speaker_is_known(raw, tmp_path):
    write_hw1p2(raw, "dev", {f"p225_{u}": (place_features(u, 20, 3), place_label(u, 20)) for u in range(2)})
    with pytest.raises(SpecError, match=r"no utterance of dev has a known speaker \(first: 'p225_0'\)"):
        pack(raw, tmp_path / "packed", cmvn="speaker")


def test_what_file_managers_leave_in_a_corpus_does_not_forbid_to_replace_it(raw, tmp_path):
    pack(raw, tmp_path / "packed")
    (tmp_path / "packed/.DS_Store").write_bytes(b"\0")
    (tmp_path / "packed/train/._features").write_bytes(b"\0")
    pack(raw, tmp_path / "packed", replace=True)
    assert not (tmp_path / "packed/.DS_Store").exists()


@pytest.mark.parametrize("file", ["train/mfcc/1-1-0.npy", "train/feats.scp", "train_split.txt"])
@pytest.mark.parametrize(("corpus", "given"), [("s5/data", "."), ("raw", "."), (".", "a/b"), (".", "a")])
def test_the_folder_that_is_meant_is_named_for_every_layout(tmp_path, file, corpus, given):
    path = tmp_path / "top" / corpus / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (path.parent / "feat").mkdir()
    (tmp_path / "top" / given).mkdir(parents=True, exist_ok=True)
    with pytest.raises(CorpusNotFound, match=rf"did you mean {tmp_path}/top"):
        pack(tmp_path / "top" / given, tmp_path / "packed")


def test_what_is_found_and_not_used_is_named(raw, tmp_path):
    (raw / "dev/transcript").mkdir(parents=True)
    (raw / "train/mfcc/more.npz").write_bytes(b"")
    (raw / "__MACOSX/mfcc").mkdir(parents=True)
    notes = open_raw(raw).notes
    assert [note.removeprefix(f"{raw}/") for note in notes] == [
        "train/mfcc: 1 files are not read, as they are no .npy, e.g. more.npz",
        "dev is no partition and is left out: it holds transcript, and no folder mfcc",
    ]


@pytest.mark.parametrize("marks", [[], [61, 62]])
def test_numbers_beyond_the_course_need_no_phonemes_txt(tmp_path, marks):
    for u, labels in enumerate(([0, 31, 60], [3, 59, 2])):
        write_hw1p2(tmp_path / "raw", "train", {f"{u}-0-0": (place_features(u, 3, 3), place_label(u, 3))})
        marked = [*marks[:1], *labels, *marks[1:]]
        np.save(tmp_path / f"raw/train/transcript/{u}-0-0.npy", np.array(marked))
    report = pack(tmp_path / "raw", tmp_path / "packed")
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.phonemes.symbols == tuple(map(str, range(61))) and "61 classes are the numbers 0..60" in str(report)
    start = int(corpus["train"].utterance_start_row[1])
    np.testing.assert_array_equal(corpus["train"].labels[start : start + 3], [3, 59, 2])
    np.save(tmp_path / "raw/train/transcript/0-0-0.npy", np.array([0, 5, 39]))
    np.save(tmp_path / "raw/train/transcript/1-0-0.npy", np.array([40, 3, 1, 2, 41]))
    report = pack(tmp_path / "raw", tmp_path / "packed", replace=True)
    assert "taken as those of the course's 40 phonemes" in str(report)


def write_numbers(raw, *transcripts, frames=None):
    for u, labels in enumerate(transcripts):
        features = place_features(u, frames or len(labels), 3)
        write_hw1p2(raw, "train", {f"{u}-0-0": (features, np.zeros(len(features), int))})
        np.save(raw / f"train/transcript/{u}-0-0.npy", np.array(labels))


def test_classes_says_how_many_numbers_there_are(tmp_path):
    write_numbers(tmp_path / "raw", [0, 1, 5], [3, 2])
    pack(tmp_path / "raw", tmp_path / "packed", classes=8)
    assert PackedCorpus(tmp_path / "packed").phonemes.symbols == tuple("01234567")
    with pytest.raises(
        RawDataError, match=r"0-0-0.npy: class 5 at frame 2, wanted 0..4.*in all: '5' 1 times .first in"
    ):
        pack(tmp_path / "raw", tmp_path / "packed", replace=True, classes=5)
    (tmp_path / "raw/phonemes.txt").write_text("a\nb\n")
    with pytest.raises(SpecError, match=r"classes=8: .*phonemes.txt says what the classes are"):
        pack(tmp_path / "raw", tmp_path / "packed", replace=True, classes=8)


def test_one_wrong_number_does_not_make_hundreds_of_classes(tmp_path):
    write_numbers(tmp_path / "raw", range(70), [3, 500])
    with pytest.raises(RawDataError, match=r"1-0-0.npy: label 500, but no label is between 69 and 500; .*classes=501"):
        pack(tmp_path / "raw", tmp_path / "packed")
    pack(tmp_path / "raw", tmp_path / "packed", classes=501)
    report = pack(tmp_path / "raw", tmp_path / "other", classes=70, skip_bad=True)
    assert any("whose utterances are left out: '500' 1 times (first in" in note for note in report.notes)


def test_all_stray_symbols_are_named_with_counts_and_a_file_each(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K", "XX"], ["yy", "XX", "K", "AA"], ["K"])
    with pytest.raises(RawDataError) as caught:
        pack(tmp_path / "raw", tmp_path / "packed")
    listed = str(caught.value).partition("(in all: ")[2].replace(f"{tmp_path}/raw/train/transcript/", "")
    assert listed == "'XX' 2 times (first in 0-0-0.npy); 'yy' 1 times (first in 1-0-0.npy))"
    report = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True)
    assert len(report.left_out) == 2 and "'XX' 2 times" in str(report)


@pytest.mark.parametrize("frames", [7, 8])
def test_a_label_of_a_longer_shift_is_repeated_and_recorded(tmp_path, frames):
    write_numbers(tmp_path / "raw", [3, 0, 2, 1], [1, 2, 3, 0], frames=frames)
    pack(tmp_path / "raw", tmp_path / "packed", label_shift=20, classes=4)
    corpus = PackedCorpus(tmp_path / "packed")
    start = int(corpus["train"].utterance_start_row[0])
    assert corpus["train"].labels[start : start + frames].tolist() == [3, 3, 0, 0, 2, 2, 1, 1][:frames]
    assert corpus.attributes["derived"] == {"label_shift": "labels every 20 ms, each for 2 frames"}
    with pytest.raises(RawDataError, match=r"4 labels, but .* is there one every 2 frames\? label_shift=MS"):
        pack(tmp_path / "raw", tmp_path / "packed", replace=True)
    for shift, said in ((30, "wanted 2 or 3, each for 3 frames"), (25, "is no multiple of the frame shift, 10 ms")):
        with pytest.raises(PhonedataError, match=said):
            pack(tmp_path / "raw", tmp_path / "packed", replace=True, label_shift=shift)


def test_folders_of_transcripts_are_found_in_any_case_and_others_named(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K"])
    (tmp_path / "raw/train/transcript").rename(tmp_path / "raw/train/Transcript")
    (tmp_path / "raw/train/labels").mkdir()
    report = pack(tmp_path / "raw", tmp_path / "packed")
    assert report.partitions[0]["labelled"]
    assert any("its folders labels are not read, only mfcc and transcript" in note for note in report.notes)


def test_the_odd_partition_is_named_where_numbers_of_coefficients_differ(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K"], ["K", "K"])
    write_hw1p2(tmp_path / "raw", "dev", {"9-0-0": (place_features(9, 5, 2), place_label(0, 5))})
    with pytest.raises(RawDataError, match="dev/mfcc/9-0-0.npy: 2 coefficients a frame, wanted 3 as in .*train/"):
        pack(tmp_path / "raw", tmp_path / "packed")


def test_utterances_without_a_known_speaker_are_counted_where_speakers_matter(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K"], ["K", "K"])
    write_hw1p2(tmp_path / "raw", "train", {"stray": (place_features(9, 5, 3), place_label(0, 5))})
    report = pack(tmp_path / "raw", tmp_path / "packed", cmvn="speaker")
    (note,) = report.notes
    assert note == "train: 1 of 3 utterances have no known speaker, e.g. 'stray'; each of them is normalised by itself"


def test_what_is_left_out_is_not_advised_to_be_left_out(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K"], ["K", "K"])
    (tmp_path / "raw/train/transcript/0-0-0.npy").unlink()
    (left_out,) = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True).left_out
    assert left_out.reason.endswith("no transcript train/transcript/0-0-0.npy; add it"), left_out.reason


def test_a_packed_corpus_is_no_raw_folder(tmp_path):
    write_numbers(tmp_path / "raw", ["AA", "K"])
    pack(tmp_path / "raw", tmp_path / "packed")
    with pytest.raises(CorpusNotFound, match="packed: is a packed corpus; give the raw folder"):
        pack(tmp_path / "packed", tmp_path / "again")
