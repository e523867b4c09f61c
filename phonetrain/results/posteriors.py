"""Log posteriors of a partition, an utterance at a time, from one trained net or the average of several; in fp32."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from phonedata import Selection, open_loader

from ..console.panel import bar
from ..errors import ConfigError, PhonetrainError
from ..runs.directory import Run, RunName
from ..step.neighbours import Neighbours
from ..step.warp import warps_of
from ..training.data import partition_of, why_not_finite
from .trained import Net, Trained, named_checkpoint, open_trained

BATCH = 4096
Average = Literal["log", "probability"]
TRIED = tuple(0.04 * step for step in range(-4, 5))  # logarithms of the stretches that an utterance is heard under
SUREST = 5  # of them are averaged; docs/ACCURACY.md has what other numbers give


def open_ensemble(
    runs: RunName | Sequence[RunName],
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    max_parameters: int | None = None,
    trust_code: bool = False,
) -> list[Trained]:
    """The nets whose posteriors are averaged; one run is one net. A name may end in @CHECKPOINT, as runs/a-1@last.

    max_parameters: the most that all of them together may have. trust_code: as in `open_trained`. Raises ConfigError
    where they have more, or where they are of different corpora or phonemes; RunNotFound, CheckpointError.
    """
    names = Run.each_of(runs)
    nets = [open_trained(*named_checkpoint(name, checkpoint), corpus, device, trust_code) for name in names]
    for net in nets[1:]:
        if net.corpus.digest != nets[0].corpus.digest:
            raise ConfigError(
                f"{net.run.path} belongs to {net.corpus.path} and {nets[0].run.path} to {nets[0].corpus.path}: only "
                "nets of one corpus can be averaged; give one that suits all of them: --corpus DIR"
            )
    check_parameters(nets, max_parameters)
    return nets


def check_parameters(nets: Sequence[Net], most: int | None) -> None:
    """Raise ConfigError where all nets together have more than `most` parameters."""
    parameters = sum(net.num_parameters for net in nets)
    if most is not None and parameters > most:
        whose = f"the {len(nets)} nets have {parameters:,} parameters together"
        raise ConfigError(
            f"{whose if len(nets) > 1 else f'{nets[0].name} has {parameters:,} parameters'}, more than "
            f"--max-parameters {most:,}; {'average fewer or smaller ones' if len(nets) > 1 else 'train a smaller one'}"
        )


def posteriors(
    nets: Sequence[Net], partition: str | Selection, doing: str, average: Average = "log", warps: bool = False
) -> Iterator[npt.NDArray[np.float32]]:
    """(N_u, C) float32 log posteriors of each utterance of `partition`, in packed order; memory does not grow with it.

    partition: names of partitions, or some of their utterances.

    average: "log" takes the mean of the nets' log posteriors, normalised again; "probability" that of their posteriors.
    warps: those of a net are the mean log posteriors over the vocal tract warps under which it is surest of an
    utterance, see `_under_warps`. Says on stderr, at the end, where frames have no finite score. Raises ConfigError
    where warps are asked for and features cannot be warped.
    """
    selection = partition if isinstance(partition, Selection) else Selection.of(nets[0].corpus, partition)
    names, ends = " + ".join(selection.names), selection.utterance_end.tolist()
    lost = 0
    with contextlib.ExitStack() as stack:
        of_a_net = _under_warps if warps else _utterances
        streams = [of_a_net(net, selection, stack) for net in nets]
        show = stack.enter_context(bar(f"{doing} {names}", ends[-1]))
        for end, utterance in zip(ends, zip(*streams, strict=True), strict=True):
            rows = _averaged(utterance, average)
            lost += int((~np.isfinite(rows).all(1)).sum())
            show(end)
            yield rows
    if lost:
        why = why_not_finite(nets[0].corpus, names)
        print(f"warning: the scores of {lost:,} of {ends[-1]:,} frames mean nothing: {why}", file=sys.stderr)


def utterance_posteriors(net: Trained, partition: str, utterance: str) -> tuple[Any, Any, npt.NDArray[np.float32]]:
    """Features (N, D), labels (N,) int64 and log posteriors (N, C) of one utterance of a labelled partition."""
    selection = Selection.of(net.corpus, partition)
    selection = selection.only(np.arange(selection.num_utterances) == selection.utterance_ids.index(utterance))
    (rows,) = posteriors([net], selection, "looking at the worst utterance of")
    return *packed_frames(selection, 0, len(rows)), rows


def packed_frames(selection: Selection, index: int, count: int) -> tuple[Any, npt.NDArray[np.int64]]:
    """Features (N, D), as they are packed, and labels (N,) of the `count` = N frames of a labelled utterance."""
    source = selection.partitions[int(selection.utterance_source[index])]
    start = int(selection.utterance_start_row[index])
    assert source.labels is not None  # who asks refuses other partitions
    return source.features[start : start + count], source.labels[start : start + count].astype(np.int64)


def _averaged(of_nets: Sequence[npt.NDArray[np.float32]], average: Average) -> npt.NDArray[np.float32]:
    if len(of_nets) == 1:
        return of_nets[0]
    if average == "log":
        mean = np.mean(of_nets, axis=0)
        rows = mean - np.logaddexp.reduce(mean, axis=1, keepdims=True)
    else:
        rows = np.logaddexp.reduce(np.stack(of_nets), axis=0) - np.log(len(of_nets))
    return np.asarray(rows, np.float32)


def _under_warps(net: Net, selection: Selection, stack: contextlib.ExitStack) -> Iterator[npt.NDArray[np.float32]]:
    """(N_u, C) log posteriors of each utterance, by one net that hears it as vocal tracts of several lengths.

    Features are warped as in training (`step.warp`), by each stretch of TRIED; the log posteriors of the SUREST
    stretches, those with the highest mean log posterior of the best class, are averaged and normalised again. It is
    vocal tract length normalisation by the net's own confidence: Lee and Rose, IEEE Trans. Speech Audio Process. 6(1),
    1998, choose one stretch by likelihood. Raises ConfigError where features cannot be warped.
    """
    warps, what = warps_of(_trained_on(net) or selection, TRIED[-1], len(TRIED))
    if warps is None:
        raise ConfigError(what)
    streams = [_utterances(net, selection, stack, torch.from_numpy(warp).to(net.device)) for warp in warps]
    for rows in zip(*streams, strict=True):
        sureness = [each.max(1).mean() for each in rows]
        surest = sorted(range(len(rows)), key=lambda place: -sureness[place])[:SUREST]
        yield _averaged([rows[place] for place in surest], "log")


def _trained_on(net: Net) -> Selection | None:
    """The training data of the corpus at hand, whose deviations warped coefficients keep; None where it has none."""
    with contextlib.suppress(ConfigError):
        return Selection.of(net.corpus, str(partition_of("train", net.corpus, net.data)))
    return None


def _utterances(
    net: Net, selection: Selection, stack: contextlib.ExitStack, warp: torch.Tensor | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """(N_u, C) log posteriors of each utterance, by one net; warp: (D, D) that every frame is multiplied by."""
    loader = stack.enter_context(open_frames(net, selection))
    waiting: list[npt.NDArray[np.float32]] = []
    first = done = 0
    ends = iter(selection.utterance_end.tolist())
    end = next(ends)
    for scores in frame_posteriors(net, _logits(net, selection, loader, warp), selection.utterance_end):
        waiting.append(scores.cpu().numpy())
        done += len(scores)
        while end is not None and end <= done:
            together = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            yield together[: end - first]
            waiting = [together[end - first :]]
            first, end = end, next(ends, None)
    if end is not None:
        raise PhonetrainError(f"{selection.names}: {done} frames were scored, wanted {end} or more; please report this")


def _logits(net: Net, selection: Selection, loader: Any, warp: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The net's logits of consecutive frames, placed by frame id."""
    begin = 0
    for batch in loader.epoch(0):
        with torch.no_grad():
            windows = batch.windows.float()
            logits = net.logits(windows if warp is None else windows @ warp)
        frames = batch.frames - begin
        if not np.array_equal(np.sort(frames.cpu().numpy()), np.arange(len(logits))):
            raise PhonetrainError(f"{selection.names}: frames near {begin} are missing or doubled; please report this")
        begin += len(logits)
        yield torch.empty_like(logits).index_copy_(0, frames.to(logits.device), logits)


def frame_posteriors(
    net: Net, logits: Iterable[torch.Tensor], utterance_end: npt.NDArray[np.int64]
) -> Iterator[torch.Tensor]:
    """(B', C) float32 log posteriors of all frames in order, some of them each time.

    logits: of the windows of all frames, in order, as `net.logits` gives them. utterance_end: (U,) cumulative frames.
    """
    if net.neighbours == 0:
        return (torch.log_softmax(rows, 1) for rows in logits)
    return Neighbours(utterance_end, net.neighbours, net.device).scores(logits)


def open_frames(net: Net, selection: Selection) -> Any:
    """A loader of the selection's windows in frame order."""
    return open_loader(
        selection,
        window=net.window,
        batch_size=BATCH,
        order="sequential",
        drop_last=False,
        device=net.device,
        dtype="float32",
    )
