"""extract: audio and alignments -> a raw folder in the HW1P2 layout, with its frontend.toml, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from phonedata.errors import CorpusExists, CorpusNotFound, PhonedataError, RawDataError, SpecError
from phonedata.phonemes import ARPABET
from phonedata.raw import Problem, RawPartition
from phonedata.raw import audio as audio_layout
from phonedata.raw.frontend import FrontEnd

MOST_PER_TASK = 200


@dataclass(frozen=True)
class ExtractReport:
    """What was extracted: the folder, per partition its utterances and frames, what was left out, and remarks."""

    path: Path
    partitions: dict[str, tuple[int, int]]
    left_out: list[Problem]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name:20s} {u:8,} utterances {n:12,} frames" for name, (u, n) in self.partitions.items()]
        lines += [f"left out: {problem.message}" for problem in self.left_out]
        return "\n".join([*lines, *self.notes, str(self.path)])


def extract(
    audio,
    raw,
    *,
    frontend: FrontEnd | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Callable[..., None] | None = None,
) -> ExtractReport:
    """Compute MFCC and frame labels of the folder `audio` and write them to the new folder `raw`.

    The label of a frame is the phone that covers its centre. `progress(stage, done, total, unit)` counts them. Raises
    CorpusNotFound, CorpusExists, RawDataError (unless `skip_bad`), MissingReader.
    """
    source, target, frontend = Path(audio), Path(raw), frontend or FrontEnd()
    if not source.is_dir() or not audio_layout.detect(source):
        raise CorpusNotFound(f"{source}: no audio found; looked for {audio_layout.LOOKS_FOR}")
    if target.exists():
        raise CorpusExists(f"{target}: already there; remove it or name another folder")
    if workers is not None and workers < 1:
        raise SpecError(f"workers {workers}, wanted at least 1")
    corpus = audio_layout.open_layout(source, frontend)
    problems = [problem for partition in corpus.partitions for problem in partition.problems]
    if problems and not skip_bad:
        raise RawDataError(problems[0].message + (f" ({len(problems)} such files)" if len(problems) > 1 else ""))
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tasks = []
    for partition in corpus.partitions:
        (partial / partition.name / "mfcc").mkdir(parents=True)
        if partition.labelled:
            (partial / partition.name / "transcript").mkdir()
        for begin in range(0, len(partition.utterance_ids), MOST_PER_TASK):
            end = min(len(partition.utterance_ids), begin + MOST_PER_TASK)
            tasks.append((partition, begin, end, str(partial), skip_bad))
    counts = {partition.name: (0, 0) for partition in corpus.partitions}
    workers = min(workers or os.cpu_count() or 1, len(tasks) or 1)
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else None
    try:
        done, total = 0, sum(len(partition.utterance_ids) for partition in corpus.partitions)
        results = (pool.map if pool else map)(_extract_some, *zip(*tasks)) if tasks else ()
        for task, (frames, bad) in zip(tasks, results):
            name, utterances = task[0].name, task[2] - task[1]
            counts[name] = counts[name][0] + utterances - len(bad), counts[name][1] + frames
            problems += bad
            done += utterances
            if progress:
                progress("extract", done, total, "utterances")
        (partial / "frontend.toml").write_text(frontend.to_toml(source=f"{corpus.layout} files"), encoding="utf-8")
        if corpus.phonemes != ARPABET:
            (partial / "phonemes.txt").write_text("\n".join(corpus.phonemes.symbols) + "\n", encoding="utf-8")
        partial.rename(target)
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise PhonedataError(
            f"{target}: cannot be written ({error.strerror}); free space or choose another place"
        ) from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
        shutil.rmtree(partial, ignore_errors=True)
    return ExtractReport(target, counts, problems, corpus.notes)


def _extract_some(partition: RawPartition, begin: int, end: int, out: str, skip_bad: bool) -> tuple[int, list[Problem]]:
    """Write utterances begin..end of a partition; returns their frames and what was left out."""
    frames, problems = 0, []
    for index in range(begin, end):
        utterance = partition.utterance_ids[index]
        try:
            features, labels = partition.read(index)
        except RawDataError as error:
            if not skip_bad:
                raise
            problems.append(Problem(utterance, str(error)))
            continue
        np.save(os.path.join(out, partition.name, "mfcc", f"{utterance}.npy"), features)
        if labels is not None:
            symbols = np.array(["[SOS]", *partition.phonemes.symbols, "[EOS]"])
            marked = np.concatenate(([0], labels.astype(np.int64) + 1, [len(symbols) - 1]))
            np.save(os.path.join(out, partition.name, "transcript", f"{utterance}.npy"), symbols[marked])
        frames += len(features)
    return frames, problems
