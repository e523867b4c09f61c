"""Where labels look wrong rather than the model: segments and utterances that the net contradicts with confidence.

A segment is a run of equal labels. Its score is how much better, in nats a frame, the best class explains it than the
label given; the labels of its neighbours do not count, since a boundary that is a few frames off is no wrong label. An
utterance's score is how much better labels moved in time explain it, or how much worse it is than the median one.
Counts by class follow confident learning (Northcutt, Jiang and Chuang 2021), with segments for samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phonedata import Selection
from phonedata.files import write_folder

from ..console.base import Console
from ..display.plots import as_png
from ..errors import ConfigError, writing
from ..runs.directory import Run, RunName
from ..text import to_json
from ..training.data import folds as fold_of
from ..training.data import partition_of, without_labels
from ..training.fit import fit
from ..training.resume import resume
from .evaluate import MOST_CLASSES
from .phones import phones
from .posteriors import packed_frames, posteriors
from .predict import Smooth, decision
from .prediction_files import Utterance, refuse_present, textgrid
from .trained import Trained, open_trained

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
MOST_MOVED_MS = 150.0
SURE = 1.0  # nats a frame from which an utterance is a suspect
SHARE = 0.02  # of the segments that are listed
SHOWN = 12  # segments that are drawn
AROUND_S = 0.4


@dataclass
class Segments:
    """K segments of one utterance or of many. Every array is (K,)."""

    utterance: Ints
    first: Ints
    end: Ints
    given: Ints
    heard: Ints
    score: Floats
    probability_given: Floats
    probability_heard: Floats

    @classmethod
    def of(cls, index: int, labels: Ints, rows: Floats) -> Segments:
        """The segments of utterance `index`. labels: (N,). rows: (N, C) log posteriors."""
        given, first = phones(labels)
        end = np.append(first[1:], len(labels))
        length, place = (end - first)[:, None], np.arange(len(given))
        mean = np.add.reduceat(rows, first, axis=0) / length
        probability = np.add.reduceat(np.exp(rows), first, axis=0) / length
        others = mean.copy()
        others[place, given] = -np.inf
        others[place[1:], given[:-1]] = -np.inf
        others[place[:-1], given[1:]] = -np.inf
        heard = others.argmax(1)
        score = others[place, heard] - mean[place, given]
        return cls(
            np.full(len(given), index), first, end, given, heard, score.astype(np.float32),
            probability[place, given].astype(np.float32), probability[place, heard].astype(np.float32),
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        return cls(*(np.concatenate([vars(part)[name] for part in parts]) for name in cls.__dataclass_fields__))


def better_shift(labels: Ints, rows: Floats, most: int) -> tuple[int, float]:
    """(frames by which the labels fit best when they are moved earlier, nats a frame that this gains); at most `most`.

    labels: (N,). rows: (N, C) log posteriors.
    """
    best, own, gain = 0, float(rows[np.arange(len(labels)), labels].mean()), 0.0
    for shift in range(-min(most, len(labels) // 2), min(most, len(labels) // 2) + 1):
        moved = labels[max(0, shift) : len(labels) + min(0, shift)]
        there = rows[max(0, -shift) : len(labels) - max(0, shift)]
        found = float(there[np.arange(len(moved)), moved].mean()) - own
        if found > gain:
            best, gain = shift, found
    return best, gain


def suspects(
    run: RunName = None,
    partition: str | None = None,
    checkpoint: str | int = "best",
    corpus: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    folds: int | None = None,
    share: float = SHARE,
    out: str | os.PathLike[str] | None = None,
    replace: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Rank utterances and segments of a labelled partition (default: the run's train) by how likely labels are wrong.

    folds: train that many nets like the run's, each without one fold of the training utterances, and ask each about the
    fold that it never saw: a net remembers some of the wrong labels it was trained on. They are kept in
    RUN/folds-K and used again.
    share: of the segments that are listed. Writes the folder `out` (default RUN/suspects): suspects.json (what is
    returned), skip.txt for `phonedata pack --skip`, textgrids/ with what was given and what was heard, suspects.png.
    trust_code: as in `open_trained`.
    Raises ConfigError, PhonetrainError.
    """
    if folds is not None and not 2 <= folds <= 20:
        raise ConfigError(f"folds: got {folds}, wanted 2 to 20")
    if not 0 < share <= 1:
        raise ConfigError(f"share: got {share}, wanted a share of the segments above 0 and up to 1")
    trained = open_trained(run, checkpoint, corpus, device, trust_code)
    target = Path(out) if out is not None else trained.run.path / "suspects"
    if out is not None:
        refuse_present(target, replace)
    training = str(partition_of("train", trained.corpus, trained.data))
    name = partition or training
    if bare := without_labels(trained.corpus, name):
        raise ConfigError(f"{', '.join(bare)} of {trained.corpus.path} has no labels that could be wrong")
    if folds is not None and name != training:
        raise ConfigError(f"folds: only what the run was trained on ({training}) is split into folds; leave it out")
    selection = Selection.of(trained.corpus, name)
    nets = [trained] if folds is None else [_fold_net(trained, number, folds) for number in range(1, folds + 1)]
    fold = np.ones(selection.num_utterances, np.int64) if folds is None else fold_of(selection, folds)
    found = _Search(selection, nets, fold)
    result = found.result(share)
    result = {**trained.conditions, "partition": name, "folds": folds, "folder": str(target), **result}
    _write(target, result, found)
    return result


