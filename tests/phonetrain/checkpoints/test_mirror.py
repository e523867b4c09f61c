"""checkpoint.mirror: a whole copy on a file system that can do little; one that hangs or dies costs one warning."""

import fcntl
import mmap
import os
import shutil
import threading
from pathlib import Path

import pytest

from phonetrain.checkpoints import checkpoint, mirror, series
from phonetrain.config.run_config import RunConfig
from phonetrain.errors import ConfigError
from phonetrain.runs.directory import Run
from tests.training import StopAt, fit_tiny, numbers, resume_tiny, weights


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A folder in which renames, links, locks and maps are refused, as some mounted drives do."""
    root = tmp_path / "drive"
    root.mkdir()

    def inside(place) -> bool:
        if hasattr(place, "fileno"):
            place = place.fileno()
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}") if place >= 0 else "/"
        return Path(os.path.abspath(place)).is_relative_to(root)

    def refusing(act):
        def refuse(*arguments, **options):
            if any(inside(argument) for argument in arguments[:2] if isinstance(argument, (str, Path, int))):
                raise OSError(95, "Operation not supported", str(arguments[0]))
            return act(*arguments, **options)

        return refuse

    for name in ("rename", "replace", "link", "symlink", "mkfifo"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, refusing(getattr(fcntl, name)))
    real = mmap.mmap

    class Refusing(real):
        def __new__(cls, fileno, *arguments, **options):
            if fileno >= 0 and inside(fileno):
                raise OSError(19, "No such device")
            return real.__new__(cls, fileno, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", Refusing)
    with pytest.raises(OSError):  # the shim bites
        (root / "a").write_text("")
        os.replace(root / "a", root / "b")
    (root / "a").unlink()
    return root


def same(run: Run, copy: Path) -> None:
    """The mirror holds the run's checkpoints, whole, and the same logs."""
    assert series.saved_steps(Run(copy)) == series.saved_steps(run)
    for step in series.saved_steps(run):
        checkpoint.read(copy / "checkpoints" / f"step-{step}")  # raises for one that is not whole
    for name in ("events.jsonl", "metrics.jsonl", "config.toml", "environment.json", "built.json"):
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name


