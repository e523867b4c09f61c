"""Opens the model.onnx that `export` wrote: logits by onnxruntime, its windows and phonemes from its metadata."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phonedata import PackedCorpus, WindowSpec

from ..config.sections import DataConfig
from ..errors import ConfigError, PhonetrainError
from ..text import opening_line
from ..training.data import DEFAULT_CORPUS, check_window
from .smoothing import LabelCounts
from .trained import Net

CLOSE = 1e-4  # nats between the best two classes: nearer ones may change places in another program's rounding


@dataclass(frozen=True, kw_only=True)
class OnnxModel(Net):
    """An exported model. counts: of its training labels, None where it has too many classes to carry them. session: of
    onnxruntime."""

    counts: dict[str, Any] | None
    session: Any

    def label_counts(self) -> LabelCounts:
        if self.counts is None:
            raise ConfigError(f"{self.name}: does not carry counts of its training labels; predict with the run itself")
        return LabelCounts(**{name: np.array(values, np.int64) for name, values in self.counts.items()})

    def logits(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"windows": windows.numpy()})[0])


def open_session(model: str | bytes) -> Any:
    """An inference session of onnxruntime on the CPU, with as many threads as torch. Raises ConfigError without it."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("ONNX models need onnxruntime: pip install 'phonedata[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_onnx(path: str | os.PathLike[str], corpus: str | os.PathLike[str] | None = None) -> OnnxModel:
    """The model that `export` wrote to `path`, for the frames of `corpus` (default packed/).

    Raises ConfigError, PhonetrainError where it is no such model or the corpus has other classes or frames.
    """
    file = Path(path)
    if not file.is_file():
        raise PhonetrainError(f"{file}: no such file; `phonetrain export RUN` writes model.onnx")
    try:
        session = open_session(os.fspath(file))
    except ConfigError:
        raise
    except Exception as error:  # onnxruntime's own, of many kinds and without a base
        raise PhonetrainError(
            f"{file}: is no ONNX model that onnxruntime can read ({opening_line(error)}); export it again"
        ) from error
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        description = {name: json.loads(text) for name, text in metadata.items()}
        wanted, symbols = description["input"], description["output"]["phonemes"]
        trained_on, parameters = description["conditions"]["corpus_digest"], int(description["parameters"])
    except (KeyError, TypeError, ValueError):
        raise PhonetrainError(
            f"{file}: has no description of its windows and phonemes; `phonetrain export RUN` writes one that has"
        ) from None
    packed = PackedCorpus(corpus or DEFAULT_CORPUS)
    if list(packed.phonemes.symbols) != symbols:
        raise ConfigError(f"{packed.path}: has other phonemes than {file}; give a corpus like its own with --corpus")
    if packed.feature_dim != wanted["shape"][2]:
        raise ConfigError(
            f"{packed.path}: has {packed.feature_dim} coefficients a frame, but {file} takes {wanted['shape'][2]}; "
            "give a corpus like its own with --corpus"
        )
    if packed.cmvn["kind"] != (kind := wanted["normalisation"]["kind"]):
        raise ConfigError(
            f"{packed.path}: is packed with --cmvn {packed.cmvn['kind']}, but {file} was trained on --cmvn {kind}; "
            f"pack it so too: phonedata pack RAW {packed.path} --cmvn {kind} --replace"
        )
    window = WindowSpec(**wanted["window"])
    check_window(packed, window)
    return OnnxModel(
        name=str(file),
        corpus=packed,
        trained_on=trained_on,
        known=wanted | {"cmvn": wanted["normalisation"]},
        window=window,
        data=DataConfig(),
        device="cpu",
        num_parameters=parameters,
        predictions=file.parent / "predictions",
        neighbours=int(description["output"]["neighbours"]),
        counts=description.get("label_counts"),
        session=session,
    )
