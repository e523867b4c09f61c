"""A power cut at any moment leaves the old corpus or the new one, whole, and a run that goes on to the same bits.

The tests turn fsync off, and a killed process proves nothing about it: here it is recorded, and what was not synced may
be missing, torn or there. `make test-long` looks at every moment.
"""

import os
import random
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from phonedata import CorpusNotFound, PackedCorpus, extract, pack
from phonetrain.checkpoints import checkpoint, mirror, series
from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError, PhonetrainError, RunNotFound
from phonetrain.runs.directory import Run
from tests.conftest import write_audio
from tests.power_cuts import Record, states
from tests.training import fit_tiny, numbers, resume_tiny, tree, weights

FIT = ("checkpoint.every_minutes=0.002", "schedule.on_extend=stretch")


def search(record: Record, check: Callable[..., None], folder: Path, seed: str, share: float) -> None:
    """Try `check(folder, ended, again, count)` on what cuts of the power may leave, at a share of all moments.

    ended: whether the cut came after all changes. again: whether to do the work once more there, which takes longer.
    count: after how many changes the cut came.
    """
    dice, tried, failed = random.Random(seed), 0, []
    for name, count, disk in states(record, dice, share):
        shutil.rmtree(folder, ignore_errors=True)
        disk.write(folder)
        tried += 1
        try:
            check(folder, count == len(record.changes), dice.random() < (0.4 if share < 1 else 0.2), count)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    print(f"{seed}: {tried} states tried, {len(failed)} failed")
    assert not failed, f"{len(failed)} of {tried} states:\n" + "\n".join(failed[:20])


# Corpora


@pytest.fixture(scope="module")
def raw(learnable_corpus):
    return learnable_corpus.path.parent / "raw"


SHARES = pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=pytest.mark.long)], ids=["sample", "all"])


@pytest.mark.parametrize("begun", ["nothing", "an old corpus", "a pack that was killed"])
@SHARES
def test_a_corpus_is_the_old_or_the_new_one_whole(raw, learnable_corpus, tmp_path, monkeypatch, begun, share):
    folder, new, old = tmp_path / "recorded", learnable_corpus.digest, None
    folder.mkdir()
    if begun == "an old corpus":
        pack(raw, folder / "packed", context=3, workers=1)
        old = PackedCorpus(folder / "packed").digest
    elif begun == "a pack that was killed":
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("phonedata.packing.pack.put_in_place", interrupted)
            pack(raw, folder / "packed", workers=1)
    record = Record(folder)
    with record.kept():
        pack(raw, folder / "packed", workers=1, replace=True)

    def check(folder: Path, ended: bool, again: bool, count: int) -> None:
        try:
            corpus = PackedCorpus(folder / "packed")
            corpus.verify()
            found = corpus.digest
        except CorpusNotFound:
            found = None
        assert found in ({new} if ended else {old, new}), f"is {found}"
        if again:
            pack(raw, folder / "packed", workers=1, replace=True)
            corpus = PackedCorpus(folder / "packed")
            corpus.verify()
            assert corpus.digest == new and [path.name for path in folder.iterdir()] == ["packed"]

    search(record, check, tmp_path / "left", f"pack over {begun}", share)


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("share", [0.05, pytest.param(5.0, marks=pytest.mark.long)], ids=["sample", "all"])
def test_an_extracted_folder_is_whole_or_absent(tmp_path, share):
    pytest.importorskip("soundfile", reason="the extra [audio] is not installed")
    pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
    write_audio(tmp_path / "audio")
    (folder := tmp_path / "recorded").mkdir()
    record = Record(folder)
    with record.kept():
        extract(tmp_path / "audio", folder / "raw", workers=1)
    whole = tree(folder / "raw")

    def check(folder: Path, ended: bool, again: bool, count: int) -> None:
        assert (folder / "raw").exists() or not ended
        assert not (folder / "raw").exists() or tree(folder / "raw") == whole
        if again and not (folder / "raw").exists():
            extract(tmp_path / "audio", folder / "raw", workers=1)
            assert tree(folder / "raw") == whole and [path.name for path in folder.iterdir()] == ["raw"]

    search(record, check, tmp_path / "left", "extract", share)


