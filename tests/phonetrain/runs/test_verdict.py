"""One verdict on a run: each rule by its numbers, each command understood, and none that says the opposite."""

import math
import shlex

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.config.changes import diff
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.runs.verdict import RULES, Scores, after_end, verdict
from tests.training import fit_tiny

PLAIN = ("model.dropout=0.6", "augment.time_mask=5", "schedule.warmup_steps=none")


def scored(path, dev, dev_loss=None, train=None, train_loss=None, rates=None, settings=PLAIN, status="finished") -> Run:
    """A run written by hand, epochs of 10 updates with these scores (train 5 points above dev, the loss falling)."""
    run = Run.create(path)
    config = load_recipe("default").override([f"epochs={len(dev)}"])
    for setting in settings:
        config = config.override([setting])
    run.write_text(run.config_path, config.to_toml())
    run.append_event("run_started", segment=0, epoch=0, step=0, recipe="default")
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    for epoch, accuracy in enumerate(dev):
        run.append_metric({
            "kind": "epoch", "segment": 0, "epoch": epoch, "step": 10 * (epoch + 1), "dev_accuracy": accuracy,
            "dev_loss": 2 - accuracy if dev_loss is None else dev_loss[epoch], "best": True,
            "train_accuracy": accuracy + 0.05 if train is None else train[epoch],
            "train_loss": 2 - epoch / 10 if train_loss is None else train_loss[epoch],
            "lr": 1e-3 if rates is None else rates[epoch], "seconds": 1.0, "frames": 100,
        })  # fmt: skip
    run.checkpoint_dir(10 * len(dev)).mkdir(parents=True)
    if status == "finished":
        run.append_event("run_finished", reason=status, segment=0, epoch=len(dev), step=10 * len(dev))
    elif status != "running":
        run.append_event("segment_ended", reason=status, segment=0, epoch=len(dev), step=10 * len(dev))
    return run


OWN = "model.factory=mine.py:build"
FLAT, FALLING = [0.60, 0.64, 0.66, 0.66, 0.66, 0.66], [1e-3, 9e-4, 7e-4, 4e-4, 2e-4, 1e-4]
# Rule -> scores of a run to which it applies, and what its command must hold.
CASES = {
    "overfitting": ({"dev": [0.45, 0.4781, 0.4785, 0.4785], "dev_loss": [1.9, 1.80, 1.82, 1.85]}, "weight_decay=0.05"),
    "no_rate": ({"dev": FLAT, "rates": [1e-3, 5e-4, 1e-5, 0.0, 0.0, 0.0]}, "schedule.on_extend=stretch"),
    "warmup_filled_run": ({"dev": [0.1, 0.2, 0.3], "settings": ["schedule.warmup_steps=20"]}, "warmup_steps=2"),
    "one_epoch": ({"dev": [0.5]}, "epochs=6"),
    "rising": ({"dev": [0.5, 0.55, 0.58, 0.6]}, "epochs=9 schedule.on_extend=stretch"),
    "plateau": ({"dev": FLAT}, "epochs=11 optimizer.lr=0.0001"),
    "underfitting": ({"dev": FLAT, "train": FLAT, "rates": FALLING}, "model.hidden=1392"),
    "converged": ({"dev": FLAT, "rates": FALLING}, "seed=1"),
}  # fmt: skip


def test_there_is_a_case_for_each_rule():
    assert [rule.__name__ for rule in RULES] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_rule_is_told_by_its_numbers_and_its_command_is_understood(tmp_path, name):
    scores, words = CASES[name]
    run = scored(tmp_path / "a run", **scores)
    told = verdict(run)
    assert told.name == name and words in told.command
    program, verb, *rest = shlex.split(told.command)
    assert program == "phonetrain"
    if verb == "fit":
        changed = load_recipe(rest[0]).override(rest[1:])
        assert changed != RunConfig.from_toml(run.config_path)
    else:
        assert verb == "resume" and rest[0] == str(run.path)
        RunConfig.from_toml(run.config_path).override(rest[1:])
    assert str(told) in explain(run) and told.sentence in after_end(run, "finished", True)[0]


