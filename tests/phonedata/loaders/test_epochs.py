"""Epochs that end early and the files under them: no thread stays, a file that shrinks is our error, memory is flat."""

import gc
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from phonedata import FormatError, PackedCorpus, SpecError, WindowSpec, open_loader
from phonedata.loaders.mapped_files import MappedFiles, resident_share
from phonedata.system import available_memory
from tests.conftest import producers

pytestmark = pytest.mark.usefixtures("no_producers_left")

KINDS = [("host", "global"), ("slab", "slab")]


def open_tiny(corpus, kind="host", order="global", **options):
    options = {"window": WindowSpec(3, 2), "batch_size": 8, "threads": 2, "slab_frames": 20, "pool_slabs": 2, **options}
    return open_loader(corpus, "train-clean", kind=kind, order=order, **options)


# Epochs that end early


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_leaving_early_ends_the_threads(tiny_corpus, kind, order):
    with open_tiny(tiny_corpus, kind, order) as loader:
        batches = loader.epoch(0)
        next(batches)
        assert producers()
        batches.close()
        assert producers() == []
        for _ in loader.epoch(0):
            break
        gc.collect()
        assert producers() == []
        with pytest.raises(RuntimeError, match="training broke"):
            for _ in loader.epoch(0):
                raise RuntimeError("training broke")


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_a_forgotten_epoch_is_collected(tiny_corpus, kind, order):
    loader = open_tiny(tiny_corpus, kind, order)
    batches = loader.epoch(0)
    next(batches)
    del batches
    gc.collect()
    assert producers() == []
    never_started = loader.epoch(0)
    del never_started
    loader.close()


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_closing_the_loader_ends_its_open_epochs(tiny_corpus, kind, order):
    loader = open_tiny(tiny_corpus, kind, order)
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    assert producers() == []
    with pytest.raises(SpecError, match="closed while one of its epochs"):
        list(batches)
    loader.close()


