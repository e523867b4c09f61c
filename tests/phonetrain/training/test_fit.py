"""fit: learns, records what ran, refuses what cannot run before anything is written."""

import json
import math
import signal
import sys
import time
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from phonedata import PackedCorpus, Selection, pack
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.console.base import Console
from phonetrain.errors import ConfigError, RunExists, TrainingStopped
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.step.metrics import COUNTS
from phonetrain.step.train_step import TrainStep
from phonetrain.training import nonfinite
from phonetrain.training.data import choose_roles
from phonetrain.training.fit import fit
from phonetrain.training.session import looked_through
from phonetrain.training.stopping import Deadline
from phonetrain.training.trainer import Trainer
from tests.conftest import write_hw1p2
from tests.training import DEVICE, TINY, StopAt, fit_tiny, numbers, resume_tiny, weights


@pytest.fixture(scope="module")
def finished(learnable_corpus, tmp_path_factory) -> Run:
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("runs") / "finished", "epochs=6")


def test_fit_learns_far_beyond_the_majority_class(finished, learnable_corpus):
    counts = learnable_corpus["dev-clean"].label_histogram
    assert finished.best()["dev_accuracy"] > 5 * counts.max() / counts.sum()
    assert finished.status == "finished"


def test_every_epoch_has_its_line_and_one_is_best(finished):
    lines = finished.metrics("epoch")
    assert [line["epoch"] for line in lines] == list(range(6))
    best = max(lines, key=lambda line: line["dev_accuracy"])
    assert finished.read_pointer("best") == best["step"]
    assert all(math.isfinite(line["train_loss"]) for line in lines)


def test_written_config_is_what_ran(finished):
    config = RunConfig.from_toml(finished.config_path)
    built = finished.read_json(finished.built_path)
    assert built["loader"]["batch_size"] == config.batch_size
    assert built["loader"]["frames_per_epoch"] == finished.metrics("epoch")[0]["frames"]
    assert built["optimizer"]["class"] == "AdamW"
    assert {group["weight_decay"] for group in built["optimizer"]["groups"]} == {0.0, config.optimizer.weight_decay}
    assert built["averaging"]["decay"] == config.averaging.decay


def test_environment_names_versions_and_digests_but_no_host_or_user(finished, learnable_corpus):
    text = finished.environment_path.read_text()
    told = json.loads(text)
    assert told["corpus"]["digest"] == learnable_corpus.digest
    assert told["packages"]["torch"]
    import getpass
    import platform

    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text


def test_same_seed_gives_the_same_numbers(finished, learnable_corpus, tmp_path):
    again = fit_tiny(learnable_corpus, tmp_path / "again", "epochs=6")
    assert numbers(again) == numbers(finished)
    assert weights(again) == weights(finished)


def test_other_seed_gives_other_numbers(finished, learnable_corpus, tmp_path):
    other = fit_tiny(learnable_corpus, tmp_path / "other", "epochs=6", "seed=1")
    assert weights(other) != weights(finished)


def test_run_directory_that_holds_a_run_is_refused_and_resume_named(finished, learnable_corpus):
    with pytest.raises(RunExists, match="phonetrain resume"):
        fit_tiny(learnable_corpus, finished.path)


