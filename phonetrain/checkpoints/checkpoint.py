"""One checkpoint: a TrainState on disk, whole or absent; written, read back with every byte checked, restored."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import xxhash
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from phonedata.files import exists, make_folder, read_file, remove_tree, replace_folder, sync_tree

from ..errors import CheckpointError
from ..optim.optimizers import check_tensors, load_moments
from ..optim.schedule import ScheduleState
from ..runs.directory import Run
from ..runs.recorded import problem
from ..text import opening_line
from .state import Progress, TrainState

FORMAT = 2
MODEL, AVERAGED, TRAINING, STATE = "model.safetensors", "averaged.safetensors", "training.pt", "state.json"
# Read again in a moment these may succeed, so they say nothing of the file.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Machine(TypedDict, total=False):
    threads: int


class Identity(TypedDict):
    """What may not change between segments, and what equality of bits depends on."""

    corpus: str
    phonemes: str
    window: list[int]
    train: str
    dev: str
    machine: Machine
    config: dict[str, Any]
    stage: int
    factory: str | None


class StateFile(TypedDict):
    """What state.json holds."""

    format: int
    progress: Progress
    identity: Identity
    digests: dict[str, str]


def write(run: Run, state: TrainState, identity: dict[str, Any]) -> tuple[Path, int]:
    """Write checkpoints/step-N; returns the directory and its size in bytes.

    identity: what must not change between segments (corpus digest, window, phonemes) and what equality depends on.
    The directory appears under its name only when every byte of it is on disk. Raises TrainingStopped, leaving older
    checkpoints as they were, where the disk refuses.
    """
    target = run.checkpoint_dir(state.progress.step)
    summary: dict[str, Any] = {
        "format": FORMAT,
        "progress": dataclasses.asdict(state.progress),
        "identity": identity,
        "digests": {},
    }
    size = 0
    with run.writing(target), replacing(target) as partial:
        for name, content in contents(state):
            summary["digests"][name] = _digest(content)
            size += len(content)
            (partial / name).write_bytes(content)
            del content  # before the next one is made
        text = state_text(summary).encode()
        (partial / STATE).write_bytes(text)
    return target, size + len(text)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder to write into; when the block ends without an error it is the checkpoint `target`, on disk.

    What is cut where names cannot be exchanged, the next process that holds the run puts back.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        remove_tree(partial)
        make_folder(target.parent)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        replaced = replace_folder(partial, target, target.with_name(f".{target.name}.old"))
    except BaseException:
        remove_tree(partial)
        raise
    if replaced is not None:
        remove_tree(replaced)


def contents(state: TrainState) -> Iterator[tuple[str, bytes | memoryview]]:
    """Name and bytes of each file of a checkpoint but state.json, one at a time: together they are as much as what
    trains. In memory, since torch's own writing of a file hides why the disk refused it."""
    training = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in state.training_parts().items()}, training)
    yield TRAINING, training.getbuffer()
    del training
    yield MODEL, tensors_to_bytes(apart_on_cpu(state.model.state_dict()))
    if state.averaged is not None:
        yield AVERAGED, tensors_to_bytes(apart_on_cpu(state.averaged.state_dict()))


def apart_on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own: safetensors refuses tied weights, which are one tensor of two names."""
    apart: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def state_text(summary: dict[str, Any]) -> str:
    """The text of state.json: `summary` with a digest of its own values, as the other files have theirs in it."""
    return json.dumps(summary | {"digest": _digest_of_values(summary)}, indent=2) + "\n"


def _state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint holds, checked. Raises CheckpointError, OSError, and what damaged JSON raises."""
    summary = json.loads(read_file(path / STATE))
    if isinstance(summary, dict) and summary.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {summary['format']}, this phonetrain reads {FORMAT}; "
            "use the version that wrote it"
        )
    if (wrong := problem(summary, StateFile)) is not None:
        raise CheckpointError(f"{path / STATE}: {wrong}: the checkpoint is damaged")
    _check(path / STATE, _digest_of_values(summary), summary.get("digest"))
    if below := [name for name, value in summary["progress"].items() if isinstance(value, (int, float)) and value < 0]:
        raise CheckpointError(f"{path / STATE}: progress.{below[0]} is below 0: the checkpoint is damaged")
    there = {name for name in (MODEL, AVERAGED, TRAINING) if exists(path / name)}
    if odd := sorted(summary["digests"].keys() ^ {MODEL, TRAINING, *there}):
        raise CheckpointError(
            f"{path / STATE}: has {'a' if odd[0] in summary['digests'] else 'no'} digest of {odd[0]}: "
            "the checkpoint is damaged"
        )
    return summary


