"""A trained model, opened: a checkpoint's scored weights in fp32, with the corpus they were trained on."""

from __future__ import annotations

import abc
import contextlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from phonedata import PackedCorpus, PhonedataError, Selection, WindowSpec
from phonedata.files import exists

from ..checkpoints import checkpoint as checkpoints
from ..checkpoints import series
from ..checkpoints.checkpoint import AVERAGED, MODEL
from ..config.run_config import RunConfig
from ..config.sections import DataConfig
from ..device import choose_device
from ..errors import CheckpointError, ConfigError, PhonetrainError
from ..model.classifier import build_model
from ..model.ema import AveragedWeights
from ..model.trust import check_trusted, digest, trust
from ..optim.optimizers import check_tensors
from ..runs.directory import Run, RunName
from ..training.data import check_window, corpus_of, differing, frontend_doubts, partition_of
from .smoothing import LabelCounts, count_labels


@dataclass(frozen=True, kw_only=True)
class Net(abc.ABC):
    """Whatever gives logits for windows of a corpus: a run's checkpoint, or an exported model.

    Attributes:
        name: in messages.
        corpus: the one at hand.
        trained_on: digest of the one that it was trained on.
        known: what is recorded of that one's features: frontend, cmvn, frame_shift_ms.
        window: what logits are computed from.
        data: which partitions have which role.
        device: where it computes.
        num_parameters: how many it has.
        predictions: the folder of its predictions, unless another is given.
        neighbours: n, how many frames on each side of the middle one it predicts as well.
    """

    name: str
    corpus: PackedCorpus
    trained_on: str
    known: dict[str, Any]
    window: WindowSpec
    data: DataConfig
    device: str
    num_parameters: int
    predictions: Path
    neighbours: int

    @property
    def other_corpus(self) -> str | None:
        """Digest of the corpus at hand where it is another than the one trained on."""
        return None if self.corpus.digest == self.trained_on else self.corpus.digest

    @property
    def doubts(self) -> list[str]:
        """Why features of the corpus at hand may not be like those of training."""
        return [] if self.other_corpus is None else frontend_doubts(self.known, self.corpus)

    @abc.abstractmethod
    def logits(self, windows: Tensor) -> Tensor:
        """(B, C) float32 of windows (B, W, D) float32; with n neighbours (B, 2n + 1, C)."""

    @abc.abstractmethod
    def label_counts(self) -> LabelCounts:
        """Counts of the training labels. Raises ConfigError where they are not to be had."""


