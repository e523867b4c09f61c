"""evaluate and predict: every frame once, in frame order, in fp32, equal to the slow way; nothing half-written."""

import copy
import csv
import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from phonedata import Selection, pack
from phonetrain.checkpoints import checkpoint
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.display.tables import evaluation_text
from phonetrain.errors import CheckpointError, ConfigError, PhonetrainError
from phonetrain.results.evaluate import describe_confusion, evaluate
from phonetrain.results.predict import predict
from phonetrain.results.trained import open_trained
from phonetrain.runs.directory import Run
from phonetrain.training.fit import fit
from tests.reference import neighbour_scores
from tests.training import TINY, StopAt, fit_tiny, resume_tiny, weights

posteriors_room = sys.modules["phonetrain.results.posteriors"]
room = sys.modules["phonetrain.results.prediction_files"]
trained_room = sys.modules["phonetrain.results.trained"]


@pytest.fixture(scope="module")
def trained_run(learnable_corpus, tmp_path_factory) -> Run:
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("runs") / "trained")


@torch.no_grad()
def slow_logits(trained, partition: str) -> torch.Tensor:
    """(N, C) log posteriors: utterance by utterance, frame by frame, a window cut from zero-padded features, one at a
    time; then the mean over the windows that predict a frame."""
    part, window, model = trained.corpus[partition], trained.config.window, copy.deepcopy(trained.model).cpu()
    logits = []
    for start, frames in zip(part.utterance_start_row, np.diff(part.utterance_end, prepend=0)):
        features = np.asarray(part.features[start : start + frames], np.float32)
        padded = np.pad(features, ((window.left, window.right), (0, 0)))
        for frame in range(frames):
            cut = torch.from_numpy(padded[frame : frame + window.left + 1 + window.right].copy())
            logits.append(model(cut[None])[0])
    assert trained.neighbours == 3  # of the default recipe
    return torch.from_numpy(neighbour_scores(torch.stack(logits).numpy(), part.utterance_end, 3))


def slow_labels(part) -> np.ndarray:
    lengths = np.diff(part.utterance_end, prepend=0)
    return np.concatenate([part.labels[row : row + n] for row, n in zip(part.utterance_start_row, lengths)])


