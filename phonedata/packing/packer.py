"""Packing: one pack at work, its plan, its workers, and what is already done."""

import os
import re
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ..cmvn import Moments
from ..errors import RawDataError
from ..format.zarr_files import ShardFile
from ..raw.base import RawCorpus
from ..raw.frame_labels import list_strays
from .checks import check_space
from .chunk_writer import ChunkFiller, UtteranceReader
from .journal import ChunkResult, Measurements, Staging
from .metadata import WrittenPartition, cmvn_attributes, finish_partition, finish_root, root_attributes
from .ordered_pool import OrderedPool
from .parts import part_range
from .plan import ChunkTask, PackOptions, PartitionPlan
from .report import LeftOut, reason_left_out

_MOST_KEPT = 4 * 360_000  # frames of an utterance whose place is kept: four hours, more is a damaged header
_BATCH = 64  # utterances that one measuring task reads


class Packing:
    """From a listed raw corpus to a finished folder in `staging`.

    The plan starts from guessed lengths. Reading refutes it where a length or an utterance is wrong; then the rows
    behind move, and the chunks whose content changed (and only those) are made again. Every chunk is a function of
    the raw files and the plan alone, so the workers and their number change nothing.
    """

    def __init__(
        self,
        corpus: RawCorpus,
        options: PackOptions,
        feature_dim: int,
        dim_from: str,
        origin: dict[str, Any],
        command: str,
        staging: Staging,
        workers: int,
        progress: Callable[..., None] | None,
    ):
        self.corpus, self.options, self.feature_dim = corpus, options, feature_dim
        self.staging, self.origin, self.command = staging, origin, command
        self.progress: Callable[..., None] = progress or (lambda *_: None)
        self.raw = {p.name: p for p in corpus.partitions}
        self.done: dict[tuple[str, int], tuple[str, ChunkResult]] = {}
        self.group_moments: dict[tuple[str, str] | str, Moments] = {}
        self._measured: dict[str, tuple[list[int], list[Measurements]]] = {}
        self.reused = 0
        self.team = OrderedPool(workers, lambda: self._new_filler(dim_from))
        self.files: dict[str, tuple[ShardFile, ShardFile | None]] = {}
        self.plans: dict[str, PartitionPlan] = {}
        for p in corpus.partitions:
            count = len(p.utterance_ids)
            hint = np.ones(count, np.int64) if p.lengths_hint is None else np.array(p.lengths_hint, np.int64)
            index = np.array(part_range(count, options.part), np.int64)
            if len(index):
                self.plans[p.name] = PartitionPlan(p.name, options.context, hint, index, options.dtype)
        self._earlier_chunks, self._earlier_readings = self._replay()

    def _new_filler(self, dim_from: str) -> ChunkFiller:
        reader = UtteranceReader(self.corpus, self.feature_dim, dim_from)
        statistics = None if self.options.cmvn == "utterance" else self._statistics
        phonemes = self.corpus.phonemes
        return ChunkFiller(reader, self.options.dtype, phonemes.label_dtype, len(phonemes), statistics, self._check)

    def run(self, statistics: dict[str, list[Measurements]] | None) -> None:
        """Everything between the listing and the rename. `statistics` are those of all parts, if there are parts."""
        if statistics is None and (self._measured_partitions() or self._hintless()):
            statistics = self.measure()
        else:
            statistics = statistics or {}
            self._correct_own(statistics)
        if self.options.cmvn in ("speaker", "train"):
            self._group(statistics)
        with ExitStack() as self._shards:
            self._write()
            self._finish()

    # -- statistics first

    def _measured_partitions(self) -> set[str]:
        """Partitions whose statistics normalise something."""
        if self.options.cmvn == "train":
            return set(self.options.train_partitions) & self.plans.keys()
        return set(self.plans) if self.options.cmvn == "speaker" else set()

    def _hintless(self) -> set[str]:
        return {name for name in self.plans if self.raw[name].lengths_hint is None}

    def measure(self) -> dict[str, list[Measurements]]:
        """First pass: raw moments, and true lengths where nothing hints at them; by partition, in utterance order."""
        tasks: list[tuple[str, np.ndarray]] = []
        for name in sorted(self._measured_partitions() | self._hintless()):
            index = np.array(part_range(len(self.raw[name].utterance_ids), self.options.part))
            tasks += [(name, index[i : i + _BATCH]) for i in range(0, len(index), _BATCH)]
        total, done = sum(len(index) for _, index in tasks), 0
        readings: dict[str, list[Measurements]] = {}
        for (name, index), reading in self.team.in_order(self._measure, tasks):
            if (name, int(index[0])) not in self._earlier_readings:
                self.staging.record({"partition": name, "first": int(index[0]), **reading.to_record()})
            self._correct(name, reading)
            # Statistics are kept for parts that read the raw folder from another place.
            reading.bad = {i: self._relative(message) for i, message in reading.bad.items()}
            readings.setdefault(name, []).append(reading)
            done += len(index)
            self.progress("measuring", done, total, "utterances")
        return readings

    def _measure(self, filler: ChunkFiller, task: tuple[str, np.ndarray]) -> Measurements:
        name, index = task
        earlier = self._earlier_readings.get((name, int(index[0])))
        return filler.reader.measure(name, index) if earlier is None else earlier

    def _group(self, statistics: dict[str, list[Measurements]]) -> None:
        """Merge utterances into speakers of a partition, or into the one training group, in utterance order."""
        for name in sorted(statistics):
            if self.options.cmvn == "train" and name not in self.options.train_partitions:
                continue
            speakers = self.raw[name].speakers
            for r in statistics[name]:
                for i, utterance in enumerate(r.index.tolist()):
                    key = self._group_key(name, speakers[utterance])
                    group = self.group_moments.setdefault(key, Moments(self.feature_dim))
                    group.merge(r.counts[i : i + 1], r.means[i : i + 1], r.squares[i : i + 1])
            readings = [r for r in statistics[name] if len(r.index)]
            self._measured[name] = [int(r.index[0]) for r in readings], readings
        if self.options.cmvn == "train" and not self.group_moments:
            bad = [m for name in self.options.train_partitions for r in statistics[name] for m in r.bad.values()]
            raise RawDataError(
                f"{self.corpus.path}: training partition {' + '.join(self.options.train_partitions)} has no utterance "
                f"left to take statistics from; first: {bad[0]}"
            )

    def _check(self, partition: str, index: int, mean: np.ndarray, square: np.ndarray) -> None:
        """Refuse an utterance that is not what its statistics were taken from, although its file has the same size."""
        firsts, readings = self._measured.get(partition, ([], []))
        if not firsts:
            return
        reading = readings[bisect_right(firsts, index) - 1]
        n = int(np.searchsorted(reading.index, index))
        if np.array_equal(mean, reading.means[n]) and np.array_equal(square, reading.squares[n]):
            return
        where, part = self.raw[partition].where(index), self.options.part
        onward = f"run: {self.command} --part {part[0]}/{part[1]} --stats-only" if part else "pack again"
        raise RawDataError(f"{where}: has other values than when statistics were taken; {onward}")

    def _statistics(self, partition: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale (D,) that normalise an utterance, where they are not its own."""
        if self.options.cmvn == "none":
            return np.zeros(self.feature_dim), np.ones(self.feature_dim)
        group = self.group_moments[self._group_key(partition, self.raw[partition].speakers[index])]
        return group.mean, group.scale

    def _group_key(self, partition: str, speaker: str) -> tuple[str, str] | str:
        """The group of utterances that share statistics."""
        return (partition, speaker) if self.options.cmvn == "speaker" else "train"

    # -- what reading has shown

    def _correct(self, name: str, reading: Measurements) -> bool:
        """Take over true lengths and bad utterances; True if the plan changed."""
        plan = self.plans[name]
        if reading.bad and not self.options.skip_bad:
            self._refuse(name, reading.bad)
        lengths = {i: t for i, t in reading.lengths.items() if plan.lengths[i] != t}
        bad = {i: self._relative(m) for i, m in reading.bad.items() if i not in plan.bad}
        if not lengths and not bad:
            return False
        places = {i: self._place(name, i) for i in bad}
        kept = [i for i, frames in places.items() if frames]
        lengths |= {i: places[i] for i in kept}
        plan.correct(lengths, bad, kept)
        record = {"partition": name, "lengths": list(lengths.items()), "bad": list(bad.items()), "kept": kept}
        self.staging.record(record)
        if not len(plan.index) - len(plan.kept) and self.options.part is None:
            first = next(iter(plan.bad.values()))
            raise RawDataError(f"{self.corpus.path}: partition {name} has no utterance left to pack; first: {first}")
        return True

    def _refuse(self, name: str, bad: dict[int, str]) -> NoReturn:
        """Raise what is wrong with the first of the bad utterances, as the kind of error that its layout raises."""
        index = min(bad)
        self.raw[name].read(index)
        raise RawDataError(bad[index])

    def _place(self, name: str, index: int) -> int:
        """Frames that an utterance which cannot be packed keeps: without labels rows are a submission's, whose order
        must stand. 0 where there are labels, or nobody knows."""
        frames = None if self.raw[name].labelled else self.raw[name].num_frames(index)
        return frames if frames and 0 < frames <= _MOST_KEPT else 0

    def _correct_own(self, statistics: dict[str, list[Measurements]]) -> None:
        """Take over what measuring has shown of this part's utterances; other parts' are none of its plan."""
        for name in statistics.keys() & self.plans.keys():
            own = part_range(len(self.raw[name].utterance_ids), self.options.part)
            for reading in statistics[name]:
                lengths = {i: t for i, t in reading.lengths.items() if i in own}
                bad = {i: message for i, message in reading.bad.items() if i in own}
                self._correct(name, replace(reading, lengths=lengths, bad=bad))

    def _relative(self, message: str) -> str:
        """A message without the place of the raw folder: it goes into the corpus, which is the same anywhere."""
        # Only where a path begins: `raw/` also ends `my-raw/`, and is no prefix there.
        return re.sub(rf"(?<![^\s'\"(]){re.escape(f'{self.corpus.path}{os.sep}')}", "", message)

    def _replay(self) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[tuple[str, int], Measurements]]:
        """What an interrupted try of this very pack has shown: chunks by place, readings by first utterance."""
        chunks: dict[tuple[str, int], dict[str, Any]] = {}
        readings: dict[tuple[str, int], Measurements] = {}
        for entry in self.staging.records[1:]:
            name = entry["partition"]
            if "chunk" in entry:
                chunks[name, entry["chunk"]] = entry
            elif "first" in entry:
                readings[name, entry["first"]] = Measurements.from_record(entry, self.feature_dim)
            else:
                lengths, bad = ({int(i): value for i, value in entry[what]} for what in ("lengths", "bad"))
                self.plans[name].correct(lengths, bad, entry["kept"])
        return chunks, readings

    # -- chunks

    def _write(self) -> None:
        """Write every chunk, again and again until no reading refutes the plan: twice at most, as a pass reads all."""
        changed = True
        while changed:
            self._shards.close()
            wanted = sum(p.chunk_rows * p.chunks * sum(self._row_bytes(name)) for name, p in self.plans.items())
            check_space(self.staging.path, wanted, self.staging.size_on_disk())
            self.files = {name: self._open_files(name) for name, plan in self.plans.items() if len(plan.index)}
            changed = self._write_pass()

    def _row_bytes(self, name: str) -> tuple[int, int]:
        """Bytes of a row of features and of labels; none of labels without transcripts."""
        label_bytes = self.corpus.phonemes.label_dtype.itemsize if self.raw[name].labelled else 0
        return self.feature_dim * np.dtype(self.options.dtype).itemsize, label_bytes

    def _open_files(self, name: str) -> tuple[ShardFile, ShardFile | None]:
        """The shards of a partition's features and labels, as long as the plan says."""
        plan, folder = self.plans[name], self.staging.corpus / name
        row, label = self._row_bytes(name)
        files = [(folder / "features/c/0/0", row)] + [(folder / "labels/c/0", label)] * bool(label)
        shards = [
            self._shards.enter_context(ShardFile(file, plan.chunks, plan.chunk_rows * size)) for file, size in files
        ]
        return shards[0], shards[1] if label else None

    def _write_pass(self) -> bool:
        """Write the chunks that are not done; True if reading has refuted the plan."""
        tasks: list[ChunkTask] = []
        for name in self.files:
            plan = self.plans[name]
            tasks += [t for t in map(plan.task, range(plan.chunks)) if not self._is_done(t)]
        total = sum(int(p.utterance_end[-1]) for p in self.plans.values() if len(p.index))
        done = total - sum(t.own_frames for t in tasks)
        self.progress("packing", done, total)
        refuted: dict[str, Measurements] = {}
        for task, result in self.team.in_order(self._fill, tasks):
            done += task.own_frames
            self.progress("packing", done, total)
            if isinstance(result, Measurements):
                if result.bad and not self.options.skip_bad:
                    self._refuse(task.partition, result.bad)
                found = refuted.setdefault(task.partition, result)
                found.bad.update(result.bad)
                found.lengths.update(result.lengths)
                continue
            self.done[task.partition, task.chunk] = task.key, result
            place = {"partition": task.partition, "chunk": task.chunk, "key": task.key}
            self.staging.record({**place, **result.to_record()})
        changed = [self._correct(name, reading) for name, reading in refuted.items()]
        return any(changed)

    def _fill(self, filler: ChunkFiller, task: ChunkTask) -> ChunkResult | Measurements:
        return filler.fill(task, *self.files[task.partition])

    def _is_done(self, task: ChunkTask) -> bool:
        """Whether this chunk was written, in this process or an earlier one, and its bytes still are what they were."""
        place = task.partition, task.chunk
        if place in self.done:
            return self.done[place][0] == task.key
        entry = self._earlier_chunks.pop(place, None)
        if entry is None or entry["key"] != task.key:
            return False
        result = ChunkResult.from_record(entry, self.feature_dim)
        features, labels = self.files[task.partition]
        if features.read_digest(task.chunk) != result.features:
            return False
        if labels is not None and labels.read_digest(task.chunk) != result.labels:
            return False
        self.done[place] = task.key, result
        self.reused += 1
        return True

    # -- the end

    def _finish(self) -> None:
        entries, attributes = {}, {}
        for name in self.files:
            written = self._written(name)
            attributes[name], entries[name] = finish_partition(
                self.staging.corpus,
                written,
                np.dtype(self.options.dtype),
                self.corpus.phonemes,
                keep_moments=self.options.part is not None,
            )
        left_out = self._left_out()
        cmvn = cmvn_attributes(self.options, self.group_moments.get("train"))
        root = root_attributes(self.corpus, self.options, self.feature_dim, cmvn, entries, left_out)
        if self.options.part:
            root["part"] = {"index": self.options.part[0], "of": self.options.part[1], **self.origin}
        finish_root(self.staging.corpus, root, attributes)

    def _written(self, name: str) -> WrittenPartition:
        plan, raw = self.plans[name], self.raw[name]
        results = [self.done[name, chunk][1] for chunk in range(plan.chunks)]
        index = plan.index.tolist()
        features, labels = self.files[name]
        return WrittenPartition(
            name=name,
            labelled=raw.labelled,
            order=raw.order,
            utterance_ids=[raw.utterance_ids[i] for i in index],
            speakers=[raw.speakers[i] for i in index],
            lengths=plan.lengths[plan.index],
            rows=plan.rows,
            features=features,
            feature_digests=[r.features for r in results],
            labels=labels,
            label_digests=[r.labels for r in results if r.labels is not None],
            histogram=np.sum([r.histogram for r in results if r.histogram is not None], axis=0) if labels else None,
            means=[r.reading.means for r in results],
            squares=[r.reading.squares for r in results],
        )

    def notes(self) -> tuple[str, ...]:
        """What is said of utterances that were left out, beside their own reasons."""
        found = list_strays((self.raw[name], index) for name, plan in self.plans.items() for index in sorted(plan.bad))
        return (f"labels that are no class, whose utterances are left out: {found}",) if found else ()

    def _left_out(self) -> list[LeftOut]:
        left_out: list[LeftOut] = []
        for name, raw in self.raw.items():
            left_out += [
                LeftOut(name, p.utterance_id, reason_left_out(self._relative(p.message)), p.frames)
                for p in raw.problems
            ]
            if name in self.plans:
                plan = self.plans[name]
                for i, message in plan.bad.items():
                    frames = int(plan.lengths[i]) if i in plan.kept else None
                    left_out.append(LeftOut(name, raw.utterance_ids[i], reason_left_out(message), frames))
        return sorted(left_out)
