"""The corpus tools: synthesised speech whose labels fit its sound, the same bytes each time; fake corpora; the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phonedata import ARPABET
from phonedata.raw.open import open_raw

SMALL = ("--hours", "0.08", "--voices", "3")
TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
espeak = pytest.importorskip("espeakng_loader", reason="the extra [demo] is not installed")
pytest.importorskip("kaldi_native_fbank", reason="the extra [demo] is not installed")


def run_tool(name, *arguments, **how):
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, **how)


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Five minutes of speech in three voices a partition, and the labels withheld from test-clean."""
    root = tmp_path_factory.mktemp("spoken")
    done = run_tool("make_speech_corpus.py", root / "raw", *SMALL, "--test-labels", root / "withheld.csv")
    assert done.returncode == 0, done.stderr
    return root


def test_speech_has_every_phoneme_and_the_layout_of_the_course(spoken):
    raw = open_raw(spoken / "raw")
    assert [p.name for p in raw.partitions] == ["dev-clean", "test-clean", "train-clean-100"]
    assert [p.labelled for p in raw.partitions] == [True, False, True] and raw.frontend["rate_hz"] == 16000
    train = raw.partitions[2]
    counts = np.zeros(40, int)
    for index in range(len(train.utterance_ids)):
        features, labels = train.read(index)
        assert features.shape == (len(labels), 28) and np.isfinite(features).all()
        counts += np.bincount(labels, minlength=40)
    assert counts.min() > 0, ARPABET.symbols[counts.argmin()]
    symbols = np.load(sorted((spoken / "raw/train-clean-100/transcript").glob("*.npy"))[0])
    assert symbols.dtype == "<U5" and symbols[0] == "[SOS]" and symbols[-1] == "[EOS]"
    speakers = [set(p.speakers) for p in raw.partitions]
    assert not speakers[0] & speakers[1] and not speakers[0] & speakers[2] and not speakers[1] & speakers[2]


def test_withheld_labels_count_the_test_frames(spoken):
    test = open_raw(spoken / "raw").partitions[1]
    lines = (spoken / "withheld.csv").read_text().splitlines()
    assert lines[0] == "id,label"
    assert len(lines) - 1 == sum(len(test.read(i)[0]) for i in range(len(test.utterance_ids)))
    assert all(line.split(",")[1] in ARPABET.symbols for line in lines[1:])


def test_labelled_silence_is_quiet_and_vowels_are_loud(spoken):
    """C0 is the log energy: what is labelled must sound like it, or the labels slipped in time."""
    train = open_raw(spoken / "raw").partitions[2]
    fits = []
    for index in range(len(train.utterance_ids)):
        features, labels = train.read(index)
        quiet = np.median(features[labels == 0, 0])
        vowels = np.isin(labels, [ARPABET.index(v) for v in ("AA", "AE", "AW", "AY", "EH", "IY", "OW", "OY")])
        if vowels.any():
            fits.append(np.mean(features[vowels, 0] > quiet + 10))
    assert np.mean(fits) > 0.95


def test_stops_own_their_closures():
    from synthesis import Synthesiser

    synthesiser = Synthesiser()
    synthesiser.set_voice("en-us+m3")
    waveform, starts, symbols = synthesiser.speak("The cat kept a packet.", 150, 50, 50)
    assert symbols == [s for s in symbols if s in ARPABET.symbols]
    ends = np.append(starts[1:], len(waveform))
    for start, end, symbol in zip(starts, ends, symbols):
        silent = np.mean(np.abs(waveform[start:end].astype(int)) <= 2) if end > start else 0
        if symbol in ("K", "P", "T"):
            assert silent > 0.2, symbol  # the closure, and then the burst
        elif symbol in ("AE", "EH", "AH", "IH"):
            assert silent < 0.05, symbol


def test_sentences_belong_to_one_partition_each():
    from sentences import partition_of, sentences

    told = {p: sentences(p, 300, (0, n)) for n, p in enumerate(("train-clean-100", "dev-clean", "test-clean"))}
    assert all(len(set(texts)) == 300 for texts in told.values())
    assert all(partition_of(text) == p for p, texts in told.items() for text in texts)
    assert told["dev-clean"] == sentences("dev-clean", 300, (0, 1))


@pytest.mark.long
def test_speech_is_the_same_bytes_for_any_number_of_processes(spoken, tmp_path):
    done = run_tool("make_speech_corpus.py", tmp_path / "raw", *SMALL, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "raw") == contents(spoken / "raw")


def test_an_existing_folder_is_replaced_only_when_told_and_only_if_it_is_a_corpus(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    for arguments in ((), ("--replace",)):
        done = run_tool("make_speech_corpus.py", tmp_path / "home", *SMALL, *arguments)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "home/thesis.tex").read_text() == "years of work"


def test_a_missing_synthesiser_names_the_extra(tmp_path):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_tool("make_speech_corpus.py", tmp_path / "raw", *SMALL, "--jobs", "1", env=environment)
    assert done.returncode == 1 and "[demo]" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists() and not list(tmp_path.glob("raw*"))


def test_fake_corpora_continue_where_they_stopped_and_are_the_same_for_any_number_of_processes(tmp_path):
    size = ("--fake", "--utterances", "45", "--frames", "50", "--dim", "13")
    for name, jobs in (("a", 1), ("b", 2)):
        assert run_tool("make_speech_corpus.py", tmp_path / name, *size, "--jobs", jobs).returncode == 0
    whole = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == whole
    files = sorted((tmp_path / "b").rglob("*.npy"))
    files[3].unlink()
    files[7].write_bytes(files[7].read_bytes()[:-5])
    kept = files[-1].stat().st_mtime_ns
    assert run_tool("make_speech_corpus.py", tmp_path / "b", *size).returncode == 0
    assert contents(tmp_path / "b") == whole and files[-1].stat().st_mtime_ns == kept
    raw = open_raw(tmp_path / "a")
    assert [len(p.utterance_ids) for p in raw.partitions] == [2, 2, 45]
    features, labels = raw.partitions[2].read(44)
    assert features.shape == (len(labels), 13)


def check_demo(folder, *arguments):
    """One demo run: exit code 0, a better score than the majority class, and every file it names."""
    done = run_tool("demo.py", "--out", folder, *arguments, env={**os.environ, "WANDB_MODE": "disabled"})
    assert done.returncode == 0, done.stderr
    accuracy, majority = map(float, re.search(r"test-clean +([\d.]+)% +([\d.]+)%", done.stdout).groups())
    assert accuracy > 1.5 * majority
    for line in ("learning curves", "report", "predictions", "true and predicted"):
        file = re.search(rf"^{line} +(\S+)", done.stdout, re.MULTILINE)[1]
        assert Path(file).stat().st_size > 1000, line
    return accuracy


def test_the_demo_ends_with_its_numbers_and_its_files(tmp_path):
    check_demo(tmp_path / "demo", "--hours", "0.04", "--voices", "2", "epochs=1", "batch_size=64")


@pytest.mark.long
def test_the_whole_demo_passes_80_percent_and_a_second_call_replaces_the_first(tmp_path):
    check_demo(tmp_path / "demo", *SMALL, "epochs=1")
    assert check_demo(tmp_path / "demo") >= 80
