"""Audio to phones with times, by the front end of the training corpus, a run's net and the best path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from phonedata import audio_features, frontend_of

from ..errors import ConfigError, PhonetrainError
from ..runs.directory import RunName
from .posteriors import BATCH, frame_posteriors
from .predict import SCALE, Smooth, decision
from .prediction_files import TEXTS, Utterance, check_names, check_target, write_labels
from .trained import Trained, open_trained

FORMS = (*TEXTS, "textgrid")


def transcribe(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    run: RunName = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    form: str = "ctm",
    smooth: Smooth = "viterbi",
    scale: float = SCALE,
    replace: bool = False,
    trust_code: bool = False,
) -> str | Path:
    """Phones of mono audio files, each named by its file's stem, in one of the forms of `predict`.

    Returns the text, or the path where `out` is given; form "textgrid" always writes a folder (default transcripts).
    Features are made as the training corpus records; a file of another rate is resampled, and with CMVN by speaker it
    is a speaker of its own. Raises ConfigError; SpecError where the corpus records no front end; RawDataError for a
    file that is empty, stereo or no audio, before anything is written; MissingReader; PhonetrainError.
    trust_code: as in `open_trained`.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ConfigError("no audio file given, as in `phonetrain transcribe speech.wav`")
    for name, value, allowed in (("as", form, FORMS), ("smooth", smooth, get_args(Smooth))):
        if value not in allowed:
            raise ConfigError(f"{name}: got {value!r}, wanted one of {', '.join(allowed)}")
    if not scale > 0:
        raise ConfigError(f"scale: got {scale}, wanted a number above 0")
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ConfigError(f"{path}: {named[path.stem]} has its name too; rename one, or transcribe them apart")
        named[path.stem] = path
    check_names(form, named)
    target = Path(out) if out is not None else Path("transcripts") if form == "textgrid" else None
    if target is not None:
        check_target(target, folder=form == "textgrid", replace=replace)
    net = open_trained(run, checkpoint, corpus, device, trust_code)
    frontend_of(net.corpus)
    decide = decision(net, smooth, scale)
    symbols, shift = net.corpus.phonemes.symbols, net.corpus.frame_shift_ms

    def utterances() -> Iterator[Utterance]:
        first = 0
        for name, path in named.items():
            classes = decide(log_posteriors(net, audio_features(path, net.corpus), path))
            yield Utterance(name, first, [symbols[index] for index in classes.tolist()], shift)
            first += len(classes)

    if target is None:
        return "".join(TEXTS[form](utterances(), ("id", "label")))
    write_labels(target, form, utterances(), ("id", "label"))
    return target


@torch.no_grad()
def log_posteriors(net: Trained, features: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    """(N, C) float32 of an utterance's features (N, D), with zeros beyond its ends. Raises PhonetrainError."""
    window = net.window
    padded = torch.from_numpy(np.pad(features, ((window.left, window.right), (0, 0))))
    windows = padded.unfold(0, window.left + 1 + window.right, 1).transpose(1, 2)  # (N, W, D), a view
    batches = (windows[begin : begin + BATCH] for begin in range(0, len(windows), BATCH))
    logits = (net.logits(batch.contiguous().to(net.device)) for batch in batches)
    found = torch.cat(list(frame_posteriors(net, logits, np.array([len(features)])))).cpu().numpy()
    if not np.isfinite(found).all():
        raise PhonetrainError(f"{path}: the net's scores are not finite; try another --checkpoint")
    return found
