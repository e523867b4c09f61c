"""Checkpoints: a TrainState on disk, whole or absent; written, verified, found again, pruned and restored."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import xxhash
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from phonedata.files import make_folder, read_file, replace_folder, sync_tree

from ..errors import CheckpointError
from ..optim.optimizers import check_tensors, load_moments
from ..optim.schedule import ScheduleState
from ..runs.directory import Run
from ..runs.recorded import problem
from ..text import command
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


def save(run: Run, state: TrainState, identity: dict[str, Any], keep: int) -> tuple[Path, int]:
    """Write checkpoints/step-N, let `last` point to it, drop all but the newest `keep` and the best.

    identity: what must not change between segments (corpus digest, window, phonemes) and what equality depends on.
    Returns the directory and its size in bytes. The directory appears under its name only when every byte of it is on
    disk. Raises TrainingStopped, leaving older checkpoints as they were, where the disk refuses. A ReadOnlyRun saves
    nothing.
    """
    target = run.checkpoint_dir(state.progress.step)
    if not run.writes:
        return target, 0
    partial = target.with_name(f".{target.name}.partial")
    summary: dict[str, Any] = {
        "format": FORMAT,
        "progress": dataclasses.asdict(state.progress),
        "identity": identity,
        "digests": {},
    }
    size = 0
    with run.writing(target):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            make_folder(target.parent)
            partial.mkdir()
            for name, content in contents(state):
                summary["digests"][name] = _digest(content)
                size += len(content)
                (partial / name).write_bytes(content)
                del content  # before the next one is made
            text = state_text(summary).encode()
            (partial / STATE).write_bytes(text)
            sync_tree(partial)
            # What is cut where names cannot be exchanged, the next process that holds the run puts back.
            replaced = replace_folder(partial, target, target.with_name(f".{target.name}.old"))
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    run.write_pointer("last", state.progress.step)
    prune(run, keep, state.progress.best_step)
    return target, size + len(text)


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
    there = {name for name in (MODEL, AVERAGED, TRAINING) if (path / name).exists()}
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


def digests_of(path: Path) -> dict[str, str]:
    """File name -> digest, of all files of a checkpoint but state.json. Raises CheckpointError, OSError."""
    try:
        return dict(_state(path)["digests"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE}: cannot be read ({error}): the checkpoint is damaged") from error


def saved_steps(run: Run) -> list[int]:
    """Steps that have a checkpoint directory, ascending; whether it is whole is known only when it is read."""
    names = [path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def life(run: Run) -> tuple[list[int], list[int]]:
    """Steps of the checkpoints that belong to the run's life, the newest first, and of those that were left aside.

    From the checkpoints' own state and the events, and not from the file `last`: the disk may have refused that alone.
    A checkpoint whose state cannot be read may be of the life; who reads it says what is wrong with it.
    """
    spans = run.lineage()
    newest = spans[-1].segment if spans else 0
    inside: list[int] = []
    aside: list[int] = []
    for step in saved_steps(run)[::-1]:
        segment = _of_state(run.checkpoint_dir(step), "progress", "segment")
        known = [span for span in spans if segment in (None, span.segment)]
        lived = not spans or any(span.holds(step) for span in known) or (segment is not None and segment > newest)
        (inside if lived else aside).append(step)
    return inside, aside


def best_step(run: Run) -> int | None:
    """The step of the best checkpoint so far, as the newest checkpoint of the run's life knows it; None before one."""
    return best_known(run)[0]


def best_known(run: Run) -> tuple[int | None, list[str]]:
    """`best_step`, and a sentence for each newer checkpoint that cannot be read."""
    problems = []
    for step in life(run)[0]:
        try:
            best: int | None = readable_state(run.checkpoint_dir(step))["progress"].get("best_step")
        except CheckpointError as error:
            problems.append(f"{error}; an older checkpoint says which is the best")
            continue
        return best, problems
    return None, problems


def prune(run: Run, keep: int, *spared: int | None) -> None:
    """Delete all checkpoints but the newest `keep`, those `spared` and named by a pointer file; and what is half-made.

    Newest is what was saved last: steps above the present one were left aside by a branch or a rollback.
    """
    for step in spare_steps(run, keep, *spared):
        shutil.rmtree(run.checkpoint_dir(step), ignore_errors=True)
    run.put_back()
    for leftover in (*run.checkpoints.glob(".step-*.partial"), *run.checkpoints.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)


def spare_steps(run: Run, keep: int, *spared: int | None) -> list[int]:
    """Steps of the checkpoints that `prune` deletes with the same arguments."""
    named, saved = pointers(run), saved_steps(run)
    last, pointed = named.get("last"), {*spared, *named.values()}
    steps = [step for step in saved if step not in pointed]
    if last is not None and last in saved:
        steps.sort(key=lambda step: (step <= last, step))
        keep -= 1  # `last` itself is one of them
    return steps[: max(0, len(steps) - max(0, keep))]