def warn_of_other_corpus(nets: Iterable[Net]) -> None:
    """Say on stderr that the corpus is not the one of training, and what may be wrong with that."""
    lines = []
    for net in nets:
        if net.other_corpus:
            lines.append(f"note: {net.corpus.path} is not the corpus {net.name} was trained on")
            lines += [f"warning: {doubt}" for doubt in net.doubts]
    for line in dict.fromkeys(lines):
        print(line, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Trained(Net):
    """A trained model and what it was trained as."""

    run: Run
    config: RunConfig
    model: nn.Module
    saved: checkpoints.Checkpoint

    @property
    def conditions(self) -> dict[str, Any]:
        """What a number that comes from this model depends on."""
        return {
            "run": self.name,
            "checkpoint": self.saved.path.name,
            "step": self.saved.progress.step,
            "epochs_done": self.saved.progress.epoch,
            "weights": "averaged" if self.saved.averaged is not None else "trained",
            "weights_digest": self.saved.weights_digest,
            "precision": "fp32",
            "device": self.device,
            "corpus": str(self.corpus.path),
            "corpus_digest": self.corpus.digest,
            "corpus_is_the_trained_one": self.other_corpus is None,
        }

    def logits(self, windows: Tensor) -> Tensor:
        logits: Tensor = self.model(windows)
        return logits

    def label_counts(self) -> LabelCounts:
        """Of the corpus of training or, where that is gone, of the one at hand."""
        corpus = self.corpus
        if self.other_corpus:
            with contextlib.suppress(PhonetrainError, PhonedataError):
                corpus = corpus_of(self.run, self.config)
        return count_labels(Selection.of(corpus, str(partition_of("train", corpus, self.data))).partitions)


def open_trained(
    run: RunName = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> Trained:
    """The scored weights of a checkpoint ("best", "last", or a step as 1200 or "step-1200"), in fp32, in eval mode.

    corpus: a packed corpus in place of the one trained on; it must have the same phonemes, coefficients and
    normalisation. trust_code: run the code of a model.factory that this user has not trusted here before, and remember.
    Raises RunNotFound, CheckpointError, ConfigError, CodeNotTrusted.
    """
    run = Run.open(run)
    config = RunConfig.from_toml(run.config_path)
    packed = corpus_of(run, config, corpus)
    saved = _read(run, checkpoint)
    _check_same_world(packed, saved, run)
    _check_normalisation(packed, run)
    _check_coefficients(packed, config, run)
    check_window(packed, config.window)
    compute = choose_device(device, "fp32")
    factory = config.model.factory
    if untold := check_trusted(factory, run.path, trust_code):
        print(f"warning: {untold}", file=sys.stderr)
    if factory is not None and digest(factory) != saved.identity.get("factory"):
        print(f"warning: {factory}: its code is not the one that {run.path} was trained with", file=sys.stderr)
    model = build_model(config, feature_dim=packed.feature_dim, num_classes=len(packed.phonemes))
    part = model if saved.averaged is None else AveragedWeights(model, config.averaging.decay or 0.0)
    try:
        check_tensors(saved.scored_weights, part.state_dict(), MODEL if saved.averaged is None else AVERAGED)
    except CheckpointError as error:  # a model.factory whose file has changed, or that makes another net of it
        raise CheckpointError(
            f"{saved.path}: its weights do not fit the model that is built for {packed.path} ({error}); "
            "give the corpus and the model.factory that it was trained with"
        ) from error
    part.load_state_dict(saved.scored_weights)
    model = part.model if isinstance(part, AveragedWeights) else part
    return Trained(
        name=str(run.path),
        corpus=packed,
        trained_on=saved.identity["corpus"],
        known=run.read_json(run.environment_path).get("corpus") or {},
        window=WindowSpec(config.window.left, config.window.right),
        data=config.data,
        device=str(compute.device),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        predictions=run.predictions,
        neighbours=config.model.neighbours,
        run=run,
        config=config,
        model=model.to(compute.device).eval(),
        saved=saved,
    )


def trust_runs(runs: Iterable[Run]) -> None:
    """Remember that this user trusts the code of these runs' factories, before anything opens one."""
    for run in runs:
        with contextlib.suppress(ConfigError):  # no such code: said where a net is to be built of it, if one is
            if untold := trust(RunConfig.from_toml(run.config_path).model.factory):
                print(f"warning: {untold}", file=sys.stderr)


def named_checkpoint(name: RunName, checkpoint: str | int = "best") -> tuple[Run, str | int]:
    """A run and a checkpoint of it. name: a run's, which may end in @CHECKPOINT, as runs/a-1@last; else `checkpoint`.

    Raises RunNotFound.
    """
    if isinstance(name, Run):
        return name, checkpoint
    if name is not None and "@" in os.fspath(name) and not exists(name):
        name, _, checkpoint = os.fspath(name).rpartition("@")
    return Run.open(name), checkpoint


def step_of(run: Run, checkpoint: str | int) -> int | None:
    """The step of "best", "last", 1200 or "step-1200"; None where there is no best or last yet.

    Raises CheckpointError for anything else.
    """
    wanted = str(checkpoint)
    if wanted == "best":
        return series.best_step(run)
    if wanted == "last":
        return next(iter(series.life(run)[0]), None)
    number = wanted.removeprefix("step-")
    if not re.fullmatch("[0-9]{1,18}", number):
        raise CheckpointError(f"checkpoint: got {wanted!r}, wanted best, last or a step as step-1200")
    return int(number)


def _read(run: Run, checkpoint: str | int) -> checkpoints.Checkpoint:
    step = step_of(run, checkpoint)
    for problem in series.best_known(run)[1] if checkpoint == "best" else ():
        print(f"warning: {problem}", file=sys.stderr)
    if step is None:  # stopped before the first epoch was scored: what there is, is the newest
        saved, problems = series.read_newest(run)
        for problem in [f"{run.path}: no {checkpoint} checkpoint yet, {saved.path.name} is used", *problems]:
            print(f"warning: {problem}", file=sys.stderr)
        return saved
    path = run.checkpoint_dir(step)
    if checkpoint in ("best", "last"):
        try:
            return checkpoints.read(path)
        except CheckpointError as error:
            saved, _ = series.read_newest(run)
            if saved.progress.step == 0:  # nothing was learnt yet
                raise
            print(f"warning: {error}; {saved.path.name}, the newest that is whole, is used", file=sys.stderr)
            return saved
    if not path.is_dir():
        there = ", ".join(f"step-{each}" for each in series.saved_steps(run)) or "none"
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
            f"would mean nothing; pack it so too: phonedata pack RAW {corpus.path} --cmvn {known['cmvn']['kind']} "
            "--replace"
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
