"""A checkpoint and a partition give scores, or a CSV with one label per frame, in frame order; always in fp32."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from phonedata import WindowSpec, open_loader
from phonedata.files import write_file

from ..console.panel import bar
from ..errors import ConfigError, PhonetrainError, writing
from ..runs.directory import Run
from ..step.scoring import score
from ..training.data import choose_roles, why_not_finite
from .tables import Evaluation
from .trained import Trained, open_trained

BATCH = 4096
CONFUSED_PAIRS = 12


def evaluate(
    run: Run | str | os.PathLike[str] | None = None,
    partition: str | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a labelled partition (default: the run's dev) in fp32, every frame once, and return the numbers.

    loss is the mean cross entropy in nats a frame, accuracy and error_rate are shares of frames; majority is what
    answering the commonest phoneme everywhere would score. phonemes has frames, recall and precision of each class,
    confused the pairs that cost most frames, confusion the (C, C) counts, true class by predicted class. in_training is
    the accuracy that the same weights had there in training, with its precision, or None. The result is
    also kept in the run's evaluations/. Raises ConfigError where the partition has no labels.
    """
    trained = open_trained(run, checkpoint, corpus, device)
    name = partition or choose_roles(trained.corpus, trained.config.data).dev
    partitions = [trained.corpus[part.strip()] for part in name.split("+")]
    bare = [part.name for part in partitions if not part.labelled]
    if bare:
        raise ConfigError(
            f"{', '.join(bare)} of {trained.corpus.path} has no labels to score against; "
            f"`phonetrain predict --partition {bare[0]}` labels it"
        )
    with _open(trained, name) as loader:
        metrics = score(trained.model, _Watched(loader, f"scoring {name}"), trained.compute,
                        len(trained.corpus.phonemes), confusion=True)  # fmt: skip
        frames = loader.num_frames
    result = metrics.result()
    if result["frames"] != frames:
        raise PhonetrainError(f"{name}: {result['frames']} frames were scored, wanted {frames}; please report this")
    if not math.isfinite(result["loss"]):
        print(f"warning: these scores mean nothing: {why_not_finite(trained.corpus, name)}", file=sys.stderr)
    assert metrics.confusion is not None  # asked for above
    confusion = metrics.confusion.cpu().numpy()
    told = trained.conditions | {"partition": name, "utterances": sum(part.num_utterances for part in partitions)}
    told["in_training"] = _scored_in_training(trained, name)
    told |= result | describe_confusion(confusion, trained.corpus.phonemes.symbols) | {"confusion": confusion.tolist()}
    _keep(trained.run, told)
    return Evaluation(told)


def predict(
    run: Run | str | os.PathLike[str] | None = None,
    partition: str | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    labels: Literal["phoneme", "index"] = "phoneme",
    header: str = "id,label",
) -> Path:
    """Label every frame of a partition (default: the run's test) and write a CSV of exactly N rows.

    Row i holds id i (0..N-1, over the frames in the packed order of utterances) and the phoneme, or its class index.
    The file (default: the run's predictions/<partition>.csv, another name for another corpus) appears whole or not at
    all and is read back and compared before its path is returned.
    """
    names = header.split(",")
    if len(names) != 2 or not all(name.strip() for name in names):
        raise ConfigError(f"header: got {header!r}, wanted two column names with a comma between, as id,label")
    trained = open_trained(run, checkpoint, corpus, device)
    name = partition or choose_roles(trained.corpus, trained.config.data).test
    if name is None:
        raise ConfigError(
            f"{trained.corpus.path} has no partition named like test (it has "
            f"{', '.join(trained.corpus.partitions)}); say which one: --partition NAME"
        )
    classes = label_frames(trained, name)
    symbols = trained.corpus.phonemes.symbols if labels == "phoneme" else range(len(trained.corpus.phonemes))
    if trained.other_corpus:
        print(f"note: {trained.corpus.path} is not the corpus {trained.run.path} was trained on", file=sys.stderr)
    path = trained.run.predictions / f"{kept_name(name, trained.other_corpus)}.csv" if out is None else Path(out)
    with writing(path, "give another place with --out FILE"):
        write_file(path, _as_csv(names, classes, symbols))
    _check_written(path, names, classes, symbols)
    return path


