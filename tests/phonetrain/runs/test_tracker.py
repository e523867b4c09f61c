"""wandb is a mirror that cannot stop training: never a prompt, one id, one warning line whatever breaks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from phonetrain.config.run_config import RunConfig
from phonetrain.config.sections import TrackingConfig
from phonetrain.runs.directory import Run
from phonetrain.runs.tracker import Tracker, open_tracker, wandb_id, without_places
from tests.training import StopAt, fit_tiny, resume_tiny

SCRIPT = """
import json, os, signal, subprocess, sys
from phonetrain.config.sections import TrackingConfig
from phonetrain.runs.directory import Run
from phonetrain.runs.tracker import open_tracker
path, mode, act = sys.argv[1:]
said, warned = [], []
if act == "missing":
    sys.modules["wandb"] = None
tracker = open_tracker(TrackingConfig(wandb=mode, project="p"), Run(path), {"epochs": 1}, said.append, warned.append)
kind = type(tracker).__name__
tracker.log({"kind": "train", "segment": 1, "epoch": 0, "step": 10, "loss": float("nan")}, 10)
if act == "kill":
    found = []
    while not found:  # on a busy machine it may not have its name yet
        listing = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True).stdout
        found = [int(line.split()[0]) for line in listing.splitlines()
                 if "wandb-core" in line and int(line.split()[1]) == os.getpid()]
    for child in found:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
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
    assert result.said == [f"wandb: to upload, phonetrain upload {tmp_path}"]


def test_id_is_the_same_for_every_segment(tmp_path):
    first, second = wandb_id(Run(tmp_path)), wandb_id(Run(tmp_path))
    assert first == second and len(first) == 8


def test_a_real_run_that_is_resumed_is_one_run_with_one_axis(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "tracking.wandb=offline", console=StopAt(28))
    resume_tiny(run)
    assert run.status == "finished"
    folders = sorted((run.path / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    read = [written(folder) for folder in folders]
    identity = run.read_json(run.tracker_path)["wandb_id"]
    assert [record.run.run_id for each in read for record in each if record.HasField("run")] == [identity] * 2
    assert all(any(record.metric.step_metric == "step" for record in each) for each in read)
    logged = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
              for each in read for record in each if record.HasField("history")]  # fmt: skip
    wanted = [(line["step"], line.get("loss")) for line in run.metrics()]
    assert [(line["step"], line.get("train/loss")) for line in logged] == wanted
    assert [line["step"] for line in logged] == sorted(line["step"] for line in logged)


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
    tracker = open_tracker(TrackingConfig(wandb="off", project="p"), Run(tmp_path), {}, print, print)
    assert type(tracker) is Tracker
    tracker.log({"kind": "train"}, 1)
    tracker.finish()
    assert not list(tmp_path.iterdir())


def test_unwritable_directory_costs_one_warning_line(tmp_path):
    (tmp_path / "wandb").write_text("a file where wandb wants a directory")
    (tmp_path / "tracker.json").mkdir()
    result = tracked(tmp_path)
    assert result.kind == "Tracker" and len(result.warned) == 1


def written(folder: Path) -> list:
    """The records of an offline directory, once wandb's own process, which writes behind, has written the last."""
    (file,) = folder.glob("*.wandb")
    for _ in range(100):
        records = list(wandb_records(file.read_bytes()))
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.1)
    return records


def recorded(run: Path) -> dict[str, dict]:
    """The config that wandb has recorded offline for a run of one segment, later values over earlier ones."""
    (folder,) = run.glob("wandb/offline-run-*")
    items = [item for record in written(folder) for item in (*record.run.config.update, *record.config.update)]
    return {item.key: json.loads(item.value_json) for item in items}


def wandb_records(content: bytes):
    """A .wandb file is LevelDB's log: checksum, length and kind before each piece, no piece over 32 KiB blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, pieces = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(pieces)
            pieces = b""


def test_wandb_is_told_what_the_config_and_what_was_built_are_after_the_last_stage_too(
    learnable_corpus, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fit_tiny(
        learnable_corpus, tmp_path / "run", "stage=[{epochs=1}, {epochs=1, subset=0.5}]", "tracking.wandb=offline"
    )
    told = recorded(run.path)
    config = RunConfig.from_toml(run.config_path)
    assert told["config"] == without_places(config.replaced({}).to_dict())
    assert told["config"]["data"]["corpus"] == learnable_corpus.path.name
    built = json.loads(run.built_path.read_text())
    assert told["built"] == built and built["loader"]["utterances"] == 20


def test_a_run_that_is_open_already_is_left_alone(tmp_path):
    (tmp_path / "ours").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, str(tmp_path)],
        env=clean | {"WANDB_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[True, False, 1]\n", done.stderr


BESIDE = """
import sys
import time
from pathlib import Path
import wandb
from phonetrain.config.sections import TrackingConfig
from phonetrain.runs.directory import Run
from phonetrain.runs.tracker import open_tracker
mine = wandb.init(mode="offline", project="theirs", settings=wandb.Settings(silent=True))
run, said = Run(Path(sys.argv[1]) / "ours"), []
tracker = open_tracker(TrackingConfig(wandb="offline", project="p"), run, {"epochs": 1}, said.append, said.append)
tracker.log({"kind": "train", "loss": 2.0}, 1)
ours = tracker.wandb_run
tracker.finish()
mine.log({"loss": 1.0})
print([wandb.run is mine, ours is mine, mine.summary["loss"]])
mine.finish()
"""
