"""Training steps fed by each loader, beside the step on one batch that lies there already, interleaved in one run."""

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import ways as windows_of
from benchmarks.corpora import PARTITION, make_corpora
from benchmarks.device import captured
from benchmarks.steps import Case, Notebook, Ours, measure
from phonedata import Selection, WindowSpec, open_loader
from phonetrain.model.classifier import num_parameters
from phonetrain.step.epoch import Updates

WINDOW = WindowSpec(30, 30)
LOADERS = {"host": {}, "resident": {}, "slab": {"order": "slab", "slab_frames": 1 << 16, "pool_slabs": 8}}


class Fed:
    """Our step as a run makes it: epoch after epoch, captured on CUDA with what the loader lets it."""

    def __init__(self, case: Case, selection: Selection, kind: str) -> None:
        self.loader = open_loader(
            selection, window=WINDOW, batch_size=case.batch_size, kind=kind, device=str(case.device), **LOADERS[kind]
        )
        self.updates = Updates(Ours(case, capture=False).step, self.loader, capture=case.device.type == "cuda")
        self.steps = self.forever()

    def forever(self) -> Iterator[int]:
        number, rates = 0, np.full(self.loader.batches_per_epoch, 1e-3)
        for epoch in itertools.count():
            for frames in self.updates.epoch(epoch, 0, number, rates):
                number += 1
                yield frames

    def __call__(self) -> None:
        next(self.steps)

    def close(self) -> None:
        self.steps.close()
        self.loader.close()


class NotebookFed:
    """The notebook's loop with its per-item loader."""

    def __init__(self, case: Case, selection: Selection) -> None:
        self.notebook, self.case, self.batches = Notebook(case), case, iter(())
        corpus, partition = selection.corpus, selection.partitions[0].name
        self.source = windows_of.WindowDataset(windows_of.Case(corpus, partition, batch_size=case.batch_size))

    def __call__(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(
                torch.utils.data.DataLoader(self.source, self.case.batch_size, shuffle=True, drop_last=True)
            )
            batch = next(self.batches)
        self.notebook.on(*batch)

    def close(self) -> None:
        self.batches = iter(())


def with_loaders(
    cases: list[tuple[Case, tuple[str, ...]]], utterances: int, folder: Path, rounds: int, seconds: float
) -> list[dict]:
    """Frames/s of each case by each named way; "given" is the step without a loader.

    On CUDA also `gather_us`, the resident loader's part of the graph, and its share of the step.
    """
    corpus = make_corpora(folder, utterances)["float16"]
    selection, rows = Selection.of(corpus, PARTITION), []
    for case, names in cases:
        ways = {
            name: Ours(case)
            if name == "given"
            else NotebookFed(case, selection)
            if name == "notebook"
            else Fed(case, selection, name)
            for name in names
        }
        found = measure(case, ways, rounds, seconds)
        row = {
            "net": case.net,
            "parameters": num_parameters(case.model),
            "batch_size": case.batch_size,
            "frames_per_second": {
                name: case.batch_size / statistics.median(clocks["wall"]) for name, clocks in found.items()
            },
        }
        for name, way in ways.items():
            if name != "given":
                way.close()
        if case.device.type == "cuda":
            row["gather_us"] = gather_us(case, selection)
            row["resident_share"] = row["gather_us"] * 1e-6 * row["frames_per_second"]["resident"] / case.batch_size
        rows.append(row)
    return rows


def gather_us(case: Case, selection: Selection) -> float:
    def open_on(kind: str, batch_size: int):
        return open_loader(selection, window=WINDOW, batch_size=batch_size, kind=kind, device=str(case.device))

    return captured(open_on, case.batch_size, case.device, 200)
