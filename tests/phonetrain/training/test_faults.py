"""Faults around a run: full disks, lost trackers, failing files, jumping clocks, a second process, closed terminals.

Each ends in one sentence or in none, and the run that goes on equals one that nothing happened to.
"""

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import sys
import termios
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from phonedata import FormatError, PackedCorpus, files, pack
from phonetrain.checkpoints import checkpoint, series
from phonetrain.cli.main import exit_code, main
from phonetrain.console.base import Console
from phonetrain.errors import TrainingStopped
from phonetrain.reports.summary import best_evaluation
from phonetrain.results.evaluate import evaluate
from phonetrain.results.trained import open_trained
from phonetrain.runs import history
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.runs.tracker import Tracker
from phonetrain.step.train_step import TrainStep
from phonetrain.training.fit import fit
from tests.forked import Forked, call
from tests.phonetrain.test_distributed import wait_for
from tests.training import TINY, Announcing, StopAt, fit_tiny, numbers, resume_tiny, weights


@pytest.fixture(scope="module")
def whole(learnable_corpus, tmp_path_factory) -> Run:
    """Three epochs to which nothing happened."""
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("whole") / "run")


def assert_goes_on_as_if_nothing_happened(run: Run, whole: Run, **options) -> None:
    resume_tiny(run, **options)
    assert run.status == "finished"
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")
    assert numbers(run) == numbers(whole)


# A full disk


class Filling(Console):
    """Lets every write fail from the n-th time on that training shows something."""

    def __init__(self, moment: int):
        super().__init__()
        self.left = moment

    def on_progress(self) -> None:
        self.left -= 1
        if self.left == 0:
            limit_files(0)

    def epoch_row(self, line) -> None:
        self.on_progress()