# Runs


@pytest.mark.parametrize("begun", ["nothing", "a run of one epoch"])
@SHARES
def test_a_run_goes_on_to_the_same_bits(learnable_corpus, tmp_path, begun, share):
    folder = tmp_path / "recorded"
    folder.mkdir()
    if begun != "nothing":
        fit_tiny(learnable_corpus, folder / "runs/run", *FIT, "epochs=1")
    record = Record(folder)
    with record.kept():
        if begun == "nothing":
            fit_tiny(learnable_corpus, folder / "runs/run", *FIT, "epochs=2")
        else:
            resume_tiny(Run(folder / "runs/run"), "epochs=2")
    whole = Run(folder / "runs/run")
    found = weights(whole), numbers(whole)

    def check(folder: Path, ended: bool, again: bool, count: int) -> None:
        run = Run(folder / "runs/run")
        saved = [event["step"] for event in run.events("checkpoint_saved")] if run.events_path.is_file() else []
        if saved or ended:
            assert series.read_newest(run)[0].progress.step >= max(saved), f"{max(saved)} was saved"
        if again or ended:
            goes_on(run.path, learnable_corpus, begun, found)

    search(record, check, tmp_path / "left", f"fit over {begun}", share)


@pytest.mark.parametrize("share", [0.001, pytest.param(0.2, marks=pytest.mark.long)], ids=["sample", "more"])
def test_a_mirror_keeps_what_it_has_and_harms_no_run(learnable_corpus, tmp_path, monkeypatch, share):
    folder, copied, copy = tmp_path / "recorded", [], mirror.Mirror._copy
    place = folder / "drive/run"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    record = Record(folder)

    def copy_and_note(self: mirror.Mirror) -> None:
        copy(self)
        with record.lock:
            record.look()
            copied.append((len(record.changes), series.saved_steps(Run(place))[-1]))

    monkeypatch.setattr(mirror.Mirror, "_copy", copy_and_note)
    with record.kept():
        whole = fit_tiny(learnable_corpus, folder / "runs/run", *FIT, "epochs=1", f"checkpoint.mirror={folder}/drive")
    monkeypatch.setattr(mirror.Mirror, "_copy", copy)
    found = weights(whole), numbers(whole)

    def check(folder: Path, ended: bool, again: bool, count: int) -> None:
        os.chdir(folder)
        there = [step for at, step in copied if at <= count]
        assert not ended or there[-1] == max(series.saved_steps(whole))
        if not there:
            return
        assert series.newest_whole(Run(place))[0].progress.step >= there[-1], f"{there[-1]} was copied"
        if again and count % 2:
            shutil.rmtree(folder / "runs")  # on another machine
        if again:
            goes_on(place if count % 2 else folder / "runs/run", learnable_corpus, "nothing", found)
            for state in place.glob("checkpoints/step-*/state.json"):
                checkpoint.read(state.parent)  # raises for one that is not whole

    search(record, check, folder, "fit with a mirror", share)


def goes_on(place: Path, corpus: PackedCorpus, begun: str, whole: tuple[bytes, list]) -> None:
    """The run at `place` comes to what `whole` is: by resume, or by what the sentence of its refusal says to type."""
    run = mirror.home_of(Run(place))
    try:
        resume_tiny(Run(place), *(["epochs=2"] if begun != "nothing" else []))
    except RunNotFound:
        fit_tiny(corpus, place, *FIT, "epochs=2")
    except PhonetrainError as error:
        assert "\n" not in str(error)
        if not (isinstance(error, ConfigError) and "wanted are done" in str(error)):
            assert (advised := re.findall(r"`phonetrain ([^`]*)`", str(error))), error
            assert exit_code([*shlex.split(advised[-1]), "--corpus", str(corpus.path), "--quiet"]) == 0, error
    assert run.status == "finished"
    assert weights(run) == whole[0]
    assert numbers(run) == whole[1]
