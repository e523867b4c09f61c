"""Runs against each other on the same utterances: how much better, how sure that is, and where it comes from.

Paired bootstrap: every draw of utterances is scored with all runs, so that what is hard for all of them cancels out.
Bisani and Ney (2004), as in bootstrap.py. Runs that differ only in the seed are one group, whose seeds are drawn too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config.run_config import RunConfig
from ..display.tables import Shown, comparison_text
from ..errors import ConfigError
from ..runs.directory import Run, RunName
from ..runs.experiment import changes, experiment, group_name, grouped
from ..training.data import choose_roles, corpus_of
from .bootstrap import DRAWS, bounds, resampled, seed_weights, two_sided_p, units_of
from .evaluate import evaluate, kept_evaluation
from .trained import named_checkpoint

Floats = npt.NDArray[np.float64]
# What is compared: columns of an evaluation's utterances_table, part over whole.
METRICS = {
    "accuracy": ("right", "frames"),
    "smoothed_accuracy": ("smoothed_right", "frames"),
    "phone_error_rate": ("phone_errors", "phones"),
    "smoothed_phone_error_rate": ("smoothed_phone_errors", "phones"),
    "loss": ("loss", "frames"),
}


def compare(
    runs: Sequence[RunName],
    partition: str | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> dict[str, Any]:
    """Compare runs on the utterances of a labelled partition (default: their dev), in fp32.

    runs: directories or names, each with @CHECKPOINT if wanted; the others are compared with the first one's group.
    Runs that differ only in the seed are a group: its scores are means over its runs, and a draw of the bootstrap draws
    its seeds as well as utterances (speakers from 50 on). Kept evaluations of the same weights are used.
    trust_code: as in `open_trained`.

    Returns partition, corpus, corpus_digest, utterances, frames, drawn, draws; groups: name, runs (path, checkpoint,
    seed and scores of each), changed (key -> values in the first group and here) and, for each of METRICS, mean,
    spread (standard deviation over seeds, None for one), low and high (95 %); differences: for each group but the
    first, each metric's difference, low, high and two-sided p, and by_phoneme, by_speaker and by_distance: frames,
    accuracy in the first group and here, and points, the part of the difference in accuracy that lies there (a share
    of all frames; they add up to it) with low and high. Raises ConfigError where runs were trained on different corpora
    and none is given, or scored on partitions without labels; RunNotFound, CheckpointError.
    """
    if isinstance(runs, (str, os.PathLike)) or len(runs) < 2:
        raise ConfigError("compare: wanted at least two runs, as `phonetrain compare runs/a-1 runs/a-2`")
    entries = [_Entry(*named_checkpoint(run, checkpoint)) for run in runs]
    digest = _common_corpus(entries, corpus)
    name = partition or _common_partition(entries, corpus)
    for entry in entries:
        kept = kept_evaluation(entry.run, name, entry.checkpoint, digest)
        entry.scores = kept or evaluate(entry.run, name, entry.checkpoint, corpus, device, trust_code)
    _refuse_doubles(entries)
    return Shown(_Comparison(grouped(entries, lambda entry: entry.experiment)).result(), comparison_text)


@dataclass
class _Entry:
    """A run with the checkpoint of it that is compared, and its evaluation once it has one."""

    run: Run
    checkpoint: str | int
    scores: dict[str, Any] | None = None

    @property
    def evaluation(self) -> dict[str, Any]:
        assert self.scores is not None  # compare scores every entry before anything is read
        return self.scores

    @property
    def label(self) -> str:
        return str(self.run.path) + ("" if self.checkpoint == "best" else f"@{self.checkpoint}")

    @cached_property
    def experiment(self) -> dict[str, Any]:
        return experiment(self.run) | ({} if self.checkpoint == "best" else {"checkpoint": self.checkpoint})

    @property
    def seed(self) -> int:
        return RunConfig.from_toml(self.run.config_path).seed

    def column(self, name: str) -> npt.NDArray[Any] | None:
        """(U, ...) a column of the utterances' table; float64 for the loss, else int64. None where it is not there."""
        values = self.evaluation["utterances_table"].get(name)
        return None if values is None else np.array(values, np.float64 if name == "loss" else np.int64)


