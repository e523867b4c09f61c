"""Did two runs give the same numbers? Compares metrics line by line and weights bit by bit.

    python tools/compare_runs.py runs/a runs/b [--tolerance 1e-6]

A change that "changes nothing" is proved by two runs with equal numbers. Times and rates are not compared. Exit code 0
where everything is equal (or within the tolerance), 1 where something differs, each difference named.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from safetensors.numpy import load_file

from phonetrain import Run

KEYS = ("loss", "accuracy", "lr", "gradient_norm", "train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "frames",
        "best")  # fmt: skip
MOST_SHOWN = 10


def compare_metrics(first: Run, second: Run, tolerance: float) -> list[str]:
    """A sentence for every number of the kept lines that differs, or is in one run only."""
    sides = [{(line["kind"], line["epoch"], line["step"], line.get("partition")): line for line in run.metrics()}
             for run in (first, second)]  # fmt: skip
    differences = []
    for place in sorted(sides[0].keys() | sides[1].keys(), key=str):
        lines = [side.get(place) for side in sides]
        name = f"{place[0]} line of step {place[2]}"
        if None in lines:
            differences.append(f"{name}: only in {(second if lines[0] is None else first).path}")
            continue
        for key in KEYS:
            a, b = (line.get(key) for line in lines)
            if not same(a, b, tolerance):
                differences.append(f"{name}: {key} {a!r} and {b!r}")
    return differences


def compare_weights(first: Run, second: Run, tolerance: float) -> list[str]:
    """A sentence for every tensor of the last checkpoints that differs."""
    steps = [run.read_pointer("last") for run in (first, second)]
    if steps[0] != steps[1] or steps[0] is None:
        return [f"last checkpoints: step {steps[0]} and step {steps[1]}"]
    differences = []
    for name in ("model.safetensors", "averaged.safetensors"):
        paths = [run.checkpoint_dir(steps[0]) / name for run in (first, second)]
        there = [path.is_file() for path in paths]
        if there != [True, True]:
            differences += [f"{name}: only in one of them"] * any(there)
            continue
        a, b = map(load_file, paths)
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or a[key].shape != b[key].shape:
                differences.append(f"{name}: {key} is in one only, or has two shapes")
            elif a[key].tobytes() != b[key].tobytes():
                worst = float(abs(a[key].astype("f8") - b[key].astype("f8")).max())
                if not worst <= tolerance:
                    differences.append(f"{name}: {key} differs by up to {worst:.3g}")
    return differences


def same(a: object, b: object, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative above 1, absolute below 1")
    asked = parser.parse_args()
    first, second = Run.open(asked.first), Run.open(asked.second)
    differences = compare_metrics(first, second, asked.tolerance) + compare_weights(first, second, asked.tolerance)
    for sentence in differences[:MOST_SHOWN]:
        print(sentence)
    if len(differences) > MOST_SHOWN:
        print(f"... and {len(differences) - MOST_SHOWN} more")
    compared = len(first.metrics())
    print(
        f"{first.path} and {second.path}: "
        + (f"{len(differences)} differences" if differences else f"equal, {compared} lines")
    )
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