def pointers(run: Run) -> dict[str, int]:
    """Pointer files by name with the steps that they name: last, best, best-before-segment-K after a branch, and
    before_nonfinite, to go back to after numbers that went bad."""
    names = ["last", "best", "before_nonfinite", *(path.name for path in run.checkpoints.glob("best-before-segment-*"))]
    return {name: step for name in names if (step := pointed_to(run, name)[0]) is not None}


def pointed_to(run: Run, name: str) -> tuple[int | None, list[str]]:
    """The step that a pointer file names, None where it is missing or damaged, and a sentence where it is damaged."""
    try:
        return run.read_pointer(name), []
    except CheckpointError as error:
        return None, [f"{str(error).partition(';')[0]}; it is written anew"]


def mend_best(run: Run, progress: Progress) -> list[str]:
    """Let `best` name the best checkpoint of the life that `progress` stands in; returns sentences on what was wrong.

    It names another after a branch (the best was left aside: `best-before-segment-K` keeps it), and after a kill
    between a checkpoint and its pointer. Where the best as of then is pruned, the next epoch's score is the best.
    """
    pointed, problems = pointed_to(run, "best")
    if progress.best_step is not None and not run.checkpoint_dir(progress.best_step).is_dir():
        epoch, score = (progress.best_epoch or 0) + 1, 100 * (progress.best_score or 0.0)
        problems.append(
            f"the best checkpoint so far, step-{progress.best_step} of epoch {epoch} with {score:.2f} %, is not there "
            "any more: the best is sought anew from here on"
        )
        progress.best_score = progress.best_epoch = progress.best_step = None
    if pointed is not None and pointed != progress.best_step and pointed > progress.step:
        run.write_pointer(f"best-before-segment-{progress.segment}", pointed)
    if progress.best_step is None:
        run.drop_pointer("best")
    elif pointed != progress.best_step:
        run.write_pointer("best", progress.best_step)
    return problems


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
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: cannot be read ({first_line}): the checkpoint is damaged or is none") from error


def scored_as(path: Path) -> dict[str, Any] | None:
    """What a score of this checkpoint on its own corpus carries: weights_digest, of the file that is scored, and
    corpus_digest. Costs one small file; None where that cannot be read.

    A step's number does not name its weights: a branch or a rollback comes to the same step with others.
    """
    try:
        summary = _state(path)
        return {"weights_digest": _scored_digest(summary), "corpus_digest": summary["identity"]["corpus"]}
    except (OSError, ValueError, RecursionError):
        return None


def _scored_digest(summary: dict[str, Any]) -> str:
    digests = summary["digests"]
    return digests.get(AVERAGED, digests[MODEL])


def read_newest(run: Run, device: torch.device | str = "cpu") -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint and, for each newer one passed over, a sentence that says why.

    Newest is the newest of the run's life. Raises CheckpointError where there is none at all.
    """
    last, problems = pointed_to(run, "last")
    inside, aside = life(run)
    if last is not None and last not in (*inside, *aside):
        problems.append(f"{run.checkpoint_dir(last)}, the newest checkpoint, is missing; an older one is used")
    saved, damaged = first_whole(run, [*inside, *aside[::-1]], device)
    problems += damaged
    if saved is not None:
        return saved, problems
    gone = "they are gone" if run.has_trained else "it stopped before the first one was saved"
    again = f"`{command('fit')}` starts a new run" if run.has_trained else run.goes_on()
    raise CheckpointError(f"{run.path}: no whole checkpoint to resume from: {'; '.join(problems) or gone}; {again}")


def read_before(
    run: Run, step: int, tried: int | None, stage: int, device: torch.device | str = "cpu"
) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of before `step`, None where there is none, and sentences as `read_newest` has them.

    tried: the step that was gone back to already, which comes after older ones of the same `stage` (its first epoch):
    to begin a stage again would undo what the rollbacks in it did. Those that were left aside are not gone back to.
    """
    steps = [old for old in life(run)[0] if old < step]
    if steps[:1] == [tried]:
        older = [old for old in steps[1:] if _of_state(run.checkpoint_dir(old), "identity", "stage") == stage]
        steps = older + [old for old in steps if old not in older]
    return first_whole(run, steps, device)


def _of_state(path: Path, *keys: str) -> Any:
    """A value in state.json of the checkpoint `path`, None where that cannot be read: who reads it all says why."""
    try:
        value: Any = _state(path)
        for key in keys:
            value = value[key]
    except (OSError, ValueError, RecursionError):
        return None
    return value


def first_whole(run: Run, steps: Sequence[int], device: torch.device | str) -> tuple[Checkpoint | None, list[str]]:
    """The first of these checkpoints that can be read, and a sentence for each before it."""
    problems: list[str] = []
    for step in steps:
        try:
            return read(run.checkpoint_dir(step), device), problems
        except CheckpointError as error:
            problems.append(f"{error}; an older checkpoint is used")
    return None, problems


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