def _common_corpus(entries: Sequence[_Entry], corpus: str | os.PathLike[str] | None) -> str | None:
    """Digest of the corpus given, None where each is scored on the one it was trained on and those are the same."""
    first = entries[0]
    if corpus is not None:
        return corpus_of(first.run, RunConfig.from_toml(first.run.config_path), corpus).digest
    known = [entry.run.read_json(entry.run.environment_path).get("corpus") or {} for entry in entries]
    for entry, there in zip(entries, known):
        if there.get("digest") != known[0].get("digest"):
            raise ConfigError(
                f"{first.run.path} and {entry.run.path} were trained on different "
                f"{'corpora' if there.get('phonemes') == known[0].get('phonemes') else 'phoneme sets'} (digests "
                f"{known[0].get('digest')} and {there.get('digest')}), so their scores cannot be paired; score them on "
                "one corpus whose phonemes both have: --corpus DIR"
            )
    return None


def _common_partition(entries: Sequence[_Entry], corpus: str | os.PathLike[str] | None) -> str:
    """The dev partition of all of them."""
    names = []
    for entry in entries:
        config = RunConfig.from_toml(entry.run.config_path)
        scored = (entry.run.read_json(entry.run.built_path).get("scoring") or {}).get("partitions")
        if corpus is not None or not scored:
            scored = choose_roles(corpus_of(entry.run, config, corpus), config.data).dev
        names.append(scored)
    for entry, name in zip(entries, names):
        if name != names[0]:
            raise ConfigError(
                f"{entries[0].run.path} was scored on {names[0]} and {entry.run.path} on {name}; say on which of them "
                "to compare: --partition NAME"
            )
    return str(names[0])


def _refuse_doubles(entries: Sequence[_Entry]) -> None:
    """The same weights twice are one result: as two seeds they would feign a spread of nothing."""
    seen: dict[str, str] = {}
    for entry in entries:
        digest = entry.evaluation["weights_digest"]
        if digest in seen:
            raise ConfigError(f"{seen[digest]} and {entry.label} are the same weights; leave one of them out")
        seen[digest] = entry.label


