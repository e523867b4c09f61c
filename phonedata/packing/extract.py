"""extract: audio and alignments -> a raw folder in the HW1P2 layout, with its frontend.toml, whole or not at all."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import current_process, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import CorpusExists, CorpusNotFound, PhonedataError, RawDataError, SpecError
from ..files import put_in_place, read_file, sync_tree
from ..phonemes import ARPABET
from ..raw import audio as audio_layout
from ..raw.audio import AlignmentOptions
from ..raw.base import Labelling, Problem, RawCorpus, RawPartition
from ..raw.frontend import FrontEnd
from ..system import available_cores
from .journal import Staging
from .report import labelling_table, reason_left_out

MOST_PER_TASK = 20
"""Utterances of one task: Ctrl-C waits for two tasks of each process, and an interrupted call loses no more."""
_partitions: dict[str, RawPartition] = {}
"""In a process of the pool, the corpus: sent once, for its lists of files are long and its tasks many."""


@dataclass(frozen=True)
class ExtractReport:
    """What was extracted: the folder, per partition its utterances and frames, what was left out, and remarks."""

    path: Path
    partitions: dict[str, tuple[int, int]]
    left_out: list[Problem]
    notes: tuple[str, ...]
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
            "notes": list(self.notes),
        }


def extract(
    audio: str | os.PathLike[str],
    raw: str | os.PathLike[str],
    *,
    frontend: FrontEnd | None = None,
    alignment: AlignmentOptions | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Callable[..., None] | None = None,
) -> ExtractReport:
    """Compute features and frame labels of the folder `audio` and write them to the new folder `raw`.

    The label of a frame is the phone that covers its centre; `alignment` says how alignments are read.
    `progress(stage, done, total, unit)` counts utterances. An interrupted call continues where it stopped when it is
    repeated. `workers` processes (default: the cores this one may use) import the calling script, which must call under
    `if __name__ == "__main__":`. Raises CorpusNotFound, CorpusExists, RawDataError (unless `skip_bad`), SpecError,
    MissingReader, PhonedataError (disk, another process writing `raw`).
    """
    if current_process().name.startswith(_Extractor.__name__):
        # One of our own processes imports a script without a guard; the one who started it says so, once.
        raise SystemExit(1)
    source, target, frontend = Path(audio), Path(raw), frontend or FrontEnd()
    if not source.is_dir() or not audio_layout.detect(source):
        raise CorpusNotFound(f"{source}: no audio found; looked for {audio_layout.LOOKS_FOR}")
    _check_absent(target)
    if workers is not None and workers < 1:
        raise SpecError(f"workers {workers}, wanted at least 1")
    corpus = audio_layout.open_layout(source, frontend, alignment)
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
            report = _extract(corpus, target, staging, skip_bad, workers or available_cores(), progress)
            (staging.corpus / "frontend.toml").write_text(toml, encoding="utf-8")
            if corpus.phonemes != ARPABET:
                lines = "\n".join(corpus.phonemes.symbols) + "\n"
                (staging.corpus / "phonemes.txt").write_text(lines, encoding="utf-8")
            sync_tree(staging.corpus)
            _check_absent(target)
            put_in_place(staging.corpus, target)
        except BrokenProcessPool:
            staging.release()
            raise PhonedataError(
                f"{target}: a worker process ended early; a script must call extract under `if __name__ == "
                f'"__main__":` or with workers=1, and where memory ran out the same call with fewer workers goes on'
            ) from None
        except BaseException as error:
            broken_off = isinstance(error, OSError) and not isinstance(error, PhonedataError)
            if broken_off or isinstance(error, KeyboardInterrupt):
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
    if target.exists():
        raise CorpusExists(f"{target}: already there; remove it or name another folder")


def _extract(
    corpus: RawCorpus,
    target: Path,
    staging: Staging,
    skip_bad: bool,
    workers: int,
    progress: Callable[..., None] | None,
) -> ExtractReport:
    """Extract into `staging.corpus` what its journal does not call done."""
    tasks = []
    for partition in corpus.partitions:
        for kind in _kinds(partition):
            (staging.corpus / partition.name / kind).mkdir(parents=True, exist_ok=True)
        size = len(partition.utterance_ids)
        tasks += [(partition, begin, min(size, begin + MOST_PER_TASK)) for begin in range(0, size, MOST_PER_TASK)]
    total = sum(end - begin for _, begin, end in tasks)
    recorded = {tuple(record["task"]): record["found"] for record in staging.records[1:]}
    finished = {
        (p.name, begin, end): found
        for p, begin, end in tasks
        if (found := recorded.get((p.name, begin, end))) and _is_as_written(staging.corpus, p, begin, end, found)
    }
    open_tasks = [(p, begin, end) for p, begin, end in tasks if (p.name, begin, end) not in finished]
    kept = done = total - sum(end - begin for _, begin, end in open_tasks)
    workers = min(workers, len(open_tasks))
    pool, notes = None, list(corpus.notes)
    if workers > 1:
        try:
            pool = ProcessPoolExecutor(workers, _Extractors(), _begin_process, (corpus.partitions,))
        except (OSError, ImportError, NotImplementedError) as error:
            # Semaphores lie in /dev/shm, which may be full, read-only or not there at all; some builds have none.
            notes.append(f"one process did it all: this system gives no semaphores for more ({error}); see /dev/shm")
    try:
        jobs = [(p.name if pool else p, begin, end, str(staging.corpus), skip_bad) for p, begin, end in open_tasks]
        results = (pool.map if pool else map)(_extract_some, *zip(*jobs)) if jobs else ()
        for (partition, begin, end), found in zip(open_tasks, results):
            staging.record({"task": [partition.name, begin, end], "found": found})
            finished[partition.name, begin, end] = found
            done += end - begin
            if progress:
                progress("extract", done, total, "utterances")
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    counts, problems = {}, [problem for partition in corpus.partitions for problem in partition.problems]
    for partition in corpus.partitions:
        parts = [finished[p.name, begin, end] for p, begin, end in tasks if p is partition]
        bad = [Problem(*problem) for part in parts for problem in part["left_out"]]
        counts[partition.name] = len(partition.utterance_ids) - len(bad), sum(part["frames"] for part in parts)
        problems += bad
        _check_files(staging.corpus, partition, counts[partition.name][0], sum(part["bytes"] for part in parts))
    if kept:
        notes.append(f"{kept:,} utterances kept from an interrupted call")
    return ExtractReport(target, counts, problems, tuple(notes), corpus.labelling)


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


class _Extractor(SpawnProcess):
    """A process of the pool: its name, which starts with that of the class, is known before it imports the script."""


class _Extractors(SpawnContext):
    Process = _Extractor


def _begin_process(partitions: tuple[RawPartition, ...]) -> None:
    """For pool processes: Ctrl-C is for the one who waits for them, and when it is killed they write no more."""
    _partitions.update({partition.name: partition for partition in partitions})
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _extract_some(partition: RawPartition | str, begin: int, end: int, out: str, skip_bad: bool) -> dict[str, Any]:
    """Write utterances begin..end of a partition (in the pool, its name): frames, bytes and their digest, what was left
    out."""
    partition = _partitions[partition] if isinstance(partition, str) else partition
    frames, size, left_out, content = 0, 0, [], xxhash.xxh3_128()

    def save(kind: str, utterance: str, array: np.ndarray) -> int:
        np.save(file := io.BytesIO(), array)
        content.update(file.getbuffer())
        return Path(out, partition.name, kind, f"{utterance}.npy").write_bytes(file.getbuffer())

    for index in range(begin, end):
        utterance = partition.utterance_ids[index]
        try:
            features, labels = partition.read(index)
        except RawDataError as error:
            if not skip_bad:
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
