"""compare: paired draws, seeds pooled, parts that add up to the difference, and what cannot be compared refused."""

import json

import numpy as np
import pytest

from phonedata import pack
from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError
from phonetrain.results.bootstrap import bounds, resampled, seed_weights, two_sided_p, weights
from phonetrain.results.compare import METRICS, compare
from phonetrain.results.evaluate import evaluate, kept_evaluation
from phonetrain.runs.experiment import changes, experiment
from tests.phonetrain.reports.test_report import lived
from tests.training import fit_tiny, resume_tiny


@pytest.fixture(scope="module")
def runs(learnable_corpus, tmp_path_factory):
    """Two seeds of one experiment, and one with more dropout."""
    root = tmp_path_factory.mktemp("compared")
    return [
        fit_tiny(learnable_corpus, root / name, "epochs=2", f"seed={seed}", *more)
        for name, seed, more in (("a-0", 0, ()), ("a-1", 1, ()), ("b-0", 0, ("model.dropout=0.6",)))
    ]


def test_counts_of_utterances_add_up_to_those_of_the_partition(runs):
    scores = evaluate(runs[0])
    table = {name: np.array(column) for name, column in scores["utterances_table"].items()}
    right = table["right_by_phoneme"]
    assert np.array_equal(right.sum(0), np.diagonal(scores["confusion"]))
    assert np.array_equal(right.sum(1), table["right"])
    assert np.array_equal(table["right_by_distance"].sum(1), table["right"])
    assert table["loss"].sum() / table["frames"].sum() == pytest.approx(scores["loss"], rel=1e-12)
    assert table["smoothed_right"].sum() / table["frames"].sum() == scores["smoothed"]["accuracy"]
    assert kept_evaluation(runs[0]) == scores


def test_interval_and_p_of_two_runs_are_those_of_differences_in_the_same_draws(runs):
    result = compare([runs[0], runs[2]])
    tables = [evaluate(run)["utterances_table"] for run in (runs[0], runs[2])]
    drawn = np.concatenate(list(weights(result["utterances"])))
    for metric, (part, whole) in METRICS.items():
        before, after = ([np.array(table[name]) for name in (part, whole)] for table in tables)
        slow = np.array([(w @ after[0]) / (w @ after[1]) - (w @ before[0]) / (w @ before[1]) for w in drawn])
        told = result["differences"][0][metric]
        assert told["difference"] == pytest.approx(after[0].sum() / after[1].sum() - before[0].sum() / before[1].sum())
        assert [told["low"], told["high"]] == pytest.approx(np.quantile(slow, (0.025, 0.975)).tolist(), abs=1e-12)
        assert told["p"] == pytest.approx(two_sided_p(slow))
    assert (told["low"] > 0 or told["high"] < 0) == (told["p"] < 0.05)


def test_parts_of_phonemes_speakers_and_distances_each_add_up_to_the_difference(runs):
    (difference,) = compare(runs)["differences"]
    for kinds in ("by_phoneme", "by_speaker", "by_distance"):
        assert sum(row["points"] for row in difference[kinds]) == pytest.approx(difference["accuracy"]["difference"])
        assert all(row["low"] <= row["points"] <= row["high"] for row in difference[kinds] if row["points"])
    points = [abs(row["points"]) for row in difference["by_phoneme"]]
    assert points == sorted(points, reverse=True)


