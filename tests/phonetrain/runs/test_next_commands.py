"""What a run says to people: epochs counted from 1, each thing once, advice that fits and commands that work."""

import os
import shlex
import shutil

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.console.base import Console
from phonetrain.display.tables import evaluation_text
from phonetrain.errors import ConfigError
from phonetrain.reports.one_run import epochs
from phonetrain.reports.summary import summary
from phonetrain.results.evaluate import evaluate
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from tests.phonetrain.reports.test_report import lived
from tests.training import StopAt, fit_tiny, resume_tiny


class Hearing(Console):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said += text.splitlines()

    warn = say


@pytest.fixture(scope="module")
def whole(learnable_corpus, tmp_path_factory):
    console = Hearing()
    run = fit_tiny(learnable_corpus, tmp_path_factory.mktemp("whole") / "run", "precision=bf16", console=console)
    return run, console.said


def test_size_of_a_checkpoint_is_said_once_and_is_true(whole):
    run, said = whole
    told = [line for line in said if "a checkpoint takes" in line]
    assert len(told) == 1
    last = run.checkpoint_dir(run.read_pointer("last"))
    kilobytes = sum(path.stat().st_size for path in last.iterdir()) / 1e3
    assert float(told[0].split()[3]) == pytest.approx(kilobytes, rel=0.01)


def test_end_is_one_block_with_each_next_command_once(learnable_corpus, tmp_path, whole):
    assert [line.split("    ")[0] for line in whole[1][-1:]] == [f"next: phonetrain evaluate {whole[0].path}"]
    console = Hearing()
    run = fit_tiny(learnable_corpus, tmp_path / "a run", "epochs=100000", "stop.max_time=4s", console=console)
    block = console.said[-4:]
    assert block[0].startswith("best dev frame accuracy") and block[1].startswith("deadline: saved at step")
    assert block[2].startswith(f"next: phonetrain resume '{run.path}'")
    assert block[3].startswith(f"next: phonetrain evaluate '{run.path}'")
    assert sum("phonetrain" in line for line in console.said) == 2


