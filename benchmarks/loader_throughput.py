"""Window throughput: our kernel and loaders, memcpy as the limit, and the rivals, interleaved in one run.

    python benchmarks/loader_throughput.py [--quick] [--full] [--profile] [--plot FILE] [--json FILE] [--rounds 7]

Rates are windows per second of wall time and per second of CPU time (workers included); ratios are medians over the
rounds of ratios within a round, so that a busy machine slows both sides. Every way is checked against plain slices
before its clock starts. `--quick` checks everything on a tiny corpus and times next to nothing.
"""

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import ways
from benchmarks.conditions import spread, write_results
from benchmarks.corpora import PARTITION, make_corpora, repeat_corpus
from benchmarks.device import measure_device

LIMIT, TWO = "memcpy 1 thread", "memcpy 2 threads"
KERNEL, ONE_THREAD, TWO_THREADS = "kernel", "loader 1 thread", "loader 2 threads"
FLAT, PER_ITEM = "numpy flat view", "DataLoader per item"

OURS = {
    LIMIT: lambda case: ways.memcpy(case, 1),
    TWO: lambda case: ways.memcpy(case, 2),
    KERNEL: ways.kernel,
    ONE_THREAD: lambda case: ways.loader(case, kind="host", threads=1, memory=case.memory),
    TWO_THREADS: lambda case: ways.loader(case, kind="host", threads=2, memory=case.memory),
    "resident (torch)": lambda case: ways.loader(case, kind="resident"),
    FLAT: ways.flat_view,
}
RIVALS = {
    "slab": lambda case: ways.loader(case, kind="slab", order="slab"),
    "torch index_select": ways.index_select,
    "numpy fancy index": ways.fancy_index,
    "DataLoader __getitems__": lambda case: ways.data_loader(case, ways.BatchDataset, 0),
    PER_ITEM: lambda case: ways.data_loader(case, ways.WindowDataset, 0),
    "DataLoader 2 workers": lambda case: ways.data_loader(case, ways.WindowDataset, 2),
}
SLOW = {PER_ITEM: 20, "DataLoader 2 workers": 20, "DataLoader __getitems__": 4, "numpy fancy index": 4}
"""Ways that get a fraction of the windows, so that a round stays short."""


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(case: ways.Case, makers: dict, rounds: int, windows: int) -> dict:
    """Each way's rates in each round; the ways take turns and move on through the corpus."""
    runs = {name: make(case) for name, make in makers.items() if name != "slab"}
    if "slab" in makers:
        runs["slab"] = slab_way(case)
    rates = {name: {"wall": [], "cpu": []} for name in runs}
    for run in runs.values():
        run.check()
        run(0, 2)
    for turn in range(rounds):
        for name, run in runs.items():
            count = max(2, windows // case.batch_size // SLOW.get(name, 1))
            wall, cpu = time.perf_counter(), cpu_seconds()
            run(turn * count, count)
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            rates[name]["wall"].append(count * case.batch_size / wall)
            rates[name]["cpu"].append(count * case.batch_size / cpu)
    for run in runs.values():
        run.close()
    return rates


def slab_way(case: ways.Case):
    """The slab loader; it has its own order, so its batches are checked by the tests and not against `case.truth`."""
    run = ways.loader(case, kind="slab", order="slab", slab_frames=1 << 16, pool_slabs=8)
    run.check = lambda: None
    return run


def ratio(rates: dict, first: str, second: str, clock: str) -> float:
    """Median over the rounds of first / second."""
    return statistics.median(a / b for a, b in zip(rates[first][clock], rates[second][clock]))


def show(case: ways.Case, rates: dict) -> None:
    print(f"\n{case.name}: {len(rates[LIMIT]['cpu'])} rounds, medians (lowest to highest)")
    print(f"  {'way':<25}{'M/CPU-s':>9}{'M/s':>8}{'of memcpy':>11}   M/CPU-s spread")
    for name, found in rates.items():
        cpu, wall = (statistics.median(found[clock]) / 1e6 for clock in ("cpu", "wall"))
        share = ratio(rates, name, LIMIT, "cpu")
        low, high = min(found["cpu"]) / 1e6, max(found["cpu"]) / 1e6
        print(f"  {name:<25}{cpu:>9.3f}{wall:>8.3f}{share:>11.3f}   {low:.3f} to {high:.3f}")


def cases(corpora: dict, full: bool, quick: bool):
    """The main case in both dtypes with all rivals, then the others with ours and the honest rival."""
    yield ways.Case(corpora["float16"], PARTITION), OURS | RIVALS
    yield ways.Case(corpora["float32"], PARTITION), OURS | RIVALS
    if quick:
        return
    others = [(10, 1024, "map"), (50, 1024, "map"), (30, 512, "map"), (30, 8192, "map"), (30, 1024, "ram")]
    dtypes = ["float16"]
    if full:
        others = list(itertools.product((10, 30, 50), (512, 1024, 8192), ("map", "ram")))
        dtypes = ["float16", "float32"]
    for dtype, (context, batch, memory) in itertools.product(dtypes, others):
        yield ways.Case(corpora[dtype], PARTITION, context, batch, memory), OURS


def goals(results: list[dict], extra: dict) -> list[dict]:
    """Issue goals against what was measured; the machine decides how much of it is noise."""
    table = []

    def goal(name, value, wanted, at_least=True):
        table.append({"goal": name, "value": value, "wanted": wanted, "met": (value >= wanted) == at_least})

    for result in results[:2]:
        rates, dtype = result["rates"], result["case"].split()[0]
        goal(f"{dtype}: kernel / memcpy, per CPU-second", ratio(rates, KERNEL, LIMIT, "cpu"), 0.75)
        goal(f"{dtype}: loader / memcpy, per CPU-second", ratio(rates, ONE_THREAD, LIMIT, "cpu"), 0.65)
        goal(f"{dtype}: loader 2 threads / 1 thread, wall", ratio(rates, TWO_THREADS, ONE_THREAD, "wall"), 1.7)
        goal(f"{dtype}: loader / DataLoader per item, CPU", ratio(rates, ONE_THREAD, PER_ITEM, "cpu"), 20)
        goal(f"{dtype}: loader / numpy flat view, CPU", ratio(rates, ONE_THREAD, FLAT, "cpu"), 1)
    goal("order + lookup at 36 M frames, us a batch of 1024", extra["lookup"]["36 M"]["together"], 45, False)
    goal("order + lookup at 345 M frames, us", extra["lookup"]["345 M"]["together"], 60, False)
    goal("first batch, 36 M frames, hot, ms", extra["first_batch"]["first_ms"], 50, False)
    goal("memory beyond the corpus, MB", extra["first_batch"]["beyond_mb"], 100, False)
    return table


def lookup_times(quick: bool) -> dict:
    """Order and lookup of batches of 1,024 alone, median microseconds, with tables of full size and no rows."""
    from phonedata import EpochOrder
    from phonedata.gather import buckets_of, pool_rows

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
import sys, time, phonedata, numpy, torch, phonedata.loader
def memory():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("RssAnon", "VmRSS")))
    return int(fields["RssAnon"].split()[0]) / 1000
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
    from phonedata import open_loader

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
    from phonedata import PackedCorpus, WindowSpec, open_loader
    from phonedata.pages import resident_share

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
    from phonedata.crew import Crew
    from phonedata.gather import FrameTable

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
    crew = Crew(lambda index, slot: index, 0, batches, 4, 1)
    found["hand-over"] = timed(lambda n: (crew.take(), crew.release()))
    crew.close()
    return found