def _fold_net(trained: Trained, number: int, of: int) -> Trained:
    """A net like the run's that never saw fold `number`; one that is there is used."""
    path = trained.run.path / f"folds-{of}" / str(number)
    if Run(path).has_trained:
        run = Run(path)
        if run.status != "finished":
            run = resume(path, corpus=trained.corpus.path)
    else:
        config = trained.config.replaced({"data.hold_out": f"{number}/{of}", "tracking.wandb": "off"})
        run = fit(config=config, corpus=trained.corpus.path, run=path, console=Console())
    return open_trained(run, "best", trained.corpus.path, trained.device)


class _Search:
    """All segments and utterances of a selection, looked through once. nets: one for each fold, from 1 on."""

    def __init__(self, selection: Selection, nets: Sequence[Trained], fold: Ints) -> None:
        self.selection, self.nets, self.fold = selection, nets, fold
        self.ids, self.speakers = selection.utterance_ids, selection.speakers
        self.symbols, self.shift_s = selection.corpus.phonemes.symbols, selection.corpus.frame_shift_ms / 1000
        count = selection.num_utterances
        self.shift, self.gain, self.fit = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
        most = round(MOST_MOVED_MS / 1000 / self.shift_s)
        parts: list[Segments] = []
        for index, rows, labels in self.rows(np.ones(count, bool)):
            self.fit[index] = rows[np.arange(len(labels)), labels].mean()
            self.shift[index], self.gain[index] = better_shift(labels, rows, most)
            parts.append(Segments.of(index, labels, rows))
        self.segments = Segments.joined(parts)

    def rows(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Floats, Ints]]:
        """(index, log posteriors (N, C), labels (N,)) of the utterances where `wanted` (U,) is true."""
        for number, net in enumerate(self.nets, 1):
            chosen = wanted & (self.fold == number)
            if not chosen.any():
                continue
            part = self.selection.only(chosen)
            for index, rows in zip(np.flatnonzero(chosen).tolist(), posteriors([net], part, "looking through")):
                yield index, rows, packed_frames(self.selection, index, len(rows))[1]

    def result(self, share: float) -> dict[str, Any]:
        """Ranked lists, and what was counted."""
        below = np.median(self.fit) - self.fit
        score = np.maximum(self.gain, below)
        order = [int(place) for place in np.argsort(-score, kind="stable") if score[place] >= SURE]
        segments = self.segments
        # Labels that were moved are one fault and not a hundred.
        candidates = np.where(np.isin(segments.utterance, order), -np.inf, segments.score)
        best = np.argsort(-candidates, kind="stable")[: max(1, round(share * len(candidates)))]
        best = best[candidates[best] > 0]
        return {
            "utterances_checked": len(self.ids),
            "segments_checked": len(segments.score),
            "utterances": [self._utterance(place, float(score[place]), float(below[place])) for place in order],
            "segments": [self._segment(int(place)) for place in best],
            "classes": self._classes(),
        }

    def name(self, index: int) -> str:
        return f"{self.selection.names[int(self.selection.utterance_source[index])]}/{self.ids[index]}"

    def intervals(self, classes: Ints) -> list[tuple[str, float, float]]:
        """(phone, start, end) in seconds of the runs of equal `classes` (N,)."""
        shift_ms = self.selection.corpus.frame_shift_ms
        return Utterance("", 0, [self.symbols[index] for index in classes.tolist()], shift_ms).phones

    def _utterance(self, index: int, score: float, below: float) -> dict[str, Any]:
        moved = self.gain[index] >= SURE / 2
        ms = float(self.shift[index]) * self.shift_s * 1000
        reason = (
            f"labels fit {abs(ms):g} ms {'earlier' if ms > 0 else 'later'}" if moved else
            f"labels fit {below:.1f} nats a frame worse than the median"
        )  # fmt: skip
        return {"utterance": self.name(index), "speaker": self.speakers[index], "score": score,
                "shift_ms": -ms if moved else None, "reason": reason}  # fmt: skip

    def _segment(self, place: int) -> dict[str, Any]:
        segments = self.segments
        return {
            "utterance": self.name(int(segments.utterance[place])),
            "start": round(float(segments.first[place]) * self.shift_s, 6),
            "end": round(float(segments.end[place]) * self.shift_s, 6),
            "given": self.symbols[int(segments.given[place])],
            "heard": self.symbols[int(segments.heard[place])],
            "score": float(segments.score[place]),
        }

    def _classes(self) -> list[dict[str, Any]]:
        """By class: its segments, and those of them that are another class with that class's usual confidence."""
        segments, classes = self.segments, len(self.symbols)
        count = np.bincount(segments.given, minlength=classes)
        total = np.bincount(segments.given, segments.probability_given, classes)
        usual = np.divide(total, count, out=np.ones(classes), where=count > 0)
        sure = segments.probability_heard >= usual[segments.heard]
        sure &= segments.probability_heard > segments.probability_given
        joint = np.bincount(segments.given[sure] * classes + segments.heard[sure], minlength=classes**2)
        rows = []
        for index, line in enumerate(joint.reshape(classes, classes)):
            if count[index]:
                rows.append(
                    {"phoneme": self.symbols[index], "segments": int(count[index]), "sure_of_another": int(line.sum()),
                     "most_heard_as": self.symbols[int(line.argmax())] if line.any() else None}
                )  # fmt: skip
        return sorted(rows, key=lambda row: -row["sure_of_another"] / row["segments"])


