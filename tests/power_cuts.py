"""What a power cut may leave: every change of the files below a folder is recorded, and what any moment may have left
on the disk is made anew from the record.

As ALICE does (Pillai et al. 2014, "All file systems are not created equal"): a name that was made, moved or removed may
be there or not until its folder is synced, each by itself and in any order; what a file holds may be old, new, torn or
zeros until the file is synced. Only a rename or an exchange of two names is one step.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from phonedata import files

ROOT = 0  # the number of the folder itself


class Change(NamedTuple):
    """One step of the record. what: make, remove, rename, exchange (names), data (content of a file), sync.

    number: of the file or folder that is made, removed, moved, written or synced; other: with which it is exchanged.
    places: (number of a folder, name in it), the one that is made or removed, or the old one and the new one.
    """

    what: str
    number: int = ROOT
    places: tuple[tuple[int, str], ...] = ()
    content: bytes = b""
    other: int = ROOT


@dataclass
class Disk:
    """Folders by number (name -> number) and files by number."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    contents: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Disk:
        return Disk({number: dict(names) for number, names in self.folders.items()}, dict(self.contents))

    def apply(self, change: Change) -> None:
        """Do one step, on a disk to which those before it need not have come."""
        if change.what == "data":
            self.contents[change.number] = change.content
        elif change.what == "make":
            ((folder, name),) = change.places
            if name not in self.folders[folder]:
                self.folders[folder][name] = change.number
        elif change.what == "remove":
            ((folder, name),) = change.places
            if self.folders[folder].get(name) == change.number:
                del self.folders[folder][name]  # with what is still in it
        elif change.what in ("rename", "exchange"):
            # What is moved is known by its number: a name that came to the disk brings it, whatever it was called.
            (old_folder, old), (new_folder, new) = change.places
            if change.what == "exchange":
                self.folders[old_folder][old] = change.other
            elif self.folders[old_folder].get(old) == change.number:
                del self.folders[old_folder][old]
            self.folders[new_folder][new] = change.number

    def write(self, root: Path, number: int = ROOT) -> None:
        """Make it real below `root`, which is not there yet."""
        root.mkdir()
        for name, inner in self.folders[number].items():
            if inner in self.folders:
                self.write(root / name, inner)
            else:
                (root / name).write_bytes(self.contents[inner])

    def tree(self, number: int = ROOT) -> tuple:
        """All that can be seen of it, to compare."""
        return tuple(
            (name, self.tree(inner) if inner in self.folders else self.contents[inner])
            for name, inner in sorted(self.folders[number].items())
        )


