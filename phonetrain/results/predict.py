"""What nets say of a partition, as a file: labels (csv, ctm, TextGrid, text, JSON) or posteriors (npy, Kaldi ark)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from phonedata import Selection

from ..errors import ConfigError
from ..training.data import choose_roles
from .evaluate import kept_name
from .output import LABEL_WRITERS, SCORE_WRITERS, Utterance, check_csv, check_header
from .posteriors import Average, RunName, open_ensemble, posteriors
from .smoothing import count_transitions, median_labels, training_partitions, viterbi
from .trained import Trained

Form = Literal["csv", "npy", "ark", "ctm", "textgrid", "text", "json"]
Smooth = Literal["viterbi", "median", "none"]
Values = Literal["log-posterior", "posterior", "log-likelihood"]
SUFFIXES = {"textgrid": "", "text": ".txt"}
SCALE = 1.5  # of log posteriors against the transitions; docs/RESULTS.md has the measurements


def predict(
    runs: RunName | Sequence[RunName] = None,
    partition: str | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    labels: Literal["phoneme", "index"] = "phoneme",
    header: str = "id,label",
    *,
    form: Form = "csv",
    smooth: Smooth = "none",
    scale: float = SCALE,
    average: Average = "log",
    values: Values = "log-posterior",
    max_parameters: int | None = None,
) -> Path:
    """Label every frame of a partition (default: the run's test), or write its posteriors; returns the path.

    runs: one run or several, whose posteriors are averaged (`average`: the mean of "log" posteriors or of the
    "probability"); max_parameters is the most that all nets together may have.
    form: csv has exactly N rows, row i the id i (0..N-1, over the frames in the packed order of utterances) and the
    phoneme, or its class index (`labels`), under the two names of `header`; npy an (N, C) float32 array; ark Kaldi's
    float matrices, an (N_u, C) one an utterance; ctm, textgrid (a folder of TextGrids), text and json hold phones with
    their times, text without silence. values: what npy and ark hold; "log-likelihood" is the log posterior minus the
    log of the class's share of the training frames.
    smooth: "viterbi" takes the best path over phone transitions counted in the training labels, with log posteriors
    times `scale`; "median" the running median over 5 frames.
    The file (default: the run's predictions/<partition>.csv, another name for another corpus) appears whole or not at
    all; a CSV is read back and compared before its path is returned. Raises ConfigError, PhonetrainError.
    """
    names = check_header(header) if form == "csv" else []
    for name, value, allowed in (("as", form, Form), ("smooth", smooth, Smooth), ("values", values, Values)):
        if value not in get_args(allowed):
            raise ConfigError(f"{name}: got {value!r}, wanted one of {', '.join(get_args(allowed))}")
    if form in SCORE_WRITERS and smooth != "none":
        raise ConfigError(f"--smooth {smooth} changes labels, but --as {form} holds posteriors; leave one of them out")
    if not scale > 0:
        raise ConfigError(f"scale: got {scale}, wanted a number above 0")
    nets = open_ensemble(runs, checkpoint, corpus, device, max_parameters)
    first = nets[0]
    chosen = partition or choose_roles(first.corpus, first.config.data).test
    if chosen is None:
        raise ConfigError(
            f"{first.corpus.path} has no partition named like test (it has "
            f"{', '.join(first.corpus.partitions)}); say which one: --partition NAME"
        )
    if first.other_corpus:
        print(f"note: {first.corpus.path} is not the corpus {first.run.path} was trained on", file=sys.stderr)
    stem = kept_name(chosen, first.other_corpus)
    path = first.run.predictions / f"{stem}{SUFFIXES.get(form, f'.{form}')}" if out is None else Path(out)
    selection = Selection.of(first.corpus, chosen)
    if form in SCORE_WRITERS:
        offset = _log_priors(first) if values == "log-likelihood" else np.zeros(1, np.float32)
        rows = (part - offset for part in posteriors(nets, chosen, "scoring", average))
        SCORE_WRITERS[form](path, selection, map(np.exp, rows) if values == "posterior" else rows)
        return path
    classes = label_frames(nets, chosen, smooth, scale, average)
    symbols = (
        first.corpus.phonemes.symbols if labels == "phoneme" else tuple(map(str, range(len(first.corpus.phonemes))))
    )
    LABEL_WRITERS[form](path, _utterances(selection, classes, symbols), names)
    if form == "csv":
        check_csv(path, names, [symbols[index] for index in classes.tolist()])
    return path


def label_frames(
    nets: Sequence[Trained],
    partition: str,
    smooth: Smooth = "none",
    scale: float = SCALE,
    average: Average = "log",
) -> npt.NDArray[np.int64]:
    """(N,) int64 class of every frame of `partition`, by frame id."""
    decide: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]] = _most_probable
    if smooth == "median":
        decide = median_labels
    elif smooth == "viterbi":
        decide = partial(viterbi, transitions=count_transitions(training_partitions(nets[0])), scale=scale)
    return np.concatenate([decide(rows) for rows in posteriors(nets, partition, "labelling", average)])


def _most_probable(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(rows.argmax(1), np.int64)


def _log_priors(net: Trained) -> npt.NDArray[np.float32]:
    """(C,) log of each class's share of the training frames; half a frame more each, so that none is -inf."""
    counts = np.full(len(net.corpus.phonemes), 0.5)
    for part in training_partitions(net):
        counts += 0 if part.label_histogram is None else part.label_histogram
    return np.asarray(np.log(counts / counts.sum()), np.float32)


def _utterances(selection: Selection, classes: npt.NDArray[np.int64], symbols: Sequence[str]) -> Iterator[Utterance]:
    ends = selection.utterance_end.tolist()
    for name, begin, end in zip(selection.utterance_ids, [0, *ends[:-1]], ends, strict=True):
        yield Utterance(name, begin, [symbols[index] for index in classes[begin:end].tolist()], selection.corpus)