def rows(path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_corpus_is_found_from_anywhere_and_another_one_in_its_place_is_refused(
    learnable_corpus, tiny_corpus, tmp_path, monkeypatch
):
    home, away = tmp_path / "home", tmp_path / "away"
    shutil.copytree(learnable_corpus.path, home / "packed")
    shutil.copytree(tiny_corpus.path, away / "packed")
    monkeypatch.chdir(home)
    run = fit(config=load_recipe("default").override([*TINY[1:], "epochs=1"]), run="run", console=Console())
    monkeypatch.chdir(away)
    assert open_trained("../home/run").corpus.digest == learnable_corpus.digest
    shutil.move(home / "packed", home / "moved")
    with pytest.raises(CheckpointError, match=learnable_corpus.digest):
        predict("../home/run")
    assert not (home / "run" / "predictions").exists()
    assert open_trained("../home/run", corpus=home / "moved").corpus.digest == learnable_corpus.digest
    assert str(run.path) == "run"


def test_evaluate_equals_the_slow_way(trained_run, learnable_corpus):
    told = evaluate(trained_run)
    trained = open_trained(trained_run)
    logits = slow_logits(trained, "dev-clean")
    labels = torch.from_numpy(slow_labels(learnable_corpus["dev-clean"]).astype(np.int64))
    assert told["frames"] == learnable_corpus["dev-clean"].num_frames == len(labels)
    assert told["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=2 / len(labels))
    assert told["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert told["error_rate"] == pytest.approx(1 - told["accuracy"])
    assert np.array(told["confusion"]).sum() == len(labels)
    assert told["corpus_is_the_trained_one"] and told["weights"] == "averaged"


@pytest.fixture
def damaged(learnable_corpus, tmp_path):
    """A copy of the test partition's raw folder, with the file of its second utterance, which is cut in its middle."""
    ids = learnable_corpus["test-clean"].utterance_ids
    shutil.copytree(learnable_corpus.path.parent / "raw/test-clean", tmp_path / "raw/test-clean")
    file = tmp_path / f"raw/test-clean/mfcc/{ids[1]}.npy"
    file.write_bytes(file.read_bytes()[:2000])
    return tmp_path, file


def test_a_submission_is_not_shifted_by_an_utterance_that_cannot_be_packed(trained_run, damaged, capsys):
    tmp_path, file = damaged
    report = pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True)
    assert "150 frames of zeros keep its place" in str(report)
    whole, found = rows(predict(trained_run)), rows(predict(trained_run, corpus=tmp_path / "packed"))
    said = capsys.readouterr().err
    assert f"1 utterances of test-clean could not be packed, e.g. {file.stem}; their 150 frames get" in said
    assert found[:151] == whole[:151] and found[301:] == whole[301:] and len(found) == len(whole)
    majority = np.argmax(open_trained(trained_run).label_counts().frames)
    assert {row[1] for row in found[151:301]} == {open_trained(trained_run).corpus.phonemes.symbols[majority]}
    scores = np.load(predict(trained_run, corpus=tmp_path / "packed", form="npy"))
    assert np.all(scores[150:300] == scores[150]) and scores[150].argmax() == majority


def test_a_submission_whose_rows_would_be_shifted_is_refused(trained_run, damaged):
    tmp_path, file = damaged
    file.write_bytes(b"no header")
    pack(tmp_path / "raw", tmp_path / "packed", skip_bad=True)
    with pytest.raises(PhonetrainError, match=f"test-clean lacks {file.stem}, .*not an .npy file.*; mend it and pack"):
        predict(trained_run, corpus=tmp_path / "packed")
    assert predict(trained_run, corpus=tmp_path / "packed", form="json").is_file()  # its rows have names


def test_predictions_equal_the_slow_way_row_by_row(trained_run, learnable_corpus):
    path = predict(trained_run)
    symbols = learnable_corpus.phonemes.symbols
    slow = [symbols[index] for index in slow_logits(open_trained(trained_run), "test-clean").argmax(1).tolist()]
    header, *body = rows(path)
    assert path == trained_run.predictions / "test-clean.csv" and header == ["id", "label"]
    assert [row[0] for row in body] == [str(frame) for frame in range(learnable_corpus["test-clean"].num_frames)]
    assert sum(row[1] != label for row, label in zip(body, slow, strict=True)) <= 1  # a tie may round either way


def labelled(net) -> np.ndarray:
    """(N,) the most probable class of every frame of test-clean, by frame id."""
    return np.concatenate([rows.argmax(1) for rows in posteriors_room.posteriors([net], "test-clean", "labelling")])


def test_rows_are_placed_by_frame_id_whatever_order_batches_come_in(trained_run, monkeypatch):
    trained = open_trained(trained_run)
    in_order = labelled(trained)
    loader = posteriors_room.open_frames(trained, Selection.of(trained.corpus, "test-clean"))

    class Backwards:
        num_frames = loader.num_frames

        def epoch(self, epoch, start_batch=0):
            for batch in loader.epoch(0):
                turned = torch.arange(batch.frames.shape[0]).flip(0)
                yield type(batch)(batch.windows[turned], None, batch.frames[turned])

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            loader.close()

    monkeypatch.setattr(posteriors_room, "open_frames", lambda trained, partition: Backwards())
    assert (labelled(trained) == in_order).all()


def test_index_labels_and_other_header_for_other_courses(trained_run, tmp_path):
    path = predict(trained_run, "dev-clean", tmp_path / "sub" / "out.csv", labels="index", header="Id,Class")
    header, *body = rows(path)
    assert header == ["Id", "Class"] and all(0 <= int(row[1]) < 40 for row in body)


def test_partition_without_labels_is_a_sentence_that_names_predict(trained_run):
    with pytest.raises(ConfigError, match="test-clean .*no labels.*phonetrain predict --partition test-clean"):
        evaluate(trained_run, "test-clean")


def test_bad_header_is_refused_before_anything_is_computed(trained_run):
    with pytest.raises(ConfigError, match="wanted two column names"):
        predict(trained_run, header="id;label")


def test_unwritable_target_is_one_sentence(trained_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PhonetrainError, match=r"not be written \(File exists\); give another place with --out"):
        predict(trained_run, out=tmp_path / "file" / "out.csv")


def test_file_that_reads_back_otherwise_is_refused(trained_run, tmp_path, monkeypatch):
    honest = room.write_stream
    monkeypatch.setattr(room, "write_stream", lambda path, pieces: honest(path, [b"".join(pieces)[:-8]]))
    with pytest.raises(PhonetrainError, match="read back"):
        predict(trained_run, out=tmp_path / "out.csv")


def test_corpus_with_other_phonemes_is_refused(trained_run, tmp_path):
    from phonedata import pack
    from tests.conftest import write_hw1p2

    random = np.random.default_rng(0)
    utterances = {"a-1": (random.normal(size=(30, 12)).astype(np.float32), np.arange(30))}
    write_hw1p2(tmp_path / "raw", "dev-clean", utterances)
    pack(tmp_path / "raw", tmp_path / "packed")
    run = open_trained(trained_run, corpus=tmp_path / "packed")
    assert run.conditions["corpus_is_the_trained_one"] is False
    saved = checkpoint.read(trained_run.checkpoint_dir(trained_run.read_pointer("best")))
    saved.identity["phonemes"] = "0" * 32
    with pytest.raises(CheckpointError, match="other phonemes"):
        trained_room._check_same_world(run.corpus, saved, trained_run)


def test_another_corpus_is_noted_and_one_normalised_otherwise_is_refused(trained_run, tmp_path, capsys):
    from phonedata import pack
    from tests.conftest import write_hw1p2

    random = np.random.default_rng(0)
    utterances = {"a-1": (random.normal(size=(30, 12)).astype(np.float32), np.arange(30))}
    write_hw1p2(tmp_path / "raw", "dev-clean", utterances)
    for cmvn in ("utterance", "none"):
        pack(tmp_path / "raw", tmp_path / cmvn, cmvn=cmvn)
    own = predict(trained_run, "dev-clean")
    before = own.read_bytes()
    capsys.readouterr()
    other = predict(trained_run, "dev-clean", corpus=tmp_path / "utterance")
    assert "is not the corpus" in capsys.readouterr().err
    assert other != own and len(rows(other)) == 31 and own.read_bytes() == before
    for use in (predict, evaluate):
        with pytest.raises(CheckpointError, match=r"--cmvn none, then utterance.*--cmvn utterance --replace"):
            use(trained_run, "dev-clean", corpus=tmp_path / "none")


def test_damaged_features_of_a_scored_partition_are_named_and_not_the_learning_rate(learnable_corpus, tmp_path, capsys):
    shutil.copytree(learnable_corpus.path, tmp_path / "packed")
    part = learnable_corpus["dev-clean"]
    row = int(part.utterance_start_row[2])
    with open(tmp_path / "packed/dev-clean/features/c/0/0", "r+b") as file:
        file.seek(row * part.features[0].nbytes)
        file.write(b"\xff" * 8)
    run = fit(
        config=load_recipe("default").override([*TINY[1:], "epochs=1"]),
        run=tmp_path / "run",
        corpus=tmp_path / "packed",
        console=Console(),
    )
    wanted = f"the features of utterance {part.utterance_ids[2]} in "
    (told,) = [event["message"] for event in run.events("warning") if "dev loss" in event["message"]]
    assert wanted in told and "optimizer.lr" not in told and "phonedata verify" in told
    capsys.readouterr()
    evaluate(run, checkpoint="last")
    assert f"mean nothing: {wanted}" in capsys.readouterr().err
    predict(run, "dev-clean", checkpoint="last")
    assert "frames mean nothing: " + wanted in capsys.readouterr().err


def other_coefficients(folder):
    """A corpus with the usual phonemes and 7 coefficients a frame."""
    from phonedata import pack
    from tests.conftest import write_hw1p2

    random = np.random.default_rng(0)
    for partition in ("train-clean", "dev-clean"):
        utterances = {f"{partition}-1": (random.normal(size=(400, 7)).astype(np.float32), np.arange(400) % 40)}
        write_hw1p2(folder / "raw", partition, utterances)
    pack(folder / "raw", folder / "packed")
    return folder / "packed"


@pytest.mark.parametrize("context", [5, 0])
def test_corpus_with_other_coefficients_is_refused(learnable_corpus, tmp_path, context):
    """Of one frame, 12 coefficients and 7 are padded to 16 and 8; of 12 and 15 the matrices would even be the same."""
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1", f"window.left={context}",
                   f"window.right={context}", "augment.time_mask=0")  # fmt: skip
    with pytest.raises(CheckpointError, match="7 coefficients a frame, but .* was trained on 12"):
        evaluate(run, corpus=other_coefficients(tmp_path))


TIED = """
from torch import nn
def build(feature_dim, window_width, num_classes):
    one, other = nn.Linear(32, 32), nn.Linear(32, 32)
    other.weight = one.weight
    first = nn.Linear(feature_dim * window_width, 32)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), one, nn.ReLU(), other, nn.ReLU(), nn.Linear(32, num_classes))
"""


def test_tied_weights_of_a_factory_are_saved_resumed_scored_and_exported(learnable_corpus, tmp_path):
    from phonetrain.results.export import export

    (tmp_path / "tied.py").write_text(TIED)
    # Said, for with auto the clock decides, of each run anew.
    options = (f"model.factory={tmp_path / 'tied.py'}:build", "precision=fp32", "epochs=1")
    whole = fit_tiny(learnable_corpus, tmp_path / "whole", *options)
    run = fit_tiny(learnable_corpus, tmp_path / "run", *options, console=StopAt(8))
    resume_tiny(run)
    assert weights(run) == weights(whole)
    trained = open_trained(run, "last")
    assert trained.model[3].weight is trained.model[5].weight
    assert evaluate(run)["loss"] == evaluate(whole)["loss"]
    assert (export(run, tmp_path / "export") / "model.safetensors").is_file()
    (tmp_path / "tied.py").write_text(TIED.replace("32", "24"))
    with pytest.raises(CheckpointError, match="do not fit the model that is built .*model.factory"):
        evaluate(run, trust_code=True)


def test_missing_and_damaged_checkpoints_are_named(trained_run, learnable_corpus, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint step-99999; there are: step-"):
        evaluate(trained_run, checkpoint="step-99999")
    with pytest.raises(CheckpointError, match="wanted best, last or a step"):
        evaluate(trained_run, checkpoint="newest")
    copy = fit_tiny(learnable_corpus, tmp_path / "copy", "epochs=1")
    weights = copy.checkpoint_dir(copy.read_pointer("best")) / "averaged.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(copy)


def test_newest_whole_checkpoint_is_used_and_said_where_the_best_is_damaged(learnable_corpus, tmp_path, capsys):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "checkpoint.keep=5")
    best = run.read_pointer("best")
    weights = run.checkpoint_dir(best) / "averaged.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    (other,) = {line["step"] for line in run.metrics("epoch")} - {best}
    assert evaluate(run)["checkpoint"] == f"step-{other}"
    assert f"step-{other}, the newest that is whole, is used" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(run, checkpoint=best)


def test_a_notebook_shows_scores_as_the_command_line_does(trained_run):
    told = evaluate(trained_run)
    assert repr(told) == evaluation_text(told) and "frame error rate" in repr(told) and told == dict(told)


def test_evaluation_is_kept_for_the_report(trained_run):
    evaluate(trained_run)
    (kept,) = trained_run.evaluations.glob("dev-clean-step-*.json")
    assert trained_run.read_json(kept)["partition"] == "dev-clean"


def test_confusion_says_majority_recall_and_confused_pairs():
    told = describe_confusion(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), ("A", "B", "C"))
    assert told["majority"] == {"phoneme": "A", "share": 8 / 12}
    assert [each["recall"] for each in told["phonemes"]] == [6 / 8, 3 / 4, None]
    assert [each["precision"] for each in told["phonemes"]] == [6 / 7, 3 / 5, None]
    first = told["confused"][0]
    assert (first["phoneme"], first["heard_as"], first["frames"]) == ("A", "B", 2) and len(told["confused"]) == 2
    assert first["share_of_phoneme"] == 2 / 8 and first["share_of_errors"] == 2 / 3