class Record:
    """The changes below `root` while it is `kept`, in order, from what was there before and is taken as synced.

    Names are seen where Python's `os` makes, moves and removes them; contents, however they are written, by looking at
    all files before each of these and each fsync.
    """

    def __init__(self, root: Path):
        self.root, self.changes = root, []
        self.lock = threading.RLock()
        self.numbers: dict[int, int] = {}  # inode -> number
        self.disk = Disk()
        self.count = ROOT
        self.look()
        self.before, self.changes = self.disk.copy(), []

    def note(self, change: Change) -> None:
        self.changes.append(change)
        self.disk.apply(change)

    def place(self, path: str | os.PathLike[str]) -> tuple[int, str]:
        """The number of its folder and the name in it, of a path below the root."""
        number, path = ROOT, Path(os.path.abspath(path)).relative_to(self.root)
        for name in path.parts[:-1]:
            number = self.disk.folders[number][name]
        return number, path.name

    def look(self, folder: Path | None = None, number: int = ROOT, contents: bool = True) -> None:
        """Note what differs from what is known: names that came and went, and contents."""
        folder = folder or self.root
        entries = {entry.name: entry for entry in os.scandir(folder)}
        for name in [name for name in self.disk.folders[number] if name not in entries]:
            gone = self.disk.folders[number][name]
            self._forget(number, name, gone)
        for name, entry in entries.items():
            known = self.disk.folders[number].get(name)
            if known is None:
                self.count = known = self.count + 1
                if entry.is_dir():
                    self.disk.folders[known] = {}
                else:
                    self.disk.contents[known] = b""
                self.note(Change("make", known, ((number, name),)))
            self.numbers[entry.inode()] = known
            if entry.is_dir():
                self.look(folder / name, known, contents)
            elif contents and (content := (folder / name).read_bytes()) != self.disk.contents[known]:
                self.note(Change("data", known, content=content))

    def _forget(self, folder: int, name: str, number: int) -> None:
        for inner, below in list(self.disk.folders.get(number, {}).items()):
            self._forget(number, inner, below)
        self.note(Change("remove", number, ((folder, name),)))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Record until the end of the block."""

        def looked_at(call):
            def done(*words, **more):
                with self.lock:
                    self.look()
                    result = call(*words, **more)
                    self.look(contents=False)
                    return result

            return done

        def moved(call, what):
            def done(old, new, **more):
                if not all(Path(os.path.abspath(path)).is_relative_to(self.root) for path in (old, new)):
                    return call(old, new, **more)  # of somebody else, as numba's of its cache
                with self.lock:
                    self.look()
                    places = self.place(old), self.place(new)
                    number, other = (self.disk.folders[folder].get(name, ROOT) for folder, name in places)
                    result = call(old, new, **more)
                    if result is not False:
                        self.note(Change(what, number, places, other=other))
                    self.look(contents=False)
                    return result

            return done

        def fsync(descriptor):
            with self.lock:
                self.look()
                about = os.fstat(descriptor)
                number = ROOT if os.path.samestat(about, os.stat(self.root)) else self.numbers.get(about.st_ino)
                if number is not None:
                    self.note(Change("sync", number))

        names = ("mkdir", "unlink", "remove", "rmdir", "truncate", "link", "symlink")
        real = {name: getattr(os, name) for name in (*names, "rename", "replace", "fsync")}
        exchange = files.exchange
        try:
            for name in names:
                setattr(os, name, looked_at(real[name]))
            os.rename, os.replace = moved(real["rename"], "rename"), moved(real["replace"], "rename")
            os.fsync, files.exchange = fsync, moved(exchange, "exchange")
            yield
            self.look()
        finally:
            for name, call in real.items():
                setattr(os, name, call)
            files.exchange = exchange

    # What may be on the disk

    def left_after(self, count: int, dice: random.Random, way: str) -> Disk:
        """A disk on which the power was cut after `count` changes.

        way: "all" of them came to it, "none" that was not synced did, "names" came and no contents, "contents" and no
        names, "one" name is missing, or each by the "dice", contents torn.
        """
        done = self.changes[:count]
        synced_at = {change.number: index for index, change in enumerate(done) if change.what == "sync"}
        disk, open_names, pending = self.before.copy(), [], {}
        disk.folders |= {number: {} for number in self.disk.folders if number not in disk.folders}
        disk.contents |= {number: b"" for number in self.disk.contents if number not in disk.contents}
        for index, change in enumerate(done):
            if change.what == "data" and index > synced_at.get(change.number, -1):
                pending[change.number] = change.content
            elif change.what == "data":
                disk.apply(change)
            elif change.places and index > min(synced_at.get(folder, -1) for folder, _ in change.places[-1:]):
                open_names.append(index)
        if way == "one":
            dropped = {dice.choice(open_names)} if open_names else set()
        elif way == "dice":
            share = dice.choice((0.1, 0.5, 0.9))
            dropped = {index for index in open_names if dice.random() < share}
        else:
            dropped = set(open_names) if way in ("none", "contents") else set()
        for index, change in enumerate(done):
            if change.places and index not in dropped:
                disk.apply(change)
        for number, content in pending.items():
            if way in ("all", "contents", "one"):
                disk.contents[number] = content
            elif way == "dice":
                disk.contents[number] = torn(disk.contents[number], content, dice)
        return disk


WAYS = ("all", "none", "names", "contents", "one", "dice", "dice")


def torn(old: bytes, new: bytes, dice: random.Random) -> bytes:
    """What a file may hold whose change from `old` to `new` was not synced: sectors of each, a part, or zeros."""
    kind = dice.randrange(5)
    if kind < 2:
        return (old, new)[kind]
    if kind == 2:  # what was only added to is not shorter than it was
        return new[: dice.randint(len(old) if new.startswith(old) else 0, len(new))]
    if kind == 3:  # the length came, the data did not
        same = len(os.path.commonprefix([old, new]))
        return new[:same] + bytes(len(new) - same)
    both = new, old.ljust(len(new), b"\0")[: len(new)]
    return b"".join(dice.choice(both)[at : at + 512] for at in range(0, len(new), 512))


def states(record: Record, dice: random.Random, share: float) -> Iterator[tuple[str, int, Disk]]:
    """Different disks that cuts of the power may leave, a name for each, and after how many changes the cut came.

    share: of all moments how many are looked at, or how often each one.
    """
    seen = set()
    for count in range(len(record.changes) + 1):
        ended = count == len(record.changes)
        for number, way in enumerate(WAYS * math.ceil(share)):
            if not ended and dice.random() > share:
                continue
            disk = record.left_after(count, dice, way)
            if (tree := hash(disk.tree())) not in seen or ended:
                seen.add(tree)
                yield f"{way} {number} after {count} of {len(record.changes)}", count, disk
