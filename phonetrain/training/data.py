"""Which partitions of a corpus a run trains on, is scored on and predicts; and what is wrong with them beforehand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from phonedata import PackedCorpus, Partition, PhonedataError, Selection, WindowSpec

from ..config.run_config import RunConfig
from ..config.sections import DataConfig, WindowConfig
from ..errors import CheckpointError, ConfigError
from ..runs.directory import Run
from ..step.warp import warps_of

DEFAULT_CORPUS = "packed"
# How the field names its splits; `+` joins several, so all train-* partitions together are the default.
PREFIXES = {"train": ("train", "tr-", "tr_"), "dev": ("dev", "valid", "val", "cv"), "test": ("test", "eval", "tt")}


class Roles(NamedTuple):
    """Partition names by role, several joined by ` + `; None where the corpus has none for it."""

    train: str
    dev: str
    test: str | None


def open_corpus(config: RunConfig) -> PackedCorpus:
    """The packed corpus of the config, else packed/ here. Raises phonedata's errors.

    Where there is none ConfigError names the pack command.
    """
    path = Path(config.data.corpus or DEFAULT_CORPUS)
    if not path.exists():
        where = "" if config.data.corpus else " here"
        raise ConfigError(
            f"no packed corpus at {path}{os.sep}{where}; `phonedata pack raw/ {path}{os.sep}` makes one, "
            "`--corpus DIR` names another"
        )
    return PackedCorpus(path)


def corpus_of(run: Run, config: RunConfig, given: str | os.PathLike[str] | None = None) -> PackedCorpus:
    """The corpus that a run was trained on: `given` whatever it is, else the one of its digest, from wherever we stand.

    Looked for where the config says, seen from here, and where it lay, seen from the run. Raises CheckpointError where
    only other ones are there, ConfigError where there is none.
    """
    if given is not None:
        return open_corpus(config.replaced({"data.corpus": os.fspath(given)}))
    known = run.read_json(run.environment_path).get("corpus") or {}
    candidates = [Path(config.data.corpus or DEFAULT_CORPUS)]
    if known.get("from_run"):
        candidates.append(run.path / known["from_run"])
    others, broken = [], []
    for candidate in candidates:
        if candidate.exists():
            try:
                corpus = PackedCorpus(candidate)
            except PhonedataError as error:  # a folder of that name, here, may be anything
                broken.append(error)
                continue
            if corpus.digest == known.get("digest", corpus.digest):
                return corpus
            others.append(corpus)
    if broken and not others:
        raise broken[0]
    if others:
        now = f"{others[0].path} holds now{differing(known, others[0])}"
        raise CheckpointError(
            f"{run.path} was not trained on what {now}; where is the corpus with digest "
            f"{known['digest']}? `--corpus DIR`"
        )
    raise ConfigError(
        f"the corpus that {run.path} was trained on is not at {' nor at '.join(map(str, candidates))}; where "
        "is it? `--corpus DIR`"
    )


def differing(known: Mapping[str, Any], corpus: PackedCorpus) -> str:
    """In brackets, what a corpus is packed with and the run's was not. known: what the run's environment says of it."""
    now, before = corpus.cmvn["kind"], known.get("cmvn", corpus.cmvn)["kind"]
    return f" (--cmvn {now}, then {before})" if now != before else ""


# What a front end says of where its numbers come from, and not of what they are.
_SOURCES = {"library", "source"}


def frontend_doubts(known: Mapping[str, Any], corpus: PackedCorpus) -> list[str]:
    """Sentences on why the features of `corpus` may not be what a net was trained on.

    known: what the run's environment, or an exported model, says of the corpus of training: `frontend`, `cmvn` and
    `frame_shift_ms`.
    """
    then, now = known.get("frontend"), corpus.attributes.get("frontend")
    doubts = []
    if not then or not now:
        who = "neither it nor the corpus of training says" if not then and not now else (
            "the corpus of training does not say" if now else "does not say")  # fmt: skip
        doubts.append(
            f"{corpus.path}: {who} how features were made (place of C0, mel bins, sampling rate); labels mean nothing "
            "unless both were made alike"
        )
    else:
        names = sorted(name for name in (then.keys() | now.keys()) - _SOURCES if then.get(name) != now.get(name))
        listed = [f"{name} {now.get(name, 'unknown')} (then {then.get(name, 'unknown')})" for name in names]
        if listed:
            doubts.append(
                f"{corpus.path}: its features were made otherwise than those of training: {', '.join(listed)}; labels "
                "mean little, make the features again as then"
            )
    if corpus.frame_shift_ms != (shift := known.get("frame_shift_ms", corpus.frame_shift_ms)):
        doubts.append(f"{corpus.path}: its frames are {corpus.frame_shift_ms:g} ms apart, those of training {shift:g}")
    if corpus.cmvn["kind"] == "train" and known.get("cmvn", corpus.cmvn) != corpus.cmvn:
        doubts.append(f"{corpus.path}: is normalised with statistics of its own and not with those of training")
    return doubts


def place_from_run(corpus: PackedCorpus, run: Run) -> str | None:
    """Where the corpus lies, seen from the run's directory, so that both may move together; None on another drive."""
    try:
        return Path(os.path.relpath(corpus.path.resolve(), run.path.resolve())).as_posix()
    except ValueError:
        return None


