"""A corpus of any size from raw files to batches: packing with its memory, verify, and the host loader in every order.

    python benchmarks/large_corpus.py FOLDER [--hours 960] [--seconds 15] [--hold GB] [--json FILE]

FOLDER takes 70 MB for an hour (66 GB for 960): raw files and the corpus are made in it unless they are there. Nothing
is warmed up: what a loader finds in memory is what `verify` left there. Each loader's batch from the middle of the
epoch must be the windows that plain slices give. `--hold` takes memory away, as other programs do.
"""

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.conditions import write_results
from phonedata import PackedCorpus, WindowSpec, open_loader
from phonedata.system import available_memory
from tools.fake_corpus import make_fake_corpus

TRAIN, CONTEXT, BATCH = "train", 30, 1024
PACK = """
import sys, phonedata
report = phonedata.pack(sys.argv[1], sys.argv[2])
status = open("/proc/self/status").read().split()
print(report.seconds, int(status[status.index("VmHWM:") + 1]) * 1024)
"""


def packed(folder: Path, hours: float) -> dict:
    """Make what is not there yet; seconds of packing and the peak memory of its process."""
    if (folder / "packed").exists():
        return {}
    if not (folder / "raw").exists():
        make_fake_corpus(folder / "raw", max(1, round(hours * 3600 * 100 / 1270)), train_name=TRAIN)
    command = [sys.executable, "-c", PACK, str(folder / "raw"), str(folder / "packed")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"seconds": float(told[0]), "peak_mb": float(told[1]) / 1e6}


def loaded(path: Path, order: str, seconds: float) -> dict:
    """One loader, one epoch or `seconds` of it."""
    began = time.perf_counter()
    with open_loader(path, TRAIN, window=WindowSpec(CONTEXT, CONTEXT), batch_size=BATCH, order=order) as loader:
        batches = iter(loader.epoch(0))
        next(batches)
        first = time.perf_counter() - began
        began, cpu, windows = time.perf_counter(), time.process_time(), 0
        for batch in itertools.takewhile(lambda _: time.perf_counter() - began < seconds, batches):
            windows += len(batch.labels)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        batches.close()
        began = time.perf_counter()
        middle = next(iter(loader.epoch(0, loader.batches_per_epoch // 2)))
        start = time.perf_counter() - began
        check(loader, middle)
        return {"first_batch_s": first, "windows_per_s": windows / wall, "windows_per_cpu_s": windows / cpu,
                "middle_of_epoch_s": start, "reason": loader.reason}  # fmt: skip


def check(loader, batch) -> None:
    """Every window of the batch is a slice of the packed rows."""
    partition = loader.selection.partitions[0]
    ends, gap = partition.utterance_end, partition.corpus.context
    for window, label, frame in zip(batch.windows.numpy(), batch.labels.tolist(), batch.frames.tolist()):
        row = frame + gap * (1 + int(np.searchsorted(ends, frame, side="right")))
        assert np.array_equal(window, partition.features[row - CONTEXT : row + CONTEXT + 1])
        assert label == partition.labels[row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=960.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--hold", type=float, default=0.0, metavar="GB", help="memory held during verify and loading")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {"hours": options.hours, "pack": packed(options.folder, options.hours), "held_gb": options.hold}
    held = np.full(int(options.hold * 1e9), 1, np.uint8)  # written, so that it is memory and not a promise
    began = time.perf_counter()
    corpus = PackedCorpus(options.folder / "packed")
    results |= {"bytes": corpus.verify(), "verify_s": time.perf_counter() - began, "frames": corpus[TRAIN].num_frames,
                "utterances": corpus[TRAIN].num_utterances, "free_memory": available_memory()}  # fmt: skip
    print(f"{results['utterances']:,} utterances, {results['frames']:,} frames, {results['bytes'] / 1e9:.1f} GB packed")
    if results["pack"]:
        print(f"pack    {results['pack']['seconds']:.0f} s, at most {results['pack']['peak_mb']:.0f} MB of memory")
    print(f"verify  {results['verify_s']:.0f} s")
    results["orders"] = {}
    for order in ("global", "slab", "sequential"):
        found = results["orders"][order] = loaded(options.folder / "packed", order, options.seconds)
        rate, by_cpu = found["windows_per_s"] / 1e3, found["windows_per_cpu_s"] / 1e3
        print(f"{order:<11} first batch {found['first_batch_s']:.2f} s, then {rate:,.0f} k windows/s "
              f"({by_cpu:,.0f} k per CPU-second), middle of the epoch after "
              f"{found['middle_of_epoch_s']:.2f} s")  # fmt: skip
    if options.json:
        write_results(options.json, "large_corpus", results)
    del held


if __name__ == "__main__":
    main()
