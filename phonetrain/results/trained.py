"""A trained model, opened: a checkpoint's scored weights in fp32, with the corpus they were trained on."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from phonedata import PackedCorpus

from ..config.run_config import RunConfig
from ..device import DeviceSpec, choose_device
from ..errors import CheckpointError
from ..model.classifier import build_model
from ..model.ema import AveragedWeights
from ..runs.directory import Run
from ..training import checkpoint as checkpoints
from ..training.data import check_window, corpus_of, differing


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained as."""

    run: Run
    config: RunConfig
    corpus: PackedCorpus
    compute: DeviceSpec
    model: nn.Module
    saved: checkpoints.Checkpoint

    @property
    def conditions(self) -> dict[str, Any]:
        """What a number that comes from this model depends on."""
        return {
            "run": str(self.run.path),
            "checkpoint": self.saved.path.name,
            "step": self.saved.progress.step,
            "epochs_done": self.saved.progress.epoch,
            "weights": "averaged" if self.saved.averaged is not None else "trained",
            "weights_digest": self.saved.weights_digest,
            "precision": "fp32",
            "device": str(self.compute.device),
            "corpus": str(self.corpus.path),
            "corpus_digest": self.corpus.digest,
            "corpus_is_the_trained_one": self.other_corpus is None,
        }

    @property
    def other_corpus(self) -> str | None:
        """Digest of the corpus at hand where it is another than the one trained on."""
        return None if self.corpus.digest == self.saved.identity.get("corpus") else self.corpus.digest


def open_trained(
    run: Run | str | os.PathLike[str] | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Trained:
    """The scored weights of a checkpoint ("best", "last", or a step as 1200 or "step-1200"), in fp32, in eval mode.

    corpus: a packed corpus in place of the one trained on; it must have the same phonemes, coefficients and
    normalisation.
    Raises RunNotFound, CheckpointError, ConfigError.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = RunConfig.from_toml(run.config_path)
    packed = corpus_of(run, config, corpus)
    saved = _read(run, checkpoint)
    _check_same_world(packed, saved, run)
    _check_normalisation(packed, run)
    _check_coefficients(packed, config, run)
    check_window(packed, config)
    compute = choose_device(device, "fp32")
    model = build_model(config, feature_dim=packed.feature_dim, num_classes=len(packed.phonemes))
    try:
        if saved.averaged is None:
            model.load_state_dict(saved.model)
        else:
            averaged = AveragedWeights(model, config.averaging.decay or 0.0)
            averaged.load_state_dict(saved.averaged)
            model = averaged.model
    except RuntimeError as error:  # a model.factory whose file has changed, or that makes another net of this corpus
        raise CheckpointError(
            f"{saved.path}: its weights do not fit the model that is built for {packed.path} "
            f"({' '.join(str(error).split())[:300]}); give the corpus and the model.factory that "
            "it was trained with"
        ) from error
    return Trained(run, config, packed, compute, model.to(compute.device).eval(), saved)


def named_checkpoint(
    name: Run | str | os.PathLike[str] | None, checkpoint: str | int = "best"
) -> tuple[Run, str | int]:
    """A run and a checkpoint of it. name: a run's, which may end in @CHECKPOINT, as runs/a-1@last; else `checkpoint`.

    Raises RunNotFound.
    """
    if isinstance(name, Run):
        return name, checkpoint
    if name is not None and "@" in os.fspath(name) and not os.path.exists(name):
        name, _, checkpoint = os.fspath(name).rpartition("@")
    return Run.open(name), checkpoint


def step_of(run: Run, checkpoint: str | int) -> int | None:
    """The step of "best", "last", 1200 or "step-1200"; None where there is no best or last yet.

    Raises CheckpointError for anything else.
    """
    wanted = str(checkpoint)
    if wanted == "best":
        return checkpoints.best_step(run)
    if wanted == "last":
        return next(iter(checkpoints.life(run)[0]), None)
    number = wanted.removeprefix("step-")
    if not number.isdecimal():
        raise CheckpointError(f"checkpoint: got {wanted!r}, wanted best, last or a step as step-1200")
    return int(number)


def _read(run: Run, checkpoint: str | int) -> checkpoints.Checkpoint:
    step = step_of(run, checkpoint)
    if step is None:  # stopped before the first epoch was scored: what there is, is the newest
        saved, problems = checkpoints.read_newest(run)
        for problem in [f"{run.path}: no {checkpoint} checkpoint yet, {saved.path.name} is used", *problems]:
            print(f"warning: {problem}", file=sys.stderr)
        return saved
    path = run.checkpoint_dir(step)
    if checkpoint in ("best", "last"):
        try:
            return checkpoints.read(path)
        except CheckpointError as error:
            saved, _ = checkpoints.read_newest(run)
            if saved.progress.step == 0:  # nothing was learnt yet
                raise
            print(f"warning: {error}; {saved.path.name}, the newest that is whole, is used", file=sys.stderr)
            return saved
    if not path.is_dir():
        there = ", ".join(f"step-{each}" for each in checkpoints.saved_steps(run)) or "none"
        raise CheckpointError(f"{run.path}: no checkpoint step-{step}; there are: {there}")
    return checkpoints.read(path)


def _check_same_world(corpus: PackedCorpus, saved: checkpoints.Checkpoint, run: Run) -> None:
    wanted, found = saved.identity.get("phonemes"), corpus.phonemes.fingerprint
    if wanted is not None and wanted != found:
        raise CheckpointError(
            f"{corpus.path} has other phonemes (fingerprint {found}) than {run.path} was trained on ({wanted}); "
            "give the corpus it was trained on with --corpus"
        )


def _check_normalisation(corpus: PackedCorpus, run: Run) -> None:
    known = run.read_json(run.environment_path).get("corpus") or {}
    if difference := differing(known, corpus):
        raise CheckpointError(
            f"{corpus.path} is normalised otherwise than what {run.path} was trained on{difference}, so its scores "
            f"would mean nothing; pack it so too: phonedata pack RAW {corpus.path} --cmvn {known['cmvn']} --replace"
        )


def _check_coefficients(corpus: PackedCorpus, config: RunConfig, run: Run) -> None:
    """By what was built: the matrix itself is padded, and would take a few coefficients more of a narrow window."""
    layers = (run.read_json(run.built_path).get("model") or {}).get("layers")
    width = config.window.width
    if layers and layers[0]["inputs"] != width * corpus.feature_dim:
        raise CheckpointError(
            f"{corpus.path} has {corpus.feature_dim} coefficients a frame, but {run.path} was trained on "
            f"{layers[0]['inputs'] // width}; give a corpus like that with --corpus"
        )
