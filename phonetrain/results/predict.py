"""Predictions for a partition, as a file: labels (csv, ctm, TextGrid, text, JSON) or posteriors (npy, Kaldi ark)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from phonedata import Selection

from ..config.sections import DataConfig
from ..errors import ConfigError, PhonetrainError
from ..training.data import partition_of
from .evaluate import kept_name
from .onnx_model import CLOSE, open_onnx
from .posteriors import Average, RunName, check_parameters, open_ensemble, posteriors
from .prediction_files import SCORE_WRITERS, Utterance, check_header, check_names, check_target, write_labels
from .smoothing import Floats, Ints, median_labels, viterbi
from .trained import Net, warn_of_other_corpus

Form = Literal["csv", "npy", "ark", "ctm", "textgrid", "text", "json"]
Smooth = Literal["viterbi", "median", "none"]
Values = Literal["log-posterior", "posterior", "log-likelihood"]
Decide = Callable[[Floats], Ints]
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
    warps: bool = False,
    values: Values = "log-posterior",
    max_parameters: int | None = None,
    model: str | os.PathLike[str] | None = None,
    replace: bool = False,
    trust_code: bool = False,
) -> Path:
    """Label every frame of a partition (default: the run's test), or write its posteriors; returns the path.

    runs: one run or several, whose posteriors are averaged (`average`: the mean of "log" posteriors or of the
    "probability"); max_parameters is the most that all nets together may have. trust_code: as in `open_trained`.
    form: csv has exactly N rows, row i the id i (0..N-1, over the frames in the packed order of utterances) and the
    phoneme, or its class index (`labels`), under the two names of `header`; npy an (N, C) float32 array; ark Kaldi's
    float matrices, an (N_u, C) one an utterance; ctm, textgrid (a folder of TextGrids), text and json hold phones with
    their times, text without silence. values: what npy and ark hold; "log-likelihood" is the log posterior minus the
    log of the class's share of the training frames. warps: hear each utterance as vocal tracts of several lengths and
    average over those of which a net is surest, as `posteriors` does: nine times the work.
    smooth: "viterbi" takes the best path over phone transitions counted in the training labels, with log posteriors
    times `scale`; "median" the running median over 5 frames.
    model: an exported model.onnx in place of runs; its corpus is `corpus`, by default packed/.
    The file (default: the run's predictions/<partition>.csv, another name for another corpus) appears whole or not at
    all and is read back before its path is returned; one that is at `out` already is only replaced if `replace`.
    Another corpus than that of training is predicted with a warning where its front end is unknown or other. Memory
    does not grow with the partition. Raises ConfigError, PhonetrainError.
    """
    names = check_header(header) if form == "csv" else []
    for name, value, allowed in (("as", form, Form), ("smooth", smooth, Smooth), ("values", values, Values)):
        if value not in get_args(allowed):
            raise ConfigError(f"{name}: got {value!r}, wanted one of {', '.join(get_args(allowed))}")
    if form in SCORE_WRITERS and smooth != "none":
        raise ConfigError(f"--smooth {smooth} changes labels, but --as {form} holds posteriors; leave one of them out")
    if not scale > 0:
        raise ConfigError(f"scale: got {scale}, wanted a number above 0")
    nets: Sequence[Net]
    if model is not None:
        if runs:
            raise ConfigError("model: an exported model is predicted with alone; leave the runs out")
        nets = [open_onnx(model, corpus)]
        check_parameters(nets, max_parameters)
    else:
        nets = open_ensemble(runs, checkpoint, corpus, device, max_parameters, trust_code)
    first = nets[0]
    chosen = partition or _partition(first)
    selection = Selection.of(first.corpus, chosen)
    stem = kept_name(chosen, first.other_corpus)
    path = first.predictions / f"{stem}{SUFFIXES.get(form, f'.{form}')}" if out is None else Path(out)
    check_target(path, folder=form == "textgrid", replace=replace or out is None)
    check_names(form, selection.utterance_ids)
    warn_of_other_corpus(nets)
    kept = kept_places(selection, form)
    close = CloseFrames()
    rows = posteriors(nets, chosen, "scoring" if form in SCORE_WRITERS else "labelling", average, warps)
    if model is not None:
        rows = close.watch(rows)
    if kept:
        priors = first.label_counts().log_priors
        symbol = first.corpus.phonemes.symbols[int(priors.argmax())]
        print(
            f"note: {len(kept)} utterances of {chosen} could not be packed, e.g. {min(kept)}; their "
            f"{sum(kept.values()):,} frames get the most frequent class of the training data, {symbol!r}",
            file=sys.stderr,
        )
        rows = fill_places(rows, selection.utterance_ids, kept, priors)
    if form in SCORE_WRITERS:
        offset = first.label_counts().log_priors if values == "log-likelihood" else np.zeros(1, np.float32)
        scores = (part - offset for part in rows)
        SCORE_WRITERS[form](path, selection, map(np.exp, scores) if values == "posterior" else scores)
    else:
        decide = decision(first, smooth, scale)
        classes = (
            # No smoothing: a run of one class is its own best path.
            (_most_probable if name in kept else decide)(part)
            for name, part in zip(selection.utterance_ids, rows, strict=True)
        )
        count = len(first.corpus.phonemes)
        symbols = first.corpus.phonemes.symbols if labels == "phoneme" else tuple(map(str, range(count)))
        write_labels(path, form, _utterances(selection, classes, symbols), names)
    if model is not None:
        print(
            f"note: the best two classes of {close.count:,} of {selection.num_frames:,} frames differ by less than "
            f"{CLOSE:g}; there torch may decide otherwise",
            file=sys.stderr,
        )
    return path


def kept_places(selection: Selection, form: Form) -> dict[str, int]:
    """Utterances that could not be packed, whose places zeros keep -> frames. Raises PhonetrainError where one has no
    place and rows are counted: all behind it would be wrong."""
    bare = {partition.name for partition in selection.partitions if not partition.labelled}
    left_out = [one for one in selection.corpus.attributes["left_out"] if one["partition"] in bare]
    for one in left_out:
        if one.get("frames") is None and form in ("csv", "npy"):
            raise PhonetrainError(
                f"{selection.corpus.path}: {one['partition']} lacks {one['utterance']}, and nobody knows how many "
                f"frames it has, so every row behind it would be wrong ({one['reason']}); mend it and pack again"
            )
    return {one["utterance"]: one["frames"] for one in left_out if one.get("frames")}


def fill_places(
    utterances: Iterable[Floats], names: Iterable[str], kept: Collection[str], log_priors: Floats
) -> Iterator[Floats]:
    """Log posteriors (N, C) of each utterance, of those in `kept` the log priors (C,) in every frame."""
    for name, rows in zip(names, utterances, strict=True):
        yield np.broadcast_to(log_priors, rows.shape) if name in kept else rows


def _partition(net: Net) -> str:
    """What to predict where nobody says it: the only partition of the corpus, else its test. Raises ConfigError."""
    corpus = net.corpus
    if len(corpus.partitions) == 1:
        return str(*corpus.partitions)
    # A corpus of somebody else's has none of the names that the run's settings may hold.
    chosen = partition_of("test", corpus, DataConfig() if net.other_corpus else net.data)
    if chosen is None:
        raise ConfigError(
            f"{corpus.path} has no partition named like test (it has {', '.join(corpus.partitions)}); say which one: "
            "--partition NAME"
        )
    return chosen


def decision(net: Net, smooth: Smooth = "none", scale: float = SCALE) -> Decide:
    """The function from an utterance's log posteriors (N, C) to its classes (N,)."""
    if smooth == "median":
        return median_labels
    if smooth == "viterbi":
        return partial(viterbi, transitions=net.label_counts().transitions, scale=scale)
    return _most_probable


def _most_probable(rows: Floats) -> Ints:
    return np.asarray(rows.argmax(1), np.int64)


class CloseFrames:
    """Counts frames whose best two classes differ by less than CLOSE nats."""

    count = 0

    def watch(self, utterances: Iterable[Floats]) -> Iterator[Floats]:
        """Pass log posteriors on unchanged and count their close frames."""
        for rows in utterances:
            if rows.shape[1] > 1:
                best = np.partition(rows, -2, axis=1)[:, -2:]
                self.count += int((best[:, 1] - best[:, 0] < CLOSE).sum())
            yield rows


def _utterances(selection: Selection, classes: Iterable[Ints], symbols: Sequence[str]) -> Iterator[Utterance]:
    first, shift = 0, selection.corpus.frame_shift_ms
    for name, found in zip(selection.utterance_ids, classes, strict=True):
        yield Utterance(name, first, [symbols[index] for index in found.tolist()], shift)
        first += len(found)