def test_exported_program_gives_the_models_logits(trained_run, tmp_path):
    from phonetrain.results.export import export, load_program

    path = export(trained_run, tmp_path / "export")
    program = load_program(path / "model.pt2")
    trained = open_trained(trained_run, device="cpu")
    windows = torch.randn(5, 11, 12)
    with torch.no_grad():
        torch.testing.assert_close(program(windows), trained.model(windows))
    told = json.loads((path / "model.json").read_text())
    assert told["output"]["phonemes"] == list(trained.corpus.phonemes.symbols)
    assert told["input"]["shape"] == ["batch", 11, 12]


@pytest.mark.parametrize("name", ["model.pt2", "model.safetensors", "model.json"])
def test_export_on_a_full_disk_writes_nothing_and_does_not_advise_to_resume(trained_run, tmp_path, monkeypatch, name):
    from phonetrain.results.export import export

    real = os.fsync

    def full(fd):
        if name in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PhonetrainError, match="No space left on device.*--out DIR") as refused:
        export(trained_run, tmp_path / "export")
    assert "resume" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_posteriors_are_read_back_by_numpy_and_kaldiio_and_give_the_labels(trained_run, tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    labels = labelled(open_trained(trained_run))
    array = np.load(predict(trained_run, out=tmp_path / "a.npy", form="npy"))
    ark = dict(kaldiio.load_ark(str(predict(trained_run, out=tmp_path / "a.ark", form="ark", values="posterior"))))
    assert (array.argmax(1) == labels).all()
    np.testing.assert_allclose(np.concatenate(list(ark.values())), np.exp(array), rtol=1e-6)


def test_average_of_a_net_with_itself_changes_nothing_and_too_many_parameters_are_refused(trained_run, tmp_path):
    alone = np.load(predict(trained_run, out=tmp_path / "a.npy", form="npy"))
    names = [str(trained_run.path), f"{trained_run.path}@best"]
    for average in ("log", "probability"):
        both = np.load(predict(names, out=tmp_path / "b.npy", form="npy", average=average, replace=True))
        np.testing.assert_allclose(both, alone, atol=1e-5)
    with pytest.raises(ConfigError, match="2 nets have .* more than --max-parameters 1,000"):
        predict(names, max_parameters=1000)


@pytest.mark.parametrize("form", ["ctm", "text", "json", "textgrid"])
@pytest.mark.parametrize("smooth", ["viterbi", "median"])
def test_phones_of_every_utterance_are_written(trained_run, learnable_corpus, tmp_path, form, smooth):
    path = predict(trained_run, out=tmp_path / "out", form=form, smooth=smooth)
    ids = set(learnable_corpus["test-clean"].utterance_ids)
    if form == "textgrid":
        assert {file.stem for file in path.iterdir()} == ids
    else:
        assert all(name in path.read_text() for name in ids)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_smoothing_of_posteriors_is_refused(trained_run):
    with pytest.raises(ConfigError, match="--smooth viterbi changes labels"):
        predict(trained_run, form="npy", smooth="viterbi")