def choose_roles(corpus: PackedCorpus, data: DataConfig) -> Roles:
    """Partition names for training, scoring and prediction; "auto" finds them by name.

    Raises ConfigError where a role needs labels and has none, or where no name fits.
    """
    chosen = {role: partition_of(role, corpus, data) for role in PREFIXES}
    train, dev = str(chosen["train"]), str(chosen["dev"])
    if set(train.split(" + ")) & set(dev.split(" + ")):
        raise ConfigError(f"data.dev: {dev} is also trained on; a score on it would say nothing")
    return Roles(train, dev, chosen["test"])


def partition_of(role: str, corpus: PackedCorpus, data: DataConfig) -> str | None:
    """The partitions of one role (train, dev or test), as in `Roles`; only test may be None. Raises ConfigError."""
    setting = getattr(data, role)
    if setting != "auto":
        names = [name.strip() for name in setting.split("+")]
        for name in names:
            if name not in corpus.partitions:
                near = get_close_matches(name, corpus.partitions, n=1)
                hint = f"; did you mean {near[0]}?" if near else "; several are joined with +" * ("," in name)
                raise ConfigError(f"data.{role}: got {name!r}, {corpus.path} has {', '.join(corpus.partitions)}{hint}")
    else:
        names = [name for name in corpus.partitions if name.lower().startswith(PREFIXES[role])]
        if role != "test":
            names = [name for name in names if corpus[name].labelled]
        if role != "train":  # dev-clean before dev-other: one score decides, and clean speech is the course's
            names = names[:1]
    if role != "test":
        if bare := [name for name in names if not corpus[name].labelled]:
            raise ConfigError(f"data.{role}: {', '.join(bare)} has no labels; it can only be predicted")
        if not names:
            raise ConfigError(
                f"data.{role}: none of {', '.join(corpus.partitions)} is labelled and named like "
                f"{role}; say which one: data.{role}=NAME"
            )
    return " + ".join(names) or None


def without_labels(corpus: PackedCorpus, partitions: str) -> list[str]:
    """Those of `partitions`, joined by `+`, that have no labels."""
    return [name for name in map(str.strip, partitions.split("+")) if not corpus[name].labelled]


def check_window(corpus: PackedCorpus, window: WindowSpec | WindowConfig) -> None:
    """Refuse more context than was packed, with the command that repacks."""
    wanted = max(window.left, window.right)
    if wanted > corpus.context:
        raise ConfigError(
            f"window: {window.left} frames left and {window.right} right, but "
            f"{corpus.path} was packed with context {corpus.context}; pack it again: "
            f"phonedata pack RAW {corpus.path} --context {wanted} --replace"
        )


# The demo warms up over a sixth of its steps and is the better for it; beyond a fifth little is left to learn in.
ROWS_AT_A_TIME = 1 << 16
LONGEST_WARMUP, FITTING_WARMUP = 0.2, 0.05


