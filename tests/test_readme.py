"""What README shows is run as it is written there, on small nets; its commands parse."""

import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest

import phonedata
import phonetrain
from phonedata.cli import app as phonedata_app
from phonetrain.cli.commands import app as phonetrain_app
from phonetrain.cli.main import cut_overrides, exit_code
from phonetrain.runs.directory import Run
from tests.training import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SMALL = ", ".join(repr(setting) for setting in TINY if not setting.startswith("epochs"))


def python_block(start: str) -> str:
    (code,) = [code for language, code in BLOCKS if language == "python" and code.startswith(start)]
    return code


def made_small(code: str, epochs: str) -> str:
    """`code` with a net that trains in a second; whatever README's sizes are, they must be there to be replaced."""
    small = code.replace(f'"epochs={epochs}"', f'"epochs=3", {SMALL}').replace('"epochs=10"', '"epochs=4"')
    assert "hidden=32" in small
    return small.replace('"model.max_parameters=20_000_000", ', "")


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for language, text in BLOCKS if not language for line in text.splitlines()]
    return [line for line in lines if line.startswith(("phonedata ", "phonetrain "))]


def test_readme_is_short_and_its_files_are_there():
    assert len(README.splitlines()) <= 200
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert {name for name in linked if not (ROOT / name).is_file()} == set()
    pictures = [ROOT / name for name in linked if name.endswith(".png")]
    assert len(pictures) >= 2 and all(picture.stat().st_size < 150_000 for picture in pictures)


@pytest.mark.parametrize("line", commands())
def test_every_command_of_readme_is_understood(line):
    program, *words = shlex.split(line)
    if program == "phonedata":
        phonedata_app.parse_args(words, exit_on_error=False, print_error=False)
    else:
        phonetrain_app.parse_args(cut_overrides(words)[0], exit_on_error=False, print_error=False)


def test_the_homework_from_raw_files_to_a_report(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").symlink_to(learnable_corpus.path.parent / "raw")
    exec(made_small(python_block("import phonedata, phonetrain"), epochs="20"), {})
    run = Run.open("default-1")
    assert len(run.metrics("epoch")) == 3 and 'max_time = "2h"' in run.config_path.read_text()
    assert (run.path / "predictions/test-clean.csv").is_file() and (run.path / "report.html").is_file()


def test_the_example_of_the_package_runs(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").symlink_to(learnable_corpus.path)
    exec(made_small(textwrap.dedent(phonetrain.__doc__.split("In a notebook:")[1]), epochs="5"), {})
    assert len(Run.open("default-1").metrics("epoch")) == 4


def test_the_model_of_ones_own_trains(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").symlink_to(learnable_corpus.path)
    (tmp_path / "mymodel.py").write_text(python_block("# mymodel.py"), encoding="utf-8")
    (line,) = [line for line in commands() if "model.factory" in line]
    settings = [setting for setting in TINY if not setting.startswith(("model.", "epochs"))]
    assert exit_code([*shlex.split(line)[1:], *settings, "epochs=2", "--quiet"]) == 0
    assert Run.open("default-1").best()["dev_accuracy"] > 0.2


def test_utterances_from_hdf5(tiny_raw, tiny_corpus, tmp_path, monkeypatch):
    import h5py

    monkeypatch.chdir(tmp_path)
    with h5py.File("speech.h5", "w") as file:
        for path in tiny_raw.glob("*/mfcc/*.npy"):
            one = file.create_group(f"{path.parts[-3]}/{path.stem}")
            one["features"] = np.load(path)
            text = path.parents[1] / "transcript" / path.name
            if text.exists():
                one.create_dataset("labels", data=np.load(text).astype(object), dtype=h5py.string_dtype())
    exec(python_block("import h5py"), {})
    corpus = phonedata.PackedCorpus("packed")
    for name, partition in tiny_corpus.partitions.items():
        assert corpus[name].utterance_ids == partition.utterance_ids and corpus[name].speakers == partition.speakers
        assert corpus[name].labelled == partition.labelled and (corpus[name].mean == partition.mean).all()


def test_the_loader_in_a_loop_of_ones_own(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").symlink_to(learnable_corpus.path)
    code = python_block("from phonedata import WindowSpec").replace("train-clean-100", "train-clean")
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["windows"].shape == (1024, 61, learnable_corpus.feature_dim) and scope["labels"].shape == (1024,)
