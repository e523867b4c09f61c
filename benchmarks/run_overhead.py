"""What a run does besides its steps: start, logs, checkpoints, scoring and end, as shares of its wall time.

    python benchmarks/run_overhead.py [--minutes 10] [--recipe cylinder5] [--json FILE] [key=value ...]

A whole `fit` on a fake corpus, stopped by its own deadline. `train_batches` is steps and their loading; what it calls
to log and to save is timed apart.
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.conditions import write_results
from phonedata import pack
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.training.fit import fit
from phonetrain.training.trainer import Trainer
from tools.fake_corpus import make_fake_corpus

STEPS = "train_batches"
PARTS = (STEPS, "log", "save", "score", "write_metric", "pause_due")  # of Trainer
GOAL = 0.05


def clocked(seconds: dict[str, float]) -> None:
    """Let Trainer's calls in PARTS add to `seconds` by name; time in one that another called is the inner one's."""
    inner = [0.0]

    def timed(name, method):
        @functools.wraps(method)
        def call(*arguments, **named):
            inner.append(0.0)
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                took = time.perf_counter() - began
                seconds[name] = seconds.get(name, 0.0) + took - inner.pop()
                inner[-1] += took

        return call

    for name in PARTS:
        setattr(Trainer, name, timed(name, getattr(Trainer, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--recipe", default="cylinder5")
    parser.add_argument("--utterances", type=int, default=800, help="of about 1,270 frames (default: 1 M frames)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("settings", nargs="*", default=[], help="key=value")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    clocked(seconds)
    with tempfile.TemporaryDirectory(prefix="run-overhead-") as work:
        make_fake_corpus(Path(work) / "raw", options.utterances)
        pack(Path(work) / "raw", Path(work) / "packed")
        settings = [
            f"stop.max_time={options.minutes}m",
            "epochs=1000",
            "schedule.name=constant",
            "tracking.wandb=off",
            "data.train=train-clean-100",
            *options.settings,
        ]
        began = time.perf_counter()
        run = fit(
            config=load_recipe(options.recipe).override(settings),
            corpus=Path(work) / "packed",
            run=Path(work) / "run",
            console=Console(),
        )
        whole = time.perf_counter() - began
        written = {"checkpoints": len(run.events("checkpoint_saved")), "log_lines": len(run.metrics("train"))}
    score = seconds.pop("score", 0.0)
    share = 1 - seconds[STEPS] / (whole - score)
    named = sum(seconds.values()) + score
    table = {
        "wall_s": whole,
        "scoring_s": score,
        "start_end_and_rest_s": whole - named,
        **{f"{name}_s": value for name, value in seconds.items()},
        **written,
        "overhead_share": share,
    }
    for name, value in table.items():
        print(f"{name:<20}{value:>12.4g}")
    print(f"{'met' if share <= GOAL else 'NOT'}: overhead outside steps, scoring apart, wanted at most {GOAL}")
    if options.json:
        write_results(options.json, "run_overhead", {"recipe": options.recipe, "settings": settings, **table})


if __name__ == "__main__":
    main()