def _check(path: Path, found: str, wanted: str | None) -> None:
    if found != wanted:
        raise CheckpointError(f"{path}: digest {found}, wanted {wanted}: the file is damaged")


def _digest(content: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _digest_of_values(summary: dict[str, Any]) -> str:
    values = {name: value for name, value in summary.items() if name != "digest"}
    return _digest(json.dumps(values, sort_keys=True).encode())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read back, every byte checked."""

    path: Path
    model: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    training: dict[str, Any]
    progress: Progress
    identity: dict[str, Any]
    weights_digest: str

    @property
    def scored_weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated: averaged ones where the run averages."""
        return self.model if self.averaged is None else self.averaged


def read(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and check one checkpoint directory: every file once, so that what is loaded is what was checked.

    Raises CheckpointError with what is wrong. Never unpickles code.
    """
    summary = readable_state(path)
    with _damage_named(path):
        contents = {name: read_file(path / name) for name in summary["digests"]}
        for name, content in contents.items():
            _check(path / name, _digest(content), summary["digests"][name])
        averaged = tensors_from_bytes(contents[AVERAGED]) if AVERAGED in contents else None
        return Checkpoint(
            path=path,
            model=tensors_from_bytes(contents[MODEL]),
            averaged=averaged,
            training=dict(torch.load(io.BytesIO(contents[TRAINING]), map_location=device, weights_only=True)),
            progress=Progress(**summary["progress"]),
            identity=summary["identity"],
            weights_digest=_scored_digest(summary),
        )


def readable_state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint holds, checked. Raises CheckpointError."""
    with _damage_named(path):
        return _state(path)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """CheckpointError for whatever reading the checkpoint `path` raises, but for what may pass."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: {Path(error.filename or '').name} is missing: the checkpoint is not whole"
        ) from error
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except Exception as error:  # json, safetensors and torch each have their own errors for damaged bytes
        reason = opening_line(error)
        raise CheckpointError(f"{path}: cannot be read ({reason}): the checkpoint is damaged or is none") from error


def known_state(path: Path) -> dict[str, Any] | None:
    """`readable_state`, None where it cannot be read: who reads the whole checkpoint says why. Costs a small file."""
    try:
        return _state(path)
    except (OSError, ValueError, RecursionError):
        return None


def scored_as(path: Path) -> dict[str, Any] | None:
    """What a score of this checkpoint on its own corpus carries: weights_digest, of the file that is scored, and
    corpus_digest. None where the checkpoint's state cannot be read.

    A step's number does not name its weights: a branch or a rollback comes to the same step with others.
    """
    if (summary := known_state(path)) is None:
        return None
    return {"weights_digest": _scored_digest(summary), "corpus_digest": summary["identity"]["corpus"]}


def _scored_digest(summary: dict[str, Any]) -> str:
    digests = summary["digests"]
    return digests.get(AVERAGED, digests[MODEL])


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into live parts built from the same configuration.

    Rates, decay and betas stay those of the parts. Raises CheckpointError unless every tensor has the name, shape and
    dtype that the parts have.
    """
    averaged, training = checkpoint.averaged, checkpoint.training
    try:
        check_tensors(checkpoint.model, state.model.state_dict(), MODEL)
        if state.averaged is not None and averaged is not None:
            check_tensors(averaged, state.averaged.state_dict(), AVERAGED)
        # A run that goes on in fp16 where it was bf16 or fp32 finds its loss scale anew.
        parts = {
            name: part for name, part in state.training_parts().items() if name in training or name != "loss_scale"
        }
        if missing := [name for name in parts if not isinstance(training.get(name), dict)]:
            raise CheckpointError(f"{TRAINING}: {missing[0]} is missing")
        if (wrong := problem(training["schedule"], ScheduleState, "schedule")) is not None:
            raise CheckpointError(f"{TRAINING}: {wrong}")
        for name in parts.keys() & {"metrics", "loss_scale"}:
            check_tensors(training[name], parts[name].state_dict(), f"{TRAINING}, {name}")
        load_moments(state.optimizer, training["optimizer"])
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    state.model.load_state_dict(checkpoint.model)
    if state.averaged is not None:
        state.averaged.load_state_dict(averaged or checkpoint.model)
    for name in parts.keys() - {"optimizer"}:
        parts[name].load_state_dict(training[name])
    state.progress = dataclasses.replace(checkpoint.progress)
