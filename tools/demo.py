"""What `make demo` runs: speech is synthesised, packed, learned and predicted with the commands a student would type.

Everything lies in one folder (`demo/`), which a second call replaces. Each command is echoed as it is run.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from picture import draw_utterance

from phonedata.errors import PhonedataError
from phonedata.phonemes import ARPABET

MADE_HERE = ("raw", "raw.partial", "packed", "run", "test-labels.csv", "utterance.png")
TOOLS = Path(__file__).parent


class Failed(Exception):
    """A command of the demo ended with an error, which it has printed itself."""

    def __init__(self, status: int):
        super().__init__(f"the command ended with exit code {status}")
        self.status = status


def echo_and_run(*words: str) -> None:
    """Run one command line of the project in a process of its own, after printing it."""
    print(f"\n$ {' '.join(words)}", flush=True)
    program, *arguments = words
    if program == "python":
        command = [sys.executable, str(TOOLS / Path(arguments[0]).name), *arguments[1:]]
    else:
        command = [sys.executable, "-m", program, *arguments]
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reached the command too: it finishes its step, saves, and says how to go on.
        process.wait()
        raise
    if status:
        raise Failed(status)


def labels_in(file: Path) -> np.ndarray:
    """Phoneme strings (N,) of an `id,label` file whose ids are 0..N-1, in that order."""
    with open(file, newline="", encoding="utf-8") as lines:
        return np.array([row["label"] for row in csv.DictReader(lines)])


def demo(out: Path, size: list[str], settings: list[str]) -> None:
    """Make, pack, fit, evaluate, predict, report and score, all under `out`; prints what came out and where it is.

    `size` are options of the corpus tool, `settings` of the recipe.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE_HERE:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    raw, packed, run, withheld = (str(out / name) for name in ("raw", "packed", "run", "test-labels.csv"))
    echo_and_run("python", "tools/make_speech_corpus.py", raw, *size, "--test-labels", withheld)
    echo_and_run("phonedata", "pack", raw, packed)
    echo_and_run("phonetrain", "fit", "demo", "--corpus", packed, "--run", run, *settings)
    echo_and_run("phonetrain", "evaluate", run)
    echo_and_run("phonetrain", "predict", run, "--partition", "test-clean")
    echo_and_run("phonetrain", "report", run)

    truth, predicted = labels_in(Path(withheld)), labels_in(out / "run" / "predictions" / "test-clean.csv")
    if len(truth) != len(predicted):
        raise PhonedataError(
            f"{run}: predicted {len(predicted)} frames, but {withheld} has {len(truth)}; run the demo again"
        )
    symbols, counts = np.unique(truth, return_counts=True)
    commonest = symbols[counts.argmax()]
    dev = json.loads(max((out / "run" / "evaluations").glob("dev-clean-*.json")).read_text(encoding="utf-8"))
    draw_utterance(out / "raw" / "test-clean" / "mfcc", truth, predicted, ARPABET, out / "utterance.png")
    print(
        f"""
                          frame accuracy    majority class alone
dev-clean                 {dev["accuracy"]:13.1%}    {dev["majority"]["share"]:13.1%} ({dev["majority"]["phoneme"]})
test-clean                {np.mean(truth == predicted):13.1%}    {counts.max() / len(truth):13.1%} ({commonest})
Both are voices and sentences that training never heard. The labels of test-clean were withheld from
the corpus; they are in {withheld}, where only this last line read them.

learning curves           {out / "run" / "curves.png"}
report                    {out / "run" / "report.html"}
predictions               {out / "run" / "predictions" / "test-clean.csv"}  ({len(predicted):,} frames)
true and predicted        {out / "utterance.png"}
whole demo                {time.monotonic() - began:.0f} s"""
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default demo)")
    parser.add_argument("--hours", type=float, help="hours of training speech (default: the corpus tool's)")
    parser.add_argument("--voices", type=int, help="voices in each partition (default: all)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe, such as epochs=5")
    options = parser.parse_args(arguments)
    given = (("--hours", options.hours), ("--voices", options.voices))
    size = [word for name, value in given if value is not None for word in (name, str(value))]
    try:
        demo(options.out, size, options.settings)
    except Failed as error:
        return error.status
    except PhonedataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo stopped; the same command starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