def limit_files(size: int) -> None:
    """No file grows beyond `size` bytes: Python ignores SIGXFSZ, so a write fails like one on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def train_on_full_disk(corpus: Path, run: Path, plan: str) -> None:
    """Fit until the disk is full, and print the error as JSON.

    plan: size-N, no file may have more than N bytes; moment-N, none at all from the N-th progress on.
    """
    import resource

    most, told = resource.getrlimit(resource.RLIMIT_FSIZE)[1], {"error": None, "message": None}
    kind, number = plan.split("-")
    try:
        if kind == "size":
            limit_files(int(number))
        fit_tiny(PackedCorpus(corpus), run, console=Filling(int(number) if kind == "moment" else -1))
    except BaseException as error:
        told = {"error": type(error).__name__, "message": str(error)}
    limit_files(most)
    print(json.dumps(told))


def check_full_disks(whole: Run, corpus: PackedCorpus, folder: Path, plans: list[str]) -> int:
    """Returns how many runs could be resumed; the others stopped before their first checkpoint was whole."""
    resumed = 0
    for plan in plans:
        run, output = Run(folder / plan), folder / f"{plan}.txt"
        told = json.loads(call(train_on_full_disk, corpus.path, run.path, plan, output=output).splitlines()[-1])
        assert told["error"] == "TrainingStopped", (plan, told)
        assert "could not be written (File too large)" in told["message"], (plan, told)
        assert "\n" not in told["message"]
        assert not list(run.path.rglob("*.tmp")), plan
        if not run.config_path.exists() or run.read_pointer("last") is None:
            continue
        assert_goes_on_as_if_nothing_happened(run, whole)
        resumed += 1
    return resumed


def sizes_written(run: Run) -> list[int]:
    """One byte less than every file of the run has, and than some line of a log needs."""
    sizes = {path.stat().st_size for path in run.path.rglob("*") if path.is_file() and "jsonl" not in path.name}
    for log in (run.metrics_path, run.events_path):
        position = 0
        for line in log.read_bytes().splitlines(keepends=True):
            position += len(line)
            sizes.add(position)
    return sorted(size - 1 for size in sizes)


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX's")
def test_full_disk_stops_with_a_sentence_and_the_run_goes_on(learnable_corpus, whole, tmp_path):
    sizes = sizes_written(whole)
    plans = [f"size-{size}" for size in (0, whole.config_path.stat().st_size - 1, sizes[-1])]
    assert check_full_disks(whole, learnable_corpus, tmp_path, [*plans, "moment-1", "moment-7", "moment-20"]) == 4


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX's")
def test_full_disk_at_every_write_stops_with_a_sentence_and_the_run_goes_on(learnable_corpus, whole, tmp_path):
    plans = [*(f"size-{size}" for size in [0, *sizes_written(whole)]), *(f"moment-{n}" for n in range(1, 24))]
    assert check_full_disks(whole, learnable_corpus, tmp_path, plans) > 23


def test_disk_that_fills_up_later_keeps_the_older_checkpoint(learnable_corpus, whole, tmp_path, monkeypatch):
    real, run = os.fsync, Run(tmp_path / "run")
    calls = []

    def full(descriptor):
        if run.checkpoint_dir(46).parent.joinpath(".step-46.partial").is_dir():
            calls.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped, match=r"step-46: could not be written \(No space left"):
        fit_tiny(learnable_corpus, run.path)
    monkeypatch.undo()
    assert calls
    assert series.saved_steps(run) == [0, 23]
    assert "No space left" in " ".join(explain(run))
    assert_goes_on_as_if_nothing_happened(run, whole)


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_pointer_that_the_disk_refused_hides_no_weights_and_the_advice_works(
    learnable_corpus, whole, tmp_path, monkeypatch, name, epoch
):
    real, run = files.write_file, Run(tmp_path / "run")
    step = 23 * (epoch + 1)

    def full(path, content):
        if path.name == name and content == f"step-{step}\n".encode():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(TrainingStopped, match=rf"{name}: could not be written \(No space left") as caught:
        fit_tiny(learnable_corpus, run.path)
    monkeypatch.undo()
    assert run.read_pointer(name) != step
    assert [open_trained(run, which).saved.progress.step for which in ("best", "last")] == [step, step]
    assert evaluate(run)["step"] == step and best_evaluation(run)["step"] == step
    (command,) = re.findall("`(phonetrain .*?)`", str(caught.value))
    assert exit_code([*shlex.split(command)[1:], "--quiet"]) == 0
    assert run.status == "finished"
    assert weights(run, name) == weights(whole, name) and numbers(run) == numbers(whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_run_directory_is_refused_with_a_sentence(learnable_corpus, whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run").chmod(0o555)
    try:
        with pytest.raises(TrainingStopped, match="could not be written"):
            resume_tiny(Run(tmp_path / "run"), "epochs=4", "schedule.on_extend=hold")
    finally:
        (tmp_path / "run").chmod(0o755)


# What stands beside the run


def test_missing_wandb_changes_nothing(learnable_corpus, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = fit_tiny(learnable_corpus, tmp_path / "run", "tracking.wandb=offline")
    assert weights(run) == weights(whole)
    assert capsys.readouterr().err.count("wandb: cannot be imported") == 1


def test_end_is_on_disk_before_the_tracker_is_waited_for(learnable_corpus, tmp_path, monkeypatch):
    run, seen = Run(tmp_path / "run"), []

    class Slow(Tracker):
        def finish(self, exit_code=0):
            seen.append(run.status)

    monkeypatch.setattr(sys.modules["phonetrain.training.session"], "open_tracker", lambda *parts: Slow())
    fit_tiny(learnable_corpus, run.path, "epochs=1", console=StopAt(4))
    resume_tiny(run)
    assert seen == ["SIGTERM", "finished"]


class Failing(Console):
    """Does something to the world when training reports a step."""

    def __init__(self, step: int, act):
        super().__init__()
        self.step, self.act = step, act

    def on_progress(self) -> None:
        if self.act is not None and self.step_in_epoch >= self.step:
            act, self.act = self.act, None
            act()


def test_features_that_fail_under_a_producer_are_named_and_the_run_goes_on(learnable_corpus, whole, tmp_path):
    corpus = tmp_path / "packed"
    shutil.copytree(learnable_corpus.path, corpus)
    file = corpus / "train-clean" / "features" / "c" / "0" / "0"
    content = file.read_bytes()
    moved = Failing(8, lambda: os.truncate(file, 100))
    with pytest.raises(FormatError, match="100 bytes, wanted at least") as caught:
        fit_tiny(PackedCorpus(corpus), tmp_path / "run", console=moved)
    assert "\n" not in str(caught.value)
    run = Run(tmp_path / "run")
    assert run.status == "FormatError"
    assert "100 bytes" in " ".join(explain(run))
    file.write_bytes(content)
    assert run.read_pointer("last") > 0
    assert_goes_on_as_if_nothing_happened(run, whole)


@pytest.mark.parametrize("settings", [("loader.kind=resident",), ("loader.kind=slab", "loader.order=slab")], ids=str)
def test_second_stage_never_trains_on_a_corpus_that_replaced_the_first(learnable_corpus, tmp_path, settings):
    shutil.copytree(learnable_corpus.path, tmp_path / "packed")
    raw = learnable_corpus.path.parent / "raw"
    replacing = Failing(8, lambda: pack(raw, tmp_path / "packed", cmvn="speaker", replace=True))
    stages = "stage=[{epochs=1}, {epochs=1, optimizer.lr=2e-4}]"
    with pytest.raises(FormatError, match="packed: no longer holds the corpus that was opened; open it again"):
        fit_tiny(PackedCorpus(tmp_path / "packed"), tmp_path / "run", "epochs=2", *settings, stages, console=replacing)
    assert Run(tmp_path / "run").status == "FormatError"


@pytest.mark.parametrize("jump", [-timedelta(days=400), timedelta(days=400)])
def test_clock_that_jumps_changes_nothing(learnable_corpus, whole, tmp_path, monkeypatch, jump):
    now = time.time

    class Jumped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + jump

    def set_clock():
        monkeypatch.setattr(history, "datetime", Jumped)
        monkeypatch.setattr(time, "time", lambda: now() + jump.total_seconds())

    run = fit_tiny(learnable_corpus, tmp_path / "run", "stop.max_time=1h", console=Failing(8, set_clock))
    assert run.status == "finished"
    assert weights(run) == weights(whole)
    assert all(line["seconds"] >= 0 for line in run.metrics())
    first, last = (datetime.fromisoformat(run.events()[place]["time"]) for place in (0, -1))
    assert abs(last - first - jump) < timedelta(days=1)
    assert explain(run)


# Processes, signals and terminals


def train_long(run: Path, corpus: Path) -> None:
    fit("default", *TINY[1:], "epochs=10000", corpus=corpus, run=run, console=Announcing())


def test_second_process_is_refused_naming_the_first_which_trains_on(learnable_corpus, tmp_path):
    words = tmp_path / "words.txt"
    child = Forked(train_long, tmp_path / "run", learnable_corpus.path, output=words)
    try:
        wait_for(lambda: words.exists() and "training\n" in words.read_text(), child, words)
        with pytest.raises(TrainingStopped, match=f"being trained by process {child.pid}"):
            resume_tiny(Run(tmp_path / "run"))
        assert child.poll() is None
        child.terminate()
        assert child.wait() == 0
    finally:
        child.kill()
    assert Run(tmp_path / "run").status == "SIGTERM"


def test_ctrl_c_twice_stops_at_once_and_the_run_goes_on(learnable_corpus, whole, tmp_path):
    def press_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_tiny(learnable_corpus, tmp_path / "run", console=Failing(8, press_twice))
    run = Run(tmp_path / "run")
    assert run.status == "KeyboardInterrupt"
    assert "pressed twice" in " ".join(explain(run))
    assert_goes_on_as_if_nothing_happened(run, whole)


def fit_in_terminal(name: str, words: list[str]) -> None:
    """`phonetrain fit` in a session of its own that has the terminal of that name."""
    # The signal's own meaning: under nohup, which the tests may run under, it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(terminal, stream)
    # Slow steps: it is in the middle of its training when it is seen to have begun.
    real = TrainStep.apply_update
    TrainStep.apply_update = lambda *parts: (time.sleep(0.05), real(*parts))[1]
    main(words)


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX terminals")
def test_closed_terminal_saves_and_the_run_goes_on(learnable_corpus, whole, tmp_path):
    outer, inner = pty.openpty()
    fcntl.ioctl(outer, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")
    run, place = Run(tmp_path / "run"), ["--corpus", str(learnable_corpus.path), "--run", str(tmp_path / "run")]
    words = ["fit", "default", *place, *TINY, "checkpoint.every_minutes=0.001"]
    child = Forked(fit_in_terminal, os.ttyname(inner), words, output=tmp_path / "words.txt")
    os.set_blocking(outer, False)
    deadline = time.monotonic() + 300
    while run.read_pointer("last") in (None, 0) and child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # nobody would see it, but a full terminal would hold the child up
            os.read(outer, 65536)
        time.sleep(0.002)
    os.close(inner)
    os.close(outer)
    assert (child.wait(), run.status) == (128 + signal.SIGHUP, "SIGHUP")
    assert 0 < run.read_pointer("last") < 69
    assert_goes_on_as_if_nothing_happened(run, whole)


def test_signal_while_a_checkpoint_is_written_waits_for_it(learnable_corpus, whole, tmp_path, monkeypatch):
    real, half_made = checkpoint.replace_folder, []

    def interrupted(partial, target, aside):
        if target.name == "step-23":
            half_made.append(partial.is_dir() and not target.exists())
            signal.raise_signal(signal.SIGTERM)
        return real(partial, target, aside)

    monkeypatch.setattr(checkpoint, "replace_folder", interrupted)
    run = fit_tiny(learnable_corpus, tmp_path / "run")
    monkeypatch.undo()
    assert run.status == "SIGTERM" and run.read_pointer("last") == 23 and half_made[0] is True
    assert_goes_on_as_if_nothing_happened(run, whole)
