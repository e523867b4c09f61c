"""The runs of a folder, and what may be deleted of them."""

import json

import pytest

from phonetrain.checkpoints import series
from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError, RunNotFound
from phonetrain.reports.run_list import list_runs, prune_runs
from phonetrain.runs.directory import Run
from tests.training import fit_tiny, resume_tiny


@pytest.fixture(scope="module")
def trained(learnable_corpus, tmp_path_factory):
    """A folder with a finished run of three epochs that keeps all its checkpoints, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("list") / "runs"
    fit_tiny(learnable_corpus, folder / "a-1", "checkpoint.keep=9")
    (folder / "notes").mkdir()
    return folder


def test_runs_are_listed_with_state_score_and_size(trained, capsys):
    (row,) = list_runs(trained)
    run = Run(trained / "a-1")
    assert (row["state"], row["epochs"], row["of"], row["best"]) == ("finished", 3, 3, run.best()["dev_accuracy"])
    assert row["bytes"] == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    assert 0 < row["spare_bytes"] < row["bytes"]
    assert exit_code(["runs", str(trained)]) == 0
    out = capsys.readouterr().out
    assert f"{100 * row['best']:.2f}" in out and "phonetrain runs prune" in out
    assert exit_code(["runs", str(trained), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]


def test_an_empty_folder_has_no_runs(tmp_path, capsys):
    assert list_runs(tmp_path) == [] == list_runs(tmp_path / "none")
    assert exit_code(["runs", str(tmp_path)]) == 0 and "phonetrain fit" in capsys.readouterr().out


def test_a_run_that_was_killed_is_not_called_running(trained, tmp_path):
    run = Run(tmp_path / "runs" / "b-1")
    run.path.mkdir(parents=True)
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    assert list_runs(tmp_path / "runs")[0]["state"] == "killed"
    with run.lock():
        assert list_runs(tmp_path / "runs")[0]["state"] == "running"


def test_prune_keeps_best_and_last_and_the_run_resumes(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "runs" / "a-1", "checkpoint.keep=9")
    wanted = {run.read_pointer("best"), run.read_pointer("last")}
    expected = list_runs(tmp_path / "runs")[0]["spare_bytes"]
    (freed,) = prune_runs(folder=tmp_path / "runs")
    assert freed["bytes"] == expected > 0 and set(series.saved_steps(run)) == wanted
    assert prune_runs(run)[0]["bytes"] == 0
    assert resume_tiny(run, "epochs=4", "schedule.on_extend=hold").status == "finished"


def test_a_run_that_is_trained_is_left_alone(trained, capsys):
    run = Run(trained / "a-1")
    with run.lock():
        (row,) = prune_runs(run, delete=True)
    assert "is being trained" in row["skipped"] and run.best() is not None


def test_whole_runs_go_only_by_name_and_after_yes(trained, tmp_path, capsys, monkeypatch):
    run = Run(tmp_path / "gone-1")
    run.path.mkdir()
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    with pytest.raises(ConfigError, match="wants their names"):
        prune_runs(delete=True, folder=tmp_path)
    with pytest.raises(RunNotFound):
        prune_runs(run, tmp_path / "typo", delete=True)
    assert exit_code(["runs", "prune", str(run.path), "--delete"]) == 2  # nobody at a terminal
    assert "--delete --yes" in capsys.readouterr().err and run.path.is_dir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, there in (("no\n", True), ("yes\n", False)):
        monkeypatch.setattr("sys.stdin.readline", lambda answer=answer: answer, raising=False)
        exit_code(["runs", "prune", str(run.path), "--delete"])
        assert run.path.is_dir() == there