@pytest.mark.parametrize("status", ["finished", "early_stopped", "SIGINT", "deadline", "running"])
def test_overfitting_is_never_followed_by_longer_training(tmp_path, status):
    run = scored(tmp_path / "run", **CASES["overfitting"][0], status=status)
    lines = [*explain(run), *after_end(run, status, True)]
    assert verdict(run).name == "overfitting"
    assert not [line for line in lines if "phonetrain resume" in line or "epochs=9" in line]


def test_train_far_above_dev_is_overfitting_only_where_dev_gains_no_more(tmp_path):
    high = [share + 0.2 for share in FLAT]
    assert verdict(scored(tmp_path / "flat", FLAT, train=high)).name == "overfitting"
    gaining = [0.50, 0.55, 0.60, 0.65]
    assert verdict(scored(tmp_path / "up", gaining, train=[share + 0.2 for share in gaining])).name == "rising"


def test_a_loss_that_only_jitters_is_no_overfitting():
    losses = [1.5, 1.4, 1.4005, 1.4010]
    jitter = Scores([2, 1.9, 1.8, 1.7], FLAT[:4], losses, FLAT[:4], [1e-3] * 4)
    assert next(rule.__name__ for rule in RULES if rule(jitter)) != "overfitting"
    assert next(rule.__name__ for rule in RULES if rule(Scores(*[[math.nan] * 4] * 4, [1e-3] * 4))) == "plateau"


def test_the_end_of_a_long_cosine_is_no_rate_of_zero():
    rates = [0.5 * (1 + math.cos(math.pi * epoch / 300)) for epoch in range(300)]
    scores = Scores([1.0] * 300, [0.7] * 300, [1.0] * 300, [0.65] * 300, rates)
    assert next(rule.__name__ for rule in RULES if rule(scores)) == "converged"


def advised(run: Run) -> set[str]:
    """The settings that the command of a verdict changes."""
    words = shlex.split(verdict(run).command)
    assert words[:2] == ["phonetrain", "fit"]
    return {key for key, _, _ in diff(RunConfig.from_toml(run.config_path), load_recipe(words[2]).override(words[3:]))}


@pytest.mark.parametrize(("without", "wanted"), [
    (["subset=0.5"], {"subset"}),
    (["augment.time_mask=0", "augment.freq_mask=0"], {"augment.time_mask", "augment.freq_mask"}),
    (["model.dropout=0.1"], {"model.dropout"}),
    (["averaging.decay=none"], {"averaging.decay"}),
    ([], {"optimizer.weight_decay"}),
])  # fmt: skip
def test_first_of_what_the_run_did_not_have_is_advised_against_overfitting(tmp_path, without, wanted):
    assert advised(scored(tmp_path / "run", **CASES["overfitting"][0], settings=[*PLAIN, *without])) == wanted


@pytest.mark.parametrize(("name", "wanted"), [
    ("overfitting", {"optimizer.weight_decay"}), ("underfitting", {"augment.time_mask", "augment.freq_mask"}),
])  # fmt: skip
def test_a_model_of_ones_own_is_advised_only_what_it_reads(tmp_path, name, wanted):
    assert advised(scored(tmp_path / "run", **CASES[name][0], settings=[*PLAIN[1:], OWN])) == wanted


def test_advice_of_a_real_run_trains_when_pasted(learnable_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "schedule.warmup_steps=40")
    told = verdict(run)
    assert told.name == "warmup_filled_run"
    assert exit_code([*shlex.split(told.command)[1:], "--quiet"]) == 0
    assert verdict(Run.open()).name != "warmup_filled_run"
    assert exit_code(["explain", str(run.path), "--json"]) == 0
    assert '"name": "warmup_filled_run"' in capsys.readouterr().out
