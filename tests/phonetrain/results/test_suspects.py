"""suspects: labels made wrong in known places stand at the head of the list; what it writes is whole and of use."""

import json

import numpy as np
import pytest

from phonedata import PackedCorpus, Selection, pack
from phonetrain.cli.main import exit_code
from phonetrain.display.tables import suspects_text
from phonetrain.errors import ConfigError, PhonetrainError
from phonetrain.results.suspects import Segments, better_shift, suspects
from phonetrain.runs.directory import Run
from phonetrain.training.data import folds
from tests.conftest import write_hw1p2
from tests.training import fit_tiny

DIM, WRONG, MOVED = 12, ("t0-3-0000", "t2-9-0000", "t5-21-0000"), "t7-30-0000"


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> PackedCorpus:
    """Eight classes that are easy to tell apart; in three utterances one phone is another, one utterance is moved."""
    root, random = tmp_path_factory.mktemp("spoilt"), np.random.default_rng(3)
    means = 2.0 * random.normal(size=(8, DIM))
    for partition, count in (("train-clean", 40), ("dev-clean", 6)):
        utterances = {}
        for number in range(count):
            classes = np.repeat((np.cumsum(random.integers(1, 8, 30)) % 8), random.integers(5, 13, 30))
            features = means[classes] + 0.4 * random.normal(size=(len(classes), DIM))
            name = f"{partition[0]}{number // 4}-{number}-0000"
            if name in WRONG:
                ends = np.flatnonzero(np.diff(classes)) + 1
                classes[ends[9] : ends[10]] = (classes[ends[9]] + 4) % 8
            if name == MOVED:
                classes = np.concatenate((np.repeat(classes[:1], 6), classes[:-6]))
            utterances[name] = features.astype(np.float32), classes
        write_hw1p2(root / "raw", partition, utterances)
    pack(root / "raw", root / "packed")
    return PackedCorpus(root / "packed")


@pytest.fixture(scope="module")
def spoilt_run(spoilt, tmp_path_factory) -> Run:
    return fit_tiny(spoilt, tmp_path_factory.mktemp("run") / "run", "epochs=4", "batch_size=64", "averaging.decay=none",
                    "window.left=3", "window.right=3", "augment.time_mask=0", "augment.freq_mask=0")  # fmt: skip


@pytest.mark.parametrize("several", [None, 2])
def test_labels_made_wrong_are_at_the_head_of_the_lists(spoilt, spoilt_run, several):
    found = suspects(spoilt_run, folds=several)
    assert found["utterances"][0]["utterance"] == f"train-clean/{MOVED}"
    assert found["utterances"][0]["shift_ms"] in (-50, -60, -70)
    assert {row["utterance"] for row in found["segments"][:3]} == {f"train-clean/{name}" for name in WRONG}
    part = spoilt["train-clean"]
    for row in found["segments"][:3]:
        start = part.utterance_start_row[part.utterance_ids.index(row["utterance"].partition("/")[2])]
        labels = part.labels[start + round(row["start"] * 100) : start + round(row["end"] * 100)]
        assert {spoilt.phonemes.symbols[label] for label in labels} == {row["given"]} != {row["heard"]}
    assert "may remember" not in suspects_text(found) if several else "--folds 3 asks nets" in suspects_text(found)


def test_folder_holds_lists_textgrids_and_a_picture_and_pack_takes_the_skip_list(spoilt, spoilt_run, tmp_path):
    found = suspects(spoilt_run, out=tmp_path / "out")
    assert json.loads((tmp_path / "out/suspects.json").read_text())["segments"] == found["segments"]
    assert (tmp_path / "out/suspects.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / f"out/textgrids/train-clean/{WRONG[0]}.TextGrid").read_text()
    assert '"given"' in text and '"heard"' in text
    report = pack(spoilt.path.parent / "raw", tmp_path / "packed", skip=tmp_path / "out/skip.txt")
    assert MOVED in {one.utterance for one in report.left_out} and len(report.left_out) == len(found["utterances"])
    with pytest.raises(PhonetrainError, match="is there already; .* or add --replace"):
        suspects(spoilt_run, out=tmp_path / "out")


def test_folds_part_the_utterances_and_a_fold_is_not_trained_on(spoilt, spoilt_run):
    selection = Selection.of(spoilt, "train-clean")
    of = folds(selection, 2)
    assert set(of.tolist()) == {1, 2} and len(of) == 40
    suspects(spoilt_run, folds=2)
    for number in (1, 2):
        run = Run(spoilt_run.path / "folds-2" / str(number))
        built = run.read_json(run.built_path)
        assert built["loader"]["utterances"] == int((of != number).sum())


def test_bad_requests_are_one_sentence(spoilt_run, capsys):
    for more, words in ((["--folds", "1"], "wanted 2 to 20"), (["--share", "0"], "above 0"),
                        (["--folds", "2", "--partition", "dev-clean"], "is split into folds")):  # fmt: skip
        assert exit_code(["suspects", str(spoilt_run.path), *more]) == 2
        out, err = capsys.readouterr()
        assert words in err and out == "" and err.count("\n") == 1


def test_partition_without_labels_is_refused(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1")
    with pytest.raises(ConfigError, match="test-clean .* has no labels that could be wrong"):
        suspects(run, "test-clean")


def test_better_shift_finds_how_far_labels_were_moved():
    random = np.random.default_rng(0)
    labels = np.repeat(random.integers(0, 5, 40), random.integers(3, 9, 40))
    rows = np.log(np.full((len(labels), 5), 0.02, np.float32))
    rows[np.arange(len(labels)), labels] = np.log(0.92)
    assert better_shift(labels, rows, 15) == (0, 0.0)
    for moved in (4, -7):
        shift, gain = better_shift(np.roll(labels, moved), rows, 15)
        assert shift == moved and gain > 1


def test_the_neighbours_labels_are_no_contradiction():
    labels = np.array([0, 0, 1, 1, 2, 2])
    rows = np.log(np.full((6, 4), 0.01, np.float32))
    rows[:, 0] = np.log(0.9)
    rows[:, 3] = np.log(0.08)
    segments = Segments.of(0, labels, rows)
    assert segments.given.tolist() == [0, 1, 2] and segments.heard.tolist() == [3, 3, 0]
    assert segments.score.tolist() == pytest.approx(np.log([0.08 / 0.9, 0.08 / 0.01, 0.9 / 0.01]).tolist(), abs=1e-5)


def test_a_single_frame_is_a_segment():
    assert better_shift(np.zeros(1, np.int64), np.zeros((1, 3), np.float32), 15) == (0, 0.0)
    assert len(Segments.of(0, np.zeros(1, np.int64), np.zeros((1, 3), np.float32)).score) == 1
