"""The comparison of ways to smooth runs, and its first way is what `evaluate` scores."""

import sys

import pytest

from benchmarks import smoothing
from phonetrain.results.evaluate import evaluate
from tests.training import fit_tiny


def test_labels_as_they_are_score_as_evaluate_says(learnable_corpus, tmp_path, monkeypatch, capsys):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1")
    monkeypatch.setattr(sys, "argv", ["smoothing.py", str(run.path)])
    smoothing.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    rates = {line[0].strip("| "): [float(cell.strip(" |")) for cell in line[1:]] for line in lines}
    scores = evaluate(run)
    wanted = [scores["accuracy"], scores["phone_error_rate"]["rate"], scores["boundaries"]["f1"]]
    assert rates["as they are"] == pytest.approx([100 * share for share in wanted], abs=0.006)
    assert len(rates) == 22 and rates["path, scale 1"] != rates["path, scale 3"]
