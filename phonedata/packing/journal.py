"""The staging folder of a pack or an extract: its lock, and the journal from which an interrupted one continues."""

import base64
import errno
import io
import json
import os
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PhonedataError
from ..files import (
    disk_error,
    exists,
    files_below,
    is_folder,
    make_folder,
    named,
    recover,
    remove_tree,
    staging_path,
    sync_folder,
    try_lock,
)


class Staging:
    """The folder beside the target in which one process builds: `corpus/`, `journal`, `lock`.

    The lock dies with its process, so a killed pack never blocks the next one. Raises PhonedataError when another
    process writes to the same target, or the place cannot be written.
    """

    def __init__(self, target: Path, fingerprint: str):
        self.path = staging_path(target)
        self.corpus = self.path / "corpus"
        self._fd: int | None = None
        self._journal: io.BufferedWriter | None = None
        try:
            self._fd = self._acquire(target)
            # Under the lock nobody is between two renames: an old folder that waits here would go with the staging.
            recover(target)
            self.records = self._read_journal(fingerprint)
            self._written = len(self.records)
            self._journal = journal = open(self.path / "journal", "ab")  # noqa: SIM115
            if not self.records:
                journal.truncate(0)
                for left in (self.corpus, *self.left_behind()):
                    remove_tree(left)
                self.record({"pack": fingerprint})
            self.corpus.mkdir(exist_ok=True)
        except BaseException as error:
            # Ctrl-C too: in a notebook the process goes on, and would find itself writing here.
            self._let_go()
            if isinstance(error, OSError) and not isinstance(error, PhonedataError):
                raise disk_error(self.path, error) from None
            raise

    def _acquire(self, target: Path) -> int:
        """Make the folder and lock it; returns the lock's descriptor."""
        name = self.path / "lock"
        if exists(self.path) and not exists(name) and any(self.path.iterdir()):
            raise PhonedataError(f"{self.path}: is in the way and was not made by phonedata; rename or remove it")
        while True:
            make_folder(self.path)
            fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
            if not try_lock(fd):
                os.close(fd)
                raise PhonedataError(
                    f"{target}: another process is writing to it; wait for it or choose another target"
                )
            # Whatever a power cut leaves here, the lock stays with it and says whose the folder is.
            sync_folder(self.path)
            try:
                # Its holder may have removed the folder meanwhile: a lock without a name protects nothing.
                if os.path.samestat(os.stat(name), os.fstat(fd)):
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)

    def _read_journal(self, fingerprint: str) -> list[dict[str, Any]]:
        """The records of an earlier try of this very work; none if it was another one. A torn last line is dropped."""
        try:
            lines = (self.path / "journal").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            crc, _, text = line.partition(b" ")
            if not text or crc != b"%08x" % zlib.crc32(text):
                break
            records.append(json.loads(text))
        if not records or records[0].get("pack") != fingerprint:
            return []
        good = sum(len(line) + 1 for line in lines[: len(records)])
        os.truncate(self.path / "journal", good)
        return records

    def record(self, entry: dict[str, Any]) -> None:
        """Append one record; it survives the death of this process, and its chunk is checked when it is used again."""
        assert self._journal is not None, "recorded after release"
        text = json.dumps(entry).encode()
        self._journal.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._journal.flush()
        self._written += 1

    def size_on_disk(self) -> int:
        """Bytes that the disk already holds of the corpus: what a shard promises beyond them is not there yet."""
        stats = [file.stat() for file in files_below(self.corpus)]
        return sum(min(s.st_size, s.st_blocks * 512) if hasattr(s, "st_blocks") else s.st_size for s in stats)

    def begin_attempts(self) -> Path:
        """A new folder in which workers of other processes say that they write; see executor.py."""
        folder = self.path / f"attempts-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def end_attempts(self, leave_behind: Callable[[], None] = lambda: None) -> bool:
        """Let no worker of another process write any more; False where each that began was heard of again. Otherwise
        `leave_behind` is called first: what such a worker may have open must not be used further."""
        left = False
        for folder in named(self.path, "attempts-*"):
            while not _remove_if_empty(folder):
                leave_behind()
                left = True
                for name in os.listdir(folder):
                    (folder / name).unlink(missing_ok=True)
        return left

    def renew(self) -> None:
        """Let `corpus` begin anew, with files that nobody has open; what it held is left behind, to be copied."""
        if any(self.corpus.iterdir()):
            os.rename(self.corpus, self.path / f"left-{uuid.uuid4().hex}")
            self.corpus.mkdir()

    def left_behind(self) -> list[Path]:
        """The folders that were left behind and not removed."""
        return named(self.path, "left-*")

    def release(self) -> None:
        """Close without removing: the next call continues here. Where nothing was done yet, nothing stays."""
        if self._written > 1:
            self._let_go()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the folder; the lock goes last, so that nobody starts in a folder that is being removed."""
        self._close_journal()
        try:
            self.end_attempts()
            for path in (p for p in self.path.iterdir() if p.name != "lock"):
                if is_folder(path):
                    remove_tree(path)
                else:
                    path.unlink()
            sync_folder(self.path)
            if os.listdir(self.path) == ["lock"]:
                if os.name == "nt":  # which does not remove what is open
                    self._let_go()
                remove_tree(self.path)
        except OSError:
            pass  # something in it cannot go yet (a file open over NFS): the lock file says that the folder is ours
        finally:
            self._let_go()

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            with suppress(OSError):  # closing writes what is buffered, and fails as that did
                journal.close()

    def _let_go(self) -> None:
        try:
            self._close_journal()
        finally:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)


def _remove_if_empty(folder: Path) -> bool:
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@dataclass
class Measurements:
    """What reading n utterances has shown.

    Attributes:
        lengths: index in the raw partition -> true frame count, of the good ones.
        bad: index -> one line that says why the utterance cannot be packed.
        means: (n, D) float64 means, in the order of `lengths`; (0, D) where nobody asked.
        squares: (n, D) float64 sums of squared deviations, or (0, D).
    """

    lengths: dict[int, int]
    bad: dict[int, str]
    means: np.ndarray
    squares: np.ndarray

    def to_record(self) -> dict:
        """Plain values for JSON."""
        moments = {"means": _encode(self.means), "squares": _encode(self.squares)}
        return {"lengths": list(self.lengths.items()), "bad": list(self.bad.items()), **moments}

    @classmethod
    def from_record(cls, entry: dict, dim: int) -> "Measurements":
        lengths, bad = ({int(i): value for i, value in entry[what]} for what in ("lengths", "bad"))
        return cls(lengths, bad, _decode(entry["means"], dim), _decode(entry["squares"], dim))


@dataclass
class ChunkResult:
    """A written chunk: digests of its features and labels, label counts (C,) int64, and the stored moments of the n
    utterances that begin in it: `means` and `squares` (n, D) float64."""

    features: str
    labels: str | None
    histogram: np.ndarray | None
    means: np.ndarray
    squares: np.ndarray

    def to_record(self) -> dict:
        """Plain values for JSON."""
        moments = {"means": _encode(self.means), "squares": _encode(self.squares)}
        histogram = None if self.histogram is None else self.histogram.tolist()
        return {"features": self.features, "labels": self.labels, "histogram": histogram, **moments}

    @classmethod
    def from_record(cls, entry: dict, dim: int) -> "ChunkResult":
        histogram = None if entry["histogram"] is None else np.array(entry["histogram"], np.int64)
        moments = _decode(entry["means"], dim), _decode(entry["squares"], dim)
        return cls(entry["features"], entry["labels"], histogram, *moments)


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f8").tobytes()).decode()


def _decode(text: str, dim: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8").reshape(-1, dim).copy()
