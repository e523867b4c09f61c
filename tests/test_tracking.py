"""wandb is a mirror that cannot stop training: never a prompt, one id, one warning line whatever breaks."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from phonetrain.run import Run
from phonetrain.tracking import Tracker, open_tracker, wandb_id

SCRIPT = """
import json, os, signal, subprocess, sys
from types import SimpleNamespace
from phonetrain.run import Run
from phonetrain.tracking import open_tracker
path, mode, act = sys.argv[1:]
said, warned = [], []
if act == "missing":
    sys.modules["wandb"] = None
tracker = open_tracker(SimpleNamespace(wandb=mode, project="p"), Run(path), {"epochs": 1}, said.append, warned.append)
kind = type(tracker).__name__
tracker.log({"kind": "train", "segment": 1, "epoch": 0, "step": 10, "loss": float("nan")}, 10)
if act == "kill":
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    for line in listing.splitlines():
        if "wandb-core" in line and int(line.split()[1]) == os.getpid():
            os.kill(int(line.split()[0]), signal.SIGKILL)
    for step in range(2000):
        tracker.log({"kind": "train", "step": step, "loss": 1.0}, step)
tracker.summary({"best": 0.5})
tracker.finish(0)
tracker.finish(0)
print(json.dumps({"kind": kind, "said": said, "warned": warned}))
"""


def tracked(path, mode="offline", act="", **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), mode, act],
        env=clean | {"HOME": str(path), "USERPROFILE": str(path)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return SimpleNamespace(**json.loads(done.stdout), stderr=done.stderr)


def test_offline_records_inside_the_run_and_prints_the_sync_line(tmp_path):
    result = tracked(tmp_path)
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*")
    identity = wandb_id(Run(tmp_path))
    assert recorded.name.endswith(identity) and not result.warned and not result.stderr
    assert result.said == [f"wandb: to upload, wandb sync --id {identity} {tmp_path.as_posix()}/wandb/offline-run-*"]


def test_id_is_the_same_for_every_segment(tmp_path):
    first, second = wandb_id(Run(tmp_path)), wandb_id(Run(tmp_path))
    assert first == second and len(first) == 8


@pytest.mark.skipif(os.name != "posix", reason="finds the child with ps")
def test_wandb_dying_costs_one_warning_line(tmp_path):
    result = tracked(tmp_path, act="kill")
    assert len(result.warned) == 1 and "training goes on" in result.warned[0] and not result.stderr


def test_missing_wandb_costs_one_warning_line(tmp_path):
    result = tracked(tmp_path, act="missing")
    assert result.kind == "Tracker" and len(result.warned) == 1 and "cannot be imported" in result.warned[0]


def test_online_without_login_never_prompts_and_records_offline(tmp_path):
    result = tracked(tmp_path, mode="online")
    assert len(result.warned) == 1 and "nobody is logged in" in result.warned[0]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_wandb_mode_wins_over_the_config(tmp_path):
    assert tracked(tmp_path, mode="online", WANDB_MODE="disabled").kind == "Tracker"
    assert not (tmp_path / "wandb").exists()


def test_off_is_a_tracker_too(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = open_tracker(SimpleNamespace(wandb="off", project="p"), Run(tmp_path))
    assert type(tracker) is Tracker
    tracker.log({"kind": "train"}, 1)
    tracker.finish()
    assert not list(tmp_path.iterdir())


def test_unwritable_directory_costs_one_warning_line(tmp_path):
    (tmp_path / "wandb").write_text("a file where wandb wants a directory")
    (tmp_path / "tracker.json").mkdir()
    result = tracked(tmp_path)
    assert result.kind == "Tracker" and len(result.warned) == 1
