"""Producer threads and the files under them: order, errors, early ends, and nothing left behind."""

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from phonedata import FormatError, PackedCorpus, SpecError, WindowSpec, open_loader
from phonedata.crew import Crew
from phonedata.pages import MappedFiles, available_memory, resident_share

KINDS = [("host", "global"), ("slab", "slab")]


def producers():
    return [t for t in threading.enumerate() if t.name.startswith("phonedata-")]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    gc.collect()
    assert producers() == []


def open_tiny(corpus, kind="host", order="global", **options):
    options = {"window": WindowSpec(3, 2), "batch_size": 8, "threads": 2, "slab_frames": 20, "pool_slabs": 2, **options}
    return open_loader(corpus, "train-clean", kind=kind, order=order, **options)


# The crew


@pytest.mark.parametrize(("threads", "helps"), [(1, False), (2, False), (5, False), (0, True), (1, True), (3, True)])
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_results_come_in_order_and_no_slot_is_held_twice(threads, helps, slots):
    held, lock = set(), threading.Lock()

    def produce(index, slot):
        with lock:
            assert slot not in held
            held.add(slot)
        time.sleep(random.random() * 2e-4)
        return index * index

    crew = Crew(produce, 3, 60, slots, threads, helps=helps)
    for index in range(3, 60):
        assert crew.take() == index * index
        assert index % slots in held
        with lock:
            held.remove(index % slots)
        crew.release()
    crew.close()


def test_no_slot_is_refilled_before_its_release():
    produced = []
    crew = Crew(lambda index, slot: produced.append(index), 0, 100, 4, 2)
    crew.take()
    crew.take()
    time.sleep(0.05)
    assert sorted(produced) == [0, 1, 2, 3]
    crew.release()
    crew.take()
    crew.take()
    crew.take()
    time.sleep(0.02)
    assert sorted(produced) == [0, 1, 2, 3, 4]
    crew.close()


def test_a_consumer_that_would_wait_makes_results_itself():
    busy, makers = threading.Event(), {}

    def produce(index, slot):
        makers[index] = threading.current_thread()
        if makers[index] is not threading.main_thread():
            assert busy.wait(20)  # a thread that is held up
        return index

    crew = Crew(produce, 0, 40, 3, 1, helps=True)
    while not makers:
        time.sleep(0.001)
    threading.Timer(0.2, busy.set).start()
    for index in range(40):
        assert crew.take() == index
        crew.release()
    crew.close()
    assert makers[0] is not threading.main_thread()  # its result was waited for, after two others were made
    assert [makers[1], makers[2]] == [threading.main_thread()] * 2


def test_an_interrupt_while_the_consumer_helps_is_not_kept_for_later():
    def produce(index, slot):
        if index == 2:
            raise KeyboardInterrupt
        return index

    crew = Crew(produce, 0, 9, 4, 0, helps=True)
    assert [crew.take(), crew.take()] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        crew.take()
    with pytest.raises(SpecError, match="closed"):
        crew.take()


def test_a_close_from_elsewhere_waits_for_the_consumer_that_helps():
    inside, leave, finished = threading.Event(), threading.Event(), []

    def produce(index, slot):
        inside.set()
        assert leave.wait(20)
        finished.append(index)
        return index

    crew = Crew(produce, 0, 9, 4, 0, helps=True)
    heard = []

    def consume():
        try:
            while True:
                crew.take()
                crew.release()
        except SpecError as error:
            heard.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert inside.wait(20)
    threading.Timer(0.05, leave.set).start()
    crew.close()
    assert finished == [0]
    consumer.join(20)
    assert "closed" in str(heard[0]) and finished == [0]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_a_close_that_is_interrupted_leaves_no_thread():
    inside, leave = threading.Event(), threading.Event()

    def produce(index, slot):
        if threading.current_thread().name == "consumer":
            inside.set()
            assert leave.wait(20)
        return index

    crew = Crew(produce, 0, 99, 4, 2, helps=True)

    def consume():
        with contextlib.suppress(SpecError):
            while True:
                crew.take()
                crew.release()

    consumer = threading.Thread(target=consume, name="consumer")
    consumer.start()
    if inside.wait(5):  # else the two threads were faster to the end
        here = threading.get_ident()
        threading.Timer(0.05, lambda: signal.pthread_kill(here, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            crew.close()
        leave.set()
        consumer.join(20)
    for _ in range(2000):
        if not producers():
            break
        time.sleep(0.01)
    assert producers() == []


@pytest.mark.parametrize("helps", [False, True])
def test_an_error_arrives_at_its_batch_with_the_threads_traceback(helps):
    def produce(index, slot):
        if index == 5:
            raise ZeroDivisionError("batch five")
        return index

    crew = Crew(produce, 0, 50, 4, 0 if helps else 3, helps=helps)
    for index in range(5):
        assert crew.take() == index
        crew.release()
    with pytest.raises(ZeroDivisionError, match="batch five") as caught:
        crew.take()
    assert "in produce" in "".join(traceback.format_exception(caught.value))
    assert producers() == []


def test_a_consumer_that_waits_hears_of_the_close():
    hold = threading.Event()
    crew = Crew(lambda index, slot: hold.wait(), 0, 9, 2, 1)
    heard = []

    def consume():
        try:
            crew.take()
            crew.take()
        except SpecError as error:
            heard.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    threading.Timer(0.05, hold.set).start()
    crew.close()
    consumer.join(5)
    assert "closed" in str(heard[0])


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
    with pytest.raises(FormatError, match=rf"{file}: 100 bytes, wanted at least \d+"):
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
        (crew,) = loader._crews
        # Cut while no thread is inside the kernel: there a SIGBUS could not be helped.
        waited = time.monotonic()
        while sum(queue.qsize() for queue in crew._ready) < len(crew._ready) - 1:
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
        monkeypatch.setattr("phonedata.pages.MADV_POPULATE_READ", 9999)
    files = MappedFiles([rows])
    files.populate()
    assert resident_share(rows) == 1.0
    files.close()


@pytest.mark.parametrize("system", ["", "without preadv"])
def test_reading_past_a_cut_is_our_error(evicted, system, monkeypatch):
    if system:
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.setattr("phonedata.pages.READ_BYTES", 1000)
    files = MappedFiles([np.memmap(evicted, np.float32, "r")])
    read = np.empty(1000, np.float32)
    files.read(0, 5000, read)
    assert read.tolist() == list(range(5000, 6000))
    os.truncate(evicted, 4000)
    with pytest.raises(FormatError, match="rows: 4000 bytes, wanted at least 4194304"):
        files.read(0, 5000, read)
    files.close()


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
