"""Packing speed: ours, the obvious way, and one readv per file, interleaved in one run on one generated raw folder.

    python benchmarks/pack_throughput.py [--utterances 3000] [--repeats 5] [--folder DIR] [--under CMD] [--json FILE]

The raw folder has the size of LibriSpeech's course files: 28 coefficients, 1,270 frames an utterance, `<U5`
transcripts. All files are in the page cache. Rates are medians over the repeats, per second of wall time and per
second of CPU time of the process. Every result is checked before its clock counts. Each measurement runs in a process
of its own that has warmed up (imports, compiled kernels), so that peak memory is its own. On a busy machine
`--under "chrt -f 10"` gives the measured processes the cores, so that wall time is theirs.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from conditions import write_results

FRAMES, DIM = 1270, 28


def generate(raw: Path, utterances: int) -> None:
    """Write the raw folder; lengths vary by a fifth, labels stay for 3 to 12 frames."""
    from phonedata import ARPABET

    symbols = np.array(ARPABET.symbols, "<U5")
    random = np.random.default_rng(0)
    folder = raw / "train"
    (folder / "mfcc").mkdir(parents=True)
    (folder / "transcript").mkdir()
    noise = (random.normal(size=(2 * FRAMES, DIM)) * 20).astype(np.float32)
    for u in range(utterances):
        frames = int(FRAMES * random.uniform(0.8, 1.2))
        start = int(random.integers(0, 2 * FRAMES - frames))
        classes = np.repeat(random.integers(0, 40, frames), random.integers(3, 13, frames))[:frames]
        text = np.concatenate([["[SOS]"], symbols[classes], ["[EOS]"]]).astype("<U5")
        np.save(folder / f"mfcc/{u // 40}-{u}-0000.npy", noise[start : start + frames] + np.float32(u % 7))
        np.save(folder / f"transcript/{u // 40}-{u}-0000.npy", text)


def obvious_way(raw: Path, out: Path) -> int:
    """What notebooks do: np.load, a dict per symbol, lists, concatenate, normalise, save. Returns frames."""
    from phonedata import ARPABET

    lookup = {s: i for i, s in enumerate(ARPABET.symbols)}
    features, labels = [], []
    for name in sorted(os.listdir(raw / "train/mfcc")):
        mfcc = np.load(raw / "train/mfcc" / name)
        mfcc = (mfcc - mfcc.mean(axis=0)) / mfcc.std(axis=0)
        features.append(mfcc)
        labels.append(np.array([lookup[s] for s in np.load(raw / "train/transcript" / name)[1:-1]]))
    out.mkdir()
    rows = np.concatenate(features).astype(np.float16)
    np.save(out / "features.npy", rows)
    np.save(out / "labels.npy", np.concatenate(labels).astype(np.uint8))
    return len(rows)


def readv_only(raw: Path, out: Path) -> int:
    """The limit: every file once, by one readv into one buffer. Returns bytes."""
    view = memoryview(bytearray(1 << 20))
    total = 0
    for folder in ("mfcc", "transcript"):
        for entry in os.scandir(raw / "train" / folder):
            fd = os.open(entry.path, os.O_RDONLY)
            total += os.readv(fd, [view])
            os.close(fd)
    return total


def ours(workers: int):
    """pack with everything: checks, CMVN, digests, made durable."""

    def run(raw: Path, out: Path) -> int:
        from phonedata.packing.pack import pack

        return pack(raw, out, workers=workers).num_frames

    return run


def in_memory(raw: Path) -> list[tuple]:
    """What the files of the raw folder hold, as `pack_utterances` takes it."""
    return [
        ("train", name[:-4], np.load(raw / "train/mfcc" / name), np.load(raw / "train/transcript" / name), None)
        for name in sorted(os.listdir(raw / "train/mfcc"))
    ]


def from_python(utterances: list[tuple], out: Path) -> int:
    """pack_utterances of arrays that are in memory: what `pack` does, and staging in place of reading files."""
    from phonedata import pack_utterances

    return pack_utterances(utterances, out, workers=1).num_frames


WAYS = {
    "obvious": obvious_way,
    "readv": readv_only,
    "pack 1 worker": ours(1),
    "pack 2 workers": ours(2),
    "pack_utterances": from_python,
}


def measure_here(way: str, raw: Path, out: Path) -> dict:
    """One warm-up, then one timed run in this process."""
    run, given = WAYS[way], in_memory if way == "pack_utterances" else Path
    if way.startswith("pack"):
        run(given(raw.parent / "small"), out.with_name("warm"))
    source = given(raw)
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter()
    result = run(source, out)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"result": result, "wall": wall, "cpu": cpu, "peak_mb": after.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work, e.g. a tmpfs; default: the temporary folder")
    parser.add_argument("--under", default="", help='start each measurement under this command, e.g. "chrt -f 10"')
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "RAW", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, raw, out = options.one
        print(json.dumps(measure_here(way, Path(raw), Path(out))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        raw = Path(work) / "raw"
        generate(raw, options.utterances)
        generate(Path(work) / "small", 8)
        size = sum(f.stat().st_size for f in raw.rglob("*.npy"))
        runs: dict[str, list[dict]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:
                out = Path(work) / "out"
                command = [*options.under.split(), sys.executable, __file__, "--one", way, str(raw), str(out)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(done.stdout))
                check(way, runs[way][-1], out, raw, size)
                for left in (out, out.with_name("warm")):
                    shutil.rmtree(left, ignore_errors=True)
    show(runs, options.utterances, size)
    if options.json:
        found = {"utterances": options.utterances, "bytes": size, "under": options.under, "runs": runs}
        write_results(options.json, "pack_throughput", found)


def check(way: str, run: dict, out: Path, raw: Path, size: int) -> None:
    """Refuse to count a run whose result is wrong: size, frame count, and labels that differ from the files."""
    if way == "readv":
        ok = run["result"] == size
    elif way == "obvious":
        ok = run["result"] == len(np.load(out / "features.npy", mmap_mode="r"))
    else:
        from phonedata import PackedCorpus

        corpus = PackedCorpus(out)
        corpus.verify()
        last = corpus["train"].utterance_ids[-1]
        wanted = np.load(raw / f"train/transcript/{last}.npy")[1:-1]
        start = int(corpus["train"].utterance_start_row[-1])
        got = corpus["train"].labels[start : start + len(wanted)]
        same = [corpus.phonemes.symbols[c] for c in got] == wanted.tolist()
        ok = same and run["result"] == corpus["train"].num_frames
    if not ok:
        raise SystemExit(f"{way}: wrong result {run}")


def show(runs: dict[str, list[dict]], utterances: int, size: int) -> None:
    print(
        f"{utterances} utterances, {size / 1e6:.0f} MB of raw files in the page cache; medians of "
        f"{len(runs['readv'])} interleaved runs (lowest to highest)"
    )
    print(f"{'way':<16}{'utt/s wall':>12}{'utt/s CPU':>12}{'GB/s CPU':>10}{'peak MB':>9}   wall seconds")
    for way, found in runs.items():
        wall, cpu = (statistics.median(r[k] for r in found) for k in ("wall", "cpu"))
        walls = sorted(r["wall"] for r in found)
        print(
            f"{way:<16}{utterances / wall:>12,.0f}{utterances / cpu:>12,.0f}{size / cpu / 1e9:>10.2f}"
            f"{max(r['peak_mb'] for r in found):>9.0f}   {wall:.2f} ({walls[0]:.2f} to {walls[-1]:.2f})"
        )
    ratio = {k: [statistics.median(r[c] for r in runs[k]) for c in ("wall", "cpu")] for k in runs}
    one, two = ratio["pack 1 worker"], ratio["pack 2 workers"]
    faster, share = ratio["obvious"][1] / one[1], ratio["readv"][1] / one[1]
    print(f"one worker: {faster:.1f} times the obvious way, {share:.2f} of the rate of readv (both per CPU-second)")
    print(f"pack_utterances: {one[1] / ratio['pack_utterances'][1]:.2f} of the rate of one worker (per CPU-second)")
    print(f"two workers: {one[0] / two[0]:.2f} times one (wall)")


if __name__ == "__main__":
    main()
