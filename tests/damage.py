"""Damage to packed corpora: digests made anew after a change, and random mutations with everything that reads them.

As a program, `python -m tests.damage CORPUS SCRATCH FIRST COUNT` tries mutations FIRST..FIRST+COUNT-1 of a corpus and
prints each one that ends in anything but one sentence that names a file of it.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from phonedata import PackedCorpus, PhonedataError, inspect, open_loader
from phonedata.format.zarr_files import digest, render, root_digest, shard_entry

TRAIN_EVERY = 20
"""One mutation of so many is also trained on, which takes longer than all else."""
LOADERS = (("host", "global"), ("resident", "global"), ("slab", "slab"))
SECONDS = 600
"""What hangs longer than this is a failure."""


def change_attributes(file: Path, change: Callable[[dict], object]) -> None:
    """Let `change` alter the phonedata attributes in a group's zarr.json."""
    document = json.loads(file.read_bytes())
    change(document["attributes"]["phonedata"])
    file.write_bytes(render(document))


def make_digests_anew(root: Path) -> None:
    """What somebody does who changes a corpus on purpose: every size and digest fits what lies there now."""
    for folder in sorted(path for path in root.iterdir() if (path / "zarr.json").is_file()):

        def entries(own: dict, folder: Path = folder) -> None:
            for name, entry in own["files"].items():
                if not (folder / name).is_file():
                    continue
                data = (folder / name).read_bytes()
                if "chunks" in entry:
                    size = (len(data) - 4) // max(len(entry["chunks"]), 1) - 16
                    chunks = [digest(data[i * size : (i + 1) * size]) for i in range(len(entry["chunks"]))]
                    entry.update(shard_entry(chunks, size, data[len(chunks) * size :]))
                else:
                    entry.update(bytes=len(data), xxh3_128=digest(data))

        change_attributes(folder / "zarr.json", entries)
        data = (folder / "zarr.json").read_bytes()
        seal = {"bytes": len(data), "digest": digest(data)}

        def sealed(found: dict, name: str = folder.name, seal: dict = seal) -> None:
            if name in found["partitions"]:
                found["partitions"][name] = seal

        change_attributes(root / "zarr.json", sealed)
    document = json.loads((root / "zarr.json").read_bytes())
    document["attributes"]["phonedata"]["digest"] = root_digest(document)
    (root / "zarr.json").write_bytes(render(document))


# Random mutations

VALUES = [
    None, True, False, 0, 1, -1, 2, 27, 28, 255, 4096, 1 << 31, 1 << 63, 10**30, 0.0, -0.0, 0.5, 1e-320, 1e300, 1e308,
    "", "a", "object", "U1", ">f2", "float64", "float32", "float16", "uint8", "uint16", "none", "train",
    "\x1b[31m", "../x", "a/b", ".", "é" * 300, [], {}, [1], [None], [[]], {"a": 1}, [1.5] * 5,
]  # fmt: skip
TEXTS = [
    b"", b"\0" * 100, b"{}", b"[]", b"null", b"[" * 100_000, b'{"attributes": {"phonedata": 3}}', b"\xff\xfe",
    b"9" * 5000, b'{"attributes": {"phonedata": {"format": 2, "digest": "\\ud800"}}}', b"NaN",
    b'{"attributes": {"phonedata": {}}}',
]  # fmt: skip


def spots(value: object) -> list[tuple]:
    """(container, key) of every value inside a document."""
    found = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        found += [(value, key), *spots(value[key])]
    return found


def mutate_value(container, key, dice: random.Random) -> None:
    old = container[key]
    kind = dice.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(old, (int, float)) and not isinstance(old, bool):
        container[key] = old + dice.choice([-1, 1, -0.5, 1000])
    elif kind == 1 and isinstance(old, list) and old:
        dice.choice([old.pop, old.reverse, lambda: old.append(old[0]), lambda: dice.shuffle(old)])()
    elif kind == 1 and isinstance(old, str):
        container[key] = dice.choice([old + "x", old[:-1], old.upper(), old + "\n", old + "\x1b]0;x\x07"])
    elif kind == 2 and isinstance(container, dict):
        container[dice.choice(["a", "../a", f"{key}x"])] = container.pop(key)
    elif kind == 3:
        container[key] = dice.choice(spots([container])[:50])[0]
    else:
        container[key] = dice.choice(VALUES)


def mutate_document(file: Path, dice: random.Random) -> None:
    document = json.loads(file.read_bytes())
    own = document["attributes"].get("phonedata")
    places = spots(own) if own and dice.random() < 0.9 else spots(document)
    # Of long tables of digests one in a while is enough.
    short = [place for place in places if not (isinstance(place[1], int) and place[1] > 2)]
    with contextlib.suppress(ValueError, RecursionError):  # a table that holds itself: nothing is written
        mutate_value(*dice.choice(short), dice)
        file.write_bytes(render(document))