def test_the_copy_is_whole_and_the_run_goes_on_from_it_elsewhere(learnable_corpus, drive, tmp_path, monkeypatch):
    whole = fit_tiny(learnable_corpus, tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    run = fit_tiny(learnable_corpus, "runs/a-1", f"checkpoint.mirror={drive}", console=StopAt(30))
    same(run, drive / "a-1")
    shutil.rmtree("runs")  # the machine is gone
    again = resume_tiny(Run(drive / "a-1"))
    assert again.path == Path("runs/a-1") and again.status == "finished"
    assert weights(again) == weights(whole) and numbers(again) == numbers(whole)
    same(again, drive / "a-1")


def test_resume_takes_the_newest_whole_one_of_both_places(learnable_corpus, drive, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "runs" / "a-1", f"checkpoint.mirror={drive}", console=StopAt(30))
    newest = run.read_pointer("last")
    (run.checkpoint_dir(newest) / "model.safetensors").write_bytes(b"damaged")
    said = []
    console = StopAt(60)
    console.say = said.append
    resume_tiny(run, console=console)
    assert any(f"step-{newest} was taken from {drive}/a-1" in line for line in said)
    assert run.events("segment_started")[-1]["checkpoint"] == f"step-{newest}"
    # A copy that was cut, or is damaged, is passed over.
    copy = drive / "a-1" / "checkpoints" / f"step-{run.read_pointer('last')}"
    (copy / "training.pt").write_bytes(b"cut")
    assert mirror.fetch(run, drive / "a-1") is None


def test_a_damaged_copy_replaces_nothing(learnable_corpus, tmp_path):
    run = fit_tiny(
        learnable_corpus, tmp_path / "runs" / "a-1", f"checkpoint.mirror={tmp_path}/drive", console=StopAt(30)
    )
    newest, best = run.read_pointer("last"), series.best_step(run)
    assert newest != best
    shutil.rmtree(run.checkpoint_dir(newest))
    (tmp_path / f"drive/a-1/checkpoints/step-{best}/model.safetensors").write_bytes(b"damaged")
    assert f"step-{newest} was taken" in mirror.fetch(run, tmp_path / "drive" / "a-1")
    assert [checkpoint.read(run.checkpoint_dir(step)).progress.step for step in (best, newest)] == [best, newest]
    assert not list(run.checkpoints.glob(".step*"))


def test_a_run_that_is_done_completes_its_copy(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "runs/a-1", f"checkpoint.mirror={tmp_path}/drive", "epochs=1")
    copy = tmp_path / "drive/a-1"
    (copy / f"checkpoints/step-{run.read_pointer('last')}/state.json").write_bytes(b"")  # the power was cut
    with pytest.raises(ConfigError, match="are done"):
        resume_tiny(run)
    same(run, copy)


def test_a_checkpoint_that_is_damaged_here_keeps_no_other_from_its_copy(learnable_corpus, tmp_path):
    setting = f"checkpoint.mirror={tmp_path}/drive"
    run = fit_tiny(learnable_corpus, tmp_path / "runs/a-1", setting, "epochs=1")
    events = run.events_path.read_text().splitlines(keepends=True)
    run.events_path.write_text("".join(line for line in events if "run_finished" not in line))  # the power was cut
    (run.checkpoint_dir(0) / "state.json").unlink()
    copies = tmp_path / "drive/a-1/checkpoints"
    shutil.rmtree(copies / f"step-{run.read_pointer('last')}")
    (copies / "step-0").rename(copies / "step-1")
    resume_tiny(run)  # only the end was not recorded
    assert series.saved_steps(Run(tmp_path / "drive/a-1")) == [run.read_pointer("last")]
    checkpoint.read(copies / f"step-{run.read_pointer('last')}")
    assert "step-0" in run.events("warning")[-1]["message"]


def test_a_place_that_dies_costs_one_warning(learnable_corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror, "copy_checkpoint", full)
    run = fit_tiny(learnable_corpus, tmp_path / "a-1", f"checkpoint.mirror={tmp_path}/drive")
    assert run.status == "finished"
    (warning,) = [event["message"] for event in run.events("warning")]
    assert "No space left on device" in warning and "training goes on" in warning


def test_a_place_that_hangs_costs_one_warning_and_no_end(learnable_corpus, tmp_path, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(mirror, "copy_checkpoint", lambda *_: never.wait())
    monkeypatch.setattr(mirror, "STUCK_SECONDS", 0.2)
    run = fit_tiny(learnable_corpus, tmp_path / "a-1", f"checkpoint.mirror={tmp_path}/drive")
    never.set()
    assert run.status == "finished"
    (warning,) = [event["message"] for event in run.events("warning")]
    assert "nothing was written there" in warning


def test_a_copy_that_reads_back_otherwise_is_none(learnable_corpus, tmp_path, monkeypatch):
    run = fit_tiny(learnable_corpus, tmp_path / "a-1", "epochs=1")
    step = run.read_pointer("last")
    real = mirror.chunks
    monkeypatch.setattr(
        mirror, "chunks", lambda path, note: [b"rot"] if path.is_relative_to(tmp_path / "copy") else real(path, note)
    )
    with pytest.raises(mirror.CheckpointError, match="read back with another digest"):
        mirror.copy_checkpoint(run.checkpoint_dir(step), tmp_path / "copy" / f"step-{step}")
    assert not (tmp_path / "copy" / f"step-{step}" / "state.json").exists()


def test_another_runs_copy_is_never_written_over(learnable_corpus, tmp_path):
    place = f"checkpoint.mirror={tmp_path}/drive"
    fit_tiny(learnable_corpus, tmp_path / "one" / "a-1", place, "epochs=1")
    before = (tmp_path / "drive" / "a-1" / "events.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds another run; `phonetrain resume"):
        fit_tiny(learnable_corpus, tmp_path / "two" / "a-1", place, "epochs=1")
    assert (tmp_path / "drive" / "a-1" / "events.jsonl").read_bytes() == before
    assert not (tmp_path / "two" / "a-1").exists()
    with pytest.raises(ConfigError, match="lies in the run itself"):
        fit_tiny(learnable_corpus, tmp_path / "b-1", f"checkpoint.mirror={tmp_path}/b-1/x", "epochs=1")


def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path, monkeypatch):
    def read(path):
        if path.is_relative_to(place):
            raise OSError(5, "Input/output error", str(path))
        return path.read_bytes()

    run, place = Run(tmp_path / "a-1"), tmp_path / "drive" / "a-1"
    for folder, line in ((run.path, b'{"event": "ours"}\n'), (place, b'{"event": "theirs"}\n')):
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_bytes(line)
    monkeypatch.setattr(mirror, "read_file", read)
    with pytest.raises(OSError, match="Input/output"):
        mirror.refuse_other_run(run, str(tmp_path / "drive"))
    with pytest.raises(OSError, match="Input/output"):
        mirror.append_rest(run.events_path, place / "events.jsonl")
    assert (place / "events.jsonl").read_bytes() == b'{"event": "theirs"}\n'


def test_the_place_is_kept_as_a_whole_path(learnable_corpus, tmp_path, monkeypatch):
    from phonetrain.config.resolve import resolve

    monkeypatch.chdir(tmp_path)
    assert resolve(None, ["checkpoint.mirror=drive"]).checkpoint.mirror == str(tmp_path / "drive")
    assert resolve(None, ["checkpoint.mirror=none"]).checkpoint.mirror is None
    assert RunConfig().checkpoint.mirror is None