def test_changed_time_limit_is_said(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", console=StopAt(8))
    console = Hearing()
    resume_tiny(run, 'stop.max_time="2h"', 'stop.stop_at="23:59"', console=console)
    assert {"changed: stop.max_time none -> 2h", "changed: stop.stop_at none -> 23:59"} <= set(console.said)


def test_what_was_done_already_is_not_next(tmp_path):
    run = lived(tmp_path / "run")
    words = " ".join(explain(run))
    assert all(f"phonetrain {name} " in words for name in ("evaluate", "predict", "report"))
    run.write_json(run.evaluations / "dev-step-1.json", {})
    run.write_text(run.report_path, "page")
    words = " ".join(explain(run))
    assert "Next: phonetrain predict" in words
    assert not any(f"phonetrain {name} " in words for name in ("evaluate", "report"))
    run.write_text(run.predictions / "test.csv", "id,label")
    run.checkpoint_dir(40).mkdir(parents=True)
    os.utime(run.predictions / "test.csv", (0, 0))  # made before the best checkpoint: out of date
    os.utime(run.evaluations / "dev-step-1.json")
    os.utime(run.report_path)
    assert "Next: phonetrain predict" in " ".join(explain(run))
    os.utime(run.predictions / "test.csv")
    assert f"Next: read {run.report_path}." in explain(run) and repr(explain(run)).count("\n") == len(explain(run)) - 1


def test_best_score_inside_an_epoch_is_the_best_everywhere(tmp_path):
    run = lived(tmp_path / "run")
    run.append_metric({"kind": "evaluate", "segment": 2, "epoch": 4, "step": 45, "partition": "dev-clean",
                       "dev_loss": 0.5, "dev_accuracy": 0.91, "best": True})  # fmt: skip
    assert run.best()["step"] == 45 and "epoch 5, before its end" in repr(run)
    assert "the best score is 91.00 % dev frame accuracy, in epoch 5, before its end" in " ".join(explain(run))
    assert summary(run)["best_in"] == "epoch 5, before its end" and summary(run)["best_accuracy"] == 0.91
    assert "5, before its end" in "".join(epochs(run, ""))


def test_a_score_of_the_first_epoch_is_not_forgotten(tmp_path):
    run = Run.create(tmp_path / "run")
    shutil.copy(lived(tmp_path / "other").config_path, run.config_path)
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    run.append_metric({"kind": "evaluate", "segment": 0, "epoch": 0, "step": 5, "dev_loss": 2.0, "dev_accuracy": 0.25,
                       "best": True})  # fmt: skip
    assert "so far scored 25.00 %" in " ".join(explain(run))


def test_evaluation_names_its_precision_and_what_training_had_seen(whole):
    told = evaluate(whole[0])
    line = next(line for line in whole[0].scores() if line["step"] == told["step"])
    assert told["in_training"] == {"accuracy": line["dev_accuracy"], "precision": "bf16"}
    text = evaluation_text(told)
    assert "weights, fp32 on" in text and "(in bf16: the difference is rounding)" in text
    assert evaluate(whole[0], "train-clean")["in_training"] is None


def test_shortening_a_cosine_is_asked_about_in_fitting_words(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=6", console=StopAt(30))
    with pytest.raises(ConfigError, match="the run ends at epoch 3, before the rate is down"):
        resume_tiny(run, "epochs=3")
    resume_tiny(run, "epochs=3", "schedule.on_extend=hold")
    assert run.status == "finished" and len(run.metrics("epoch")) == 3


@pytest.mark.parametrize(("answer", "words"), [("stretch", "is laid out anew"), ("hold", "its last rate is held")])
def test_more_epochs_a_second_time_say_which_answer_holds(learnable_corpus, tmp_path, answer, words):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=6", f"schedule.on_extend={answer}", console=StopAt(4))
    console = Hearing()
    resume_tiny(run, "epochs=2", "stop.patience=9", console=console)
    (told,) = [line for line in console.said if line.startswith("changed: epochs")]
    assert told.startswith("changed: epochs 6 -> 2 (its schedule ") and words in told and f"on_extend={answer})" in told
    assert "changed: stop.patience none -> 9" in console.said


ONE_EPOCH = {
    "cosine": (["epochs=1", "schedule.name=cosine"], True),
    "constant": (["epochs=1", "schedule.name=constant"], False),
    "onecycle": (["epochs=1", "schedule.name=onecycle"], True),
    "stages": (["stage=[{epochs=1}, {epochs=1, 'optimizer.lr'=1e-4}]"], True),
    "stages of one schedule": (["schedule.name=plateau", "stage=[{epochs=1}, {epochs=1, subset=0.5}]"], False),
    "carried rate": (["schedule.name=onecycle", "stage=[{epochs=1}, {epochs=1, 'optimizer.lr'='previous',"
                     "'schedule.name'='plateau'}]"], False),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_EPOCH)
def test_hint_of_a_finished_run_works_when_pasted(learnable_corpus, tmp_path, name, capsys):
    settings, asks = ONE_EPOCH[name]
    run = fit_tiny(learnable_corpus, tmp_path / "a run", *settings)
    before = {line["step"]: line["lr"] for line in run.metrics("train")}
    with pytest.raises(ConfigError) as refused:
        resume_tiny(run)
    command = shlex.split(str(refused.value).split("`")[1])
    assert command[:2] == ["phonetrain", "resume"] and ("on_extend" in command[-1]) == asks
    assert exit_code([*command[1:], 'stop.max_time="3s"', "--quiet"]) == 0
    assert run.events("segment_started")[-1]["segment"] == 1
    changed = [event["key"] for event in run.events("config_changed") if event["by"] == "resume"]
    assert sorted(changed) == sorted(["epochs", "stop.max_time", *(["schedule.on_extend"] if asks else [])])
    rates = {line["lr"] for line in run.metrics("train") if line["segment"] == 1}
    if not asks:  # nothing starts anew: the rate of the end is held
        assert rates == {before[max(before)]}


@pytest.mark.parametrize("change", [
    "stage=[{epochs=3}, {epochs=1, 'optimizer.lr'=1e-4}]",
    "stage=[{epochs=1}, {epochs=1, 'optimizer.lr'=1e-4}, {epochs=2}]",
])  # fmt: skip
def test_other_stages_are_another_experiment(learnable_corpus, tmp_path, change):
    run = fit_tiny(learnable_corpus, tmp_path / "run", *ONE_EPOCH["stages"][0])
    with pytest.raises(ConfigError, match="stage.*: .* would be another experiment"):
        resume_tiny(run, change, "schedule.on_extend=stretch")


def test_long_warmup_is_warned_of_with_a_value_that_fits(learnable_corpus, tmp_path, whole):
    assert not [line for line in whole[1] if "warm-up" in line]
    console = Hearing()
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "schedule.warmup_steps=20", console=console)
    (told,) = [event["message"] for event in run.events("warning") if "warm-up" in event["message"]]
    assert "20 updates) is long for a run of 46 updates" in told and told in console.said
    assert "schedule.warmup_steps=2 " in told
    console = Hearing()
    fit_tiny(learnable_corpus, tmp_path / "longer", "epochs=1", "schedule.warmup_steps=200", console=console)
    assert any("200 updates) is long for a run of 23 updates and is cut to it" in line for line in console.said)
    console = Hearing()
    fit_tiny(learnable_corpus, tmp_path / "mended", "epochs=2", "schedule.warmup_steps=2", console=console)
    assert not [line for line in console.said if "warm-up" in line]


def test_looking_at_an_older_run_does_not_make_it_the_newest(learnable_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit_tiny(learnable_corpus, tmp_path / "runs" / "older", "epochs=1")
    fit_tiny(learnable_corpus, tmp_path / "runs" / "newer", "epochs=1")
    for command in ("evaluate", "predict", "report", "explain"):
        assert exit_code([command, "runs/older"]) == 0
    os.utime(tmp_path / "runs" / "older")
    assert Run.open().name == "newer"
    with pytest.raises(ConfigError):
        resume_tiny(Run.open("older"))  # refused: nothing was trained
    assert Run.open().name == "newer"
    resume_tiny(Run.open("older"), "epochs=2", "schedule.on_extend=hold")
    assert Run.open().name == "older"
