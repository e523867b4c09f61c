"""pack: raw -> packed: list, measure if needed, write chunk by chunk, describe, put in place."""

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from phonedata.chunks import ChunkFiller, ChunkResult, Reading, UtteranceReader
from phonedata.cmvn import KINDS, Moments
from phonedata.errors import CorpusExists, CorpusNotFound, PhonedataError, RawDataError, SpecError
from phonedata.exchange import put_in_place, recover
from phonedata.group import StatedMoments, describe_root, finish_partition
from phonedata.journal import Staging
from phonedata.packreport import LeftOut, PackReport
from phonedata.plan import PackOptions, PartitionPlan
from phonedata.raw import RawCorpus, open_raw
from phonedata.shard import CHUNK_ROWS, ShardFile, full_disk, num_chunks

_BATCH = 64  # utterances that one measuring task reads


def pack(
    raw,
    packed,
    *,
    layout: str | None = None,
    cmvn: str = "utterance",
    train_partition: str | None = None,
    dtype: str = "float16",
    context: int = 50,
    skip_bad: bool = False,
    replace: bool = False,
    workers: int | None = None,
    progress=None,
) -> PackReport:
    """Pack the raw folder `raw` into the corpus `packed`, whole or not at all; returns what was done.

    `cmvn` is "utterance", "speaker" (within a partition), "train" (from `train_partition`) or "none". `dtype` is
    "float16" or "float32". `context` rows of zeros separate utterances: the largest window side that can be asked
    for. `skip_bad` leaves out utterances that cannot be packed and lists them. `workers` threads (default: the
    processors) change nothing but the time. `progress(stage, done, total)` is called with frames.

    An interrupted call continues where it stopped when it is repeated. Raises CorpusExists, CorpusNotFound,
    RawDataError (the first thing wrong in the raw folder), SpecError, PhonedataError (disk).
    """
    started = time.perf_counter()
    target = Path(packed)
    options = PackOptions(cmvn, train_partition, dtype, context, skip_bad)
    check_options(options)
    recover(target)
    check_target(target, replace)
    corpus = open_raw(raw, layout)
    check_partitions(corpus, options)
    feature_dim, dim_from = find_feature_dim(corpus)
    try:
        staging = Staging(target, options.fingerprint(corpus, feature_dim))
        try:
            work = Packing(corpus, options, feature_dim, dim_from, staging, workers or os.cpu_count() or 1, progress)
            report = work.run(target)
        except KeyboardInterrupt:
            staging.release()
            raise
        except BaseException:
            staging.remove()
            raise
        check_target(target, replace)
        put_in_place(staging.corpus, target)
        staging.remove()
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise full_disk(target, error) or error from None
    report.seconds = time.perf_counter() - started
    return report


def check_options(options: PackOptions) -> None:
    """Refuse options that no corpus can have."""
    if options.cmvn not in KINDS:
        raise SpecError(f"cmvn {options.cmvn!r} is unknown; kinds are {', '.join(KINDS)}")
    if options.dtype not in ("float16", "float32"):
        raise SpecError(f"dtype {options.dtype!r}, wanted float16 or float32")
    if not 0 <= options.context <= 10_000:
        raise SpecError(f"context {options.context}, wanted 0 to 10000 rows")
    if options.train_partition is not None and options.cmvn != "train":
        raise SpecError(f"train partition {options.train_partition!r} is named, but cmvn is {options.cmvn!r}; it needs cmvn train")


def check_target(target: Path, replace: bool) -> None:
    """Refuse a target that is there, unless it is a packed corpus and may be replaced."""
    if not target.exists():
        if not target.absolute().parent.is_dir():
            raise CorpusNotFound(f"{target}: its folder {target.absolute().parent} does not exist; make it first")
        return
    if not (target / "zarr.json").is_file():
        raise CorpusExists(f"{target}: is there and is no packed corpus; choose another name (nothing of it was touched)")
    if not replace:
        raise CorpusExists(f"{target}: a packed corpus is already there; replace it with --replace")


def check_partitions(corpus: RawCorpus, options: PackOptions) -> None:
    """Refuse listings with problems (unless they may be skipped), and a training partition that is not there."""
    names = [p.name for p in corpus.partitions]
    if not names:
        raise RawDataError(f"{corpus.path}: no partitions; fill it first")
    if options.cmvn == "train":
        if options.train_partition is None:
            found = [n for n in names if n.startswith("train")]
            raise SpecError(
                f"cmvn train needs the partition that its statistics come from: add "
                f"--train-partition {found[0] if found else names[0]} (partitions: {', '.join(names)})"
            )
        if options.train_partition not in names:
            raise SpecError(f"train partition {options.train_partition!r} is not there; partitions: {', '.join(names)}")
    for partition in corpus.partitions:
        if partition.problems and not options.skip_bad:
            more = len(partition.problems) - 1
            raise RawDataError(partition.problems[0].message + (f" (and {more} more like it)" if more else ""))
        if not partition.utterance_ids:
            raise RawDataError(f"{corpus.path}: partition {partition.name} has no utterance left to pack; mend or remove it")