def plot(results: list[dict], file: Path) -> None:
    """Bars of the main cases, windows per CPU-second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, result in zip(axes, results[:2]):
        names = list(result["rates"])[::-1]
        axis.barh(names, [statistics.median(result["rates"][name]["cpu"]) / 1e6 for name in names])
        axis.set_title(result["case"])
        axis.set_xlabel("million windows per CPU-second")
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny corpus, no numbers worth reading")
    parser.add_argument("--full", action="store_true", help="every context, batch size, memory and dtype")
    parser.add_argument("--profile", action="store_true", help="where a batch's time goes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--utterances", type=int, default=3150, help="of about 1,270 frames (default 3150: 4 M frames)")
    parser.add_argument("--folder", type=Path, help="where to put the corpora (3 GB; default: the temporary folder)")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.utterances, ways.RING_BYTES = 2, 24, 1 << 22
    # Rates per CPU-second are of one thread unless a way says otherwise; torch's pool would only spin.
    ways.torch.set_num_threads(1)
    windows = 2_048 if options.quick else 300_000
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loader-throughput-") as work:
        corpora = make_corpora(Path(work), options.utterances)
        results = []
        for case, makers in cases(corpora, options.full, options.quick):
            count = options.rounds if makers is not OURS or options.full else max(2, options.rounds // 2)
            results.append({"case": case.name, "rates": measure(case, makers, count, windows)})
            show(case, results[-1]["rates"])
        main_case = ways.Case(corpora["float16"], PARTITION)
        extra = {
            "lookup": lookup_times(options.quick),
            "first_batch": first_batch(corpora, Path(work), *((2, 1) if options.quick else (9, 6))),
            "start_ms": start_times(main_case),
            "cold": cold_start(Path(work) / "long"),
        }
        if options.profile:
            extra["profile_us"] = profile(main_case, 50 if options.quick else 1000)
        if ways.torch.cuda.is_available():
            extra["device"] = measure_device(corpora["float16"], PARTITION)
        elif options.quick:
            # The same lines on the CPU, so that they cannot rot where there is no device.
            extra["device"] = measure_device(corpora["float16"], PARTITION, "cpu", 2, 4096)
        table = goals(results, extra)
    for name, values in extra.items():
        print(f"\n{name}: {values}")
    print()
    for row in table:
        print(f"{'met' if row['met'] else 'NOT':<5}{row['goal']:<52}{row['value']:>9.2f}  wanted {row['wanted']}")
    if options.plot:
        plot(results, options.plot)
    if options.json:
        for result in results:
            result["rates"] = {w: {c: spread(v) for c, v in found.items()} for w, found in result["rates"].items()}
        write_results(options.json, "loader_throughput", {"results": results, "extra": extra, "goals": table})


if __name__ == "__main__":
    main()
