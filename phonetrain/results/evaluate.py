"""A checkpoint against a labelled partition: how good it is, how sure that is, what it gets wrong; always in fp32."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phonedata import Selection
from phonedata.files import write_file

from ..checkpoints.checkpoint import scored_as
from ..display.tables import Shown, evaluation_text
from ..errors import ConfigError, PhonetrainError, writing
from ..runs.directory import Run, RunName
from ..text import to_json
from ..training.data import partition_of, without_labels
from .bootstrap import interval, units_of
from .folding import Folding
from .phones import (
    boundaries,
    boundary_score,
    distance_to_boundary,
    edit_distance,
    matched_boundaries,
    phones,
    tolerance_frames,
)
from .posteriors import TRIED, packed_frames, posteriors
from .smoothing import Transitions, viterbi
from .sounds import ORDER, is_silence, sound_classes
from .trained import Trained, open_trained, step_of, warn_of_other_corpus

Ints = npt.NDArray[np.int64]
CONFUSED_PAIRS = 12
WORST_UTTERANCES = 10
BINS = 15  # of confidence, for calibration
FAR = 5  # frames from a boundary that count as "this far or farther"
TEMPERATURES = tuple(float(t) for t in np.round(np.geomspace(0.5, 3.0, 19), 3))
SCALES, PENALTIES = (0.5, 1.0, 1.5, 2.0, 3.0), (0.0, 1.0, 2.0)
SETTINGS = tuple((scale, penalty) for scale in SCALES for penalty in PENALTIES)
MOST_CLASSES = 128  # up to here smoothing is tried: a path costs C * C a frame; and utterances are counted by phoneme
FORMAT = 1  # of what is kept; of another one it is made anew


def evaluate(
    run: RunName = None,
    partition: str | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trust_code: bool = False,
    phone_map: str | None = None,
    warps: bool = False,
) -> dict[str, Any]:
    """Score a labelled partition (default: the run's dev) in fp32, every frame once, and return the numbers.

    All shares are of 0 to 1. loss is the mean cross entropy in nats a frame, accuracy and error_rate are shares of
    frames, interval the 95 % interval of the accuracy; majority is what answering the commonest phoneme everywhere
    would score. docs/RESULTS.md describes phone_error_rate, boundaries, smoothed, calibration, sounds, by_distance,
    by_speaker and worst_utterances. phonemes has frames, recall and precision of each class, confused the pairs that
    cost most frames, confusion the (C, C) counts, true class by predicted class. in_training is the accuracy that the
    same weights had there in training, with its precision, or None. utterances_table holds exact counts of every
    utterance, in packed order, and its summed loss; docs/RESULTS.md lists its columns. The result is also kept in the
    run's evaluations/. trust_code: as in `open_trained`. phone_map: score in fewer classes, "timit-48", "timit-39" or a
    file with lines `symbol class`, as `phonedata.pack` takes it; probabilities of classes that become one are added up.
    warps: score what `predict` says with `warps`.
    Raises ConfigError where the partition has no labels.
    """
    trained = open_trained(run, checkpoint, corpus, device, trust_code)
    name = partition or str(partition_of("dev", trained.corpus, trained.config.data))
    if bare := without_labels(trained.corpus, name):
        raise ConfigError(
            f"{', '.join(bare)} of {trained.corpus.path} has no labels to score against; "
            f"`phonetrain predict --partition {bare[0]}` labels it"
        )
    warn_of_other_corpus([trained])
    folding = None if phone_map is None else Folding.of(trained.corpus, phone_map)
    transitions = None
    if len(trained.corpus.phonemes) <= MOST_CLASSES:
        with contextlib.suppress(ConfigError):  # another corpus, say of a dev partition alone
            labels = trained.label_counts()
            transitions = (labels if folding is None else folding.fold_counts(labels)).transitions
    counts = Counts(Selection.of(trained.corpus, name), transitions, folding)
    for rows in posteriors([trained], name, "scoring", warps=warps):
        counts.add(rows)
    result = trained.conditions | {"format": FORMAT, "partition": name} | counts.result()
    result["in_training"] = None if folding is not None or warps else _scored_in_training(trained, name)
    if folding is not None:
        result |= {"map": folding.name, "folded_from": len(folding.target)}
    if warps:
        result["warps"] = [round(stretch, 3) for stretch in TRIED]
    _keep(trained.run, result)
    return Shown(result, evaluation_text)


class Counts:
    """Everything that is counted of a partition, an utterance at a time; ratios only at the end."""

    def __init__(self, selection: Selection, transitions: Transitions | None, folding: Folding | None = None) -> None:
        self.selection, self.transitions, self.folding = selection, transitions, folding
        self.symbols = selection.corpus.phonemes.symbols if folding is None else folding.symbols
        self.silent = np.array([is_silence(symbol) for symbol in self.symbols])
        self.shift_ms = selection.corpus.frame_shift_ms
        self.confusion = np.zeros((len(self.symbols), len(self.symbols)), np.int64)
        self.bins = np.zeros((BINS, 2), np.int64)  # frames, right ones
        self.bin_confidence = np.zeros(BINS)
        self.distances = np.zeros((FAR + 1, 2), np.int64)  # frames, right ones
        self.losses: list[float] = []
        self.temperature_losses: list[npt.NDArray[np.float64]] = []
        self.table: defaultdict[str, list[Any]] = defaultdict(list)
        self.by_setting: list[list[tuple[int, ...]]] = []
        self.tolerance = tolerance_frames(self.shift_ms)
        self.matched = np.zeros(self.tolerance + 1, np.int64)

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Count the next utterance of the selection. rows: (N, C) float32 log posteriors."""
        index = len(self.table["frames"])
        labels = packed_frames(self.selection, index, len(rows))[1]
        if self.folding is not None:
            rows, labels = self.folding.apply(rows, labels, self.selection.utterance_ids[index])
        found = rows.argmax(1)
        right = found == labels
        self.table["frames"].append(len(rows))
        self.table["right"].append(int(right.sum()))
        classes = len(self.symbols)
        self.confusion += np.bincount(labels * classes + found, minlength=classes**2).reshape(classes, classes)
        if classes <= MOST_CLASSES:
            self.table["right_by_phoneme"].append(np.bincount(labels[right], minlength=classes))
        near = np.minimum(distance_to_boundary(labels), FAR)
        self.table["right_by_distance"].append(np.bincount(near[right], minlength=FAR + 1))
        self.distances += np.stack([np.bincount(near, minlength=FAR + 1), self.table["right_by_distance"][-1]], 1)
        self._add_calibration(rows, labels, found, right)
        self._add_phones(labels, found)
        if self.transitions is not None:
            self.by_setting.append([self._smoothed(rows, labels, *setting) for setting in SETTINGS])

    def _add_calibration(self, rows: npt.NDArray[np.float32], labels: Ints, found: Ints, right: Any) -> None:
        frames = np.arange(len(rows))
        self.losses.append(-float(rows[frames, labels].sum(dtype=np.float64)))
        confidence = np.nan_to_num(np.exp(rows[frames, found]))
        place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self.bins += np.stack([np.bincount(place, minlength=BINS), np.bincount(place[right], minlength=BINS)], 1)
        self.bin_confidence += np.bincount(place, confidence, minlength=BINS)
        losses = []
        for temperature in TEMPERATURES:
            scaled = rows / np.float32(temperature)
            total = np.log(np.exp(scaled).sum(1))
            losses.append(float((total - scaled[frames, labels]).sum(dtype=np.float64)))
        self.temperature_losses.append(np.array(losses))

    def _phone_errors(self, labels: Ints, found: Ints, silence: bool) -> tuple[int, int]:
        """(errors, phones of the transcript), both sides collapsed; without silence a phone may follow itself."""
        wanted, heard = phones(labels)[0], phones(found)[0]
        if not silence:
            wanted, heard = wanted[~self.silent[wanted]], heard[~self.silent[heard]]
        return int(edit_distance(wanted, heard)), len(wanted)

    def _add_phones(self, labels: Ints, found: Ints) -> None:
        for kind, silence in (("phone", False), ("segment", True)):
            errors, number = self._phone_errors(labels, found, silence)
            self.table[f"{kind}_errors"].append(errors)
            self.table[f"{kind}s"].append(number)
        wanted, heard = boundaries(labels), boundaries(found)
        self.matched += matched_boundaries(wanted, heard, self.tolerance)
        self.table["boundaries"].append(len(wanted))
        self.table["boundaries_found"].append(len(heard))

    def _smoothed(self, rows: Any, labels: Ints, scale: float, penalty: float) -> tuple[int, ...]:
        """Right frames, phone errors, boundaries found, and matched ones by distance."""
        assert self.transitions is not None
        found = viterbi(rows, self.transitions, scale, penalty)
        heard = boundaries(found)
        matched = matched_boundaries(boundaries(labels), heard, self.tolerance)
        return int((found == labels).sum()), self._phone_errors(labels, found, False)[0], len(heard), *matched.tolist()

    def result(self) -> dict[str, Any]:
        """What `evaluate` returns of the counts."""
        table = {name: np.array(values, np.int64) for name, values in self.table.items()}
        frames, right = table["frames"], table["right"]
        if len(frames) != self.selection.num_utterances:
            raise PhonetrainError(f"{len(frames)} utterances were scored, wanted {self.selection.num_utterances}")
        speakers, ids = self.selection.speakers, self.selection.utterance_ids
        units, drawn = units_of(speakers)
        accuracy = int(right.sum()) / int(frames.sum())
        smoothed = self._smoothed_result(table, units)
        numbers = int(table["boundaries"].sum()), int(table["boundaries_found"].sum())
        return {
            "utterances": len(frames),
            "frames": int(frames.sum()),
            "accuracy": accuracy,
            "interval": interval(right, frames, units) | {"drawn": drawn},
            "error_rate": 1.0 - accuracy,
            "loss": math.fsum(self.losses) / int(frames.sum()),
            "phone_error_rate": _rate(table["phone_errors"], table["phones"], units),
            "phone_error_rate_with_silence": _rate(table["segment_errors"], table["segments"], units),
            "boundaries": boundary_score(self.matched, *numbers, self.shift_ms)._asdict(),
            "smoothed": smoothed,
            "calibration": self._calibration(table, speakers),
            "sounds": self._sounds(),
            "by_distance": [
                {"frames_away": place, "frames": int(count), "accuracy": int(hits) / int(count) if count else None}
                for place, (count, hits) in enumerate(self.distances)
            ],
            "by_speaker": _by_speaker(speakers, frames, right),
            "worst_utterances": [
                {"utterance": ids[place], "frames": int(frames[place]), "accuracy": float(right[place] / frames[place])}
                for place in np.argsort(right / frames, kind="stable")[:WORST_UTTERANCES]
            ],
            **describe_confusion(self.confusion, self.symbols),
            "confusion": self.confusion.tolist(),
            "utterances_table": {"ids": ids, "speakers": speakers}
            | {name: values.tolist() for name, values in table.items()}
            | {"loss": self.losses},
        }

    def _smoothed_result(self, table: dict[str, Ints], units: Ints) -> dict[str, Any] | None:
        """The best path's scores; scale and penalty are chosen on one half of the speakers and scored on the other.

        Its counts of each utterance go into `table`.
        """
        if self.transitions is None:
            return None
        counts = np.array(self.by_setting, np.int64)  # (U, settings, 3 + distances)
        chosen = _chosen_across_halves(-counts[:, :, 0].astype(np.float64), self.selection.speakers)
        scored = counts[np.arange(len(counts)), chosen]
        table["smoothed_right"], table["smoothed_phone_errors"] = scored[:, 0], scored[:, 1]
        best = SETTINGS[int(counts[:, :, 0].sum(0).argmax())]
        accuracy = int(scored[:, 0].sum()) / int(table["frames"].sum())
        return {
            "scale": best[0],
            "penalty": best[1],
            "accuracy": accuracy,
            "interval": interval(scored[:, 0], table["frames"], units),
            "phone_error_rate": _rate(scored[:, 1], table["phones"], units),
            "boundaries": boundary_score(
                scored[:, 3:].sum(0), int(table["boundaries"].sum()), int(scored[:, 2].sum()), self.shift_ms
            )._asdict(),
        }

    def _calibration(self, table: dict[str, Ints], speakers: list[str]) -> dict[str, Any]:
        """Expected calibration error, its bins, and the temperature that mends it."""
        frames = self.bins[:, 0]
        gaps = [abs(self.bin_confidence[place] - self.bins[place, 1]) for place in range(BINS)]
        losses = np.array(self.temperature_losses)
        chosen = _chosen_across_halves(losses, speakers)
        total = int(table["frames"].sum())
        return {
            "expected_error": float(sum(gaps)) / total,
            "temperature": TEMPERATURES[int(losses.sum(0).argmin())],
            "loss_with_temperature": math.fsum(losses[np.arange(len(losses)), chosen]) / total,
            "reliability": [
                {
                    "frames": int(count),
                    "confidence": float(self.bin_confidence[place]) / int(count),
                    "accuracy": int(self.bins[place, 1]) / int(count),
                }
                for place, count in enumerate(frames)
                if count
            ],
        }

    def _sounds(self) -> list[dict[str, Any]] | None:
        """Accuracy by class of sounds, and how often a wrong answer stays in the class; None for other phoneme sets."""
        classes = sound_classes(self.symbols)
        if classes is None:
            return None
        rows = []
        for name in ORDER:
            inside = np.array([found == name for found in classes])
            if frames := int(self.confusion[inside].sum()):
                right = int(self.confusion.diagonal()[inside].sum())
                within = int(self.confusion[np.ix_(inside, inside)].sum())
                rows.append(
                    {"class": name, "frames": frames, "accuracy": right / frames, "within_class": within / frames}
                )
        return rows


def _rate(errors: Ints, whole: Ints, units: Ints) -> dict[str, Any] | None:
    """A rate of errors with its interval; None where there is nothing to be wrong about."""
    if not whole.any():
        return None
    return {"rate": int(errors.sum()) / int(whole.sum()), "interval": interval(errors, whole, units)}


def _chosen_across_halves(costs: npt.NDArray[np.float64], speakers: list[str]) -> Ints:
    """(U,) the setting for each utterance: the one that costs least on the other half of the speakers.

    costs: (U, settings). Of a single speaker the utterances are halved.
    """
    names = speakers if len(set(speakers)) > 1 else [str(place) for place in range(len(speakers))]
    half = np.unique(np.array(names), return_inverse=True)[1] % 2
    chosen = np.zeros(len(costs), np.int64)
    for side in (0, 1):
        others = half != side if (half != side).any() else half == side
        chosen[half == side] = int(costs[others].sum(0).argmin())
    return chosen


def _by_speaker(speakers: list[str], frames: Ints, right: Ints) -> list[dict[str, Any]]:
    names, index = np.unique(np.array(speakers), return_inverse=True)
    rows = [
        {"speaker": str(name), "utterances": int((index == place).sum()), "frames": int(frames[index == place].sum()),
         "accuracy": int(right[index == place].sum()) / int(frames[index == place].sum())}
        for place, name in enumerate(names)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float(row["accuracy"]))


def describe_confusion(confusion: Ints, symbols: tuple[str, ...]) -> dict[str, Any]:
    """What a (C, C) matrix of counts, true class by predicted class, says: majority, phonemes, confused."""
    true, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    total = int(true.sum())
    phonemes = [
        {
            "phoneme": symbol,
            "frames": int(true[index]),
            "recall": int(right[index]) / int(true[index]) if true[index] else None,
            "precision": int(right[index]) / int(predicted[index]) if predicted[index] else None,
        }
        for index, symbol in enumerate(symbols)
    ]
    wrong = confusion - np.diag(right)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [divmod(int(cell), len(symbols)) for cell in order if wrong.flat[cell]]
    confused = [
        {
            "phoneme": symbols[row],
            "heard_as": symbols[column],
            "frames": int(wrong[row, column]),
            "share_of_phoneme": int(wrong[row, column]) / int(true[row]),
            "share_of_errors": int(wrong[row, column]) / int(wrong.sum()),
        }
        for row, column in pairs
    ]
    most = int(true.argmax())
    majority = {"phoneme": symbols[most], "share": int(true[most]) / total if total else None}
    return {"majority": majority, "phonemes": phonemes, "confused": confused}


def _scored_in_training(trained: Trained, partition: str) -> dict[str, Any] | None:
    run, built = trained.run, trained.run.read_json(trained.run.built_path)
    there = [line for line in run.scores() if line.get("step") == trained.saved.progress.step]
    same = partition == (built.get("scoring") or {}).get("partitions")
    same = same and trained.conditions["corpus_is_the_trained_one"]
    return {"accuracy": there[-1]["dev_accuracy"], "precision": built.get("precision")} if there and same else None


def kept_evaluation(
    run: Run, partition: str | None = None, checkpoint: str | int = "best", corpus_digest: str | None = None
) -> dict[str, Any] | None:
    """What `evaluate` kept of these very weights; None where there is nothing.

    partition: default the one scored in training. corpus_digest: of another corpus than the one trained on.
    """
    step = step_of(run, checkpoint)
    wanted = None if step is None else scored_as(run.checkpoint_dir(step))
    if wanted is None:
        return None
    other = None if corpus_digest in (None, wanted["corpus_digest"]) else corpus_digest
    wanted |= {"format": FORMAT} | ({"corpus_digest": other} if other else {})
    partition = partition or (run.read_json(run.built_path).get("scoring") or {}).get("partitions", "")
    kept = run.read_json(kept_at(run, partition, f"step-{step}", other))
    return kept if all(kept.get(key) == value for key, value in wanted.items()) else None


def kept_name(what: str, other_corpus: str | None) -> str:
    """Name of a result of partitions. other_corpus: digest of a corpus that is not the run's, with the same names."""
    return what.replace(" ", "") + (f"-corpus-{other_corpus[:12]}" if other_corpus else "")


def kept_at(
    run: Run,
    partition: str,
    checkpoint: str,
    other_corpus: str | None = None,
    phone_map: str | None = None,
    warps: bool = False,
) -> Path:
    """Where an evaluation is kept. checkpoint: as step-1200. other_corpus: as in `kept_name`. phone_map: a map's name,
    or its file."""
    what = f"{partition}-{checkpoint}" + (f"-map-{Path(phone_map).stem}" if phone_map else "") + "-warps" * warps
    return run.evaluations / f"{kept_name(what, other_corpus)}.json"


def _keep(run: Run, result: dict[str, Any]) -> None:
    """Keep an evaluation for the report; a run that this user cannot write to is scored all the same."""
    other = None if result["corpus_is_the_trained_one"] else result["corpus_digest"]
    path = kept_at(run, result["partition"], result["checkpoint"], other, result.get("map"), "warps" in result)
    try:
        with writing(path, "make room or mend the disk, and evaluate again"):
            write_file(path, (to_json(result) + "\n").encode())
    except PhonetrainError as error:
        print(f"warning: the scores are not kept: {error}", file=sys.stderr)