def find_feature_dim(corpus: RawCorpus) -> tuple[int, str]:
    """D, and the file that says so: the first readable utterance. Raises RawDataError when none is readable."""
    problem = None
    for partition in sorted(corpus.partitions, key=lambda p: (not p.labelled, p.name)):
        for index in range(min(len(partition.utterance_ids), 50)):
            try:
                features, _ = partition.read(index)
            except RawDataError as error:
                problem = problem or error
                continue
            if features.shape[1]:
                return features.shape[1], partition.where(index)
            problem = problem or RawDataError(f"{partition.where(index)}: 0 coefficients a frame, wanted at least one")
    raise problem


class Packing:
    """One pack at work: its plan, its files, and what is already done."""

    def __init__(self, corpus, options, feature_dim, dim_from, staging, workers, progress):
        self.corpus, self.options, self.feature_dim = corpus, options, feature_dim
        self.staging, self.workers = staging, max(1, workers)
        self.progress = progress or (lambda stage, done, total: None)
        self.raw = {p.name: p for p in corpus.partitions}
        self.done: dict[tuple[str, int], tuple[str, ChunkResult]] = {}
        self.group_moments: dict = {}
        self.reused = 0
        self._idle: deque = deque()
        self._new_filler = lambda: ChunkFiller(
            UtteranceReader(corpus, feature_dim, dim_from),
            options.dtype,
            corpus.phonemes.label_dtype,
            len(corpus.phonemes),
            self._statistics,
        )
        self.plans = {}
        for p in corpus.partitions:
            count = len(p.utterance_ids)
            hint = np.ones(count, np.int64) if p.lengths_hint is None else np.array(p.lengths_hint, np.int64)
            self.plans[p.name] = PartitionPlan(p.name, options.context, hint, np.arange(count), options.dtype)

    def run(self, target: Path) -> PackReport:
        """Everything between the listing and the rename."""
        self._replay()
        if self.options.cmvn in ("speaker", "train") or any(p.lengths_hint is None for p in self.corpus.partitions):
            self._measure()
        self._write()
        return self._finish(target)

    def _statistics(self, partition: str, index: int):
        kind = self.options.cmvn
        if kind == "utterance":
            return None
        if kind == "none":
            return np.zeros(self.feature_dim), np.ones(self.feature_dim)
        key = (partition, self.raw[partition].speakers[index]) if kind == "speaker" else "train"
        found = self.group_moments[key]
        return found.mean, found.scale

    def _with_filler(self, function, *args):
        """Run on an idle filler; there are never more of them than workers."""
        try:
            filler = self._idle.pop()
        except IndexError:
            filler = self._new_filler()
        try:
            return function(filler, *args)
        finally:
            self._idle.append(filler)

    def _in_order(self, function, tasks):
        """(task, result) in the order of the tasks, made by the workers; few are in flight, so memory stays flat."""
        if self.workers == 1:
            for task in tasks:
                yield task, self._with_filler(function, task)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque = deque()
            try:
                for task in tasks:
                    waiting.append((task, pool.submit(self._with_filler, function, task)))
                    if len(waiting) > 2 * self.workers:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _correct(self, name: str, reading: Reading) -> bool:
        """Take over what reading has shown; True if the plan changed."""
        plan = self.plans[name]
        if reading.bad and not self.options.skip_bad:
            raise RawDataError(reading.bad[min(reading.bad)])
        lengths = {i: t for i, t in reading.lengths.items() if plan.lengths[i] != t}
        if not lengths and not reading.bad:
            return False
        bad = {i: self._relative(m) for i, m in reading.bad.items()}
        plan.correct(lengths, bad)
        self.staging.record({"partition": name, "lengths": list(lengths.items()), "bad": list(bad.items())})
        if not len(plan.index):
            first = bad[min(bad)] if bad else ""
            raise RawDataError(f"{self.corpus.path}: partition {name} has no utterance left to pack; first: {first}")
        return True

    def _relative(self, message: str) -> str:
        """A message without the place of the raw folder: it goes into the corpus, which is the same anywhere."""
        return message.replace(f"{self.corpus.path}{os.sep}", "")

    def _replay(self) -> None:
        """Take over what an interrupted try of this very pack had done; its chunks are checked by their digests."""
        found = {}
        for entry in self.staging.records[1:]:
            if "chunk" in entry:
                found[entry["partition"], entry["chunk"]] = entry
            elif "lengths" in entry:
                self.plans[entry["partition"]].correct(
                    {int(i): t for i, t in entry["lengths"]}, {int(i): m for i, m in entry["bad"]}
                )
        self._found = found
        self._measured = {
            (e["partition"], e["first"]): e for e in self.staging.records[1:] if "measured" in e
        }

    def _measure(self) -> None:
        """First pass: raw moments of speakers or of the training partition, and lengths where nothing hints at them."""
        kind = self.options.cmvn
        tasks = []
        for p in self.corpus.partitions:
            if kind == "speaker" or (kind == "train" and p.name == self.options.train_partition) or p.lengths_hint is None:
                index = np.arange(len(p.utterance_ids))
                tasks += [(p.name, index[i : i + _BATCH]) for i in range(0, len(index), _BATCH)]
        total, done = sum(len(i) for _, i in tasks), 0
        speakers = {p.name: p.speakers for p in self.corpus.partitions}
        for (name, index), reading in self._in_order(self._measure_batch, tasks):
            if (name, int(index[0])) not in self._measured:
                self.staging.record({"partition": name, "first": int(index[0]), **StatedMoments.to_record(reading)})
            self._correct(name, reading)
            for i in range(len(reading.index)):
                key = (name, speakers[name][int(reading.index[i])]) if kind == "speaker" else name
                self.group_moments.setdefault(key, Moments(self.feature_dim)).merge(
                    reading.counts[i : i + 1], reading.means[i : i + 1], reading.squares[i : i + 1]
                )
            done += len(index)
            self.progress("measuring", done, total)
        if kind == "train":
            self.group_moments["train"] = self.group_moments[self.options.train_partition]

    def _measure_batch(self, filler, task) -> Reading:
        name, index = task
        earlier = self._measured.get((name, int(index[0])))
        if earlier:
            return StatedMoments.from_record(earlier, self.feature_dim)
        return filler.reader.measure(name, index)

    def _write(self) -> None:
        """Write every chunk; where reading refutes the plan, the rows move and the chunks concerned are written again."""
        while True:
            self.files = {}
            try:
                for name in self.plans:
                    self.files[name] = self.open_files(name)
                changed = self._write_pass()
            finally:
                for files in self.files.values():
                    for file in filter(None, files):
                        file.close()
            if not changed:
                return

    def open_files(self, name: str) -> tuple[ShardFile, ShardFile | None]:
        """The shards of a partition's features and labels, as long as the plan says."""
        plan, folder = self.plans[name], self.staging.corpus / name
        row = self.feature_dim * np.dtype(self.options.dtype).itemsize
        features = ShardFile(folder / "features/c/0/0", plan.chunks, CHUNK_ROWS * row)
        if not self.raw[name].labelled:
            return features, None
        row = self.corpus.phonemes.label_dtype.itemsize
        return features, ShardFile(folder / "labels/c/0", plan.chunks, CHUNK_ROWS * row)

    def _write_pass(self) -> bool:
        total = sum(p.rows for p in self.plans.values())
        done, changed, tasks = 0, False, []
        for name, plan in self.plans.items():
            for chunk in range(plan.chunks):
                task = plan.task(chunk)
                if not self._is_done(task):
                    tasks.append(task)
        done = total - sum(int(t.length.sum()) for t in tasks)
        pending: dict[str, Reading] = {}
        for task, result in self._in_order(self._fill, tasks):
            done += int(task.length.sum())
            self.progress("packing", min(done, total), total)
            if isinstance(result, Reading):
                if result.bad and not self.options.skip_bad:
                    raise RawDataError(result.bad[min(result.bad)])
                merged = pending.setdefault(task.partition, result)
                merged.bad.update(result.bad)
                merged.lengths.update(result.lengths)
                continue
            self.done[task.partition, task.chunk] = task.key, result
            self.staging.record(
                {"partition": task.partition, "chunk": task.chunk, "key": task.key, **StatedMoments.chunk_record(result)}
            )
        for name, reading in pending.items():
            changed |= self._correct(name, reading)
        return changed

    def _fill(self, filler, task) -> ChunkResult | Reading:
        return filler.fill(task, *self.files[task.partition])

    def _is_done(self, task) -> bool:
        """Whether this chunk was written, in this process or an earlier one, and its bytes still are what they were."""
        place = task.partition, task.chunk
        if place in self.done:
            return self.done[place][0] == task.key
        entry = self._found.pop(place, None)
        if entry is None or entry["key"] != task.key:
            return False
        result = StatedMoments.chunk_result(entry, self.feature_dim)
        features, labels = self.files[task.partition]
        if features.read_digest(task.chunk) != result.features:
            return False
        if labels is not None and labels.read_digest(task.chunk) != result.labels:
            return False
        self.done[place] = task.key, result
        self.reused += 1
        return True

    def _finish(self, target: Path) -> PackReport:
        left_out = []
        rows, entries = [], {}
        for name, plan in self.plans.items():
            raw = self.raw[name]
            missing = [LeftOut(name, p.utterance_id, self._relative(p.message)) for p in raw.problems]
            missing += [LeftOut(name, raw.utterance_ids[i], m) for i, m in plan.bad.items()]
            missing.sort(key=lambda m: (m.utterance, m.reason))
            left_out += missing
            results = [self.done[name, chunk][1] for chunk in range(num_chunks(plan.rows))]
            attributes, entries[name] = finish_partition(self, plan, raw, results)
            rows.append({**attributes, "name": name, "left_out": len(missing)})
        digest = describe_root(self, entries, left_out)
        return PackReport(
            path=target,
            layout=self.corpus.layout,
            partitions=rows,
            left_out=left_out,
            frame_shift_ms=self.corpus.frame_shift_ms,
            bytes_written=sum(f.stat().st_size for f in self.staging.corpus.rglob("*") if f.is_file()),
            digest=digest,
            notes=self.corpus.notes,
            chunks_reused=self.reused,
        )
