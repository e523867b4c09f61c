"""Packing: one pack at work, its plan, its tasks, and what is already done."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..cmvn import Moments
from ..errors import RawDataError
from ..files import remove_tree
from ..format.zarr_files import ShardFile, digest
from ..raw.base import RawCorpus
from ..raw.frame_labels import list_strays
from .checks import check_space
from .chunk_writer import ChunkFiller
from .executor import Job, in_order
from .journal import ChunkResult, Measurements, Staging
from .metadata import cmvn_attributes, finish_partition, finish_root, root_attributes
from .plan import FEATURES, LABELS, ChunkTask, MeasureTask, PackOptions, PartitionPlan, Statistics
from .report import LeftOut, reason_left_out

_MOST_KEPT = 4 * 360_000  # frames of an utterance whose place is kept: four hours, more is a damaged header
_BATCH = 64  # utterances that one measuring task reads


class Packing:
    """From a listed raw corpus to a finished folder in `staging`.

    The plan starts from guessed lengths. Reading refutes it where a length or an utterance is wrong; then the rows
    behind move, and the chunks whose content changed (and only those) are made again. Every chunk is a function of
    the raw files and the plan alone, so the workers of `executor`, their number and their machines change nothing.
    """

    def __init__(
        self,
        corpus: RawCorpus,
        options: PackOptions,
        feature_dim: int,
        dim_from: str,
        staging: Staging,
        executor: Executor,
        ahead: int,
        progress: Callable[..., None] | None,
    ):
        self.corpus, self.options, self.feature_dim, self.staging = corpus, options, feature_dim, staging
        self.progress: Callable[..., None] = progress or (lambda *_: None)
        self.raw = {p.name: p for p in corpus.partitions}
        self.done: dict[tuple[str, int], tuple[str, ChunkResult]] = {}
        self.group_moments: dict[tuple[str, str] | str, Moments] = {}
        self._measured: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.reused = 0
        self._executor, self._ahead = executor, ahead
        make_tool = partial(ChunkFiller, corpus, feature_dim, dim_from, options.dtype, staging.corpus)
        self._job = Job(staging.path, make_tool)
        self.files: dict[str, list[ShardFile]] = {}
        self.plans: dict[str, PartitionPlan] = {}
        for p in corpus.partitions:
            count = len(p.utterance_ids)
            hint = np.ones(count, np.int64) if p.lengths_hint is None else np.array(p.lengths_hint, np.int64)
            self.plans[p.name] = PartitionPlan(p.name, options.context, hint, np.arange(count), options.dtype)
        self._earlier_chunks, self._earlier_readings = self._replay()

    def run(self) -> None:
        """Everything between the listing and the rename."""
        # Of an earlier call: its workers may live on.
        self.staging.end_attempts(self.staging.renew)
        measured = self._measured_partitions()
        if wanted := sorted(measured | {name for name in self.plans if self.raw[name].lengths_hint is None}):
            self._measure(wanted, measured)
        for name in sorted(measured):
            self._group(name)
        while self._write_pass():
            pass
        self._finish()

    # -- statistics first

    def _measured_partitions(self) -> set[str]:
        """Partitions whose statistics normalise something."""
        if self.options.cmvn == "train":
            return set(self.options.train_partitions)
        return set(self.plans) if self.options.cmvn == "speaker" else set()

    def _measure(self, names: list[str], keep: set[str]) -> None:
        """First pass: raw moments, kept of the partitions in `keep`, and true lengths where nothing hints at them."""
        for name in keep:
            count, dim = len(self.raw[name].utterance_ids), self.feature_dim
            self._measured[name] = np.zeros(count, np.int64), np.zeros((count, dim)), np.zeros((count, dim))
        batches: list[MeasureTask] = []
        for name in names:
            end = len(self.raw[name].utterance_ids)
            batches += [MeasureTask(name, np.arange(n, min(end, n + _BATCH))) for n in range(0, end, _BATCH)]
        total, done = sum(len(batch.index) for batch in batches), 0
        for batch, reading in self._readings(batches):
            if batch.partition in keep:
                counts, means, squares = self._measured[batch.partition]
                good = list(reading.lengths)
                counts[good], means[good], squares[good] = (
                    list(reading.lengths.values()),
                    reading.means,
                    reading.squares,
                )
            self._correct(batch.partition, reading)
            done += len(batch.index)
            self.progress("measuring", done, total, "utterances")

    def _readings(self, batches: list[MeasureTask]) -> Iterator[tuple[MeasureTask, Measurements]]:
        """Those of an earlier call, then the others."""
        earlier = [self._earlier_readings.get((batch.partition, int(batch.index[0]))) for batch in batches]
        yield from ((batch, reading) for batch, reading in zip(batches, earlier) if reading is not None)
        missing = [batch for batch, reading in zip(batches, earlier) if reading is None]
        for batch, reading in self._in_order(ChunkFiller.measure, missing, self.staging.path):
            place = {"partition": batch.partition, "first": int(batch.index[0])}
            self.staging.record({**place, **reading.to_record()})
            yield batch, reading

    def _in_order(self, function: Callable, tasks: Iterable, attempts: Path) -> Iterator[tuple[Any, Any]]:
        return in_order(self._executor, self._ahead, self._job, function, tasks, attempts)

    def _group(self, name: str) -> None:
        """Merge utterances into speakers of a partition, or into the one training group, in utterance order."""
        counts, means, squares = self._measured[name]
        good = np.flatnonzero(counts)
        for key, run in groupby(good.tolist(), lambda index: self._group_key(name, index)):
            own = np.array(list(run))
            group = self.group_moments.setdefault(key, Moments(self.feature_dim))
            group.merge(counts[own], means[own], squares[own])

    def _group_key(self, partition: str, index: int) -> tuple[str, str] | str:
        """The group of utterances that share statistics."""
        return (partition, self.raw[partition].speakers[index]) if self.options.cmvn == "speaker" else "train"

    def _with_statistics(self, task: ChunkTask) -> ChunkTask:
        """The task with what normalises its utterances, where they do not do it themselves."""
        if self.options.cmvn == "utterance":
            return task
        centres, scales = np.zeros((len(task.index), self.feature_dim)), np.ones((len(task.index), self.feature_dim))
        if self.options.cmvn != "none":
            for n in np.flatnonzero(~task.blank).tolist():
                group = self.group_moments[self._group_key(task.partition, int(task.index[n]))]
                centres[n], scales[n] = group.mean, group.scale
        measured = self._measured.get(task.partition)
        if measured is None:
            return replace(task, statistics=Statistics(centres, scales))
        _, means, squares = measured
        return replace(task, statistics=Statistics(centres, scales, means[task.index], squares[task.index]))

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
        if len(plan.index) == len(plan.kept):
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

    def _row_bytes(self, name: str) -> list[int]:
        """Bytes of a row of features and, where there are transcripts, of labels."""
        row = self.feature_dim * np.dtype(self.options.dtype).itemsize
        return [row, self.corpus.phonemes.label_dtype.itemsize] if self.raw[name].labelled else [row]

    def _shards(self, name: str, root: Path) -> list[ShardFile]:
        """The shards in `root` of a partition's features and labels, as the plan has them."""
        plan = self.plans[name]
        files = zip((FEATURES, LABELS), self._row_bytes(name))
        return [ShardFile(root / name / file, plan.chunks, plan.chunk_rows * size) for file, size in files]

    def _write_pass(self) -> bool:
        """Write the chunks that are not done; True if another pass must follow: reading has refuted the plan, twice at
        most, or a worker may still be writing into files that therefore were left behind."""
        wanted = sum(p.chunk_rows * p.chunks * sum(self._row_bytes(name)) for name, p in self.plans.items())
        check_space(self.staging.path, wanted, self.staging.size_on_disk())
        self.files = {name: self._shards(name, self.staging.corpus) for name, p in self.plans.items() if len(p.index)}
        for shards in self.files.values():
            for shard in shards:
                shard.create()
        tasks: list[ChunkTask] = []
        left_behind = self.staging.left_behind()
        for name in self.files:
            plan = self.plans[name]
            tasks += [t for t in map(plan.task, range(plan.chunks)) if not self._is_done(t, left_behind)]
        for folder in left_behind:
            remove_tree(folder)
        total = sum(int(p.utterance_end[-1]) for p in self.plans.values() if len(p.index))
        done = total - sum(t.own_frames for t in tasks)
        self.progress("packing", done, total)
        refuted: dict[str, Measurements] = {}
        attempts = self.staging.begin_attempts()
        for task, result in self._in_order(ChunkFiller.fill, map(self._with_statistics, tasks), attempts):
            if isinstance(result, Measurements):
                if result.bad and not self.options.skip_bad:
                    self._refuse(task.partition, result.bad)
                found = refuted.setdefault(task.partition, result)
                found.bad.update(result.bad)
                found.lengths.update(result.lengths)
            else:
                self.done[task.partition, task.chunk] = task.key, result
                place = {"partition": task.partition, "chunk": task.chunk, "key": task.key}
                self.staging.record({**place, **result.to_record()})
            done += task.own_frames
            self.progress("packing", done, total)
        renewed = self.staging.end_attempts(self.staging.renew)
        changed = [self._correct(name, reading) for name, reading in refuted.items()]
        return any(changed) or renewed

    def _is_done(self, task: ChunkTask, left_behind: list[Path]) -> bool:
        """Whether this chunk was written, in this call or an earlier one, and its bytes still are what they were; those
        in a folder that was left behind are copied."""
        place = task.partition, task.chunk
        key, result = self.done.get(place, ("", None))
        if result is not None and not left_behind:
            return key == task.key
        earlier = self._earlier_chunks.pop(place, None)
        if result is None and earlier is not None:
            key, result = earlier["key"], ChunkResult.from_record(earlier, self.feature_dim)
        if result is None or key != task.key:
            return False
        self.done[place] = key, result
        for number, wanted in enumerate(filter(None, (result.features, result.labels))):
            shard = self.files[task.partition][number]
            if digest(shard.read(task.chunk)) == wanted:
                continue
            for folder in left_behind:
                data = self._shards(task.partition, folder)[number].read(task.chunk)
                if digest(data) == wanted:
                    shard.write(task.chunk, data)
                    break
            else:
                del self.done[place]
                return False
        self.reused += earlier is not None
        return True

    # -- the end

    def _finish(self) -> None:
        entries, attributes = {}, {}
        for name in self.files:
            plan, raw, dtype = self.plans[name], self.raw[name], np.dtype(self.options.dtype)
            results = [self.done[name, chunk][1] for chunk in range(plan.chunks)]
            attributes[name], entries[name] = finish_partition(
                self.staging.corpus, raw, plan, self.files[name], results, dtype, self.corpus.phonemes
            )
        left_out = self._left_out()
        cmvn = cmvn_attributes(self.options, self.group_moments.get("train"))
        root = root_attributes(self.corpus, self.options, self.feature_dim, cmvn, entries, left_out)
        finish_root(self.staging.corpus, root, attributes)

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
