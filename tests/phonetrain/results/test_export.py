"""export: programs that give the model's logits elsewhere, with all that they need; model.onnx predicts the same."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from phonedata import PackedCorpus, pack
from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError, PhonetrainError
from phonetrain.results.export import export, real_windows
from phonetrain.results.onnx_model import CLOSE, open_onnx
from phonetrain.results.posteriors import posteriors
from phonetrain.results.predict import predict
from phonetrain.results.trained import open_trained
from phonetrain.runs.directory import Run
from tests.conftest import write_hw1p2
from tests.training import fit_tiny

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


@pytest.fixture(scope="module")
def trained_run(learnable_corpus, tmp_path_factory) -> Run:
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("runs") / "trained", "model.neighbours=1")


@pytest.fixture(scope="module")
def exported(trained_run) -> Path:
    return export(trained_run)


def test_onnxruntime_gives_torchs_logits_on_frames_of_the_corpus_for_any_batch(trained_run, exported):
    trained = open_trained(trained_run, device="cpu")
    windows = real_windows(trained)
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    for size in (1, 3, len(windows)):
        (found,) = session.run(["logits"], {"windows": windows[:size].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, trained.model(windows[:size]).numpy(), atol=1e-4)


def test_metadata_say_what_a_program_needs(trained_run, exported, learnable_corpus):
    metadata = onnxruntime.InferenceSession(str(exported / "model.onnx")).get_modelmeta().custom_metadata_map
    about = {name: json.loads(text) for name, text in metadata.items()}
    assert about == json.loads((exported / "model.json").read_text())
    assert about["input"]["window"] == {"left": 5, "right": 5} and "t - left + i" in about["input"]["rule"]
    assert about["input"]["normalisation"] == learnable_corpus.cmvn and about["input"]["frontend"] is None
    assert about["output"]["phonemes"] == list(learnable_corpus.phonemes.symbols)
    frames = learnable_corpus["train-clean"].label_histogram.tolist()
    assert about["label_counts"]["frames"] == frames
    pairs = np.array(about["label_counts"]["pairs"])
    assert pairs.sum() == sum(frames) - learnable_corpus["train-clean"].num_utterances


def test_card_has_the_measured_numbers_with_their_intervals(trained_run, exported):
    (kept,) = trained_run.evaluations.glob("dev-clean-*.json")
    scores, card = json.loads(kept.read_text()), (exported / "MODEL_CARD.md").read_text()
    low, high = scores["interval"]["low"], scores["interval"]["high"]
    assert f"| frames right | {100 * scores['accuracy']:.2f} % | {100 * low:.2f} to {100 * high:.2f} |" in card
    assert "phone error rate, smoothed" in card and "| model.onnx | " in card and "None" not in card


@pytest.mark.parametrize("smooth", ["none", "viterbi"])
def test_exported_model_predicts_the_labels_of_its_run_but_for_frames_that_are_counted(
    trained_run, exported, learnable_corpus, tmp_path, capsys, smooth
):
    model, corpus = exported / "model.onnx", learnable_corpus.path
    own = predict(trained_run, "test-clean", tmp_path / "own.csv", smooth=smooth).read_text().splitlines()
    capsys.readouterr()
    other = predict(model=model, corpus=corpus, out=tmp_path / "other.csv", smooth=smooth).read_text().splitlines()
    rows = np.concatenate(list(posteriors([open_trained(trained_run)], "test-clean", "scoring")))
    best = np.sort(rows, axis=1)[:, -2:]
    near = int((best[:, 1] - best[:, 0] < CLOSE).sum())
    assert len(own) == len(other) and sum(a != b for a, b in zip(own, other)) <= near
    assert f"of {len(own) - 1} frames differ by less than 0.0001" in capsys.readouterr().err


def test_exported_model_needs_neither_run_nor_training_labels(exported, learnable_corpus, tmp_path, capsys):
    shutil.copy(exported / "model.onnx", tmp_path)
    random = np.random.default_rng(0)
    write_hw1p2(tmp_path / "raw", "mine", {"a-1": (random.normal(size=(30, 12)).astype(np.float32), None)}, False)
    pack(tmp_path / "raw", tmp_path / "packed")
    words = ["predict", "--model", str(tmp_path / "model.onnx"), "--corpus", str(tmp_path / "packed")]
    assert exit_code([*words, "--smooth", "viterbi"]) == 0
    out, err = capsys.readouterr()
    assert len(Path(out.strip()).read_text().splitlines()) == 31
    assert "neither it nor the corpus of training says how features were made" in err
    assert exit_code([*words, "--max-parameters", "10", "--out", str(tmp_path / "x")]) == 2
    assert "more than --max-parameters 10; train a smaller one" in capsys.readouterr().err


def test_what_is_no_exported_model_is_refused_in_a_sentence(exported, learnable_corpus, tmp_path):
    import onnx

    corpus = learnable_corpus.path
    (tmp_path / "torn.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    bare = onnx.load(str(exported / "model.onnx"))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    for name, words in (("gone", "no such file"), ("torn", "no ONNX model"), ("bare", "no description of its windows")):
        with pytest.raises(PhonetrainError, match=words):
            open_onnx(tmp_path / f"{name}.onnx", corpus)
    with pytest.raises(ConfigError, match="leave the runs out"):
        predict("run", model=exported / "model.onnx")


def test_other_frames_than_the_models_are_refused(exported, tmp_path):
    random = np.random.default_rng(0)
    for dim in (12, 7):
        utterances = {"a-1": (random.normal(size=(30, dim)).astype(np.float32), np.arange(30))}
        write_hw1p2(tmp_path / f"raw{dim}", "dev-clean", utterances)
    pack(tmp_path / "raw7", tmp_path / "seven")
    pack(tmp_path / "raw12", tmp_path / "none", cmvn="none")
    pack(tmp_path / "raw12", tmp_path / "narrow", context=3)
    for name, words in (("seven", "has 7 coefficients"), ("none", "--cmvn utterance"), ("narrow", "context 3")):
        with pytest.raises(ConfigError, match=words):
            open_onnx(exported / "model.onnx", PackedCorpus(tmp_path / name).path)


def test_what_is_there_is_only_replaced_when_asked_and_onnx_only_refused_without_its_extra(
    trained_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("")
    with pytest.raises(PhonetrainError, match="is there already; give another place with --out, or add --replace"):
        export(trained_run, tmp_path / "out")
    module = sys.modules["phonetrain.results.export"]
    monkeypatch.setattr(module, "ONNX", ("onnx", "nothing_of_this_name"))
    with pytest.raises(ConfigError, match=r"needs nothing_of_this_name: pip install 'phonedata\[onnx\]'"):
        export(trained_run, tmp_path / "out", onnx=True, replace=True)
    path = export(trained_run, tmp_path / "out", replace=True)
    assert "no model.onnx without the extra" in capsys.readouterr().err
    assert {entry.name for entry in path.iterdir()} == {
        "mine.txt", "model.pt2", "model.safetensors", "model.json", "MODEL_CARD.md"
    }  # fmt: skip
