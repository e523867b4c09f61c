"""A trained model for use without phonetrain: programs, weights, what they expect, and what was measured.

EXPORT/model.pt2           torch.export.load("model.pt2").module()(windows) -> logits, any batch size
EXPORT/model.onnx          the same for ONNX, model.json's entries in its metadata; needs the extra [onnx]
EXPORT/model.safetensors   the same weights by name, padded columns included
EXPORT/model.json          phonemes in class order, window, normalisation, front end, label counts, conditions
EXPORT/MODEL_CARD.md       what the model is, its scores with their intervals, how the programs were checked
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from phonedata import Selection
from phonedata.files import write_files

from ..checkpoints.checkpoint import apart_on_cpu
from ..errors import ConfigError, PhonetrainError, writing
from ..runs.directory import RunName
from ..text import opening_line, percent, plain, to_json
from ..training.data import partition_of
from .evaluate import MOST_CLASSES, evaluate, kept_evaluation
from .onnx_model import CLOSE, open_session
from .posteriors import open_frames
from .prediction_files import refuse_present
from .trained import Trained, open_trained

CHECKED_BATCHES = (2, 1, 17)
TOLERANCE = 1e-4  # of the largest logit: another program may fuse, and so round, otherwise
ONNX = ("onnx", "onnxscript", "onnxruntime")


def export(
    run: RunName = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    onnx: bool | None = None,
    corpus: str | os.PathLike[str] | None = None,
    *,
    replace: bool = False,
    trust_code: bool = False,
) -> Path:
    """Write the scored weights of a checkpoint as programs and return their directory (default: the run's export/).

    The programs take windows (B, W, D) float32, normalised as the packed corpus says, zeros beyond an utterance's
    ends, and give logits (B, C) float32, or (B, 2n + 1, C) of a net with `model.neighbours` = n; model.json says how
    these become the score of a frame. Before anything is written they are loaded again and compared with the model
    on frames of the corpus; the files are written all or none. The model card holds the scores of this checkpoint,
    which are measured if they were not yet.
    onnx: None writes model.onnx where the extra [onnx] is installed. Files that are at `out` already are only replaced
    if `replace`. trust_code: as in `open_trained`. Raises ConfigError, PhonetrainError.
    """
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if onnx and missing:
        raise ConfigError(f"model.onnx needs {' and '.join(missing)}: pip install 'phonedata[onnx]'")
    if onnx is None and missing:
        print("note: no model.onnx without the extra: pip install 'phonedata[onnx]'", file=sys.stderr)
    trained = open_trained(run, checkpoint, corpus, device="cpu", trust_code=trust_code)
    path = Path(out) if out is not None else trained.run.path / "export"
    if out is not None:
        refuse_present(path, replace)
    frames = real_windows(trained)
    example = frames[: CHECKED_BATCHES[0]].clone()  # a program keeps it, whole
    program_bytes = as_program(trained, example)
    program = load_program(io.BytesIO(program_bytes))
    checks = {"model.pt2": compare(trained, program, frames, path / "model.pt2")}
    about = description(trained)
    contents: dict[Path, bytes | Iterable[bytes]] = {
        path / "model.pt2": program_bytes,
        path / "model.safetensors": tensors_to_bytes(apart_on_cpu(trained.model.state_dict())),
        path / "model.json": (to_json(about) + "\n").encode(),
    }
    if onnx or (onnx is None and not missing):
        content = as_onnx(trained, example, about)
        contents[path / "model.onnx"] = content
        session = open_session(content)
        checks["model.onnx"] = compare(
            trained,
            lambda windows: torch.from_numpy(session.run(["logits"], {"windows": windows.numpy()})[0]),
            frames,
            path / "model.onnx",
        )
    contents[path / "MODEL_CARD.md"] = card(trained, about, checks).encode()
    with writing(path, "give another place with --out DIR"):
        write_files(contents)
    return path


def load_program(path: Path | BinaryIO) -> nn.Module:
    """An exported program, to be called with windows."""
    with warnings.catch_warnings():  # of some versions of torch about a buffer of their own
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.export.load(path).module()


def description(trained: Trained) -> dict[str, Any]:
    """What a program that uses the model must know, with JSON's types only."""
    corpus, window = trained.corpus, trained.window
    counts = None
    if len(corpus.phonemes) <= MOST_CLASSES:
        labels = trained.label_counts()
        counts = {"frames": labels.frames, "first": labels.first, "pairs": labels.pairs}
    neighbours, classes = trained.neighbours, len(corpus.phonemes)
    about = {
        "input": {"name": "windows", "dtype": "float32", "shape": ["batch", window.width, corpus.feature_dim],
                  "window": {"left": window.left, "right": window.right},
                  "rule": "row i of frame t's window is frame t - left + i of the same utterance, normalised; "
                          "zeros before its first and after its last frame",
                  "beyond_the_utterance": 0.0, "frame_shift_ms": corpus.frame_shift_ms,
                  "normalisation": corpus.cmvn, "frontend": corpus.attributes.get("frontend")},
        "output": {"name": "logits", "dtype": "float32", "neighbours": neighbours, "rule": rule_of(neighbours),
                   "shape": ["batch", *([2 * neighbours + 1] if neighbours else []), classes],
                   "phonemes": list(corpus.phonemes.symbols)},
        "parameters": trained.num_parameters, "label_counts": counts,
        "conditions": trained.conditions, "torch": torch.__version__,
    }  # fmt: skip
    result: dict[str, Any] = plain(about)
    return result


def rule_of(neighbours: int) -> str:
    """How logits become the score of a frame."""
    if neighbours == 0:
        return "row t is of frame t"
    return (
        f"row t, i is of frame t - {neighbours} + i; a frame's score is the mean of the log softmax of all rows of its "
        "utterance that are of it"
    )


def real_windows(trained: Trained) -> Tensor:
    """(B, W, D) float32: the first windows of the dev partition, or of another one where none is named so."""
    try:
        partition = str(partition_of("dev", trained.corpus, trained.data))
    except ConfigError:
        partition = next(iter(trained.corpus.partitions))
    with open_frames(trained, Selection.of(trained.corpus, partition)) as loader:
        for batch in loader.epoch(0):
            windows: Tensor = batch.windows.float().clone()
            return windows
    raise PhonetrainError(f"{trained.corpus.path}: {partition} has no frame to check the exported model with")


@torch.no_grad()
def compare(trained: Trained, program: Callable[[Tensor], Tensor], frames: Tensor, path: Path) -> dict[str, Any]:
    """Raise PhonetrainError unless the program gives the model's logits for several batch sizes and real frames.

    frames: (B, W, D) of the corpus. Returns the largest difference, and how many labels differ there.
    """
    difference, changed, close = 0.0, 0, 0
    for size in (*CHECKED_BATCHES, len(frames)):
        windows = frames[:size]
        wanted, found = trained.model(windows), program(windows)
        difference = max(difference, (found - wanted).abs().max().item())
        if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise PhonetrainError(f"{path}: its logits differ from the model's by {difference:.3g}; do not use it")
    wanted, found = (logits.reshape(-1, logits.shape[-1]) for logits in (wanted, found))
    if wanted.shape[1] > 1:
        best = np.sort(wanted.numpy(), axis=1)[:, -2:]
        near = best[:, 1] - best[:, 0] < CLOSE
        other = (wanted.argmax(1) != found.argmax(1)).numpy()
        changed, close = int((other & ~near).sum()), int(near.sum())
    return {"frames": len(frames), "difference": difference, "other_labels": changed, "close": close}


def as_program(trained: Trained, windows: Tensor) -> bytes:
    """The file of a torch.export program with a free batch size."""
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
    data = io.BytesIO()
    try:
        program = torch.export.export(trained.model, (windows,), dynamic_shapes=dynamic)
        torch.export.save(program, data)
    except Exception as error:  # torch raises many kinds where a model of the user's own depends on its values
        raise PhonetrainError(
            f"{trained.run.path}: torch.export cannot follow this model ({opening_line(error)}); a "
            "model.factory must give one whose steps do not depend on values"
        ) from error
    return data.getvalue()


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """No warnings of any logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def as_onnx(trained: Trained, windows: Tensor, about: dict[str, Any]) -> bytes:
    """The same program as an ONNX file with a free batch size; each entry of `about` is JSON in its metadata."""
    with (
        warnings.catch_warnings(),
        quiet_log(),
    ):  # torch.onnx warns of its own internals, and that torchvision is absent
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            trained.model, (windows,), input_names=["windows"], output_names=["logits"], dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
        )  # fmt: skip
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, to_json(value, indent=None)
    return bytes(model.SerializeToString())


def measured(trained: Trained) -> dict[str, Any] | None:
    """The scores of this checkpoint on the run's dev; None where there is none with labels."""
    try:
        partition = str(partition_of("dev", trained.corpus, trained.data))
    except ConfigError:
        return None
    checkpoint = trained.saved.path.name
    kept = kept_evaluation(trained.run, partition, checkpoint, trained.other_corpus)
    return kept or evaluate(trained.run, partition, checkpoint, trained.corpus.path, "cpu")


def card(trained: Trained, about: dict[str, Any], checks: dict[str, dict[str, Any]]) -> str:
    """MODEL_CARD.md."""
    expected, corpus = about["input"], trained.corpus
    lines = [
        f"# {trained.run.name}",
        "",
        f"A frame-level phoneme classifier: {about['parameters']:,} parameters, {len(corpus.phonemes)} classes, one "
        f"answer every {corpus.frame_shift_ms:g} ms. Checkpoint {trained.saved.path.name} of `{trained.run.path}`, "
        f"{trained.conditions['weights']} weights, fp32.",
        "",
        "## How good",
        "",
        *_scores(measured(trained)),
        "",
        "## What it expects",
        "",
        f"- Windows (batch, {expected['shape'][1]}, {expected['shape'][2]}) float32: {expected['rule']} "
        f"(left {expected['window']['left']}, right {expected['window']['right']}).",
        f"- Normalisation: `{to_json({k: v for k, v in corpus.cmvn.items() if k not in ('mean', 'std')}, None)}`; "
        "model.json holds the statistics, where there are any.",
        f"- Front end: `{to_json(expected['frontend'], None)}`" if expected["frontend"] else
        "- Front end: not recorded in the corpus. Features must be made as those of training were.",
        f"- What it gives: logits {tuple(about['output']['shape'])}; {about['output']['rule']}.",
        f"- Classes, in order: {' '.join(corpus.phonemes.symbols[:100])}"
        + (" ... (model.json has all)" if len(corpus.phonemes) > 100 else ""),
        f"- Trained on {_trained_on(trained)} of a corpus with the digest {corpus.digest}.",
        "",
        "## How the programs were checked",
        "",
        "| program | real frames | largest difference of a logit | other labels | best two within 1e-4 |",
        "|---|---|---|---|---|",
        *(f"| {name} | {check['frames']:,} | {check['difference']:.2g} | {check['other_labels']} | {check['close']} |"
          for name, check in checks.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _trained_on(trained: Trained) -> str:
    try:
        return str(partition_of("train", trained.corpus, trained.data))
    except ConfigError:
        return "other partitions"


def _scores(scores: dict[str, Any] | None) -> list[str]:
    if scores is None:
        return ["Not measured: the corpus has no dev partition with labels."]

    def row(name: str, share: float | None, interval: dict[str, Any] | None) -> list[str]:
        if share is None:
            return []
        bounds = "" if interval is None else f"{percent(interval['low'])} to {percent(interval['high'])}"
        return [f"| {name} | {percent(share)} % | {bounds} |"]

    smoothed = scores["smoothed"]
    lines = [
        f"On {scores['partition']}: {scores['utterances']:,} utterances, {scores['frames']:,} frames. Intervals hold "
        f"95 % of draws of {scores['interval']['units']:,} {scores['interval']['drawn']}. "
        f"`phonetrain evaluate {scores['run']} --checkpoint {scores['checkpoint']}`",
        "",
        "| | | 95 % |",
        "|---|---|---|",
        *row("frames right", scores["accuracy"], scores["interval"]),
    ]
    for how, at in (("", scores), (", smoothed", smoothed)):
        if at is not None:
            if how:
                lines += row("frames right, smoothed", at["accuracy"], at["interval"])
            if (rate := at["phone_error_rate"]) is not None:
                lines += row(f"phone error rate{how}", rate["rate"], rate["interval"])
            lines += row(f"F1 of boundaries within 20 ms{how}", at["boundaries"]["f1"], None)
    return [*lines, "", f"Loss {scores['loss']:.4f} nats a frame; expected calibration error "
            f"{percent(scores['calibration']['expected_error'])} %."]  # fmt: skip