@torch.no_grad()
def label_frames(trained: Trained, partition: str) -> np.ndarray:
    """(N,) int64 most probable class of every frame of `partition`, placed by frame id.

    Says so on stderr where frames have no finite score: their labels mean nothing.
    """
    lost = 0
    with _open(trained, partition) as loader:
        classes = np.full(loader.num_frames, -1, np.int64)
        for batch in _Watched(loader, f"labelling {partition}").epoch(0):
            logits = trained.model(batch.windows.float())
            lost += int((~torch.isfinite(logits).all(1)).sum())
            classes[batch.frames.cpu().numpy()] = logits.argmax(1).cpu().numpy()
    missing = int((classes < 0).sum())
    if missing:
        raise PhonetrainError(f"{partition}: {missing} of {len(classes)} frames got no label; please report this")
    if lost:
        print(
            f"warning: the labels of {lost:,} of {len(classes):,} frames mean nothing: "
            f"{why_not_finite(trained.corpus, partition)}",
            file=sys.stderr,
        )
    return classes


def describe_confusion(confusion: np.ndarray, symbols: tuple[str, ...]) -> dict[str, Any]:
    """What a (C, C) matrix of counts, true class by predicted class, says: majority, phonemes, confused."""
    true, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    total = int(true.sum())
    phonemes = [
        {
            "phoneme": symbol,
            "frames": int(true[index]),
            "recall": int(right[index]) / int(true[index]) if true[index] else None,
            "precision": int(right[index]) / int(predicted[index]) if predicted[index] else None,
        }
        for index, symbol in enumerate(symbols)
    ]
    wrong = confusion - np.diag(right)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [divmod(int(place), len(symbols)) for place in order if wrong.flat[place]]
    confused = [
        {
            "phoneme": symbols[row],
            "heard_as": symbols[column],
            "frames": int(wrong[row, column]),
            "share_of_phoneme": int(wrong[row, column]) / int(true[row]),
            "share_of_errors": int(wrong[row, column]) / int(wrong.sum()),
        }
        for row, column in pairs
    ]
    most = int(true.argmax())
    majority = {"phoneme": symbols[most], "share": int(true[most]) / total if total else None}
    return {"majority": majority, "phonemes": phonemes, "confused": confused}


def _open(trained: Trained, partition: str) -> Any:
    window = trained.config.window
    return open_loader(
        trained.corpus,
        partition,
        window=WindowSpec(window.left, window.right),
        batch_size=BATCH,
        order="sequential",
        drop_last=False,
        device=str(trained.compute.device),
        dtype="float32",
    )


class _Watched:
    """A loader whose pass over the frames is shown on a terminal."""

    def __init__(self, loader: Any, what: str):
        self.loader, self.what = loader, what

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        done = 0
        with bar(self.what, self.loader.num_frames) as show:
            for batch in self.loader.epoch(epoch, start_batch):
                yield batch
                done += batch.frames.shape[0]
                show(done)


def _scored_in_training(trained: Trained, partition: str) -> dict[str, Any] | None:
    run, built = trained.run, trained.run.read_json(trained.run.built_path)
    there = [line for line in run.scores() if line.get("step") == trained.saved.progress.step]
    same = partition == (built.get("scoring") or {}).get("partitions")
    same = same and trained.conditions["corpus_is_the_trained_one"]
    return {"accuracy": there[-1]["dev_accuracy"], "precision": built.get("precision")} if there and same else None


def kept_name(what: str, other_corpus: str | None) -> str:
    """Name of a result of partitions. other_corpus: digest of a corpus that is not the run's, with the same names."""
    return what.replace(" ", "") + (f"-corpus-{other_corpus[:12]}" if other_corpus else "")


def kept_at(run: Run, partition: str, checkpoint: str, other_corpus: str | None = None) -> Path:
    """Where an evaluation is kept. checkpoint: as step-1200. other_corpus: as in `kept_name`."""
    return run.evaluations / f"{kept_name(f'{partition}-{checkpoint}', other_corpus)}.json"


def _keep(run: Run, told: dict[str, Any]) -> None:
    """Keep an evaluation for the report; a run that this user cannot write to is scored all the same."""
    other = None if told["corpus_is_the_trained_one"] else told["corpus_digest"]
    try:
        run.write_json(kept_at(run, told["partition"], told["checkpoint"], other), told)
    except PhonetrainError as error:
        print(f"warning: the scores are not kept: {error}", file=sys.stderr)


def _as_csv(names: list[str], classes: np.ndarray, symbols: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows((frame, symbols[index]) for frame, index in enumerate(classes.tolist()))
    return text.getvalue().encode()


def _check_written(path: Path, names: list[str], classes: np.ndarray, symbols: Any) -> None:
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        same = next(rows, None) == names
        count = 0
        for frame, row in enumerate(rows):
            count += 1
            same = same and frame < len(classes) and row == [str(frame), str(symbols[classes[frame]])]
    if not same or count != len(classes):
        raise PhonetrainError(
            f"{path}: read back {count} rows that are not the {len(classes)} written; the disk or a second writer "
            "changed them: predict again"
        )
