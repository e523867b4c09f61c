"""Time to accuracy: a public notebook until it stops improving, then `phonetrain fit` until it is as good.

    python benchmarks/time_to_accuracy.py PACKED [--runs 3] [--device auto] [--parameters 2_000_000] [--json FILE]
                                                 [--epochs 4] [key=value ...]

The notebook is what the course's public solutions have in common: a `Dataset` that cuts one window per item, torch's
DataLoader, a net of eight equal layers with batch norm and dropout of a quarter, AdamW at 1e-3, ReduceLROnPlateau on
the dev accuracy, context 30, fp16 autocast on CUDA and fp32 on a CPU. It trains until five epochs have gained less than
a tenth of a point; the clock that counts for it stopped when it reached its best, so the waiting is not held against
it. Ours is the default recipe under the same cap for `--epochs` epochs, its whole `fit` on the clock until an epoch is
scored at that accuracy or above; `key=value` changes its settings. Both score the whole dev partition after every
epoch, in one process, one after the other, on the same packed corpus. Data that is already in memory is the notebook's
advantage: reading the course's files one by one is not on its clock.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from benchmarks import ways
from benchmarks.conditions import write_results
from phonedata import PackedCorpus
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.device import choose_device
from phonetrain.training.data import choose_roles
from phonetrain.training.fit import fit

CONTEXT, BATCH_SIZE, DEPTH, DROPOUT = 30, 1024, 8, 0.25
PATIENCE, GAIN = 5, 0.001
T_975 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % by degrees of freedom, from 1."""


@dataclass
class Reached:
    """When a way was as good as it had to be: seconds since its start, training frames seen, dev accuracy."""

    seconds: float
    frames: int
    accuracy: float