def _write(target: Path, result: dict[str, Any], found: _Search) -> None:
    """The folder of the result, whole or absent."""
    names = [row["utterance"] for row in (*result["utterances"], *result["segments"][: 4 * SHOWN])]
    index_of = {found.name(index): index for index in range(len(found.ids))}
    wanted = np.isin(np.arange(len(found.ids)), [index_of[name] for name in names])
    lines = [f"{row['utterance']}  # {row['reason']}\n" for row in result["utterances"]]
    smooth: Smooth = "viterbi" if len(found.symbols) <= MOST_CLASSES else "none"
    drawn: dict[str, tuple[int, Ints, Ints]] = {}
    decide = decision(found.nets[0], smooth)
    with writing(target, "give another place with --out DIR"), write_folder(target) as folder:
        (folder / "suspects.json").write_text(to_json(result) + "\n", encoding="utf-8")
        (folder / "skip.txt").write_text("".join(lines), encoding="utf-8")
        for index, rows, labels in found.rows(wanted):
            heard = decide(rows)
            drawn[found.name(index)] = index, labels, heard
            tiers = {name: found.intervals(classes) for name, classes in (("given", labels), ("heard", heard))}
            path = folder / "textgrids" / f"{found.name(index)}.TextGrid"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textgrid(tiers), encoding="utf-8")
        if result["segments"]:
            (folder / "suspects.png").write_bytes(_picture(result["segments"][:SHOWN], drawn, found))


def _picture(segments: Sequence[dict[str, Any]], drawn: dict[str, tuple[int, Ints, Ints]], found: _Search) -> bytes:
    """PNG of the features around some segments, with the given and the heard phones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.7 * len(segments)), layout="constrained")
    shift = found.shift_s
    for axes, row in zip(np.atleast_1d(figure.subplots(len(segments))), segments):
        index, labels, heard = drawn[row["utterance"]]
        begin = max(0, round((row["start"] - AROUND_S) / shift))
        end = min(len(labels), round((row["end"] + AROUND_S) / shift))
        packed = packed_frames(found.selection, index, len(labels))[0]
        features = np.asarray(packed[begin:end], np.float32).T
        limit = float(np.quantile(np.abs(features), 0.99)) or 1.0
        height = len(features)
        axes.imshow(features, extent=(begin * shift, end * shift, 0, height), aspect="auto", origin="lower",
                    cmap="RdBu_r", vmin=-limit, vmax=limit)  # fmt: skip
        for words, classes, level in (("given", labels, 1.3), ("heard", heard, 1.1)):
            axes.text(begin * shift, level * height, f"{words}  ", ha="right", va="center", fontsize=8)
            for symbol, first, last in found.intervals(classes[begin:end]):
                middle = begin * shift + (first + last) / 2
                inside = row["start"] <= middle <= row["end"]
                axes.text(middle, level * height, symbol, ha="center", va="center", fontsize=7,
                          color="firebrick" if inside else "black")  # fmt: skip
        axes.axvspan(row["start"], row["end"], fill=False, edgecolor="firebrick", linewidth=1.5)
        axes.set_yticks([])
        axes.set_xlabel(f"{row['utterance']}: {row['given']} given, {row['heard']} heard", fontsize=8)
    return as_png(figure)
