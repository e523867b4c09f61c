"""sweep: what is tried, that it goes on where it was stopped, and that its trials are ordinary runs."""

import os
import signal

import pytest

pytest.importorskip("optuna", reason="a sweep needs: pip install optuna")

from phonetrain.cli.main import exit_code, main
from phonetrain.config.run_config import RunConfig
from phonetrain.errors import ConfigError
from phonetrain.planning import sweep as room
from phonetrain.planning.search_space import SearchSpace
from phonetrain.planning.sweep import sweep
from phonetrain.reports.report import report
from phonetrain.runs.directory import Run
from tests.forked import Forked
from tests.phonetrain.test_distributed import wait_for
from tests.training import TINY, fit_tiny, numbers, resume_tiny, weights

SMALL = [setting for setting in TINY if not setting.startswith(("epochs", "model.depth"))]


def of(*texts: str) -> SearchSpace:
    return SearchSpace.of("default", [*SMALL, *texts])


def test_lists_are_combined_ranges_searched_and_seeds_repeated():
    space = SearchSpace.of(
        "default", ["optimizer.lr=1e-4..1e-2", "model.depth=3,4", "model.norm=batch,layer", "seed=0,1,2", "epochs=2",
                    "model.hidden=64..256", "model.dropout=0..0.5", "optimizer.weight_decay=1e-4..0.1"]
    )  # fmt: skip
    assert space.combinations == tuple(
        {"model.depth": depth, "model.norm": norm} for depth in (3, 4) for norm in ("batch", "layer")
    )
    assert {each.key: (each.low, each.high, each.whole, each.logarithmic) for each in space.ranges} == {
        "optimizer.lr": (1e-4, 1e-2, False, True),
        "model.hidden": (64, 256, True, False),
        "model.dropout": (0, 0.5, False, False),
        "optimizer.weight_decay": (1e-4, 0.1, False, True),
    }
    assert space.seeds == (0, 1, 2) and space.config.epochs == 2


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["epochs=3"], "nothing to try"),
        (["seed=0..3"], "repeated and never chosen"),
        (["optimizer.lr=1e-2..1e-4"], "a lower end below the upper one"),
        (["optimizer.lr=a..b"], "wanted a range of numbers"),
        (["optimizer.lr=-1..1e-2"], "optimizer.lr = -1.0: wanted a number, above 0"),
        (["model.depht=3,4"], "did you mean model.depth"),
        (["model.depth=3,4", "model.depth=5"], "model.depth: said twice; a list"),
        (["model.norm=batch,batch"], "one of its values is said twice"),
        (["model.depth=3,400"], "model.depth = 400: wanted a whole number"),
    ],
)
def test_what_could_never_train_is_refused_before_anything_is_written(texts, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=wanted):
        sweep("default", *SMALL, *texts)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def swept(learnable_corpus, tmp_path_factory):
    """Two combinations, three samples each, two seeds: twelve runs of an epoch or two."""
    out = tmp_path_factory.mktemp("sweep") / "s"
    texts = [*SMALL, "optimizer.lr=1e-5..1e-2", "model.norm=batch,none", "seed=0,1", "epochs=2"]
    return sweep("default", *texts, trials=3, corpus=learnable_corpus.path, out=out), texts, out


def test_a_sweep_ends_with_its_trials_best_first_and_the_command_that_trains_the_best_longer(swept):
    result, _, out = swept
    assert sorted(row["settings"]["model.norm"] for row in result["trials"]) == 3 * ["batch"] + 3 * ["none"]
    complete = [row for row in result["trials"] if row["state"] == "complete"]
    assert complete and all(len(row["accuracies"]) == 2 for row in complete)
    assert [row["mean"] for row in complete] == sorted((row["mean"] for row in complete), reverse=True)
    best = Run(result["best"])
    assert best.best()["dev_accuracy"] == max(complete[0]["accuracies"])
    assert RunConfig.from_toml(best.config_path).optimizer.lr == complete[0]["settings"]["optimizer.lr"]
    assert f"phonetrain resume {best.path} epochs=4 schedule.on_extend=stretch" in repr(result)
    assert report(complete[0]["runs"], out / "page.html").is_file()