def warnings_before_training(corpus: PackedCorpus, roles: Roles, train: Selection, config: RunConfig) -> list[str]:
    """Sentences about data that will train badly; raises ConfigError for data that cannot train at all."""
    sentences = []
    batches = train.num_frames // config.batch_size
    if batches == 0:
        raise ConfigError(
            f"{train.num_frames:,} training frames ({roles.train}, subset {config.subset:g}) do not fill "
            f"one batch of {config.batch_size:,}; use a larger subset or a smaller batch_size"
        )
    if config.augment.freq_mask > corpus.feature_dim:
        raise ConfigError(
            f"augment.freq_mask = {config.augment.freq_mask}: a frame has {corpus.feature_dim} "
            "coefficients; wanted at most that many"
        )
    if config.augment.warp > 0:
        warps, what = warps_of(train, config.augment.warp)
        sentences += [what] if warps is None else []
    if batches < 20:
        sentences.append(
            f"an epoch is only {batches} updates ({train.num_frames:,} frames, batch_size "
            f"{config.batch_size:,}); a smaller batch_size learns more from so little"
        )
    sentences += long_warmup(config, batches)
    symbols = corpus.phonemes.symbols
    trained = label_counts(train)
    scored = summed_histograms(tuple(corpus[name] for name in roles.dev.split(" + ")))
    never = np.flatnonzero((trained == 0) & (scored > 0))
    if never.size:
        share = 100.0 * scored[never].sum() / scored.sum()
        source = roles.train if config.subset == 1 else f"subset {config.subset:g} of {roles.train}"
        sentences.append(
            f"{roles.dev} has {_names(symbols, never)}, which {source} never shows: {share:.2f} % of its "
            "frames cannot be right"
        )
    absent = np.flatnonzero((trained == 0) & (scored == 0))
    if absent.size:
        sentences.append(
            f"no frame is labelled {_names(symbols, absent)}: {absent.size} of {len(symbols)} outputs learn nothing"
        )
    return sentences


def why_not_finite(corpus: PackedCorpus, partitions: str) -> str:
    """Why scores on `partitions` are not finite: the features, by utterance, or else the net. Reads all features."""
    for name in partitions.split("+"):
        part = corpus[name.strip()]
        for first in range(0, part.num_rows, ROWS_AT_A_TIME):
            bad = ~np.isfinite(part.features[first : first + ROWS_AT_A_TIME]).all(axis=1)
            if bad.any():
                row = first + int(bad.argmax())
                utterance = int(np.searchsorted(part.utterance_start_row, row, side="right")) - 1
                named = f"utterance {part.utterance_ids[max(utterance, 0)]} in {part.path}"
                return (
                    f"the features of {named} are not finite, the net is not at fault; "
                    f"`phonedata verify {corpus.path}` says what is damaged, packing again mends it"
                )
    return "numbers in the net went out of range; lower optimizer.lr"


def summed_histograms(partitions: tuple[Partition, ...]) -> np.ndarray:
    """(C,) frames of each class in labelled partitions."""
    return np.sum([part.label_histogram for part in partitions if part.label_histogram is not None], axis=0)


def folds(selection: Selection, of: int) -> np.ndarray:
    """(U,) the fold, 1..of, that each utterance is in, whatever else is selected: a hash of its id."""
    return np.array([1 + xxhash.xxh3_64_intdigest(name.encode()) % of for name in selection.utterance_ids])


def label_counts(train: Selection) -> np.ndarray:
    """(C,) frames of each class in the utterances that are trained on."""
    if train.num_utterances == sum(part.num_utterances for part in train.partitions):
        return summed_histograms(train.partitions)
    counts = np.zeros(len(train.corpus.phonemes), np.int64)
    frames = np.diff(train.utterance_end, prepend=0)
    for source, row, length in zip(train.utterance_source, train.utterance_start_row, frames):
        counts += np.bincount(train.partitions[source].labels[row : row + length], minlength=len(counts))
    return counts


def long_warmup(config: RunConfig, batches: int) -> list[str]:
    """A sentence where warm-up is too long for the run. batches: updates an epoch."""
    schedule, updates = config.schedule, batches * config.epochs
    by_epochs = schedule.warmup_epochs is not None
    warm = (schedule.warmup_epochs or 0) * batches if by_epochs else schedule.warmup_steps or 0
    if warm <= LONGEST_WARMUP * updates:
        return []
    setting = f"schedule.warmup_epochs = {schedule.warmup_epochs}" if by_epochs else "schedule.warmup_steps"
    fitting = f"schedule.warmup_steps={max(1, round(FITTING_WARMUP * updates))}"
    cut = " and is cut to it" if warm > updates else ""
    return [
        f"warm-up ({setting}, {warm:,} updates) is long for a run of {updates:,} updates{cut}, which learns little "
        f"meanwhile; {fitting} fits, none leaves it out" + " (with schedule.warmup_epochs=none)" * by_epochs
    ]


def _names(symbols: tuple[str, ...], indices: np.ndarray) -> str:
    shown = ", ".join(symbols[index] for index in indices[:8])
    return shown if indices.size <= 8 else f"{shown} and {indices.size - 8} more"
