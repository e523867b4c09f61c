"""`devices=N` starts its own processes: what they say, raise and are told arrives; any number goes on for another."""

import io
import json
import os
import signal

import numpy as np
import pytest

from phonedata import open_loader
from phonetrain.cli.main import main
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.distributed import from_slurm, launched_size
from phonetrain.errors import ConfigError, RunExists, TrainingStopped
from phonetrain.runs.directory import Run
from phonetrain.text import command
from phonetrain.training import launch
from phonetrain.training.fit import fit
from phonetrain.training.resume import resume
from tests.forked import Forked
from tests.phonetrain.test_distributed import last_of_each, losses, wait_for
from tests.training import TINY, StopAt

CPU = (*TINY, "device=cpu", "precision=fp32")


def config(*settings: str):
    return load_recipe("default").override(last_of_each((*CPU, *settings)))


@pytest.mark.parametrize(("norm", "devices"), [
    ("batch", (3, 1)), pytest.param("layer", (2, 3), marks=pytest.mark.long)
])  # fmt: skip
def test_a_run_goes_on_in_another_number_of_processes_as_it_would_in_one(norm, devices, learnable_corpus, tmp_path):
    """Dropout and masks on: both go by the frame, and not by the process that has it."""
    settings = config(f"model.norm={norm}", "model.dropout=0.3", "model.neighbours=1")
    whole = fit(config=settings, corpus=learnable_corpus.path, run=tmp_path / "whole", console=Console())
    steps = whole.metrics("epoch")[0]["step"]
    run = fit(config=settings, corpus=learnable_corpus.path, run=tmp_path / "cut", console=StopAt(steps // 2))
    assert run.status == "SIGTERM"
    resume(run, f"devices={devices[0]}", console=StopAt(steps + 2))
    assert run.status == "SIGTERM" and steps < run.read_pointer("last") < 2 * steps
    resume(run, f"devices={devices[1]}", console=Console())
    assert run.status == "finished"
    assert [line["step"] for line in run.metrics("train")] == [line["step"] for line in whole.metrics("train")]
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)
    changes = [(event["old"], event["new"]) for event in run.events("config_changed") if event["key"] == "devices"]
    assert changes == [(1, devices[0]), devices]


def test_batches_of_two_and_of_three_ranks_are_those_of_one(learnable_corpus):
    def frames(world_size: int) -> list[np.ndarray]:
        slices = []
        for rank in range(world_size):
            with open_loader(learnable_corpus, "train-clean", window=(5, 5), batch_size=100, rank=rank,
                             world_size=world_size, kind="host") as loader:  # fmt: skip
                slices.append([batch.frames.numpy().copy() for batch in loader.epoch(1)])
        return [np.concatenate(parts) for parts in zip(*slices, strict=True)]

    one = frames(1)
    assert len(one) > 10
    for size in (2, 3):
        assert sum(not np.array_equal(*pair) for pair in zip(one, frames(size), strict=True)) == 0


def test_what_the_processes_refuse_is_raised_here(learnable_corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 1\n")
    Run(tmp_path / "run").append_event("run_started", launch="of another")
    Run(tmp_path / "run").checkpoint_dir(3).mkdir(parents=True)
    made = config().replaced({"data.corpus": str(learnable_corpus.path)})
    task = launch.Task("fit_here", {"config": made, "name": None, "run": tmp_path / "run", "pace": {}, "began": 0.0})
    with pytest.raises(RunExists, match=str(tmp_path / "run")):
        launch.together(task, 1, Console())


KILLED = """
import os
from torch import nn


def build(feature_dim, window_width, num_classes):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    return nn.Sequential(nn.Flatten(), nn.Linear(window_width * feature_dim, num_classes))
"""


def test_a_killed_process_is_one_sentence(learnable_corpus, tmp_path):
    (tmp_path / "mymodel.py").write_text(KILLED)
    made = config("devices=2").replaced({"model.factory": f"{tmp_path / 'mymodel.py'}:build"})
    with pytest.raises(TrainingStopped, match="devices = 2: one of the processes was ended by SIGKILL, as the system"):
        fit(config=made, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())


@pytest.mark.parametrize(("notebook", "told"), [
    (True, "phonetrain.resume('runs/a')"), (False, "phonetrain resume runs/a")
])  # fmt: skip
def test_what_processes_advise_is_written_for_whoever_started_them(notebook, told, monkeypatch):
    monkeypatch.setattr(launch, "in_notebook", lambda: notebook)
    for name, value in launch.environment(2).items():
        monkeypatch.setenv(name, value)
    assert command("resume", "runs/a") == told


def test_an_error_of_somebody_elses_keeps_its_traceback(learnable_corpus, tmp_path):
    (tmp_path / "error-0.pickle").write_bytes(_whole(ZeroDivisionError("division by zero")))
    error = launch.failure(tmp_path, 2, io.BytesIO())
    assert isinstance(error, ZeroDivisionError) and "in deeply" in error.__notes__[0]
    ended = io.BytesIO(b"exitcode  : -15 (pid: 7)\n")
    assert isinstance(launch.failure(tmp_path, 2, ended), ZeroDivisionError)
    killed = io.BytesIO(b"exitcode  : 1 (pid: 6)\nexitcode  : -9 (pid: 7)\n")
    assert "ended by SIGKILL" in str(launch.failure(tmp_path, 2, killed))


def _whole(error: BaseException) -> bytes:
    from phonetrain.training.worker import whole_error

    def deeply() -> None:
        raise error

    try:
        deeply()
    except ZeroDivisionError as raised:
        return whole_error(raised)


def test_processes_whose_starter_is_gone_save_and_end(learnable_corpus, tmp_path):
    run, words = Run(tmp_path / "run"), tmp_path / "words.txt"
    line = ["fit", "default", *last_of_each((*CPU, "epochs=500", "devices=2"))]
    process = Forked(main, [*line, "--corpus", str(learnable_corpus.path), "--run", str(run.path)], output=words)
    wait_for(lambda: run.path.exists() and run.metrics("train"), process, words)
    process.kill()
    process.wait()
    wait_for(lambda: run.status == "SIGHUP", None, words)
    assert run.read_pointer("last") == run.events("checkpoint_saved")[-1]["step"] > 0


@pytest.mark.long
def test_auto_measures_one_and_all_and_takes_the_faster(learnable_corpus):
    said = []
    console = Console()
    console.say = said.append
    asked = config("devices=auto", "batch_size=64").replaced({"data.corpus": str(learnable_corpus.path)})
    chosen, pace = launch.faster(asked, 2, console)
    assert pace.keys() == {"1", "2"} and min(pace.values()) > 0
    assert chosen.devices == int(max(pace, key=pace.get)) and f"takes {chosen.devices}" in said[-1]


def test_auto_without_several_gpus_takes_one_and_records_it(learnable_corpus, tmp_path):
    run = fit(config=config("devices=auto", "epochs=1"), corpus=learnable_corpus.path, run=tmp_path / "run")
    assert "devices = 1\n" in run.config_path.read_text()


def test_one_gpu_by_number_and_several_devices_contradict_each_other():
    for devices in (2, '"auto"'):
        with pytest.raises(ConfigError, match=r"device = cuda:1: names one GPU, but devices = .* takes several"):
            config(f"devices={devices}", "device=cuda:1")
    with pytest.raises(ConfigError, match="devices = 0: wanted a whole number, at least 1"):
        config("devices=0")
    with pytest.raises(ConfigError, match="devices = 3: batch_size = 2 is fewer"):
        config("devices=3", "batch_size=2")


@pytest.mark.parametrize(("variables", "sentence"), [
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE = x: wanted a whole number"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2: RANK is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE = 2: MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK = 2: wanted 0 to 1"),
    ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK = -1: wanted a whole number"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "http"}, "MASTER_PORT = http: wanted a"),
])  # fmt: skip
def test_variables_that_mean_nothing_are_one_sentence(variables, sentence, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence):
        launched_size()


def test_processes_started_from_outside_are_not_started_again(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not launch.starts_processes(config("devices=2")) and not launch.starts_processes(config())
    with pytest.raises(ConfigError, match="devices = 3: 2 processes were started from outside"):
        launch.starts_processes(config("devices=3"))


@pytest.mark.parametrize(("hosts", "first"), [
    ("node3", "node3"), ("node[03-05,9],login", "node03"), ("a-[7],b", "a-7"), ("gpu01,gpu02", "gpu01"),
    ("r[1-2]n[4-6]", "r1n4"),
])  # fmt: skip
def test_first_host_of_slurms_list_is_the_master(hosts, first, monkeypatch):
    for name, value in {"SLURM_STEP_NODELIST": hosts, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}.items():
        monkeypatch.setenv(name, value)
    found = from_slurm()
    assert (found["MASTER_ADDR"], found["WORLD_SIZE"], found["RANK"]) == (first, "4", "2")


def test_slurms_warning_saves_and_a_requeued_job_goes_on(learnable_corpus, tmp_path):
    """As docs/CLUSTER.md has it: srun starts two tasks of one line, sends USR1, and starts the same line again."""
    run, words = Run(tmp_path / "run"), tmp_path / "words.txt"
    line = ["fit", "default", *last_of_each((*CPU, "epochs=500")), "--corpus", str(learnable_corpus.path)]
    of_slurm = {"SLURM_JOB_ID": "4217", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}

    def job(restarts: str) -> list[int]:
        segments = len(run.events("segment_started")) if run.path.exists() else 0
        tasks = [
            Forked(main, [*line, "--run", str(run.path)], output=words, SLURM_RESTART_COUNT=restarts, **of_slurm,
                   SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            for rank in range(2)
        ]  # fmt: skip
        try:
            started = lambda: run.path.exists() and len(run.events("segment_started")) > segments  # noqa: E731
            wait_for(started, tasks[0], words)
            before = len(run.all_metrics("train"))
            wait_for(lambda: len(run.all_metrics("train")) > before, tasks[0], words)
            for task in tasks:
                os.kill(task.pid, signal.SIGUSR1)
            return [task.wait() for task in tasks]
        finally:
            for task in tasks:
                task.kill()

    assert job("0") == [128 + signal.SIGUSR1] * 2 and run.status == "SIGUSR1"
    saved = run.read_pointer("last")
    assert saved > 0
    assert job("1") == [128 + signal.SIGUSR1] * 2
    second = run.events("segment_started")[-1]
    assert (second["step"], second["checkpoint"]) == (saved, f"step-{saved}")
    assert json.dumps(run.events("run_started")).count("slurm job 4217") == 1