def test_the_same_command_does_nothing_again_and_more_trials_go_on(swept, learnable_corpus):
    result, texts, out = swept
    before = {run: os.stat(Run(run).metrics_path).st_mtime_ns for row in result["trials"] for run in row["runs"]}
    again = sweep("default", *texts, trials=3, corpus=learnable_corpus.path, out=out)
    assert again == result
    assert before == {run: os.stat(Run(run).metrics_path).st_mtime_ns for run in before}


def test_a_sweep_that_was_stopped_inside_a_run_is_gone_on_with_and_equals_one_that_was_not(
    learnable_corpus, tmp_path, monkeypatch
):
    texts = [*SMALL, "optimizer.lr=1e-4..1e-2", "epochs=2"]
    whole = sweep("default", *texts, trials=2, corpus=learnable_corpus.path, out=tmp_path / "whole")
    monkeypatch.setattr(room.Watching, "on_count", lambda self: setattr(self, "stop", "SIGINT"))
    monkeypatch.setattr(room.Watching, "on_progress", room.Watching.on_count)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sweep("default", *texts, trials=2, corpus=learnable_corpus.path, out=tmp_path / "cut")
    monkeypatch.undo()
    cut = sweep("default", *texts, trials=2, corpus=learnable_corpus.path, out=tmp_path / "cut")
    assert [(row["settings"], row["mean"]) for row in cut["trials"]] == [
        (row["settings"], row["mean"]) for row in whole["trials"]
    ]


def test_a_pruned_run_can_be_resumed_bit_for_bit(learnable_corpus, tmp_path):
    class Pruning(room.Console):
        def epoch_row(self, line):
            self.stop = "pruned" if line["epoch"] == 0 else None

    whole = fit_tiny(learnable_corpus, tmp_path / "whole")
    run = fit_tiny(learnable_corpus, tmp_path / "run", console=Pruning())
    assert run.status == "pruned" and len(run.metrics("epoch")) == 1
    resume_tiny(run)
    assert weights(run) == weights(whole) and numbers(run) == numbers(whole)


def test_median_pruning_ends_trials_that_are_worse(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STARTUP_TRIALS", 1)
    texts = [*SMALL, "optimizer.lr=1e-7..1e-2", "epochs=3"]
    result = sweep("default", *texts, trials=6, corpus=learnable_corpus.path, out=tmp_path / "s")
    pruned = [row for row in result["trials"] if row["state"] == "pruned"]
    assert pruned and all(row["epochs"] < 3 and Run(row["runs"][0]).status == "pruned" for row in pruned)


def test_two_processes_share_the_trials(learnable_corpus, tmp_path, capsys):
    words = ["sweep", "default", *SMALL, "model.norm=batch,none", "seed=0,1", "epochs=1"]
    place = ["--corpus", str(learnable_corpus.path), "--out", str(tmp_path / "s")]
    both = [Forked(main, [*words, *place, "--quiet"], output=tmp_path / f"words-{n}.txt") for n in range(2)]
    ends = [process.wait() for process in both]
    told = "".join(process.output.read_text() for process in both)
    assert ends == [0, 0] and "failed" not in told, told
    assert told.count(" of 2: model.norm=") == 2, told
    assert exit_code([*words, *place]) == 0
    out = capsys.readouterr().out
    assert out.count("complete") == 2 and "mean of 2 seeds" in out
    assert all(len(Run(path).events("run_started")) == 1 for path in (tmp_path / "s").glob("c*-t*"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_request_to_end_ends_the_sweep_and_its_jobs_with_their_runs_saved(learnable_corpus, tmp_path):
    words = ["sweep", "default", *SMALL, "seed=0", "model.norm=batch,none", "epochs=4000", "--jobs", "2"]
    place = ["--corpus", str(learnable_corpus.path), "--out", str(tmp_path / "s")]
    process = Forked(main, [*words, *place], output=tmp_path / "words.txt")
    runs = [Run(tmp_path / "s" / f"c{number}-t0-s0") for number in range(2)]
    try:
        wait_for(lambda: all(run.has_trained for run in runs), process, process.output)
        process.terminate()
        assert process.wait() == -signal.SIGTERM
    finally:
        process.kill()
    assert [run.status for run in runs] == ["SIGTERM", "SIGTERM"]
    assert all(len(run.events("segment_ended")) == 1 and list(run.checkpoints.glob("step-*")) for run in runs)