def flip_bits(file: Path, dice: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if data:
        # Most of a file is padding: as often near its begin.
        reach = dice.choice([len(data), min(len(data), 200)])
        for _ in range(dice.choice([1, 1, 3])):
            data[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def set_values(file: Path, dice: random.Random) -> None:
    data = bytearray(file.read_bytes())
    value = dice.choice([b"\xff" * 8, b"\0" * 8, np.float16(np.nan).tobytes() * 4, np.int64(-5).tobytes()])
    at = dice.randrange(0, min(max(len(data) - 8, 1), 600), 8)
    data[at : at + 8] = value
    file.write_bytes(data)


def swap_files(file: Path, dice: random.Random, files: list[Path]) -> None:
    other = dice.choice(files)
    a, b = file.read_bytes(), other.read_bytes()
    file.write_bytes(b)
    other.write_bytes(a)


def replace_by(what: str, file: Path, dice: random.Random) -> None:
    data = file.read_bytes()
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "link":
        aim = dice.choice([file, Path("nowhere"), Path("/dev/zero"), Path("/dev/null"), file.parent])
        file.symlink_to(aim)
    elif what == "short":
        file.write_bytes(data[: dice.choice([0, 1, len(data) // 2, len(data) - 1])])
    elif what == "long":
        file.write_bytes(data + dice.choice([b"\0", data]))
    elif what == "huge":
        file.write_bytes(data)
        os.truncate(file, 1 << 42)
    elif what == "text":
        file.write_bytes(dice.choice(TEXTS))


def mutate_folder(root: Path, dice: random.Random) -> None:
    folder = dice.choice(sorted(path for path in root.rglob("*") if path.is_dir()))
    what = dice.randrange(5)
    if what == 0:
        shutil.rmtree(folder)
    elif what == 1:
        folder.rename(folder.with_name("other"))
    elif what == 2:
        shutil.rmtree(folder)
        folder.write_bytes(b"")
    elif what == 3:
        (folder / dice.choice([".DS_Store", "__MACOSX", "._zarr.json", "extra", "c", "labels"])).mkdir(exist_ok=True)
    else:
        (folder / dice.choice([".DS_Store", "._zarr.json", "Thumbs.db", "extra"])).write_bytes(b"x")


def mutate(root: Path, dice: random.Random) -> str:
    """Damage the corpus at `root`; returns what was done."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    documents = [path for path in files if path.name == "zarr.json"]
    groups = [path for path in documents if path.parent == root or path.parent.parent == root]
    values = [path for path in files if path.name != "zarr.json"]
    kind = dice.choice(
        ["group"] * 6 + ["document", "bits", "bits", "values", "values", "swap", "file", "file", "folder"]
    )
    if kind == "group":
        file = dice.choice(groups)
        mutate_document(file, dice)
    elif kind == "document":
        file = dice.choice(documents)
        mutate_document(file, dice)
    elif kind == "bits":
        file = dice.choice(files)
        flip_bits(file, dice)
    elif kind == "values":
        file = dice.choice(values)
        set_values(file, dice)
    elif kind == "swap":
        file = dice.choice(files)
        swap_files(file, dice, files)
    elif kind == "file":
        file = dice.choice(files)
        kind = dice.choice(["folder", "pipe", "link", "short", "long", "huge", "text", "removed"])
        replace_by(kind, file, dice)
    else:
        file = root
        mutate_folder(root, dice)
    done = f"{kind} {file.relative_to(root)}"
    if kind in ("group", "document", "bits", "values", "swap", "short", "long") and dice.random() < 0.75:
        # What was changed so that no digest can be made stays as it is.
        with contextlib.suppress(Exception):
            make_digests_anew(root)
            done += ", digests made anew"
    return done


# What is tried on a mutation


def look_through(root: Path) -> None:
    found = inspect(root)
    assert str(found) and json.dumps(found.to_dict())
    PackedCorpus(root).verify()


def take_batches(kind: str, order: str, root: Path) -> None:
    corpus = PackedCorpus(root)
    labelled = [name for name, partition in corpus.partitions.items() if partition.labelled]
    context = min(corpus.context, 2)
    with open_loader(
        corpus,
        labelled or list(corpus.partitions)[:1],
        window=context,
        batch_size=8,
        kind=kind,
        order=order,
        drop_last=False,
    ) as loader:
        for batch in loader.epoch(0):
            assert batch.windows.shape[2] == corpus.feature_dim
            assert batch.labels is None or int(batch.labels.max()) < len(corpus.phonemes)


def train(root: Path) -> None:
    from phonetrain.errors import PhonetrainError
    from tests.training import fit_tiny

    options = ("epochs=1", "batch_size=64", "window.left=1", "window.right=1", "augment.freq_mask=0")
    try:
        fit_tiny(PackedCorpus(root), root.with_name("run"), *options)
    except PhonetrainError as error:
        # Its own refusals are about settings, or about a net that met numbers without bounds.
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(root.with_name("run"), ignore_errors=True)


def ends_badly(root: Path, check: Callable[[], None]) -> str | None:
    """What is wrong with how `check` ended; None if it passed or was refused in one sentence that names the file."""
    signal.alarm(SECONDS)
    try:
        check()
    except PhonedataError as error:
        text = str(error)
        if "\n" in text or str(root) not in text or len(text) > 700 or not text.isprintable():
            return f"no sentence that names the file: {text!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return None


def main(corpus: Path, scratch: Path, first: int, count: int) -> int:
    """Try mutations; returns how many ended badly."""
    failures = 0
    for number in range(first, first + count):
        root = shutil.copytree(corpus, scratch / "packed")
        done = mutate(root, random.Random(number))
        # A crash of the process leaves this line as the last one.
        print(f"{number}: {done}", file=sys.stderr, flush=True)
        checks: list[Callable[[Path], None]] = [look_through, *(partial(take_batches, *loader) for loader in LOADERS)]
        if number % TRAIN_EVERY == 0:
            checks.append(train)
        wrong = [end for end in (ends_badly(root, partial(check, root)) for check in checks) if end]
        if wrong:
            failures += 1
            print(f"{number}: {done}: {wrong[0]}", flush=True)
        shutil.rmtree(root)
    return failures


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])) > 0)
