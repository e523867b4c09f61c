"""Packing beyond one machine: workers of a dask LocalCluster against threads, and the caller's own part at any size.

    python benchmarks/cluster.py [--utterances 3000] [--repeats 5] [--folder DIR] [--hours 960] [--json FILE]

First the raw folder of benchmarks/pack_throughput.py, packed by two threads and by the two workers of a LocalCluster in
turns; the bytes must be equal. Then a plan of so many hours whose chunks nobody reads or writes: the caller's code is
the real one, and each task and its result go through pickle, but answers are made up. CPU-seconds are those of the
whole call less those of making answers up; memory is the peak of a process of its own.
"""

import argparse
import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.conditions import write_results
from benchmarks.pack_throughput import generate
from phonedata import ARPABET, RawCorpus, pack
from phonedata.format.zarr_files import CHUNK_ROWS
from phonedata.packing.executor import AHEAD, dask_executor
from phonedata.packing.journal import ChunkResult, Measurements, Staging
from phonedata.packing.packer import Packing
from phonedata.packing.plan import MeasureTask, PackOptions

DIM, FRAMES = 28, 1270


def packs(folder: Path, utterances: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each pack, by what did it; each has packed a few utterances before."""
    generate(folder / "raw", utterances)
    generate(folder / "small", 8)
    seconds: dict[str, list[float]] = {"2 threads": [], "2 workers of a LocalCluster": []}
    digests = set()
    with dask_executor("local:2") as cluster:
        ways = dict(zip(seconds, ({"workers": 2}, {"executor": cluster})))
        for turn in range(-2, repeats):
            for way, options in list(ways.items())[:: 1 if turn % 2 else -1]:
                report = pack(folder / ("raw" if turn >= 0 else "small"), folder / "packed", replace=True, **options)
                if turn >= 0:
                    seconds[way].append(report.seconds)
                    digests.add(report.digest)
    if len(digests) != 1:
        raise SystemExit(f"different bytes: {digests}")
    return seconds


@dataclass
class PlannedPartition:
    """`count` utterances that exist in the plan alone; see RawPartition."""

    count: int
    name: str = "train"
    labelled: bool = True
    problems: list = field(default_factory=list)
    order: str = "sorted"
    stamp: str = ""
    written: str = ""
    phonemes: object = ARPABET

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        self.lengths_hint = (FRAMES * random.uniform(0.2, 1.8, self.count)).astype(int).tolist()
        self.utterance_ids = [f"{u // 120:04d}-{u // 20 % 6}-{u % 20:04d}" for u in range(self.count)]
        self.speakers = [name[:4] for name in self.utterance_ids]

    def where(self, index: int) -> str:
        return self.utterance_ids[index]


class Answering(Executor):
    """Answers at once. `spent` are the CPU-seconds that this took, without pickling."""

    def __init__(self, lengths: list[int]):
        self.lengths, self.spent, self.sent = np.array(lengths), 0.0, 0
        self.random = np.random.default_rng(0)

    def submit(self, function, /, job, method, task, attempts):
        message = pickle.dumps((function, job, method, task, attempts))
        began = time.process_time()
        *_, task, _ = pickle.loads(message)
        self.sent += len(message)
        answer = self._measured(task) if isinstance(task, MeasureTask) else self._filled(task)
        self.spent += time.process_time() - began
        future: Future = Future()
        future.set_result(pickle.loads(pickle.dumps((None, answer, None))))
        return future

    def _moments(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        means, squares = self.random.normal(size=(2, count, DIM))
        return means, squares**2

    def _measured(self, task) -> Measurements:
        lengths = dict(zip(task.index.tolist(), self.lengths[task.index].tolist()))
        return Measurements(lengths, {}, *self._moments(len(lengths)))

    def _filled(self, task) -> ChunkResult:
        own = task.start_row >= task.chunk * CHUNK_ROWS
        histogram = np.full(len(ARPABET), task.own_frames // len(ARPABET))
        histogram[0] += task.own_frames - histogram.sum()
        return ChunkResult("0" * 32, "0" * 32, histogram, *self._moments(int(own.sum())))


def plan(hours: float, cmvn: str) -> dict[str, float]:
    """The caller's part of a pack of `hours`, in this process."""
    partition = PlannedPartition(round(hours * 360_000 / FRAMES))
    corpus = RawCorpus(Path("nowhere"), "planned", (partition,), ARPABET)
    executor = Answering(partition.lengths_hint)
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder) / "packed", "planned")
        began = time.process_time()
        work = Packing(corpus, PackOptions(cmvn), DIM, "nowhere", staging, executor, AHEAD, None)
        work.run()
        seconds = time.process_time() - began - executor.spent
        job, journal = (sum(f.stat().st_size for f in staging.path.glob(name)) for name in ("job-*", "journal"))
        staging.remove()
    chunks = len(work.done)
    status = Path("/proc/self/status").read_text().split()
    return {
        "utterances": partition.count,
        "chunks": chunks,
        "cpu_seconds": seconds,
        "ms_per_chunk": 1e3 * seconds / chunks,
        "peak_mb": int(status[status.index("VmHWM:") + 1]) / 1024,
        "task_kb": executor.sent / chunks / 1e3,
        "job_mb": job / 1e6,
        "journal_mb": journal / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    parser.add_argument("--hours", type=float, default=960.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.hours, options.plan)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        seconds = packs(folder, options.utterances, options.repeats)
    finally:
        shutil.rmtree(folder)
    print(f"{options.utterances} utterances in the page cache, seconds of {options.repeats} packs in turns")
    for way, found in seconds.items():
        print(f"{way:<28} {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
    results = {"utterances": options.utterances, "seconds": seconds, "hours": options.hours, "plans": {}}
    for cmvn in ("utterance", "speaker"):
        command = [sys.executable, __file__, "--plan", cmvn, "--hours", str(options.hours)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        results["plans"][cmvn] = found
        print(
            f"{options.hours:g} h, cmvn {cmvn}: {found['utterances']:,} utterances, {found['chunks']:,} chunks; the "
            f"caller takes {found['cpu_seconds']:.1f} CPU-seconds = {found['ms_per_chunk']:.2f} ms a chunk, at most "
            f"{found['peak_mb']:.0f} MB; kB of a task {found['task_kb']:.0f}, MB of the job {found['job_mb']:.0f}, of "
            f"the journal {found['journal_mb']:.0f}"
        )
    if options.json:
        write_results(options.json, "cluster", results)


if __name__ == "__main__":
    main()