def notebook_net(inputs: int, classes: int, cap: int) -> nn.Sequential:
    """Eight equal layers, as wide as the cap allows."""
    width = next(w for w in range(8, 1 << 14) if parameters(inputs, w + 1, classes) > cap)
    layers: list[nn.Module] = [nn.Flatten()]
    for place in range(DEPTH):
        layers += [
            nn.Linear(width if place else inputs, width),
            nn.BatchNorm1d(width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
        ]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def parameters(inputs: int, width: int, classes: int) -> int:
    """Of `notebook_net`: a bias and a norm's two numbers a unit, and a bias a class."""
    return inputs * width + (DEPTH - 1) * width * width + 3 * DEPTH * width + (width + 1) * classes


def notebook(corpus: PackedCorpus, train: str, dev: str, options: argparse.Namespace, seed: int) -> list[Reached]:
    """Train as the public notebooks do until nothing is gained; one entry an epoch."""
    torch.manual_seed(seed)
    device = choose_device(options.device, "auto").device
    began, frames, curve = time.perf_counter(), 0, []
    loaders = []
    for partition in (train, dev):
        data = ways.WindowDataset(ways.Case(corpus, partition, CONTEXT, BATCH_SIZE, "ram"))
        loaders.append(torch.utils.data.DataLoader(data, BATCH_SIZE, shuffle=partition == train))
    model = notebook_net((2 * CONTEXT + 1) * corpus.feature_dim, len(corpus.phonemes), options.parameters).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    half = torch.autocast("cuda", torch.float16) if device.type == "cuda" else contextlib.nullcontext()
    while True:
        model.train()
        for windows, labels in loaders[0]:
            optimizer.zero_grad()
            with half:
                loss = nn.functional.cross_entropy(model(windows.float().to(device)), labels.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()
            frames += len(labels)
        model.eval()
        right = seen = 0
        with torch.inference_mode(), half:
            for windows, labels in loaders[1]:
                right += (model(windows.float().to(device)).argmax(1) == labels.to(device)).sum().item()
                seen += len(labels)
        schedule.step(right / seen)
        curve.append(Reached(time.perf_counter() - began, frames, right / seen))
        shown(curve, "notebook")
        before = max((each.accuracy for each in curve[:-PATIENCE]), default=0.0)
        if len(curve) > PATIENCE and max(each.accuracy for each in curve) < before + GAIN:
            return curve
        if options.notebook_epochs is not None and len(curve) == options.notebook_epochs:
            return curve


class Clock(Console):
    """Notes when each epoch was scored."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.frames, self.curve = time.perf_counter(), 0, list[Reached]()

    def epoch_row(self, line: dict[str, Any]) -> None:
        self.frames += line["frames"]
        self.curve.append(Reached(time.perf_counter() - self.began, self.frames, line["dev_accuracy"]))
        shown(self.curve, "phonetrain")


def shown(curve: list[Reached], name: str) -> None:
    last = curve[-1]
    print(f"  {name}, epoch {len(curve)}: {last.seconds:.1f} s, dev {100 * last.accuracy:.2f} %", flush=True)


def ours(corpus: PackedCorpus, options: argparse.Namespace, seed: int) -> list[Reached]:
    """`fit` of the default recipe under the same cap; one entry an epoch, seconds from the call of `fit`."""
    settings = ["model.hidden=none", f"model.max_parameters={options.parameters}", f"epochs={options.epochs}"]
    settings += [f"seed={seed}", f"device={options.device}", "tracking.wandb=off", *options.settings]
    config = load_recipe("default").override(settings)
    with tempfile.TemporaryDirectory(prefix="time-to-accuracy-") as work:
        clock = Clock()
        fit(config=config, corpus=corpus.path, run=Path(work) / "run", console=clock)
    return clock.curve


def compare(rival: list[Reached], curve: list[Reached]) -> dict[str, Any]:
    """When the rival first had its best accuracy, when ours first had that, and the ratios; null where it never had."""
    best = max(rival, key=lambda each: each.accuracy)
    reached = next((each for each in curve if each.accuracy >= best.accuracy), None)
    return {
        "notebook": asdict(best),
        "phonetrain": None if reached is None else asdict(reached),
        "phonetrain_best": max(each.accuracy for each in curve),
        "times_less_time": None if reached is None else best.seconds / reached.seconds,
        "times_fewer_frames": None if reached is None else best.frames / reached.frames,
    }


def interval(ratios: list[float]) -> list[float] | None:
    """95 % interval of the geometric mean of ratios, by Student's t on their logarithms; None for a single one."""
    if len(ratios) < 2:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    half = T_975[min(len(logs) - 1, len(T_975)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return [math.exp(statistics.fmean(logs) - half), math.exp(statistics.fmean(logs) + half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=Path, help="packed corpus")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs, each with a seed of its own")
    parser.add_argument("--parameters", type=int, default=2_000_000, help="cap of both nets")
    parser.add_argument("--epochs", type=int, default=4, help="of phonetrain; its schedule ends with them")
    parser.add_argument("--notebook-epochs", type=int, help="stop the notebook after so many, whatever it gains")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("settings", nargs="*", default=[], help="key=value, for phonetrain")
    options = parser.parse_intermixed_args()
    corpus = PackedCorpus(options.packed)
    roles = choose_roles(corpus, load_recipe("default").data)
    runs = []
    for seed in range(options.runs):
        print(f"seed {seed}", flush=True)
        rival = notebook(corpus, roles.train, roles.dev, options, seed)
        curve = ours(corpus, options, seed)
        runs.append(compare(rival, curve) | {"curves": {"notebook": listed(rival), "phonetrain": listed(curve)}})
    result: dict[str, Any] = {"corpus": corpus.digest, "parameters": options.parameters, "settings": options.settings}
    for name in ("times_less_time", "times_fewer_frames"):
        ratios = [run[name] for run in runs]
        if None in ratios:
            print(f"{name}: not in all runs was the notebook's accuracy reached; give more --epochs")
            continue
        result[name] = {"mean": statistics.geometric_mean(ratios), "interval": interval(ratios), "runs": ratios}
        print(f"{name}: {result[name]['mean']:.1f}, 95 % interval {result[name]['interval']}")
    if options.json:
        write_results(options.json, "time_to_accuracy", result | {"runs": runs})


def listed(curve: list[Reached]) -> list[dict[str, float]]:
    return [asdict(each) for each in curve]


if __name__ == "__main__":
    main()