def test_a_program_may_end_in_the_middle_of_an_epoch(tiny_corpus):
    program = (
        "import sys, phonedata\n"
        "loader = phonedata.open_loader(sys.argv[1], 'train-clean', window=phonedata.WindowSpec(3, 2), batch_size=8)\n"
        "batches = loader.epoch(0)\n"
        "print(len(next(batches).frames))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, tiny_corpus.path]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"8"], b"")


# Files that are not what they were


@pytest.fixture
def own_corpus(tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus.path, tmp_path / "packed")
    return PackedCorpus(tmp_path / "packed")


def cut(corpus, file="features/c/0/0", size=100):
    os.truncate(Path(corpus.path) / "train-clean" / file, size)


@pytest.mark.parametrize("file", ["features/c/0/0", "labels/c/0"])
@pytest.mark.parametrize(("kind", "order"), [*KINDS, ("resident", "global")])
def test_a_file_cut_before_opening_is_named(own_corpus, kind, order, file):
    cut(own_corpus, file)
    with pytest.raises(FormatError, match=rf"{file}: 100 bytes, wanted \d+; copy"):
        open_tiny(own_corpus, kind, order)


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_a_file_cut_between_epochs_is_named(own_corpus, kind, order):
    with open_tiny(own_corpus, kind, order) as loader:
        for _ in loader.epoch(0):
            pass
        cut(own_corpus)
        with pytest.raises(FormatError, match="100 bytes, wanted at least"):
            next(loader.epoch(1))


def test_a_file_that_shrinks_under_the_map_is_our_error_with_its_traceback(own_corpus):
    with open_tiny(own_corpus) as loader:
        batches = loader.epoch(0)
        next(batches)
        (prefetcher,) = loader._prefetchers
        # Cut while no thread is inside the kernel: there a SIGBUS could not be helped.
        waited = time.monotonic()
        while sum(queue.qsize() for queue in prefetcher._ready) < len(prefetcher._ready) - 1:
            assert time.monotonic() < waited + 60
            time.sleep(0.001)
        cut(own_corpus)
        with pytest.raises(FormatError, match="100 bytes, wanted at least") as caught:
            list(batches)
        assert "_produce" in "".join(traceback.format_exception(caught.value))
        assert producers() == []


@pytest.mark.parametrize("system", ["", "without preadv"])
def test_slabs_of_a_file_that_shrinks_are_our_error(own_corpus, system, monkeypatch):
    if system:
        monkeypatch.delattr(os, "preadv", raising=False)
    with open_tiny(own_corpus, "slab", "slab") as loader:
        batches = loader.epoch(0)
        next(batches)
        cut(own_corpus)
        with pytest.raises(FormatError, match="wanted at least"):
            list(batches)


def test_a_copy_in_ram_outlives_its_file(own_corpus):
    with open_tiny(own_corpus, memory="ram") as loader:
        kept = loader.batch(0, 3)
        cut(own_corpus)
        assert loader.batch(0, 3).windows.equal(kept.windows)


# Pages


@pytest.fixture
def evicted(tmp_path):
    """A file of 4 MB whose pages are not in memory, where the system lets them be thrown out."""
    path = tmp_path / "rows"
    np.arange(1 << 20, dtype=np.float32).tofile(path)
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.mark.parametrize("madvise", [True, False])
def test_populated_pages_are_in_memory(evicted, monkeypatch, madvise):
    rows = np.memmap(evicted, np.float32, "r")
    if not madvise:
        # As on a kernel before 5.14: the pages are read instead.
        monkeypatch.setattr("phonedata.loaders.mapped_files.MADV_POPULATE_READ", 9999)
    files = MappedFiles([rows], [evicted])
    files.populate()
    assert resident_share(rows) == 1.0
    files.close()


@pytest.mark.parametrize("system", ["", "without preadv"])
def test_reading_past_a_cut_is_our_error(evicted, system, monkeypatch):
    if system:
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.setattr("phonedata.loaders.mapped_files.READ_BYTES", 1000)
    files = MappedFiles([np.memmap(evicted, np.float32, "r")], [evicted])
    read = np.empty(1000, np.float32)
    files.read(0, 5000, read)
    assert read.tolist() == list(range(5000, 6000))
    os.truncate(evicted, 4000)
    with pytest.raises(FormatError, match="rows: 4000 bytes, wanted at least 4194304"):
        files.read(0, 5000, read)
    files.close()


def test_file_that_cannot_be_closed_keeps_no_other_open(evicted):
    rows = np.memmap(evicted, np.float32, "r")
    files = MappedFiles([rows, rows], [evicted, evicted])
    first, last = (file for file, _, _ in files._files)
    os.close(last)  # so that closing it once more is refused
    files.close()
    for descriptor in (first, last):
        with pytest.raises(OSError):
            os.fstat(descriptor)


def test_free_memory_is_known_or_said_to_be_unknown():
    free = available_memory()
    assert free is None or free > 0


# Soak


def soak(corpus, batches):
    """Read `batches` batches in epochs that often end early; returns resident memory halfway and at the end."""
    dice = random.Random(0)
    read, marks = 0, []
    loaders = [open_tiny(corpus, kind, order, threads=dice.randint(1, 4)) for kind, order in KINDS * 2]
    while read < batches:
        loader = dice.choice(loaders)
        stop = dice.randint(0, loader.batches_per_epoch + 3)
        start = dice.randint(0, loader.batches_per_epoch)
        for number, _ in enumerate(loader.epoch(dice.randint(0, 99), start)):
            read += 1
            if number == stop:
                break
        if read > batches * (len(marks) + 1) / 2:
            gc.collect()
            marks.append(resident_memory())
    for loader in loaders:
        loader.close()
    return marks


def resident_memory():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc: resident memory is not read here")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def test_memory_stays_flat_over_early_ends(tiny_corpus):
    first, last = soak(tiny_corpus, 1500)
    assert last - first < 8 << 20


@pytest.mark.long
def test_memory_stays_flat_over_ten_thousand_batches(tiny_corpus):
    first, last = soak(tiny_corpus, 10_000)
    assert last - first < 8 << 20
