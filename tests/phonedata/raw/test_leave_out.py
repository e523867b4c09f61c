"""pack --skip: what a list names is left out and recorded; everything else has the bytes of a folder without it."""

import shutil

import numpy as np
import pytest

from phonedata import PackedCorpus, RawDataError, SpecError, pack
from phonedata.cli import main
from tests.conftest import TINY_LENGTHS


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("cmvn", ["utterance", "train"])
def test_corpus_is_that_of_a_folder_without_the_listed_utterances(tiny_raw, tiny_corpus, tmp_path, cmvn):
    names = tiny_corpus["train-clean"].utterance_ids
    listed = write(tmp_path / "skip.txt", "# two of them", f"train-clean/{names[3]}  # 80 ms earlier",
                   f"train-clean/{names[0]}", "")  # fmt: skip
    more = {"cmvn": cmvn, "train_partition": "train-clean"} if cmvn == "train" else {}
    report = pack(tiny_raw, tmp_path / "packed", context=12, skip=listed, **more)
    shutil.copytree(tiny_raw, tmp_path / "raw")
    for name in (names[0], names[3]):
        for folder in ("mfcc", "transcript"):
            (tmp_path / "raw/train-clean" / folder / f"{name}.npy").unlink()
    pack(tmp_path / "raw", tmp_path / "wanted", context=12, **more)
    found, wanted = PackedCorpus(tmp_path / "packed"), PackedCorpus(tmp_path / "wanted")
    for part in TINY_LENGTHS:
        assert found[part].utterance_ids == wanted[part].utterance_ids
        np.testing.assert_array_equal(found[part].features, wanted[part].features)
    assert [(one.partition, one.utterance, one.reason) for one in report.left_out] == [
        ("train-clean", name, "listed in skip.txt") for name in sorted((names[0], names[3]))
    ]
    assert [entry["utterance"] for entry in found.attributes["left_out"]] == sorted((names[0], names[3]))
    found.verify()


def test_a_listed_utterance_may_be_broken_and_another_may_not(tiny_raw, tiny_corpus, tmp_path):
    shutil.copytree(tiny_raw, tmp_path / "raw")
    first, second, *_ = tiny_corpus["train-clean"].utterance_ids
    (tmp_path / "raw/train-clean/transcript" / f"{first}.npy").unlink()
    listed = write(tmp_path / "skip.txt", f"train-clean/{first}")
    pack(tmp_path / "raw", tmp_path / "packed", skip=listed)
    (tmp_path / "raw/train-clean/transcript" / f"{second}.npy").unlink()
    with pytest.raises(RawDataError, match=second):
        pack(tmp_path / "raw", tmp_path / "packed", skip=listed, replace=True)


def test_lists_that_would_silently_do_nothing_are_refused(tiny_raw, tiny_corpus, tmp_path, capsys):
    name = tiny_corpus["train-clean"].utterance_ids[0]
    for lines, words in (
        ((f"train-clean/{name}", "train-clean/nobody"), "1 of 2 utterances are not in .*'train-clean/nobody'"),
        ((f"dev-clean/{name}",), "1 of 1 utterances are not in"),
        ((f"test-clean/{tiny_corpus['test-clean'].utterance_ids[0]}",), "in a partition without labels"),
        ((name,), "wanted PARTITION/UTTERANCE"),
        (("a/b/c",), "wanted PARTITION/UTTERANCE"),
    ):
        with pytest.raises(SpecError, match=words):
            pack(tiny_raw, tmp_path / "packed", skip=write(tmp_path / "skip.txt", *lines))
    (tmp_path / "skip.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="is no text"):
        pack(tiny_raw, tmp_path / "packed", skip=tmp_path / "skip.txt")
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tiny_raw), str(tmp_path / "packed"), "--skip", str(tmp_path / "gone.txt")])
    assert ended.value.code == 2 and "gone.txt: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_a_partition_of_which_nothing_is_left_is_refused(tiny_raw, tiny_corpus, tmp_path):
    listed = write(tmp_path / "skip.txt", *(f"dev-clean/{name}" for name in tiny_corpus["dev-clean"].utterance_ids))
    with pytest.raises(RawDataError, match="partition dev-clean has no utterance to pack"):
        pack(tiny_raw, tmp_path / "packed", skip=listed)
