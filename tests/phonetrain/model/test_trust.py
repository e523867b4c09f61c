"""Code that a run's directory names runs only where this user trusted it: digests, records and every command."""

import importlib.metadata
import shutil

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.errors import CodeNotTrusted, ConfigError
from phonetrain.model import trust
from phonetrain.results.evaluate import evaluate
from phonetrain.runs.directory import Run
from tests.training import TINY

OURS = [words for words in TINY if not words.startswith(("model.", "epochs="))]
NET = """
import pathlib
import helper
from package.inner import width
late = __import__("late")
pathlib.Path(__file__).with_name("ran").touch()
def build(feature_dim, window_width, num_classes):
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(feature_dim * window_width, width), nn.ReLU(),
                         nn.Linear(width, num_classes))
"""
FILES = {
    "net.py": NET,
    "helper.py": "import math\n",
    "late.py": "",
    "package/__init__.py": "",
    "package/inner.py": "from . import sibling\nwidth = 16\n",
    "package/sibling.py": "",
    "apart.py": "",
}


@pytest.fixture(autouse=True)
def nobody_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def code(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "code"


@pytest.mark.parametrize("name", FILES)
def test_digest_covers_the_file_and_all_that_it_imports_from_its_folder(code, name):
    before = trust.digest(f"{code}/net.py:build")
    (code / name).write_text((code / name).read_text() + "# changed\n")
    assert (trust.digest(f"{code}/net.py:build") == before) == (name == "apart.py")
    assert not (code / "ran").exists()


def test_digest_does_not_depend_on_where_the_folder_lies_but_on_new_files_that_would_be_imported(code, tmp_path):
    before = trust.digest(f"{code}/net.py:build")
    shutil.copytree(code, tmp_path / "elsewhere")
    assert trust.digest(f"{tmp_path}/elsewhere/net.py:build") == before
    (tmp_path / "elsewhere" / "pathlib.py").write_text("import os")
    assert trust.digest(f"{tmp_path}/elsewhere/net.py:build") != before


def test_digest_of_an_installed_package_is_its_name_and_version():
    # As its metadata has it: torch.__version__ names the build as well, on some indexes alone.
    assert trust.digest("torch.nn:Linear") == f"torch=={importlib.metadata.version('torch')}"
    with pytest.raises(ConfigError, match="no module nowhere_to_be_found is found here"):
        trust.digest("nowhere_to_be_found.net:build")


def test_module_in_a_folder_of_its_own_is_digested_as_a_file(code, monkeypatch):
    monkeypatch.syspath_prepend(code)
    before = trust.digest("package.inner:width")
    (code / "package" / "sibling.py").write_text("# changed")
    assert trust.digest("package.inner:width") != before


def trained(code, corpus, path, *settings):
    words = ["fit", "--corpus", str(corpus.path), "--run", str(path), "--quiet", *OURS, "epochs=1"]
    assert exit_code([*words, f"model.factory={code}/net.py:build", *settings]) == 0
    return Run(path)


@pytest.fixture
def run(code, learnable_corpus, tmp_path):
    return trained(code, learnable_corpus, tmp_path / "run")


COMMANDS = {"evaluate": [], "predict": [], "export": [], "resume": ["epochs=2", "schedule.on_extend=hold", "--quiet"]}


def test_code_runs_for_who_trained_with_it_and_for_others_only_when_told(code, run, capsys, monkeypatch):
    assert exit_code(["evaluate", str(run.path)]) == 0  # by fit
    (code / "ran").unlink()
    trust.records().unlink()
    for command, more in COMMANDS.items():
        capsys.readouterr()
        assert exit_code([command, str(run.path), *more]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "that you have not trusted on this machine" in told and "--trust-code" in told
    shutil.rmtree(run.evaluations)
    assert exit_code(["report", str(run.path)]) == 0 and "you have not trusted" in run.report_path.read_text()
    assert not (code / "ran").exists()
    assert exit_code(["evaluate", str(run.path), "--trust-code"]) == 0 and (code / "ran").exists()
    for command, more in COMMANDS.items():
        assert exit_code([command, str(run.path), *more]) == 0, command


@pytest.mark.parametrize("command", ["compare", "suspects", "report", "handin", "transcribe"])
def test_every_command_that_may_import_code_can_be_told_to_trust_it(
    code, run, learnable_corpus, capsys, tmp_path, command
):
    if command == "compare":
        trained(code, learnable_corpus, tmp_path / "other", "seed=1")
    words = {
        "compare": ["compare", str(run.path), str(tmp_path / "other")],
        "report": ["report", str(run.path)],
        "suspects": ["suspects", str(run.path)],
        "handin": ["handin", str(run.path), "--out", str(tmp_path / "handin.zip")],
        "transcribe": ["transcribe", str(tmp_path / "speech.wav"), "--run", str(run.path)],
    }[command]
    (code / "ran").unlink()
    trust.records().unlink()
    exit_code(words)
    assert not (code / "ran").exists()
    assert "you have not trusted" in capsys.readouterr().err
    exit_code([*words, "--trust-code"])
    assert (code / "ran").exists() and "you have not trusted" not in capsys.readouterr().err
    (code / "ran").unlink()
    assert exit_code(["evaluate", str(run.path)]) == 0 and (code / "ran").exists()


def test_edited_code_is_refused_and_told_of_where_it_is_trusted(code, run, capsys):
    (code / "helper.py").write_text("# edited")
    with pytest.raises(CodeNotTrusted):
        evaluate(run)
    capsys.readouterr()
    assert evaluate(run, trust_code=True)["accuracy"] > 0
    assert "its code is not the one that" in capsys.readouterr().err


def test_records_that_cannot_be_written_are_said_and_kept_by_this_process_alone(code, monkeypatch, tmp_path):
    (tmp_path / "config").write_text("a file")
    monkeypatch.setattr(trust, "unrecorded", set())
    assert trust.trusted() == set()
    assert "could not be written" in trust.trust(f"{code}/net.py:build")
    assert trust.trusted() == {trust.digest(f"{code}/net.py:build")}  # by this process alone