class _Comparison:
    """Groups of entries on the same utterances, in the same draws of them."""

    def __init__(self, groups: Sequence[Sequence[_Entry]]) -> None:
        self.groups, self.first = groups, groups[0][0].evaluation
        table = self.first["utterances_table"]
        self.speakers = np.array(table["speakers"])
        self.units, self.drawn = units_of(table["speakers"])
        self.frames = np.array(table["frames"], np.int64)
        self.weights = [seed_weights(len(group), stream) for stream, group in enumerate(groups)]
        self.metrics = [
            name for name, columns in METRICS.items()
            if all(entry.column(column) is not None for group in groups for entry in group for column in columns)
            and any(table[columns[1]])
        ]  # fmt: skip

    def result(self) -> dict[str, Any]:
        """What `compare` returns."""
        groups = [self._group(place) for place in range(len(self.groups))]
        first = self.first
        return {
            **{
                key: first[key] for key in ("partition", "corpus", "corpus_digest", "utterances", "frames", "precision")
            },
            "drawn": self.drawn,
            "units": int(self.units.max()) + 1,
            "draws": DRAWS,
            "metrics": self.metrics,
            "groups": groups,
            "differences": [self._difference(place, groups) for place in range(1, len(groups))],
        }

    def _column(self, place: int, name: str) -> npt.NDArray[Any]:
        """(U, S, ...) a column of the utterances' table for each run of a group."""
        columns = [entry.column(name) for entry in self.groups[place]]
        return np.stack([column for column in columns if column is not None], 1)

    def _drawn_means(self, place: int, parts: npt.NDArray[Any], whole: npt.NDArray[np.int64]) -> Floats:
        """(draws, K) mean over a group's drawn seeds of drawn utterances' ratios. parts: (U, S, K)."""
        utterances, seeds, kinds = parts.shape
        ratios = resampled(parts.reshape(utterances, -1), whole, self.units)
        means: Floats = np.einsum("ds,dsk->dk", self.weights[place], ratios.reshape(-1, seeds, kinds))
        return means

    def _draws(self, place: int, metric: str) -> Floats:
        """(draws,) a metric of a group."""
        part, whole = METRICS[metric]
        return self._drawn_means(place, self._column(place, part)[:, :, None], self._column(place, whole)[:, 0])[:, 0]

    def _group(self, place: int) -> dict[str, Any]:
        group = self.groups[place]
        runs = []
        for entry in group:
            scores = {key: entry.evaluation[key] for key in ("checkpoint", "weights_digest", "epochs_done")}
            runs.append({"run": str(entry.run.path), "seed": entry.seed, "status": entry.run.status, **scores})
        scores = {}
        for metric in self.metrics:
            part, whole = (self._column(place, name) for name in METRICS[metric])
            each = part.sum(0) / whole.sum(0)
            for run, value in zip(runs, each):
                run[metric] = float(value)
            spread = float(each.std(ddof=1)) if len(group) > 1 else None
            scores[metric] = {"mean": float(each.mean()), "spread": spread} | bounds(self._draws(place, metric))
        changed = {key: [old, new] for key, old, new in changes(self.groups[0][0].experiment, group[0].experiment)}
        return {"name": group_name(group[0].label, len(group)), "runs": runs, "changed": changed, **scores}

    def _difference(self, place: int, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Group `place` minus the first one."""
        told: dict[str, Any] = {"of": groups[place]["name"], "from": groups[0]["name"]}
        for metric in self.metrics:
            drawn = self._draws(place, metric) - self._draws(0, metric)
            difference = groups[place][metric]["mean"] - groups[0][metric]["mean"]
            told[metric] = {"difference": difference, **bounds(drawn), "p": two_sided_p(drawn)}
        return told | {
            "by_phoneme": self._by_phoneme(place),
            "by_speaker": self._by_speaker(place),
            "by_distance": self._by_distance(place),
        }

    def _parts(
        self,
        place: int,
        names: Mapping[str, Sequence[Any]],
        frames: Any,
        right: Sequence[Any],
        counts: Sequence[Any] | None,
    ) -> list[dict[str, Any]]:
        """Rows that say what part of the difference in accuracy lies in each kind of frames.

        names: column -> value for each kind. frames: (K,). right, counts: of the first group and of group `place`,
        (S, K) right frames of each run and (U, S, K) those of each utterance, None where they were not kept.
        """
        total = int(self.frames.sum())
        before, after = (np.asarray(each).mean(0) for each in right)
        bound: list[dict[str, float | None]] = [{"low": None, "high": None}] * len(before)
        if counts is not None:
            drawn = self._drawn_means(place, counts[1], self.frames) - self._drawn_means(0, counts[0], self.frames)
            bound = [dict(bounds(drawn[:, kind])) for kind in range(drawn.shape[1])]
        return [
            {**{column: values[kind] for column, values in names.items()}, "frames": int(frames[kind]),
             "accuracy_before": float(before[kind] / frames[kind]), "accuracy": float(after[kind] / frames[kind]),
             "points": float(after[kind] - before[kind]) / total, **bound[kind]}
            for kind in range(len(before)) if frames[kind]
        ]  # fmt: skip

    def _by_phoneme(self, place: int) -> list[dict[str, Any]]:
        """By true phoneme, the largest parts first."""
        right = [
            [np.diagonal(np.array(entry.evaluation["confusion"])) for entry in self.groups[where]]
            for where in (0, place)
        ]
        counts = None
        if "right_by_phoneme" in self.first["utterances_table"]:
            counts = [self._column(where, "right_by_phoneme") for where in (0, place)]
        symbols = [row["phoneme"] for row in self.first["phonemes"]]
        frames = [row["frames"] for row in self.first["phonemes"]]
        return _largest_first(self._parts(place, {"phoneme": symbols}, frames, right, counts))

    def _by_distance(self, place: int) -> list[dict[str, Any]]:
        counts = [self._column(where, "right_by_distance") for where in (0, place)]
        frames = [row["frames"] for row in self.first["by_distance"]]
        names = {"frames_away": list(range(len(frames)))}
        return self._parts(place, names, frames, [table.sum(0) for table in counts], counts)

    def _by_speaker(self, place: int) -> list[dict[str, Any]]:
        """By speaker, the largest parts first; without intervals where speakers are what is drawn."""
        names, index = np.unique(self.speakers, return_inverse=True)
        right = []
        for where in (0, place):
            table = np.zeros((len(names), len(self.groups[where])), np.int64)
            np.add.at(table, index, self._column(where, "right"))
            right.append(table.T)
        counts = None
        if self.drawn == "utterances":
            of = np.eye(len(names), dtype=np.int64)[index]
            counts = [self._column(where, "right")[:, :, None] * of[:, None, :] for where in (0, place)]
        frames = np.bincount(index, self.frames)
        return _largest_first(self._parts(place, {"speaker": names.tolist()}, frames, right, counts))


def _largest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -abs(float(row["points"])))
