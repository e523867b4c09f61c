"""extract: audio and alignments -> a raw folder in the HW1P2 layout, with its frontend.toml, whole or not at all."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import current_process, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import CorpusExists, CorpusNotFound, PhonedataError, RawDataError, WorkerError
from ..files import exists, is_folder, put_in_place, read_file, sync_file, sync_tree
from ..phonemes import ARPABET
from ..raw import audio as audio_layout
from ..raw.audio import AlignmentOptions
from ..raw.base import Labelling, Problem, RawCorpus, RawPartition
from ..raw.frontend import FrontEnd
from ..system import available_cores
from .chunk_writer import copy_for_worker
from .executor import AHEAD, Attempt, Job, check_files, check_workers, in_order
from .journal import Staging
from .report import labelling_table, reason_left_out

MOST_PER_TASK = 20
"""Utterances of one task: Ctrl-C waits for two tasks of each process, and an interrupted call loses no more."""


@dataclass(frozen=True)
class ExtractReport:
    """What was extracted: the folder, per partition its utterances and frames, what was left out, and remarks."""

    path: Path
    partitions: dict[str, tuple[int, int]]
    left_out: list[Problem]
    notes: list[str]
    labelling: dict[str, Labelling]

    def __str__(self) -> str:
        lines = [f"{name:20s} {u:8,} utterances {n:12,} frames" for name, (u, n) in self.partitions.items()]
        lines += [f"left out: {reason_left_out(problem.message)}" for problem in self.left_out]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *labelling_table(self.labelling), *notes, str(self.path)])

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {
            "path": str(self.path),
            "partitions": {name: {"utterances": u, "frames": n} for name, (u, n) in self.partitions.items()},
            "left_out": [asdict(problem) for problem in self.left_out],
            "labelling": {name: found._asdict() for name, found in self.labelling.items()},
            "notes": self.notes,
        }


def extract(
    audio: str | os.PathLike[str],
    raw: str | os.PathLike[str],
    *,
    frontend: FrontEnd | None = None,
    alignment: AlignmentOptions | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Callable[..., None] | None = None,
) -> ExtractReport:
    """Compute features and frame labels of the folder `audio` and write them to the new folder `raw`.

    The label of a frame is the phone that covers its centre; `alignment` says how alignments are read.
    `progress(stage, done, total, unit)` counts utterances. An interrupted call continues where it stopped when it is
    repeated. `workers` processes (default: the cores this one may use) import the calling script, which must call under
    `if __name__ == "__main__":`; or `executor` does it, any whose workers see the same files (docs/CLUSTER.md). Raises
    CorpusNotFound, CorpusExists, RawDataError (unless `skip_bad`), SpecError, MissingReader, WorkerError (of the
    executor), PhonedataError (disk, another process writing `raw`).
    """
    if current_process().name.startswith(_ExtractorProcess.__name__):
        # One of our own processes imports a script without a guard; the one who started it says so, once.
        raise SystemExit(1)
    source, target, frontend = Path(audio), Path(raw), frontend or FrontEnd()
    check_workers(executor, workers)
    if executor is not None:
        source, target = source.absolute(), target.absolute()  # its workers may stand elsewhere
    if not is_folder(source) or not audio_layout.detect(source):
        raise CorpusNotFound(f"{source}: no audio found; looked for {audio_layout.LOOKS_FOR}")
    _check_absent(target)
    corpus = audio_layout.open_layout(source, alignment, frontend)
    problems = [problem for partition in corpus.partitions for problem in partition.problems]
    if problems and not skip_bad:
        raise RawDataError(problems[0].message + (f" ({len(problems)} such files)" if len(problems) > 1 else ""))
    toml = frontend.to_toml(source=f"{corpus.layout} files")
    # Whatever may change a byte of the result: with another stamp nothing of an earlier try is used.
    seen = [(p.name, p.stamp, p.labelled, len(p.utterance_ids)) for p in corpus.partitions]
    stamp = xxhash.xxh3_128_hexdigest(json.dumps([2, toml, corpus.phonemes.symbols, skip_bad, seen]).encode())
    try:
        staging = Staging(target, f"extract {stamp}")
        try:
            _check_absent(target)
            with _processes_or(executor, workers) as (pool, ahead, notes):
                report = _extract(corpus, target, staging, skip_bad, pool, ahead, progress)
            report.notes.extend(notes)
            (staging.corpus / "frontend.toml").write_text(toml, encoding="utf-8")
            if corpus.phonemes != ARPABET:
                lines = "\n".join(corpus.phonemes.symbols) + "\n"
                (staging.corpus / "phonemes.txt").write_text(lines, encoding="utf-8")
            sync_tree(staging.corpus)
            _check_absent(target)
            put_in_place(staging.corpus, target)
        except BaseException as error:
            broken_off = isinstance(error, OSError) and not isinstance(error, PhonedataError)
            if broken_off or isinstance(error, (KeyboardInterrupt, WorkerError)):
                staging.release()
            else:
                staging.remove()
            raise
        staging.remove()
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise PhonedataError(
            f"{target}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from None
    return report


def _check_absent(target: Path) -> None:
    if exists(target):
        raise CorpusExists(f"{target}: already there; remove it or name another folder")


@contextmanager
def _processes_or(executor: Executor | None, workers: int | None) -> Iterator[tuple[Executor, int, list[str]]]:
    """(`executor`, or processes of our own; how many tasks it gets at a time; a note where there can be none)."""
    if executor is not None:
        yield executor, AHEAD, []
        return
    workers = workers or available_cores()
    processes, notes = None, []
    if workers > 1:
        try:
            processes = ProcessPoolExecutor(workers, _Extractors(), _begin_process)
        except (OSError, ImportError, NotImplementedError) as error:
            # Semaphores lie in /dev/shm, which may be full, read-only or not there at all; some builds have none.
            notes = [f"one process did it all: this system gives no semaphores for more ({error}); see /dev/shm"]
    with processes or ThreadPoolExecutor(1) as pool:
        yield pool, 2 * workers, notes


def _extract(
    corpus: RawCorpus,
    target: Path,
    staging: Staging,
    skip_bad: bool,
    pool: Executor,
    ahead: int,
    progress: Callable[..., None] | None,
) -> ExtractReport:
    """Extract into `staging.corpus` what its journal does not call done."""
    # Of an earlier call: its workers may live on.
    staging.end_attempts()
    partitions = {partition.name: partition for partition in corpus.partitions}
    tasks = []
    for partition in corpus.partitions:
        for kind in _kinds(partition):
            (staging.corpus / partition.name / kind).mkdir(parents=True, exist_ok=True)
        size = len(partition.utterance_ids)
        tasks += [(partition.name, begin, min(size, begin + MOST_PER_TASK)) for begin in range(0, size, MOST_PER_TASK)]
    total = sum(end - begin for _, begin, end in tasks)
    recorded = {tuple(record["task"]): record["found"] for record in staging.records[1:]}
    finished = {
        task: recorded[task]
        for task in tasks
        if task in recorded and _is_as_written(staging.corpus, partitions[task[0]], *task[1:], recorded[task])
    }
    open_tasks = [task for task in tasks if task not in finished]
    kept = done = total - sum(end - begin for _, begin, end in open_tasks)
    job = Job(staging.path, partial(Extractor, corpus.partitions, staging.corpus, skip_bad))
    attempts = staging.begin_attempts()
    for task, found in in_order(pool, ahead, job, Extractor.extract, open_tasks, attempts):
        staging.record({"task": task, "found": found})
        finished[task] = found
        done += task[2] - task[1]
        if progress:
            progress("extract", done, total, "utterances")
    staging.end_attempts()
    counts, problems = {}, [problem for partition in corpus.partitions for problem in partition.problems]
    for name, partition in partitions.items():
        found_in = [finished[task] for task in tasks if task[0] == name]
        bad = [Problem(*problem) for found in found_in for problem in found["left_out"]]
        counts[name] = len(partition.utterance_ids) - len(bad), sum(found["frames"] for found in found_in)
        problems += bad
        _check_files(staging.corpus, partition, counts[name][0], sum(found["bytes"] for found in found_in))
    notes = [*corpus.notes, *([f"{kept:,} utterances kept from an interrupted call"] if kept else [])]
    return ExtractReport(target, counts, problems, notes, corpus.labelling)


def _kinds(partition: RawPartition) -> tuple[str, ...]:
    return ("mfcc", "transcript") if partition.labelled else ("mfcc",)


def _is_as_written(out: Path, partition: RawPartition, begin: int, end: int, found: dict[str, Any]) -> bool:
    """Whether the files of a finished task are as they were written: a power cut may leave the journal's line alone."""
    left_out, content = {utterance for utterance, _ in found["left_out"]}, xxhash.xxh3_128()
    try:
        for utterance in partition.utterance_ids[begin:end]:
            for kind in _kinds(partition) if utterance not in left_out else ():
                content.update(read_file(out / partition.name / kind / f"{utterance}.npy"))
    except OSError:
        return False
    return content.hexdigest() == found["digest"]


