"""The run directory: names never collide, files are whole or absent, logs follow the lineage, one process trains."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from phonetrain.errors import CheckpointError, RunExists, RunNotFound, TrainingStopped
from phonetrain.runs.directory import Run

LINE = {"kind": "train", "epoch": 0, "step": 1, "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "frames_per_second": 1e4}


def started(run, segment, step, **fields):
    run.append_event("segment_started", segment=segment, epoch=0, step=step, **fields)


def train_lines(run, segment, steps):
    for step in steps:
        run.append_metric({**LINE, "segment": segment, "step": step, "loss": segment + step / 1000})


def holding(path):
    run = Run.create(path)
    run.config_path.write_text("epochs = 1\n")
    return run


def test_names_never_collide(tmp_path):
    names = [Run.create(recipe="recipes/diamond.toml", root=tmp_path / "runs").name for _ in range(3)]
    assert names == ["diamond-1", "diamond-2", "diamond-3"]
    (tmp_path / "runs" / "diamond-7").mkdir()
    assert Run.create(recipe="diamond", root=tmp_path / "runs").name == "diamond-8"


def test_directory_with_a_run_is_refused_and_resume_named(tmp_path):
    holding(tmp_path / "a")
    with pytest.raises(RunExists, match=r"phonetrain resume .*a"):
        Run.create(tmp_path / "a")
    run = Run.create(tmp_path / "b")
    run.append_event("run_started")
    run.append_metric(LINE)
    with pytest.raises(RunExists, match=r"phonetrain resume .*b"):
        Run.create(tmp_path / "b")


def test_run_that_never_trained_is_taken_again_and_set_aside_under_the_lock(tmp_path):
    run = Run.create(tmp_path / "a")
    for killed in (1, 2):
        run.append_event("run_started", killed=killed)
        again = Run.create(tmp_path / "a")
        with again.lock():
            assert f"events.before-{killed}.jsonl" in again.set_aside()
        assert again.events() == [] and again.set_aside() is None
    run.append_metric(LINE)
    with again.lock(), pytest.raises(RunExists):  # another process trained it since
        again.set_aside()


def test_empty_directory_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    assert Run.create(tmp_path / "a").path.is_dir()


def test_newest_is_the_run_with_the_last_event(tmp_path):
    for name in ("z", "a", "m"):
        run = holding(tmp_path / name)
        run.append_event("run_started")
        time.sleep(0.002)
    os.utime(tmp_path / "z")
    assert Run.open(root=tmp_path).name == "m"


def test_missing_run_is_named_with_the_nearest(tmp_path):
    holding(tmp_path / "hourglass-1")
    with pytest.raises(RunNotFound, match="did you mean .*hourglass-1"):
        Run.open("hourglas-1", root=tmp_path)
    assert Run.open("hourglass-1", root=tmp_path).path == tmp_path / "hourglass-1"
    with pytest.raises(RunNotFound, match="phonetrain fit"):
        Run.open(root=tmp_path / "nothing")


def test_last_segment_wins(tmp_path):
    run = Run.create(tmp_path / "a")
    started(run, 1, 0)
    train_lines(run, 1, range(10, 60, 10))
    started(run, 2, 30)
    train_lines(run, 2, range(40, 80, 10))
    assert [(line["segment"], line["step"]) for line in run.metrics("train")] == [
        *((1, step) for step in (10, 20, 30)),
        *((2, step) for step in (40, 50, 60, 70)),
    ]
    assert len(run.all_metrics()) == 9


def test_branch_leaves_the_abandoned_segment(tmp_path):
    run = Run.create(tmp_path / "a")
    started(run, 1, 0)
    train_lines(run, 1, (10, 20, 30, 40))
    started(run, 2, 20)
    train_lines(run, 2, (30, 40))
    started(run, 3, 30, parent=1)
    train_lines(run, 3, (40, 50))
    assert [(line["segment"], line["step"]) for line in run.metrics()] == [(1, 10), (1, 20), (1, 30), (3, 40), (3, 50)]


def test_restart_before_the_parents_start_drops_the_parent(tmp_path):
    run = Run.create(tmp_path / "a")
    started(run, 1, 0)
    train_lines(run, 1, (10, 20, 30))
    started(run, 2, 30)
    train_lines(run, 2, (40,))
    started(run, 3, 10)
    train_lines(run, 3, (20,))
    assert [(line["segment"], line["step"]) for line in run.metrics()] == [(1, 10), (3, 20)]


def test_torn_line_is_left_out_and_swallows_nothing(tmp_path):
    run = Run.create(tmp_path / "a")
    run.append_metric(LINE)
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"kind": "train", "st')
    run.append_metric({**LINE, "step": 2})
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_numbers_that_are_not_finite_survive_as_strict_json(tmp_path):
    run = Run.create(tmp_path / "a")
    run.append_metric({**LINE, "step": np.int64(1), "loss": np.float32("nan"), "lr": math.inf, "path": tmp_path})
    json.loads(run.metrics_path.read_text(), parse_constant=lambda name: pytest.fail(name))
    (line,) = run.metrics()
    assert math.isnan(line["loss"]) and line["lr"] == math.inf and line["step"] == 1


def test_pointer_names_a_step_or_is_refused(tmp_path):
    run = Run.create(tmp_path / "a")
    assert run.read_pointer("best") is None
    run.write_pointer("best", 1200)
    assert run.read_pointer("best") == 1200 and run.checkpoint_dir(1200).name == "step-1200"
    (run.checkpoints / "best").write_text("../../etc")
    with pytest.raises(CheckpointError, match="wanted one line like step-1200"):
        run.read_pointer("best")


def test_second_process_is_refused_and_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import time; from phonetrain.runs.directory import Run\n"
        f"with Run({str(tmp_path / 'a')!r}).lock(): print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    run = Run(tmp_path / "a")
    try:
        with pytest.raises(TrainingStopped, match=f"process {process.pid}"), run.lock():
            pass
    finally:
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        process.wait()
        process.stdout.close()
    with run.lock(), pytest.raises(TrainingStopped, match="this very process"), run.lock():
        pass


@pytest.mark.skipif(os.name != "posix", reason="Windows has no shared locks")
def test_looking_whether_a_run_is_held_keeps_nobody_from_starting(tmp_path, monkeypatch):
    import fcntl

    run = Run.create(tmp_path / "a")
    with run.lock():
        assert run.is_held()
    with open(run.lock_path, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not run.is_held()
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with run.lock():
            assert run.is_held()


def test_leftovers_of_a_killed_process_go_with_the_next_lock(tmp_path):
    run = Run.create(tmp_path / "a")
    (run.path / ".config.toml.123.tmp").write_text("half")
    with run.lock():
        assert not list(run.path.glob("*.tmp")) and not list(run.path.glob(".*.tmp"))


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_full_disk_keeps_the_old_file_and_says_one_sentence(tmp_path):
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    code = f"""
import resource, sys
from pathlib import Path
from phonetrain.errors import TrainingStopped
from phonetrain.runs.directory import Run
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for act in (lambda: Run({str(tmp_path)!r}).write_text(Path({str(target)!r}), "x" * 5000),
            lambda: [Run({str(tmp_path)!r}).append_metric({LINE} | {{"step": i}}) for i in range(1000)]):
    try:
        act()
    except TrainingStopped as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == 2
    assert all("could not be written" in line and "then the same command starts it" in line for line in out)
    assert target.read_bytes() == b"old" and [entry.name for entry in tmp_path.glob(".*")] == []
    assert [line["step"] for line in Run(tmp_path).metrics()] == list(range(len(Run(tmp_path).metrics())))


def test_whole_or_absent(tmp_path):
    Run(tmp_path).write_text(tmp_path / "deep" / "file", "content")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_run_stands_for_its_path(tmp_path):
    run = holding(tmp_path / "a")
    assert Run.open(run).path == run.path and os.fspath(run) == str(tmp_path / "a")


def test_no_home_folder_is_recorded_in_what_happened(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.append_event("warning", step=1, message=f"{tmp_path}/alice/notes.txt and {tmp_path}/bob/notes.txt")
    (event,) = run.events()
    assert event["message"] == f"~/notes.txt and {tmp_path}/bob/notes.txt" and event["step"] == 1
