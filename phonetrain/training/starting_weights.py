"""Weights of another run to start from (`model.from_run`): what a net learnt on one corpus, adapted to another."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..checkpoints import checkpoint as checkpoints
from ..checkpoints import series
from ..errors import ConfigError, PhonetrainError
from ..runs.directory import Run
from .build import TrainingSetup
from .data import differing


@dataclass(frozen=True)
class StartingWeights:
    """Where the first weights of a run come from. new_output: its phonemes are others, so the output layer is new."""

    run: Run
    saved: checkpoints.Checkpoint
    new_output: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """What is said when training starts."""
        output = "; its phonemes are others, so the output layer starts anew" if self.new_output else ""
        return f"starts from {self.run.path}, {self.saved.path.name}{output}"

    def record(self, run: Run) -> dict[str, Any]:
        """For the events of `run`: the place as seen from there, the checkpoint, its digest and what was taken."""
        return {
            "place_from_run": os.path.relpath(self.run.path.resolve(), run.path.resolve()),
            "checkpoint": self.saved.path.name,
            "weights_digest": self.saved.weights_digest,
            "new_output": self.new_output,
        }


def start_from(setup: TrainingSetup, source: str | os.PathLike[str]) -> StartingWeights:
    """Copy the scored weights of the best checkpoint of `source` into the model, and into its average where it has one.

    Everything else (moments, schedule, progress) starts from nothing: it is another run. The run's own code is not
    imported. Raises ConfigError where the run, its layers, its window or its coefficients do not fit.
    """
    try:
        run = Run.open(source)
        step = series.best_step(run)
        saved = series.read_newest(run)[0] if step is None else checkpoints.read(run.checkpoint_dir(step))
    except PhonetrainError as error:
        raise ConfigError(f"model.from_run: {error}") from error
    _check_inputs(setup, run, saved)
    model = setup.state.model
    new_output = saved.identity.get("phonemes") != setup.corpus.phonemes.fingerprint
    own, given = model.state_dict(), dict(saved.scored_weights)
    given.pop("num_updates", None)
    if new_output:
        for name in output_layer(model.logits_matrix, list(own), setup):
            given[name] = own[name]
    _check_shapes(run, own, given)
    model.load_state_dict(given)
    if setup.state.averaged is not None:
        setup.state.averaged.load_state_dict(model.state_dict())
    return StartingWeights(run, saved, new_output, _warnings(setup, run))


def output_layer(matrix: Any, names: list[str], setup: TrainingSetup) -> list[str]:
    """Names of the parameters of the layer that gives the logits. matrix: name of its weight; None where unknown."""
    if not isinstance(matrix, str):
        raise ConfigError(
            f"model.from_run: the phonemes of that run are others, and in the model of {setup.config.model.factory} no "
            "output layer was found that could start anew; give a corpus with the same phonemes"
        )
    layer = matrix.rpartition(".")[0]
    return [name for name in names if name == matrix or (layer and name.rpartition(".")[0] == layer)]


def _check_inputs(setup: TrainingSetup, run: Run, saved: checkpoints.Checkpoint) -> None:
    """By the window and the coefficients themselves: padded matrices may have one shape for several of them."""
    window, wanted = saved.identity.get("window"), [setup.config.window.left, setup.config.window.right]
    if window != wanted:
        left, right = window if isinstance(window, list) and len(window) == 2 else (None, None)
        raise ConfigError(
            f"model.from_run: {run.path} was trained on windows of {left} + 1 + {right} frames, this run has "
            f"{wanted[0]} + 1 + {wanted[1]}; set window.left={left} window.right={right}"
        )
    layers = (run.read_json(run.built_path).get("model") or {}).get("layers")
    inputs = getattr(setup.state.model, "input_size", None)
    if layers and inputs is not None and layers[0]["inputs"] != inputs:
        width = setup.config.window.width
        raise ConfigError(
            f"model.from_run: {run.path} was trained on {layers[0]['inputs'] // width} coefficients a frame, "
            f"{setup.corpus.path} has {setup.corpus.feature_dim}; extract and pack the same features"
        )


def _check_shapes(run: Run, own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    differs = [
        f"{name} is {_shape(given.get(name))} there and {_shape(own.get(name))} here"
        for name in dict.fromkeys([*own, *given])
        if _shape(given.get(name)) != _shape(own.get(name))
    ]
    if differs:
        raise ConfigError(
            f"model.from_run: the layers of {run.path} are others ({differs[0]}"
            f"{f', and {len(differs) - 1} more' if differs[1:] else ''}); give the model settings of its config.toml"
        )


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else " x ".join(map(str, tensor.shape)) or "one number"


def _warnings(setup: TrainingSetup, run: Run) -> list[str]:
    known = run.read_json(run.environment_path).get("corpus") or {}
    difference = differing(known, setup.corpus)
    return [f"{setup.corpus.path} is normalised otherwise than what {run.path} learnt{difference}"] * bool(difference)