def _check_files(out: Path, partition: RawPartition, utterances: int, size: int) -> None:
    """Refuse a partition whose files are not those that were written: somebody else was at work in its folder."""
    sizes = []
    for kind in _kinds(partition):
        with os.scandir(out / partition.name / kind) as files:
            sizes.append([f.stat().st_size for f in files if f.name.endswith(".npy") and not f.name.startswith(".")])
    found = sum(map(sum, sizes))
    if any(len(files) != utterances for files in sizes) or found != size:
        raise PhonedataError(
            f"{out / partition.name}: {' and '.join(str(len(files)) for files in sizes)} files of {found:,} bytes, "
            f"wanted {utterances} each and {size:,} bytes; another program changed them, extract again"
        )


class _ExtractorProcess(SpawnProcess):
    """A process of the pool: its name, which starts with that of the class, is known before it imports the script."""


class _Extractors(SpawnContext):
    Process = _ExtractorProcess


def _begin_process() -> None:
    """For pool processes: Ctrl-C is for the one who waits for them, and when it is killed they write no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class Extractor:
    """The tool of a thread (executor.MakeTool): computes and writes utterances, through its own copies of the
    partitions."""

    def __init__(self, partitions: tuple[RawPartition, ...], folder: Path, skip_bad: bool, elsewhere: bool):
        self.partitions = {p.name: copy_for_worker(p) for p in partitions}
        self.folder, self.skip_bad, self._elsewhere = folder, skip_bad, elsewhere

    def extract(self, task: tuple[str, int, int], attempt: Attempt) -> dict[str, Any]:
        """Write the utterances of (partition, begin, end): frames, bytes and their digest, what was left out.

        Each file gets its name when it is whole, so what a worker has open never has a name in the folder.
        """
        name, begin, end = task
        partition, frames, size, left_out = self.partitions[name], 0, 0, []
        content = xxhash.xxh3_128()

        def save(kind: str, utterance: str, array: np.ndarray) -> int:
            file = Path(f"{attempt.path}.npy")
            np.save(values := io.BytesIO(), array)
            content.update(values.getbuffer())
            written = file.write_bytes(values.getbuffer())
            if attempt.must_sync:
                sync_file(file)
            os.replace(file, self.folder / name / kind / f"{utterance}.npy")
            return written

        for index in range(begin, end):
            utterance = partition.utterance_ids[index]
            try:
                if self._elsewhere:
                    check_files(partition, index)
                features, labels = partition.read(index)
            except RawDataError as error:
                if not self.skip_bad:
                    raise
                left_out.append((utterance, str(error)))
                continue
            size += save("mfcc", utterance, features)
            if labels is not None:
                symbols = np.array(["[SOS]", *partition.phonemes.symbols, "[EOS]"])
                marked = np.concatenate(([0], labels.astype(np.int64) + 1, [len(symbols) - 1]))
                size += save("transcript", utterance, symbols[marked])
            frames += len(features)
        return {"frames": frames, "bytes": size, "digest": content.hexdigest(), "left_out": left_out}
