"""upload: one continuous curve whatever the run's life was, and nothing twice; what was written is read back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import RunConfig
from phonetrain.errors import ConfigError, PhonetrainError
from phonetrain.runs.directory import Run
from phonetrain.runs.upload import SENDERS, upload
from tests.phonetrain.runs.test_tracker import written
from tests.training import StopAt, fit_tiny, resume_tiny

UPLOAD = "import sys; from phonetrain.runs.upload import upload; print(upload(sys.argv[1])['added'])"


@pytest.fixture(scope="module")
def resumed(learnable_corpus, tmp_path_factory) -> Run:
    """A run that was stopped, resumed, and gone back with: its file holds lines that are not of its life."""
    run = fit_tiny(learnable_corpus, tmp_path_factory.mktemp("upload") / "a-1", "checkpoint.keep=9", console=StopAt(30))
    resume_tiny(run, console=StopAt(50))
    resume_tiny(run, from_checkpoint="step-23")
    assert len(run.all_metrics()) > len(run.metrics())
    return run


@pytest.fixture
def run(resumed, tmp_path) -> Run:
    return Run(shutil.copytree(resumed.path, tmp_path / "a-1"))


def events(folder: Path) -> list[tuple[str, int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [(tag, event.step, event.value) for tag in reader.Tags()["scalars"] for event in reader.Scalars(tag)]


def test_tensorboard_shows_the_life_of_the_run_once(run, learnable_corpus, capsys):
    pytest.importorskip("tensorboard")
    assert exit_code(["upload", str(run.path), "--to", "tensorboard", "--json"]) == 0
    sent = json.loads(capsys.readouterr().out)
    lines = run.metrics()
    assert sent["added"] == sent["lines"] == len(lines)
    train = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines if line["kind"] == "train"]
    found = events(run.path / "tensorboard")
    assert [(step, value) for tag, step, value in found if tag == "train/loss"] == train
    assert upload(run, "tensorboard")["added"] == 0 and len(events(run.path / "tensorboard")) == len(found)
    resume_tiny(run, "epochs=4", "schedule.on_extend=hold")
    more = upload(run, "tensorboard")
    assert 0 < more["added"] == len(run.metrics()) - len(lines)
    steps = [step for tag, step, _ in events(run.path / "tensorboard") if tag == "train/loss"]
    assert steps == [line["step"] for line in run.metrics("train")]


def test_a_run_that_went_back_since_begins_another_curve(run):
    pytest.importorskip("tensorboard")
    upload(run, "tensorboard")
    resume_tiny(run, "optimizer.lr=1e-4", from_checkpoint="step-23")
    assert upload(run, "tensorboard")["added"] == len(run.metrics())
    steps = [step for tag, step, _ in events(run.path / "tensorboard") if tag == "train/loss"]
    assert steps == [line["step"] for line in run.metrics("train")]


def test_wandb_gets_one_run_with_the_life_in_order_and_no_place_of_this_machine(run, tmp_path):
    config = run.config_path.read_text().replace("[tracking]\n", '[tracking]\nname = "the name"\ntags = ["x", "y"]\n'
                                                 'notes = "a note"\nentity = "team"\n')  # fmt: skip
    run.config_path.write_text(config)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    for expected in (len(run.metrics()), 0):
        done = subprocess.run(
            [sys.executable, "-c", UPLOAD, run.path],
            env=clean | {"WANDB_MODE": "offline", "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and int(done.stdout.split()[-1]) == expected, done.stderr
    (folder,) = run.path.glob("wandb/offline-run-*")
    records = written(folder)
    (about,) = [record.run for record in records if record.HasField("run")][:1]
    assert (about.display_name, list(about.tags), about.notes, about.entity) == (
        "the name",
        ["x", "y"],
        "a note",
        "team",
    )
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in records if record.HasField("history")]  # fmt: skip
    assert [(row["step"], row.get("train/loss")) for row in rows] == [
        (line["step"], line.get("loss")) for line in run.metrics()
    ]
    config = b"".join(record.SerializeToString() for record in records if record.HasField("config"))
    config += about.config.SerializeToString()
    assert b"hidden" in config and str(tmp_path).encode() not in config
    assert RunConfig.from_toml(run.config_path).data.corpus.encode() not in config


def test_trackio_keeps_one_run_on_this_machine(run, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    code = (
        "import sys; from phonetrain.runs.upload import upload\n"
        "print(upload(sys.argv[1], 'trackio')['added'], upload(sys.argv[1], 'trackio')['added'])\n"
        "from trackio.sqlite_storage import SQLiteStorage as Storage\n"
        "(name,) = Storage.get_runs('phonetrain')\n"
        "print(sum('train/loss' in row for row in Storage.get_logs('phonetrain', name)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run.path],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "db"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(run.metrics())), "0", str(len(run.metrics("train")))]


def test_what_wandb_wrote_offline_is_whole_each_time_and_counts_as_sent_only_offline(run, monkeypatch):
    sent = []

    def sender(run, config, lines, curve, goes_on):
        sent.append((len(lines), curve, goes_on))
        return f"place {curve}"

    monkeypatch.setitem(SENDERS, "wandb", sender)
    whole = len(run.metrics())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert upload(run)["offline"] and upload(run)["added"] == 0
    resume_tiny(run, "epochs=4", "schedule.on_extend=hold")
    longer = len(run.metrics())
    assert upload(run)["added"] == longer > whole
    monkeypatch.delenv("WANDB_MODE")
    assert not upload(run)["offline"] and upload(run)["added"] == 0
    resume_tiny(run, "epochs=5", "schedule.on_extend=hold")
    added = len(run.metrics()) - longer
    assert upload(run)["added"] == added
    assert sent == [(whole, 1, False), (longer, 2, False), (longer, 3, False), (added, 3, True)]


def test_without_a_login_or_numbers_one_sentence_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr("phonetrain.runs.upload.logged_in", lambda: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(PhonetrainError, match="`wandb login` does that, and --to tensorboard or trackio"):
        upload(run)
    assert "uploaded" not in run.read_json(run.tracker_path)
    with pytest.raises(ConfigError, match="wanted one of wandb, tensorboard, trackio"):
        upload(run, "mlflow")
    run.metrics_path.unlink()
    with pytest.raises(PhonetrainError, match="nothing to upload"):
        upload(run)


def test_a_library_that_is_not_there_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(PhonetrainError, match="pip install trackio"):
        upload(run, "trackio")
