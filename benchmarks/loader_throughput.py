"""Window throughput: our kernel and loaders, memcpy as the limit, and the rivals, interleaved in one run.

    python benchmarks/loader_throughput.py [--quick] [--full] [--device-only] [--profile] [--plot FILE] [--json FILE]

Rates are windows per second of wall time and per second of CPU time (workers included); ratios are medians over the
rounds of ratios within a round, so that a busy machine slows both sides. Every way is checked against plain slices
before its clock starts. `--quick` checks everything on a tiny corpus and times next to nothing.
"""

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import ways
from benchmarks.conditions import ratio, spread, write_results
from benchmarks.corpora import PARTITION, make_corpora
from benchmarks.device import measure_device
from benchmarks.loader_parts import cold_start, first_batch, lookup_times, profile, start_times

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
VERDICTS = {True: "met", False: "NOT", None: ""}


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
    """Issue goals against what was measured; the machine decides how much of it is noise.

    A row without a `wanted` is no goal but the bound of the one before it: a loader copies what it gives.
    """
    table = []

    def goal(name, value, wanted, at_least=True):
        table.append({"goal": name, "value": value, "wanted": wanted, "met": (value >= wanted) == at_least})

    for result in results[:2]:
        rates, dtype = result["rates"], result["case"].split()[0]
        goal(f"{dtype}: kernel / memcpy, per CPU-second", ratio(rates, KERNEL, LIMIT, "cpu"), 0.75)
        goal(f"{dtype}: loader / memcpy, per CPU-second", ratio(rates, ONE_THREAD, LIMIT, "cpu"), 0.65)
        goal(f"{dtype}: loader 2 threads / 1 thread, wall", ratio(rates, TWO_THREADS, ONE_THREAD, "wall"), 1.7)
        goal(f"{dtype}: loader / DataLoader per item, CPU", ratio(rates, ONE_THREAD, PER_ITEM, "cpu"), 20)
        bound = ratio(rates, LIMIT, PER_ITEM, "cpu")
        name = f"{dtype}: memcpy / DataLoader per item, CPU"
        table.append({"goal": name, "value": bound, "wanted": None, "met": None})
        goal(f"{dtype}: loader / numpy flat view, CPU", ratio(rates, ONE_THREAD, FLAT, "cpu"), 1)
    goal("order + lookup at 36 M frames, us a batch of 1024", extra["lookup"]["36 M"]["together"], 45, False)
    goal("order + lookup at 345 M frames, us", extra["lookup"]["345 M"]["together"], 60, False)
    goal("first batch, 36 M frames, hot, ms", extra["first_batch"]["first_ms"], 50, False)
    goal("memory beyond the corpus, MB", extra["first_batch"]["beyond_mb"], 100, False)
    return table


def report_device(found: dict, json: Path | None) -> None:
    """Show and write what loaders do on a CUDA device."""
    for name, value in found.items():
        print(f"{name:<45}{value:>16,.4g}")
    share, wanted = found["resident_share_of_copy_bandwidth"], 0.6
    print(f"{VERDICTS[share >= wanted]:<5}resident gather at 65,536 / device copy: {share:.2f}  wanted {wanted}")
    if json:
        write_results(json, "loader_throughput, device only", {"device": found})


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
    parser.add_argument("--device-only", action="store_true", help="nothing but the loaders on a CUDA device")
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
        if options.device_only:
            report_device(measure_device(corpora["float16"], PARTITION), options.json)
            return
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
        told = "the bound" if row["wanted"] is None else f"wanted {row['wanted']}"
        print(f"{VERDICTS[row['met']]:<5}{row['goal']:<52}{row['value']:>9.2f}  {told}")
    if options.plot:
        plot(results, options.plot)
    if options.json:
        for result in results:
            result["rates"] = {w: {c: spread(v) for c, v in found.items()} for w, found in result["rates"].items()}
        write_results(options.json, "loader_throughput", {"results": results, "extra": extra, "goals": table})


if __name__ == "__main__":
    main()