def test_runs_that_differ_only_in_the_seed_are_one_group_with_mean_and_spread(runs):
    result = compare([runs[0], runs[2], runs[1]])
    first, other = result["groups"]
    assert [run["seed"] for run in first["runs"]] == [0, 1] and [run["seed"] for run in other["runs"]] == [0]
    each = [evaluate(run)["accuracy"] for run in runs[:2]]
    assert first["accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert first["accuracy"]["spread"] == pytest.approx(np.std(each, ddof=1)) and other["accuracy"]["spread"] is None
    assert other["changed"] == {"model.dropout": [0.1, 0.6]} and first["changed"] == {}
    alone = compare([runs[0], runs[2]])["groups"][0]["accuracy"]
    assert alone["high"] - alone["low"] < first["accuracy"]["high"] - first["accuracy"]["low"]
    only = compare(runs[:2])
    assert only["differences"] == [] and len(only["groups"]) == 1


def test_a_change_by_hand_and_missing_epochs_are_another_experiment(tmp_path, learnable_corpus):
    whole = experiment(lived(tmp_path / "whole"))
    assert "optimizer.lr 0.001 → 0.0001 at step 20" in whole["changed by hand"]
    assert changes(whole, experiment(lived(tmp_path / "other"))) == []
    killed = experiment(lived(tmp_path / "killed", killed=True))
    assert changes(whole, killed) == [("epochs trained", None, 4)]
    longer = fit_tiny(learnable_corpus, tmp_path / "longer", "epochs=1")
    resume_tiny(longer, "epochs=2", "schedule.on_extend=hold")
    assert "epochs 1 → 2" in experiment(longer)["changed by hand"]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_drawn_seeds_have_the_variance_of_a_mean_of_that_many(seeds):
    random = np.random.default_rng(seeds)
    scores = random.normal(0.7, 0.01, seeds)
    means = seed_weights(seeds, 0, 40_000) @ scores
    assert seed_weights(seeds, 0).sum(1) == pytest.approx(1.0)
    assert means.var() == pytest.approx(scores.var(ddof=1) / seeds, rel=0.05)
    assert not np.array_equal(seed_weights(seeds, 0), seed_weights(seeds, 1))


@pytest.mark.parametrize("seed", range(20))
def test_p_is_below_5_percent_only_where_the_interval_leaves_0_out(seed):
    random = np.random.default_rng(seed)
    drawn = random.normal(random.uniform(-3, 3), 1.0, 1999)
    found = bounds(drawn)
    assert (two_sided_p(drawn) < 0.05) == (found["low"] > 0 or found["high"] < 0)
    assert two_sided_p(np.zeros(10)) == 1.0 and two_sided_p(np.ones(1999)) == 0.001


def test_an_utterance_without_phones_leaves_draws_of_it_alone_out():
    ratios = resampled(np.array([[1], [0]]), np.array([0, 4]), np.arange(2))
    assert np.isnan(ratios).any() and set(ratios[np.isfinite(ratios)]) == {0.0, 0.25}
    assert bounds(ratios) == {"low": 0.0, "high": 0.25}


def test_what_cannot_be_compared_is_refused_in_one_sentence(runs, learnable_corpus, tmp_path):
    with pytest.raises(ConfigError, match="wanted at least two runs"):
        compare([runs[0]])
    with pytest.raises(ConfigError, match="are the same weights; leave one of them out"):
        compare([runs[0], runs[0]])
    with pytest.raises(ConfigError, match="test-clean of .* has no labels"):
        compare(runs[:2], "test-clean")
    pack(learnable_corpus.path.parent / "raw", tmp_path / "other", dtype="float32")
    from phonedata import PackedCorpus

    foreign = fit_tiny(PackedCorpus(tmp_path / "other"), tmp_path / "foreign", "epochs=1")
    with pytest.raises(ConfigError, match=r"trained on different corpora \(digests .* --corpus DIR"):
        compare([runs[0], foreign])
    result = compare([runs[0], foreign], corpus=learnable_corpus.path)
    assert result["corpus_digest"] == learnable_corpus.digest
    assert set(result["groups"][1]["changed"]) == {"epochs"}
    elsewhere = fit_tiny(learnable_corpus, tmp_path / "elsewhere", "epochs=1", "data.dev=train-clean",
                         "data.train=dev-clean")  # fmt: skip
    with pytest.raises(ConfigError, match="scored on dev-clean and .* on train-clean; .* --partition NAME"):
        compare([runs[0], elsewhere])


def test_the_command_prints_a_verdict_and_json_holds_all_of_it(runs, capsys):
    paths = [str(run.path) for run in runs]
    assert exit_code(["compare", *paths]) == 0
    text = capsys.readouterr().out
    for words in (
        f"{paths[0]} (2 seeds)",
        "model.dropout 0.1 -> 0.6",
        "over seeds",
        "frames to a boundary",
        "of frames: 0",
    ):
        assert words in text
    assert exit_code(["compare", *paths, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["differences"][0]["by_phoneme"]) == 40
