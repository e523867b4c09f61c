"""What a trained net costs to use: `predict` and its memory, the best path, `transcribe` against the audio's length.

    python benchmarks/inference.py [--frames 2000000] [--parameters 2000000] [--minutes 10] [--json FILE]

The net is trained on a few seconds of tones, since speed does not depend on what it learnt. `predict` runs in processes
of their own, on a quarter of the frames and on all: their memory, without pages of the mapped corpus, is to be equal.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile

from benchmarks.conditions import write_results
from phonedata import ARPABET, PackedCorpus, pack, pack_utterances
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.results.predict import SCALE
from phonetrain.results.smoothing import Transitions, viterbi
from phonetrain.results.transcribe import transcribe
from phonetrain.runs.directory import Run
from phonetrain.training.fit import fit

RATE, UTTERANCE = 16000, 1270
GOALS = {
    "predict_s": "wanted at most 60",
    "path_frames_per_s": "wanted at least 1,000,000",
    "times_real_time": "wanted at least 50",
}
PREDICT = """
import json, sys, threading, time
import phonetrain

def memory():
    fields = open("/proc/self/status").read().split()
    return int(fields[fields.index("RssAnon:") + 1]) * 1024

peak, over = [0], threading.Event()
def watch():
    while not over.wait(0.02):
        peak[0] = max(peak[0], memory())
thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
path = phonetrain.predict(sys.argv[1], corpus=sys.argv[2], smooth=sys.argv[3], out=sys.argv[4], replace=True)
seconds = time.perf_counter() - began
over.set()
thread.join()
print(json.dumps({"seconds": seconds, "peak_mb": peak[0] / 1e6, "rows": sum(1 for _ in open(path)) - 1}))
"""


def write_audio(folder: Path, name: str, seconds: float) -> None:
    """A tone for each phone, 0.1 s each, all of ARPABET in turn; phones beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    count = round(10 * seconds)
    classes = np.arange(count) % len(ARPABET)
    wave = np.sin(2 * np.pi * np.cumsum(np.repeat(200.0 + 50 * classes, RATE // 10)) / RATE)
    soundfile.write(folder / f"{name}.wav", 0.3 * wave, RATE, subtype="PCM_16")
    lines = [
        f"{place / 10} {(place + 1) / 10} {ARPABET.symbols[index]}\n" for place, index in enumerate(classes.tolist())
    ]
    (folder / f"{name}.lab").write_text("".join(lines))


def trained(work: Path, parameters: int) -> Run:
    """A run of one epoch whose corpus records a front end."""
    for partition in ("train", "dev"):
        write_audio(work / "audio" / partition, f"{partition}-1-1", 8.0)
    pack(work / "audio", work / "tones")
    settings = ("epochs=1", "batch_size=128", "tracking.wandb=off", f"model.max_parameters={parameters}", "device=cpu")
    config = load_recipe("default").override(settings)
    return fit(config=config, corpus=work / "tones", run=work / "run", console=Console())


def predicted(run: Run, work: Path, frames: int, smooth: str) -> dict[str, float]:
    """Seconds and peak memory of one `predict` of random frames."""
    like = PackedCorpus(work / "tones")
    target = work / f"test-{frames}"
    if not target.exists():
        random = np.random.default_rng(0)
        sizes = [min(UTTERANCE, frames - begin) for begin in range(0, frames, UTTERANCE)]
        rows = (("test", f"u-{number}", random.normal(size=(size, like.feature_dim)).astype(np.float32), None, None)
                for number, size in enumerate(sizes))  # fmt: skip
        pack_utterances(rows, target, symbols=like.phonemes)
    command = [sys.executable, "-c", PREDICT, str(run.path), str(target), smooth, str(work / "out.csv")]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found.pop("rows") == frames
    return dict(found)


def best_path(frames: int) -> float:
    """Frames a second of the best path through random log posteriors of 40 classes."""
    random = np.random.default_rng(0)
    classes = len(ARPABET)
    rows = np.log(random.dirichlet(np.full(classes, 0.1), UTTERANCE) + 1e-9).astype(np.float32)
    transitions = Transitions.of(random.integers(0, 1000, (classes, classes)), np.ones(classes, np.int64))
    viterbi(rows, transitions, SCALE)  # compiles
    times = max(1, frames // UTTERANCE)
    began = time.perf_counter()
    for _ in range(times):
        viterbi(rows, transitions, SCALE)
    return times * UTTERANCE / (time.perf_counter() - began)


def transcribed(run: Run, work: Path, minutes: float) -> float:
    """Seconds of audio for each second that `transcribe` took, opening the net included."""
    for number in range(10):
        write_audio(work / "speech", f"s-{number}", 6 * minutes)
    files = sorted((work / "speech").glob("*.wav"))
    began = time.perf_counter()
    assert len(str(transcribe(files, run))) > 10
    return 60 * minutes / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2_000_000)
    parser.add_argument("--parameters", type=int, default=2_000_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio to transcribe")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inference-") as name:
        work = Path(name)
        run = trained(work, options.parameters)
        parts = [predicted(run, work, frames, "none") for frames in (options.frames // 4, options.frames)]
        smoothed = predicted(run, work, options.frames, "viterbi")
        results = {
            "frames": options.frames,
            "parameters": run.read_json(run.built_path)["model"]["parameters"],
            "predict_s": parts[1]["seconds"],
            "predict_viterbi_s": smoothed["seconds"],
            "peak_mb_of_a_quarter": parts[0]["peak_mb"],
            "peak_mb": parts[1]["peak_mb"],
            "path_frames_per_s": best_path(options.frames),
            "times_real_time": transcribed(run, work, options.minutes),
        }
    for key, value in results.items():
        print(f"{key:<22}{value:>14,.1f}    {GOALS.get(key, '')}".rstrip())
    if options.json:
        write_results(options.json, "inference", results)


if __name__ == "__main__":
    main()
