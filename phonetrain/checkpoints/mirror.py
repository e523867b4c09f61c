"""A second place for a run's checkpoints and logs (`checkpoint.mirror`), as a Drive that outlives the machine.

Copied in a thread of its own, so that a place that is slow, hangs or dies costs no training. Only what every file
system has is used there: folders, files written from the start or at the end, and deletion; no rename, lock, map or
link. A checkpoint's state.json is written last, when its other files have been read back: without it the copy counts as
none. What is there is synced before an older copy goes, so that a power cut leaves one of them whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash

from phonedata.files import is_file, is_folder, make_folder, read_file, remove_tree, sync_folder, write_file

from ..config.run_config import RunConfig
from ..errors import CheckpointError, ConfigError
from ..runs.directory import RUNS, Run
from . import checkpoint, series

MARKER = "mirror.json"
LOGS = ("events.jsonl", "metrics.jsonl")
SMALL = ("config.toml", "environment.json", "built.json", "tracker.json")
CHUNK = 4 << 20
STUCK_SECONDS = 60.0  # without a chunk that went through
FINISH_SECONDS = 120.0


class NoMirror:
    """The mirror of a run without `checkpoint.mirror`: copies nothing."""

    def offer(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def problems(self) -> list[str]:
        return []


class Mirror(NoMirror):
    """Copies the newest checkpoint of `run` and its logs to `place`, each time that it is `offer`ed.

    Where copies take longer than checkpoints come, those in between are left out.
    """

    def __init__(self, run: Run, place: Path) -> None:
        self.run, self.place = run, place
        self.wanted, self.ended = threading.Event(), threading.Event()
        self.idle = threading.Event()
        self.idle.set()
        self.moved = time.monotonic()
        self.failure: str | None = None
        self.said = False
        self.whole: set[bytes] = set()  # states of the copies that this process made or looked through
        self.thread = threading.Thread(target=self._work, name="phonetrain-mirror", daemon=True)
        self.thread.start()

    def offer(self) -> None:
        """There is a new checkpoint."""
        if self.idle.is_set():
            self.moved = time.monotonic()
        self.idle.clear()
        self.wanted.set()

    def finish(self) -> None:
        """Wait for the last copy, as long as it moves, and end the thread."""
        began = time.monotonic()
        while not self.idle.wait(0.05):
            if self._is_stuck() or time.monotonic() - began > FINISH_SECONDS:
                break
        self.ended.set()
        self.wanted.set()

    def problems(self) -> list[str]:
        """The first thing that went wrong, as a sentence, once."""
        found = self.failure
        if found is None and not self.idle.is_set() and self._is_stuck():
            found = f"nothing was written there for {STUCK_SECONDS:.0f} s"
        if found is None or self.said:
            return []
        self.said = True
        return [f"checkpoint.mirror {self.place}: {found}; training goes on, {self.run.path} has everything"]

    def _is_stuck(self) -> bool:
        return time.monotonic() - self.moved > STUCK_SECONDS

    def _work(self) -> None:
        while True:
            self.wanted.wait()
            self.wanted.clear()
            if self.ended.is_set():
                return
            try:
                self._copy()
            except Exception as error:  # whatever it is, it must not be silent, and not end training
                if not self.wanted.is_set():  # else its source was pruned meanwhile, and a newer one is there
                    self.failure = f"could not be written ({error})"
            if not self.wanted.is_set():
                self.idle.set()

    def _copy(self) -> None:
        target = Run(self.place)
        make_folder(target.checkpoints)
        kept = series.saved_steps(self.run)
        # Before the checkpoints: a log may know more than they do, and not less.
        for name in LOGS:
            append_rest(self.run.path / name, self.place / name)
        for name in SMALL:
            content = read_or_none(self.run.path / name)
            if content is not None and content != read_or_none(self.place / name):
                write_in_place(self.place / name, [content])
        if not is_file(self.place / MARKER):
            sync_folder(self.place)
            about = b'{"what": "a copy of a run; phonetrain resume takes it from here"}\n'
            write_in_place(self.place / MARKER, [about])
        sync_folder(self.place)
        failed: list[Exception] = []
        for step in kept[::-1]:  # the newest first: it is what a resume wants
            try:
                copy_checkpoint(self.run.checkpoint_dir(step), target.checkpoint_dir(step), self._note, self.whole)
            except (CheckpointError, FileNotFoundError) as error:
                if step == kept[-1]:
                    raise
                failed.append(error)  # half removed when the power was cut, perhaps: the others are copied all the same
        sync_folder(target.checkpoints)
        for step in series.saved_steps(target):
            if step not in kept:
                remove_tree(target.checkpoint_dir(step))
        if failed:
            raise failed[0]

    def _note(self) -> None:
        self.moved = time.monotonic()


def open_mirror(run: Run, config: RunConfig) -> NoMirror:
    """The mirror that the config asks for, `MIRROR/NAME-OF-RUN`. Only the process that writes the run has one."""
    if config.checkpoint.mirror is None or not run.writes:
        return NoMirror()
    return Mirror(run, place_of(run, config.checkpoint.mirror))


def place_of(run: Run, mirror: str) -> Path:
    return Path(mirror).expanduser() / run.name


def refuse_other_run(run: Run, mirror: str | None) -> None:
    """Raises ConfigError where the mirror holds another run of this name, or would lie in the run."""
    if mirror is None:
        return
    place = place_of(run, mirror)
    if place.resolve().is_relative_to(run.path.resolve()):
        raise ConfigError(f"checkpoint.mirror = {mirror}: lies in the run itself, {run.path}; give a place elsewhere")
    theirs, ours = first_line(place / LOGS[0]), first_line(run.events_path)
    if theirs is not None and theirs != ours:
        with contextlib.suppress(OSError):  # the directory that was made for it goes again, if nothing else is in it
            run.lock_path.unlink()
            run.path.rmdir()
        raise ConfigError(
            f"{place} holds another run; `phonetrain resume {place}` goes on with that one, --run gives this one "
            "another name"
        )


def home_of(found: Run) -> Run:
    """The run that `found` is a copy of, where it is a mirror: runs/NAME here. Else `found` itself."""
    return Run(RUNS / found.name) if is_file(found.path / MARKER) else found


def fetch(run: Run, place: Path) -> str | None:
    """Bring what the mirror at `place` has and `run` has not: its newest whole checkpoint, the best one, longer logs.

    Returns a sentence where anything was brought. Raises ConfigError where it is another run's, CheckpointError. The
    newest checkpoint comes last: until it is there, the next call brings everything again.
    """
    other = Run(place)
    if not is_file(place / MARKER):
        return None
    if is_file(run.events_path) and first_line(other.events_path) != first_line(run.events_path):
        raise ConfigError(f"{place} is the copy of another run than {run.path}; move one of them away")
    theirs, ours = series.newest_whole(other)[0], series.newest_whole(run)[0]
    if theirs is None or (ours is not None and position(theirs) <= position(ours)):
        return None
    best = theirs.progress.best_step
    if best is not None and best != theirs.progress.step and is_folder(other.checkpoint_dir(best)):
        with contextlib.suppress(CheckpointError):  # one that is damaged is said by who looks for it
            bring(other.checkpoint_dir(best), run)
    for name in LOGS:
        content = read_or_none(place / name) or b""
        if len(content) > len(read_or_none(run.path / name) or b""):
            write_file(run.path / name, content)
    # The config that the checkpoint was written under: a file that is written in place may be torn.
    write_file(run.config_path, RunConfig.from_dict(theirs.identity["config"]).to_toml().encode())
    for name in SMALL[1:]:
        about = read_or_none(place / name)
        if about is not None and not is_file(run.path / name):
            write_file(run.path / name, about)
    bring(theirs.path, run)
    run.write_pointer("last", theirs.progress.step)
    return f"{run.path}: {theirs.path.name} was taken from {place}"


def bring(source: Path, run: Run) -> None:
    """Copy a checkpoint into `run`, whole or not at all. Raises CheckpointError."""
    with checkpoint.replacing(run.checkpoints / source.name) as partial:
        copy_checkpoint(source, partial)


def position(saved: checkpoint.Checkpoint) -> tuple[int, int]:
    return saved.progress.segment, saved.progress.step


def copy_checkpoint(
    source: Path, target: Path, note: Callable[[], None] = lambda: None, whole: set[bytes] | None = None
) -> None:
    """Copy a checkpoint and read it back; state.json last, when the rest is synced. Nothing where it is there already.

    whole: states of copies that are known to be; this one's is added. A copy that is not among them is read first: a
    power cut may have left its state alone. Raises CheckpointError for a source that is damaged or a copy that differs.
    """
    whole = set() if whole is None else whole
    state = (source / checkpoint.STATE).read_bytes()
    digests = checkpoint.readable_state(source)["digests"]
    if read_or_none(target / checkpoint.STATE) == state and (
        state in whole or all(digest(target / name, note) == wanted for name, wanted in digests.items())
    ):
        whole.add(state)
        return
    make_folder(target)
    (target / checkpoint.STATE).unlink(missing_ok=True)
    for name, wanted in digests.items():
        write_in_place(target / name, chunks(source / name, note))
        if digest(target / name, note) != wanted:
            raise CheckpointError(f"{target / name}: was read back with another digest than it was written with")
    sync_folder(target)
    write_in_place(target / checkpoint.STATE, [state])
    sync_folder(target)
    whole.add(state)


def digest(path: Path, note: Callable[[], None]) -> str | None:
    """Of a file's content; None where it cannot be read."""
    found = xxhash.xxh3_128()
    with contextlib.suppress(OSError):
        for chunk in chunks(path, note):
            found.update(chunk)
        return found.hexdigest()
    return None


def write_in_place(path: Path, pieces: Iterable[bytes], mode: str = "wb") -> None:
    """Write a file and sync its content, where the file system knows how to."""
    with open(path, mode) as file:
        file.writelines(pieces)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise


def chunks(path: Path, note: Callable[[], None]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            note()


def append_rest(source: Path, target: Path) -> None:
    """Let a log that only grows be the same there: its rest is appended, after a cut in the middle of a line too."""
    content = read_or_none(source)
    if content is None:
        return
    there = read_or_none(target) or b""
    if not content.startswith(there):
        write_in_place(target, [content])
    elif content != there:
        write_in_place(target, [content[len(there) :]], "ab")


def read_or_none(path: Path) -> bytes | None:
    """What a file holds, None where it is not there. Raises OSError for one that cannot be read: taken for none, a log
    would be appended to itself, and another run's copy written over."""
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def first_line(path: Path) -> bytes | None:
    """The event that a log begins with; None where there is none, as in what a power cut left of a file."""
    line = (read_or_none(path) or b"").split(b"\n", 1)[0]
    try:
        return line if isinstance(json.loads(line), dict) else None
    except ValueError:
        return None