def test_fit_without_corpus_names_the_pack_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="phonedata pack"):
        fit("default", *TINY)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("window.left=60", "--context 60 --replace"),
        ("data.train=test-clean", "test-clean has no labels"),
        ("data.train=train-cleen", "train-cleen"),
        ("data.dev=train-clean", "also trained on"),
        ("batch_size=65536", "smaller batch_size"),
        ("model.max_parameters=100", "100"),
        ("augment.freq_mask=13", "augment.freq_mask = 13: a frame has 12 coefficients"),
        ("stage=[{epochs=1}, {epochs=1, augment.freq_mask=13}]", "stage.1: augment.freq_mask = 13"),
        ("stage=[{epochs=1}, {epochs=2, batch_size=65536}]", "stage.1: 6,.* training frames .* smaller batch_size"),
    ],
)
def test_what_cannot_run_is_refused_before_a_directory_is_made(learnable_corpus, tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        fit_tiny(learnable_corpus, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_stage_that_cannot_train_is_refused_on_resume_too(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "stage=[{epochs=1}, {epochs=1, subset=0.5}]", console=StopAt(8))
    with pytest.raises(ConfigError, match="stage.1: .* training frames .* do not fill one batch of 256"):
        resume_tiny(run, "stage.1.subset=0.025")


def test_stage_with_too_few_updates_is_warned_of_before_the_first_one_trains(learnable_corpus, tmp_path):
    options = ("batch_size=64", "stage=[{epochs=1}, {epochs=1, batch_size=512}]")
    run = fit_tiny(learnable_corpus, tmp_path / "run", *options, console=StopAt(4))
    told = [event["message"] for event in run.events("warning")]
    assert [message for message in told if "updates (" in message] == [
        next(message for message in told if message.startswith("stage.1: an epoch is only 11 updates"))
    ]


def test_class_that_training_never_shows_is_named(tmp_path):
    from phonedata import PackedCorpus, pack

    features = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    usual, rare = np.arange(60) % 39, np.arange(60) % 40
    train = {f"a-{number}-0": (features, usual if number else rare) for number in range(8)}
    write_hw1p2(tmp_path / "raw", "train-clean", train)
    write_hw1p2(tmp_path / "raw", "dev-clean", {"b-0-0": (features, rare)})
    pack(tmp_path / "raw", tmp_path / "packed")
    corpus = PackedCorpus(tmp_path / "packed")

    def told(subset, seed=0):
        config = load_recipe("default").override([f"subset={subset}", "batch_size=8", f"seed={seed}"])
        roles = choose_roles(corpus, config.data)
        return [message for message in looked_through(corpus, roles, config.plans) if "never" in message]

    assert told(1.0) == []
    chosen = {seed: Selection.of(corpus, "train-clean", 0.5, seed).utterance_ids for seed in range(9)}
    without = next(seed for seed, ids in chosen.items() if "a-0-0" not in ids)
    symbol = corpus.phonemes.symbols[39]
    (message,) = told(0.5, without)
    assert message == (
        f"dev-clean has {symbol}, which subset 0.5 of train-clean never shows: 1.67 % of its frames cannot be right"
    )


def test_epoch_whose_dev_loss_is_not_finite_is_never_the_best(learnable_corpus, tmp_path, monkeypatch):
    real = Trainer.score
    monkeypatch.setattr(Trainer, "score", lambda trainer: {**real(trainer), "loss": math.nan})
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2")
    assert [line["best"] for line in run.metrics("epoch")] == [False, False]
    assert run.read_pointer("best") is None
    assert sum("dev loss is nan" in event["message"] for event in run.events("warning")) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_finishes_the_step_saves_and_says_how_to_resume(learnable_corpus, tmp_path, name, capsys):
    console = StopAt(8, getattr(signal, name))
    console.say = lambda text: print(text)
    run = fit_tiny(learnable_corpus, tmp_path / "run", console=console)
    assert run.status == name
    assert run.read_pointer("last") == 8
    assert f"phonetrain resume {run.path}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_deadline_saves_and_scores_before_it_passes(learnable_corpus, tmp_path):
    class Clock(Console):
        def on_start(self, facts):
            self.began = time.monotonic()

    console = Clock()
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=100000", "stop.max_time=4s", console=console)
    took = time.monotonic() - console.began
    assert run.status == "deadline"
    assert 1 < took < 4.5, took  # its reserve is 2 seconds and more; half a second for a busy machine
    assert run.read_pointer("best") is not None
    assert resume_tiny(run, "stop.max_time=3s").status == "deadline"


def test_time_of_day_is_the_next_one_and_the_earlier_limit_holds():
    def left(*limits):
        return Deadline(*limits).end - time.monotonic()

    now = datetime.now()
    for minutes in (2, 600, -2):
        then = now + timedelta(minutes=minutes)
        wanted = ((then.replace(second=0, microsecond=0) - now).total_seconds()) % 86400
        assert left(None, f"{then:%H:%M}") == pytest.approx(wanted, abs=2)
    assert left(60, f"{now + timedelta(minutes=10):%H:%M}") == pytest.approx(60, abs=1)
    assert left(7200, f"{now + timedelta(minutes=10):%H:%M}") < 601
    assert Deadline(60).reached(61) and not Deadline(60).reached(50)


def test_early_stopping_ends_after_patience_epochs_without_improvement(learnable_corpus, tmp_path):
    run = fit_tiny(
        learnable_corpus,
        tmp_path / "run",
        "epochs=20",
        "stop.patience=2",
        "optimizer.lr=1e-12",
        "model.norm=none",
        "averaging.decay=none",
    )
    assert run.status == "early_stopped"
    assert [line["best"] for line in run.metrics("epoch")] == [True, False, False]


def test_best_score_inside_an_epoch_starts_the_patience_anew(learnable_corpus, tmp_path, monkeypatch):
    """Epochs 0.5, 0.4; inside the third, before a deadline, 0.6: its end, 0.55, is the first epoch without a better."""
    accuracies = iter([0.5, 0.4, 0.6, 0.55, 0.5])
    real = Trainer.score
    monkeypatch.setattr(Trainer, "score", lambda trainer: {**real(trainer), "accuracy": next(accuracies)})
    at_deadline = lambda trainer: "deadline" if trainer.progress.step == 50 else None  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "own_reason", at_deadline)
        run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=9", "stop.patience=2")
    assert run.status == "deadline"
    resume_tiny(run)
    assert run.status == "early_stopped" and len(run.metrics("epoch")) == 4


def test_patience_and_divergence_are_those_of_the_stage(learnable_corpus, tmp_path, monkeypatch):
    factors = []
    look = nonfinite.DivergenceWatch.look
    monkeypatch.setattr(
        nonfinite.DivergenceWatch, "look", lambda watch, *line: factors.append(watch.factor) or look(watch, *line)
    )
    run = fit_tiny(
        learnable_corpus,
        tmp_path / "run",
        "optimizer.lr=1e-12",
        "model.norm=none",
        "averaging.decay=none",
        "schedule.name=constant",
        "stage=[{epochs=3}, {epochs=9, stop.patience=4, guard.divergence=7.0}]",
    )
    assert run.status == "early_stopped" and len(run.metrics("epoch")) == 5
    assert set(factors[:12]) == {2.0} and set(factors[-8:]) == {7.0}


def test_dead_net_is_named_after_the_first_epoch(learnable_corpus, tmp_path):
    run = fit_tiny(
        learnable_corpus,
        tmp_path / "run",
        "epochs=1",
        "optimizer.lr=1e-12",
        "averaging.decay=none",
        "model.activation=sigmoid",
        "model.norm=none",
        "model.depth=6",
    )
    assert any(
        "learnt nothing" in event["message"] or "same phoneme" in event["message"] for event in run.events("warning")
    )


@pytest.mark.parametrize(
    ("settings", "dies_in", "told"),
    [
        ((), 1, 1),
        ((), 4, 0),
        (("schedule.warmup_steps=200",), 4, 1),
    ],
)
def test_net_that_dies_in_the_first_epochs_is_named_once(
    learnable_corpus, tmp_path, monkeypatch, settings, dies_in, told
):
    real = Trainer.score
    monkeypatch.setattr(
        Trainer,
        "score",
        lambda trainer: real(trainer) | ({"loss": math.log(40)} if trainer.progress.epoch >= dies_in else {}),
    )
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=5", *settings)
    assert sum("learnt nothing" in event["message"] for event in run.events("warning")) == told


def test_stages_change_settings_at_epoch_boundaries_and_are_recorded(learnable_corpus, tmp_path):
    recipe = tmp_path / "staged.toml"
    recipe.write_text(
        RunConfig.from_toml(_recipe(tmp_path))
        .override(
            [
                "stage=[{epochs = 2, subset = 0.5}, {epochs = 1, subset = 1.0, 'optimizer.lr' = 1e-4}]",
                "epochs=3",
            ]
        )
        .to_toml()
    )
    run = fit(recipe, corpus=learnable_corpus.path, run=tmp_path / "run", console=StopAt(10**9))
    frames = [line["frames"] for line in run.metrics("epoch")]
    assert frames[0] == frames[1] < frames[2]
    changed = {event["key"]: (event["old"], event["new"]) for event in run.events("config_changed")}
    assert changed["subset"] == (0.5, 1.0)
    assert changed["optimizer.lr"] == (1e-3, 1e-4)
    assert set(changed) == {"subset", "optimizer.lr"}


def _recipe(folder):
    from phonetrain.config.run_config import load_recipe

    path = folder / "base.toml"
    path.write_text(load_recipe("default").override(TINY).to_toml())
    return path


def test_time_limit_counts_what_comes_before_the_first_step(learnable_corpus, tmp_path, monkeypatch):
    fitting, ends = sys.modules["phonetrain.training.session"], []
    real = fitting.assemble
    monkeypatch.setattr(fitting, "assemble", lambda *parts, **how: (time.sleep(0.5), real(*parts, **how))[1])
    monkeypatch.setattr(Trainer, "train", lambda trainer: ends.append(trainer.deadline.end) or "deadline")
    began = time.monotonic()
    run = fit_tiny(learnable_corpus, tmp_path / "run", "stop.max_time=1h")
    again = time.monotonic()
    resume_tiny(run)
    assert ends[0] - began - 3600 < 0.4 and ends[1] - again - 3600 < 0.4


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the host knows the pace of log intervals alone")
def test_slow_first_step_after_a_resume_is_not_taken_for_the_pace(learnable_corpus, tmp_path, monkeypatch):
    """It compiles kernels; a run that is resumed inside an epoch gave up at once, for want of time to score."""
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=100000", console=StopAt(8))
    real, slow = TrainStep.apply_update, [1.0]
    monkeypatch.setattr(
        TrainStep, "apply_update", lambda *parts: (time.sleep(slow.pop() if slow else 0), real(*parts))[1]
    )
    before = run.read_pointer("last")
    resume_tiny(run, "stop.max_time=4s")
    assert run.status == "deadline" and run.read_pointer("last") > before + 5


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_guard_names_the_first_bad_layer_and_keeps_evidence(learnable_corpus, tmp_path, policy):
    options = (
        "optimizer.lr=1e30",
        "schedule.name=constant",
        "averaging.decay=none",
        f"guard.policy={policy}",
        "model.norm=none",
        "precision=fp32",
        "epochs=2",
    )
    with pytest.raises(TrainingStopped, match="not finite at step") as stopped:
        fit_tiny(learnable_corpus, tmp_path / "run", *options)
    run = Run.open(tmp_path / "run")
    found = run.events("nonfinite")
    assert found and found[0]["where"]
    evidence = run.evidence / found[-1]["evidence"]
    assert json.loads((evidence / "nonfinite.json").read_text())["utterances"]
    assert (evidence / "batch.safetensors").stat().st_size > 0
    assert "resume" in str(stopped.value)
    if policy == "rollback":
        assert len(run.events("recovered")) >= 1


def test_deterministic_is_on_while_it_trains_and_changes_no_number(learnable_corpus, tmp_path):
    plain = fit_tiny(learnable_corpus, tmp_path / "plain")
    run = fit_tiny(learnable_corpus, tmp_path / "run", "deterministic=true")
    assert json.loads(run.built_path.read_text())["deterministic"] is True
    assert json.loads(plain.built_path.read_text())["deterministic"] is False
    assert not torch.are_deterministic_algorithms_enabled()
    assert weights(run) == weights(plain)


def test_what_became_of_capture_and_compile_is_recorded(learnable_corpus, tmp_path):
    built = json.loads(fit_tiny(learnable_corpus, tmp_path / "run").built_path.read_text())
    assert built["compile"] == "off"
    assert built["capture"] == ("eager on cpu" if DEVICE == "cpu" else "captured whole")
    assert built["kernels"] == ("numba" if DEVICE == "cpu" else "triton")


def test_settings_in_a_list_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a text of its own"):
        fit("default", ["epochs=5"])


def test_recipe_beside_a_config_is_refused_and_a_config_alone_is_recorded_as_no_recipe(finished):
    with pytest.raises(ConfigError, match="the recipe diamond and a config, wanted one"):
        fit("diamond", config=load_recipe("default"))
    assert finished.events("run_started")[0]["recipe"] is None
    assert "began" in explain(finished)[0] and "with a config that was given" in explain(finished)[0]


def test_a_metric_is_one_row_from_the_step_to_the_log(learnable_corpus, tmp_path, monkeypatch):
    def in_first_three(logits, labels):
        return (logits.topk(3, dim=1).indices == labels[:, None]).any(dim=1).sum()

    monkeypatch.setitem(COUNTS, "top3", in_first_three)
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1", "optimizer.accumulation=2")
    for line in run.metrics():
        prefixes = ("",) if line["kind"] == "train" else ("train_", "dev_")
        assert all(line[f"{prefix}accuracy"] < line[f"{prefix}top3"] < 1 for prefix in prefixes)


def test_a_corpus_in_one_folder_trains_after_a_split_by_speaker(tmp_path):
    random, utterances = np.random.default_rng(5), {}
    for n in range(12):
        classes = random.integers(0, 40, 100)
        utterances[f"s{n // 2}-{n}-0"] = random.normal(size=(100, 8)).astype(np.float32), classes
    write_hw1p2(tmp_path / "raw", "all", utterances)
    pack(tmp_path / "raw", tmp_path / "packed", split="dev=0.2,test=0.2")
    corpus = PackedCorpus(tmp_path / "packed")
    assert choose_roles(corpus, load_recipe("default").data) == ("train", "dev", "test")
    run = fit_tiny(corpus, tmp_path / "run", "epochs=1")
    assert len(run.scores()) == 1 and not set(corpus["train"].speakers) & set(corpus["dev"].speakers)
