"""Parts of a loader's time and memory: order and lookup, the first batch, a cold start, one batch taken apart."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import ways
from benchmarks.corpora import PARTITION, repeat_corpus
from phonedata import EpochOrder, PackedCorpus, WindowSpec, open_loader
from phonedata.loaders.mapped_files import resident_share
from phonedata.loaders.prefetch import Prefetcher
from phonedata.loaders.window_kernel import FrameTable, buckets_of, pool_rows


def lookup_times(quick: bool) -> dict:
    """Order and lookup of batches of 1,024 alone, median microseconds, with tables of full size and no rows."""
    found = {}
    for name, frames in (("36 M", 36_000_000), ("345 M", 345_000_000)):
        lengths = np.random.default_rng(0).integers(300, 2240, frames // 1270)
        ends = np.cumsum(lengths)
        order, (buckets, shift) = EpochOrder(int(ends[-1]), 0, 0), buckets_of(ends)
        out, rows, zeros, zero = (np.zeros(size, np.int64) for size in (1024, 1024, 1024, 1))
        times = []
        for n in range(200 if quick else 4000):
            start = time.perf_counter()
            order.into(n * 1024, out)
            middle = time.perf_counter()
            pool_rows(out, zeros, rows, ends[:, None], buckets, shift, 50, zero, zero, 0, 1)
            times.append(((middle - start) * 1e6, (time.perf_counter() - middle) * 1e6))
        order_us, lookup_us = (statistics.median(column) for column in zip(*times))
        table = ends.nbytes * 4 + buckets.nbytes
        found[name] = {
            "order": order_us, "lookup": lookup_us, "together": order_us + lookup_us, "table_mb": table / 1e6
        }  # fmt: skip
    return found


FIRST_BATCH = """
import sys, time, phonedata, numpy, torch, phonedata.loaders.open
def memory():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(size.split()[0]) for size in fields.values()) / 1000
before = memory()
began = time.perf_counter()
loader = phonedata.open_loader(sys.argv[1], sys.argv[2], window=phonedata.WindowSpec(30, 30), batch_size=1024)
batches = loader.epoch(0)
next(batches)
first = time.perf_counter() - began
for n, _ in zip(range(300), batches):
    pass
print(first * 1000, memory() - before, loader.num_frames)
"""


def first_batch(corpora: dict, folder: Path, times: int, processes: int) -> dict:
    """A fresh process on a hot, long corpus: milliseconds from open_loader to the first batch, and private memory."""
    long = repeat_corpus(corpora["float16"], folder / "long", times)
    runs = []
    for _ in range(processes):
        command = [sys.executable, "-c", FIRST_BATCH, str(long.path), PARTITION]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append([float(word) for word in done.stdout.split()])
    # The first process fills the compile cache and the page cache.
    first, beyond, frames = (statistics.median(column) for column in zip(*(runs[1:] or runs)))
    return {"frames": int(frames), "first_ms": first, "beyond_mb": beyond, "runs": runs}


def start_times(case: ways.Case) -> dict:
    """Milliseconds to the first batch when an epoch starts at its begin, middle and end: the same."""
    found = {}
    with open_loader(case.selection, window=case.window, batch_size=case.batch_size, kind="host") as opened:
        last = opened.batches_per_epoch - 3
        for name, start in (("begin", 0), ("middle", last // 2), ("end", last)):
            times = []
            for _ in range(9):
                began = time.perf_counter()
                next(opened.epoch(0, start))
                times.append((time.perf_counter() - began) * 1e3)
            found[name] = statistics.median(times)
    return found


def cold_start(folder: Path) -> dict | None:
    """A corpus that nobody has mapped, thrown out of memory: seconds to the first batch, and then the rate."""
    if not hasattr(os, "posix_fadvise"):
        return None
    corpus = PackedCorpus(folder)
    for file in (folder / PARTITION).rglob("c/**/*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = resident_share(corpus[PARTITION].features)
    began = time.perf_counter()
    with open_loader(corpus, PARTITION, window=WindowSpec(30, 30), batch_size=1024, kind="host") as opened:
        batches = opened.epoch(0)
        next(batches)
        first = time.perf_counter() - began
        count = sum(1 for _ in zip(range(1000), batches))
        rate = count * 1024 / (time.perf_counter() - began - first)
        bytes_read = corpus[PARTITION].features.nbytes
    return {"resident_before": share, "bytes": bytes_read, "first_s": first, "then_windows_per_s": rate}


def profile(case: ways.Case, batches: int) -> dict:
    """Microseconds of a batch: order, the kernel with and without its copy, the hand-over between threads."""

    def timed(work) -> float:
        began = time.perf_counter()
        for n in range(batches):
            work(n)
        return (time.perf_counter() - began) / batches * 1e6

    ring, labels = ways.Ring(case), np.empty(case.batch_size, np.int64)
    frames = [case.frames(n) for n in range(min(batches, case.num_batches))]
    table = FrameTable(case.selection, [case.rows], [case.labels])
    narrow = ways.WindowSpec(0, 0)
    out = np.empty(case.batch_size, np.int64)
    found = {
        "order": timed(lambda n: case.order.into(n % case.num_batches * case.batch_size, out)),
        "lookup, labels and one row": timed(
            lambda n: table.gather(frames[n % len(frames)], labels, narrow, ring.address(n), 64, case.dtype)
        ),
        "lookup, labels and window": timed(
            lambda n: table.gather(
                frames[n % len(frames)], labels, case.window, ring.address(n), ring.pitch, case.dtype
            )
        ),
    }
    prefetcher = Prefetcher(lambda index, slot: index, 0, batches, 3, 1, helps=True)
    found["hand-over"] = timed(lambda n: (prefetcher.take(), prefetcher.release()))
    prefetcher.close()
    return found
