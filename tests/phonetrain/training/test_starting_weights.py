"""A run that starts from another run's weights takes all that fits, says the rest, and needs that run no more."""

import shutil

import numpy as np
import pytest
import torch

from phonedata import PackedCorpus, pack
from phonetrain import Run, resume
from phonetrain.checkpoints import checkpoint, series
from phonetrain.config.resolve import resolve
from phonetrain.console.base import Console
from phonetrain.errors import ConfigError
from phonetrain.training.fit import fit
from phonetrain.training.session import prepare
from tests.conftest import LEARNABLE_DIM, write_hw1p2

SMALL = {
    "epochs": "1",
    "window.left": "3",
    "window.right": "3",
    "model.depth": "2",
    "model.hidden": "32",
    "batch_size": "64",
    "augment.time_mask": "2",
    "schedule.warmup_steps": "2",
    "device": "cpu",
    "tracking.wandb": "off",
}


def settings(**more: object) -> list[str]:
    """The small settings with others; `model_depth` is the setting model.depth."""
    others = {
        key.replace("_", ".", 1) if key.startswith(("model_", "window_", "optimizer_")) else key: value
        for key, value in more.items()
    }
    return [f"{key}={value}" for key, value in {**SMALL, **others}.items()]


class Told(Console):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def source(learnable_corpus, tmp_path_factory) -> Run:
    return fit("default", *settings(), corpus=learnable_corpus.path, run=tmp_path_factory.mktemp("source") / "run")


def small_corpus(folder, symbols: str | None = None, dim: int = LEARNABLE_DIM) -> PackedCorpus:
    random = np.random.default_rng(3)
    for partition in ("train-clean", "dev-clean"):
        utterances = {f"{partition}-{u}": (random.normal(size=(80, dim)).astype(np.float32), np.arange(80) % 40)
                      for u in range(4)}  # fmt: skip
        write_hw1p2(folder / "raw", partition, utterances)
    if symbols is not None:
        for file in (folder / "raw").glob("*/transcript/*.npy"):
            text = np.load(file)
            np.save(file, np.where(np.char.startswith(text, "["), text, np.char.add(symbols, text)).astype("<U8"))
        names = sorted({str(s) for f in (folder / "raw").glob("*/transcript/*.npy") for s in np.load(f)[1:-1]})
        (folder / "raw/phonemes.txt").write_text("\n".join(names) + "\n")
    pack(folder / "raw", folder / "packed")
    return PackedCorpus(folder / "packed")


def weights(run: Run) -> dict[str, torch.Tensor]:
    scored = dict(checkpoint.read(run.checkpoint_dir(series.best_step(run))).scored_weights)
    scored.pop("num_updates", None)
    return scored


def prepared(corpus: PackedCorpus, source: Run):
    return prepare(resolve("default", settings(model_from_run=source.path), corpus.path), corpus)


def test_all_weights_and_their_average_are_those_of_the_other_runs_best_checkpoint(learnable_corpus, source):
    start = prepared(learnable_corpus, source)
    try:
        assert not start.start.new_output and start.start.warnings == []
        for model in (start.setup.state.model, start.setup.state.averaged.model):
            state = model.state_dict()
            for name, tensor in weights(source).items():
                assert torch.equal(state[name], tensor), name
    finally:
        start.setup.close()


def test_it_is_said_recorded_and_resumes_without_the_other_run(learnable_corpus, source, tmp_path):
    shutil.copytree(source.path, tmp_path / "teacher")
    console = Told()
    run = fit(
        "default",
        *settings(model_from_run=tmp_path / "teacher", optimizer_lr=1e-7),
        corpus=learnable_corpus.path,
        run=tmp_path / "run",
        console=console,
    )
    assert any(line.startswith(f"starts from {tmp_path / 'teacher'}, step-") for line in console.lines)
    (event,) = run.events("run_started")
    assert event["from_run"]["place_from_run"] == "../teacher" and not event["from_run"]["new_output"]
    # At such a rate nothing moves: the score is the other run's, up to the norms' moments.
    assert run.best()["dev_accuracy"] == pytest.approx(source.best()["dev_accuracy"], abs=0.02)
    shutil.rmtree(tmp_path / "teacher")
    resumed = resume(run.path, "epochs=2", "schedule.on_extend=hold", console=Console())
    assert resumed.status == "finished"


def test_other_phonemes_get_a_new_output_layer_and_all_else_is_taken(source, tmp_path):
    corpus = small_corpus(tmp_path, symbols="x")
    start = prepared(corpus, source)
    try:
        assert start.start.new_output and "output layer starts anew" in start.start.sentence
        state, given = start.setup.state.model.state_dict(), weights(source)
        for name, tensor in given.items():
            assert torch.equal(state[name], tensor) != name.startswith("output."), name
    finally:
        start.setup.close()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"window_left": 4}, "window.left=3 window.right=3"),
        ({"model_hidden": 40}, r"hidden.0.linear.weight is 32 x \d+ there and 40 x \d+ here"),
        ({"model_depth": 3}, r"hidden\.2\.\S+ is absent there and 32 x 32 here"),
        ({"model_norm": "none"}, "the model settings of its config.toml"),
        ({"model_from_run": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(learnable_corpus, source, other, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = settings(**{"model_from_run": source.path, **other})
    with pytest.raises(ConfigError, match=words) as refused:
        fit("default", *wanted, corpus=learnable_corpus.path, run="new")
    assert str(refused.value).startswith("model.from_run: ") and "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_other_coefficients_are_refused(source, tmp_path):
    # 7 frames of 13 values fill the same padded matrix as 7 of 12 do not: both are told by their number.
    with pytest.raises(ConfigError, match=f"{LEARNABLE_DIM} coefficients a frame.* has 13"):
        prepared(small_corpus(tmp_path, dim=13), source)
