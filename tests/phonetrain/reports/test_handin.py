"""The zip to hand in: whole, true, and without anything private."""

import csv
import io
import json
import os
import re
import zipfile

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError, PhonetrainError
from phonetrain.reports import handin as room
from phonetrain.reports.handin import cleaned, handin, submit_commands
from phonetrain.results.evaluate import kept_evaluation
from tests.training import fit_tiny, resume_tiny

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(learnable_corpus, tmp_path_factory):
    """Two runs below a home folder, one changed by hand, handed in by `alicesmith` on `secrethost42`."""
    home = tmp_path_factory.mktemp("home") / "alicesmith"
    first = fit_tiny(learnable_corpus, home / "runs" / "a-1", "epochs=1", "schedule.name=constant",
                     "schedule.warmup_steps=none")  # fmt: skip
    resume_tiny(first, "epochs=2", "optimizer.lr=2e-4")
    second = fit_tiny(learnable_corpus, home / "runs" / "b-1", "epochs=1", "model.dropout=0.3")
    first.append_event("warning", segment=1, epoch=0, step=1, message=f"key {SECRET} of alicesmith at {home}/notes.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "secrethost42")
        patch.setattr("getpass.getuser", lambda: "alicesmith")
        patch.setenv("WANDB_API_KEY", SECRET)
        path = handin([first, second], home / "out" / "handin.zip")
    with zipfile.ZipFile(path) as archive:
        return first, second, {name: archive.read(name) for name in archive.namelist()}


def test_everything_a_course_asks_for_is_in_it(made):
    first, second, files = made
    for run in (first, second):
        wanted = ("config.toml", "history.txt", "model_arch.txt", "model_metadata.json", "report.html", "curves.png",
                  "metrics.jsonl", "predictions/test-clean.csv")  # fmt: skip
        assert {f"handin/{run.name}/{name}" for name in wanted} <= set(files)
    top = ("README.md", "experiment_log.md", "experiment_log.csv", "versions.json", "comparison.html", "curves.png")
    assert {f"handin/{name}" for name in top} <= set(files)
    metadata = json.loads(files["handin/a-1/model_metadata.json"])
    assert metadata["accuracy"] == kept_evaluation(first)["accuracy"] and metadata["accuracy_interval"]["low"] > 0
    assert metadata["parameters"] == first.read_json(first.built_path)["model"]["parameters"]
    assert files["handin/a-1/predictions/test-clean.csv"] == (first.predictions / "test-clean.csv").read_bytes()


def test_the_log_tells_what_changed_against_the_run_before_and_by_hand(made):
    first, second, files = made
    log = files["handin/experiment_log.md"].decode()
    assert "Changed against a-1: " in log and "model.dropout 0.1 → 0.3" in log
    assert "By hand during the run: " in log and "optimizer.lr was 0.001 up to step" in log
    rows = list(csv.reader(io.StringIO(files["handin/experiment_log.csv"].decode())))
    assert [row[0] for row in rows] == ["run", "a-1", "b-1"] and re.fullmatch(r"[\d.]+ % \(.+ to .+\)", rows[1][5])
    readme = files["handin/README.md"].decode()
    assert "code of your own" in readme and "phonetrain fit a-1/config.toml --corpus packed" in readme


def test_nothing_private_is_in_it(made):
    first, _, files = made
    home = str(first.path.parents[1])
    for name, content in files.items():
        for private in (home, "alicesmith", "secrethost42", SECRET, os.getcwd(), "/tmp/", "/home/"):
            assert private.encode() not in content, (name, private)
    assert "key (left out) of (left out) at notes.txt" in files["handin/a-1/history.txt"].decode()


def test_pictures_and_pages_survive_the_cleaning(made):
    _, _, files = made
    page = files["handin/a-1/report.html"].decode()
    assert page.count("<") == page.count(">") and "</html>" in page and "data:image/png;base64,iVBOR" in page
    assert cleaned(page) == page


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('corpus = "/home/alice/data/packed"', 'corpus = "packed"'),
        ("at C:\\Users\\alice\\runs\\a-1: bad", "at a-1: bad"),
        ("~/runs/a-1 and (/mnt/x/y.py:build)", "a-1 and (y.py:build)"),
        ("1/2, and/or, km/h, https://wandb.ai/me/p/runs/x", "1/2, and/or, km/h, https://wandb.ai/me/p/runs/x"),
        (
            '</td><img src="data:image/png;base64,AA/bb/cc+/dd="/>',
            '</td><img src="data:image/png;base64,AA/bb/cc+/dd="/>',
        ),
        ("runs/a-1/config.toml", "runs/a-1/config.toml"),
        ("12.0 frames/s  3 / 4", "12.0 frames/s  3 / 4"),
    ],
)
def test_only_absolute_paths_are_shortened(text, wanted):
    assert cleaned(text) == wanted


def test_two_runs_of_one_name_are_refused(made, tmp_path):
    first, _, _ = made
    with pytest.raises(ConfigError, match="same name"):
        handin([first, first], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_what_cannot_be_made_is_said_in_the_readme(made, tmp_path, monkeypatch):
    _, second, _ = made

    def refuse(*_, **__):
        raise PhonetrainError("the corpus has no test partition")

    for file in second.predictions.glob("*.csv"):
        file.rename(tmp_path / file.name)
    monkeypatch.setattr(room, "predict", refuse)
    with zipfile.ZipFile(handin(second, tmp_path / "x.zip")) as archive:
        readme = archive.read("handin/README.md").decode()
    (tmp_path / "test-clean.csv").rename(second.predictions / "test-clean.csv")
    assert "## To be added" in readme and "no predictions: the corpus has no test partition" in readme


def test_submit_prints_the_commands_for_kaggle(made, capsys):
    first, _, _ = made
    assert exit_code(["submit", str(first.path), "--competition", "11785-hw1p2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"kaggle competitions submit -c 11785-hw1p2 -f {first.predictions}/test-clean.csv -m ")
    assert "COMPETITION is the last part" in submit_commands(first)


def test_submit_without_predictions_says_how_to_make_them(tmp_path, made):
    _, second, _ = made
    for file in second.predictions.glob("*.csv"):
        file.rename(tmp_path / file.name)
    with pytest.raises(PhonetrainError, match="phonetrain predict"):
        submit_commands(second)
