"""A trained model for use with torch (or ONNX) alone: a torch.export program, its weights, and what they expect.

EXPORT/model.pt2           torch.export.load("model.pt2").module()(windows) -> logits, any batch size
EXPORT/model.safetensors   the same weights by name, padded columns included
EXPORT/model.json          phonemes in class order, window, normalisation, conditions
EXPORT/model.onnx          with onnx=True, which needs `pip install onnx onnxscript`
"""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from phonedata.files import write_files

from ..errors import ConfigError, PhonetrainError, writing
from ..runs.directory import Run
from ..text import to_json
from ..training.checkpoint import apart_on_cpu
from .trained import Trained, open_trained

CHECKED_BATCHES = (2, 1, 17)
TOLERANCE = 1e-4  # of logits: another program may fuse, and so round, otherwise


def export(
    run: Run | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    onnx: bool = False,
    corpus: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the scored weights of a checkpoint as a program and return its directory (default: the run's export/).

    The program takes windows (B, W, D) float32, normalised as the packed corpus says, zeros beyond an utterance's ends,
    and gives logits (B, C) float32. Before anything is written it is loaded again and compared with the model; the
    files are written all or none. Raises PhonetrainError.
    """
    if onnx and (missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]):
        raise ConfigError(f"onnx export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    trained = open_trained(run, checkpoint, corpus, device="cpu")
    model = trained.model
    path = Path(out) if out is not None else trained.run.path / "export"
    windows = torch.randn(CHECKED_BATCHES[0], *window_shape(trained))
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
    program = torch.export.export(model, (windows,), dynamic_shapes=dynamic)
    data = io.BytesIO()
    torch.export.save(program, data)
    compare(trained, load_program(io.BytesIO(data.getvalue())), path / "model.pt2")
    contents = {
        path / "model.pt2": data.getvalue(),
        path / "model.safetensors": tensors_to_bytes(apart_on_cpu(model.state_dict())),
        path / "model.json": (to_json(description(trained)) + "\n").encode(),
    }
    if onnx:
        contents[path / "model.onnx"] = as_onnx(model, windows)
    with writing(path, "give another place with --out DIR"):
        write_files(contents)
    return path


def load_program(path: Path | BinaryIO) -> nn.Module:
    """An exported program, to be called with windows."""
    with warnings.catch_warnings():  # of some versions of torch about a buffer of their own
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.export.load(path).module()


def window_shape(trained: Trained) -> tuple[int, int]:
    """(W, D)."""
    return trained.config.window.width, trained.corpus.feature_dim


def description(trained: Trained) -> dict[str, Any]:
    """What a program that uses the model must know."""
    window = trained.config.window
    return {
        "input": {"name": "windows", "dtype": "float32", "shape": ["batch", *window_shape(trained)],
                  "window": {"left": window.left, "right": window.right},
                  "beyond_the_utterance": 0.0, "frame_shift_ms": trained.corpus.frame_shift_ms,
                  "normalisation": trained.corpus.cmvn, "frontend": trained.corpus.attributes.get("frontend")},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", len(trained.corpus.phonemes)],
                   "phonemes": list(trained.corpus.phonemes.symbols)},
        "conditions": trained.conditions, "torch": torch.__version__,
    }  # fmt: skip


@torch.no_grad()
def compare(trained: Trained, program: nn.Module, path: Path) -> None:
    """Raise PhonetrainError unless the program gives the model's logits for several batch sizes."""
    for size in CHECKED_BATCHES:
        windows = torch.randn(size, *window_shape(trained))
        difference = (program(windows) - trained.model(windows)).abs().max().item()
        if not difference <= TOLERANCE:
            raise PhonetrainError(f"{path}: its logits differ from the model's by {difference:.3g}; do not use it")


def as_onnx(model: nn.Module, windows: torch.Tensor) -> bytes:
    """The same program as an ONNX file with a free batch size."""
    with warnings.catch_warnings():  # torch.onnx warns of its own internals
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model, (windows,), input_names=["windows"], output_names=["logits"], dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
        )  # fmt: skip
    return bytes(program.model_proto.SerializeToString())
