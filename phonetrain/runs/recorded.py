"""What the JSON files of a run hold: the type of every value that is read, and the one reader that checks it."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypedDict

from phonedata import files

from ..errors import RunDamaged

NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as `text.to_json` writes what JSON has no numbers for
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}


class Place(TypedDict, total=False):
    """What most lines of both logs have: which process of the run, and where it stood."""

    segment: int
    epoch: int
    step: int
    kind: str
    event: str


class Event(Place, total=False):
    time: str
    parent: int | None
    batch: int
    bytes: float
    key: str
    by: str
    reason: str
    message: str
    where: str
    evidence: str | None
    recipe: str | None
    checkpoint: str
    path: str
    launch: str | None
    ways: dict[str, str]
    from_step: int
    rate_scale: float


class Metric(Place, total=False):
    partition: str
    best: bool
    loss: float
    accuracy: float
    lr: float
    frames_per_second: float
    train_loss: float
    train_accuracy: float
    dev_loss: float
    dev_accuracy: float
    frames: int
    seconds: float
    scoring_seconds: float | None


# What a line cannot do without, by its event or its kind.
NEEDED: dict[str, tuple[str, ...]] = {
    "segment_started": ("segment",),
    "config_changed": ("key", "old", "new"),
    "checkpoint_saved": ("step", "bytes"),
    "nonfinite": ("message",),
    "warning": ("message",),
    "train": ("epoch", "step", "loss", "lr"),
    "epoch": ("epoch", "step", "train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "lr", "seconds"),
    "evaluate": ("epoch", "step", "dev_loss", "dev_accuracy"),
}


class Layer(TypedDict):
    layer: str
    norm: str | None
    activation: str | None
    inputs: int
    outputs: int
    dropout: float | None
    parameters: int


class BuiltModel(TypedDict, total=False):
    parameters: int | None
    layers: list[Layer] | None


class BuiltLoader(TypedDict, total=False):
    frames: int
    partitions: str


class Scoring(TypedDict, total=False):
    partitions: str


class Built(TypedDict, total=False):
    model: BuiltModel
    loader: BuiltLoader
    scoring: Scoring
    precision: str


class Cmvn(TypedDict):
    kind: str


class TrainedCorpus(TypedDict, total=False):
    digest: str
    from_run: str | None
    cmvn: Cmvn
    frontend: dict[str, Any] | None
    frame_shift_ms: float
    partitions: dict[str, str]


class Environment(TypedDict, total=False):
    corpus: TrainedCorpus | None
    device: str


class Tracked(TypedDict, total=False):
    wandb_id: str


class Majority(TypedDict):
    phoneme: str
    share: float


class ScoredPhoneme(TypedDict):
    phoneme: str
    frames: int
    recall: float | None
    precision: float | None


class ConfusedPair(TypedDict):
    phoneme: str
    heard_as: str
    frames: int
    share_of_phoneme: float
    share_of_errors: float


class KeptEvaluation(TypedDict):
    partition: str
    checkpoint: str
    weights: str
    device: str
    corpus_digest: str
    epochs_done: int
    utterances: int
    frames: int
    accuracy: float
    error_rate: float
    loss: float
    majority: Majority
    phonemes: list[ScoredPhoneme]
    confused: list[ConfusedPair]
    confusion: list[list[int]]


SHAPES: dict[str, Any] = {"built.json": Built, "environment.json": Environment, "tracker.json": Tracked}


def read_json(path: Path, shape: Any) -> dict[str, Any]:
    """The object in a JSON file, checked; {} where there is no such file. Raises RunDamaged."""
    try:
        content = json.loads(files.read_file(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is no JSON ({' '.join(str(error).split())})") from None
    if (found := problem(content, shape)) is not None:
        raise damaged(path, found)
    return typing.cast("dict[str, Any]", content)


def damaged(path: Path, what: str) -> RunDamaged:
    return RunDamaged(f"{path}: {what}; mend or delete it")


def line_problem(line: dict[str, Any], shape: Any) -> str | None:
    """What is wrong with a line of a log."""
    name = line.get("kind" if shape is Metric else "event")
    missing = [key for key in NEEDED.get(name, ()) if key not in line] if isinstance(name, str) else ["event or kind"]
    return f"{missing[0]} is missing" if missing else problem(line, shape)


def problem(value: Any, hint: Any, key: str = "") -> str | None:
    """What is wrong with a value that JSON gave, as `model.layers.0.inputs: got 'x', wanted a whole number`, or None.

    hint: a TypedDict, whose other keys may hold anything, a dataclass, which takes no others, list[...],
    dict[str, ...], a union or a plain type. Whole numbers fit into 64 bits; a number may be one of NOT_FINITE.
    """
    if hint is Any:
        return None
    inner = _fields(hint)
    if inner is not None or typing.get_origin(hint) in (list, dict):
        return _problem_inside(value, hint, inner, key)
    if isinstance(hint, types.UnionType):
        found = [problem(value, choice, key) for choice in typing.get_args(hint)]
        wrong = [each for each in found if each is not None]
        return None if len(wrong) < len(found) else max(wrong, key=lambda each: len(each.partition(":")[0]))
    if hint is int:
        fits = type(value) is int and -(2**63) <= value < 2**63
    elif hint is float:
        fits = type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)
        fits = fits or (isinstance(value, str) and value in NOT_FINITE)
    else:
        fits = type(value) is hint
    return None if fits else _refused(value, WORDS[hint], key)


def _problem_inside(value: Any, hint: Any, fields: dict[str, Any] | None, key: str) -> str | None:
    many = typing.get_origin(hint) is list
    if not isinstance(value, list if many else dict):
        return _refused(value, "a list" if many else "an object", key)
    pairs: list[tuple[Any, Any]] = list(enumerate(value)) if isinstance(value, list) else list(value.items())
    for name in fields or ():
        if name in getattr(hint, "__required_keys__", ()) and name not in value:
            return f"{_joined(key, name)} is missing"
    for name, each in pairs:
        if dataclasses.is_dataclass(hint) and name not in (fields or {}):
            return f"{_joined(key, name)} is unknown"
        wanted = typing.get_args(hint)[-1] if fields is None else fields.get(name, Any)
        if (found := problem(each, wanted, _joined(key, name))) is not None:
            return found
    return None


@functools.cache
def _fields(hint: Any) -> dict[str, Any] | None:
    return typing.get_type_hints(hint) if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint) else None


def _joined(key: str, name: str | int) -> str:
    return f"{key}.{name}" if key else str(name)


def _refused(value: Any, wanted: str, key: str) -> str:
    got = repr(value) if not isinstance(value, (dict, list)) else "an object" if isinstance(value, dict) else "a list"
    return f"{key or 'the whole'}: got {got[:60]}, wanted {wanted}"
