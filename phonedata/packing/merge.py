"""merge: the parts of a large pack become one corpus, byte for byte that of an undivided pack."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorpusNotFound, FormatError, RawDataError, SpecError
from ..files import disk_errors, put_in_place, recover, remove_folder, write_file
from ..format.corpus import PackedCorpus
from ..format.zarr_files import ShardFile, chunk_rows, digest, num_chunks
from .checks import check_space, check_target
from .journal import Staging
from .metadata import WrittenPartition, finish_partition, finish_root
from .parts import part_path, parts_folder
from .plan import rows_of
from .report import LeftOut, PackReport

_MUST_AGREE = ("layout", "phonemes", "feature_dim", "frame_shift_ms", "dtype", "context", "cmvn", "frontend")

_ORIGIN = {"source", "statistics", "written", "place"}


def merge(
    packed: str | os.PathLike[str],
    *,
    replace: bool = False,
    remove_parts: bool = False,
    progress: Callable[..., None] | None = None,
) -> PackReport:
    """Merge `packed`.parts/*-of-n into `packed`, whole or not at all; `remove_parts` removes them afterwards.

    Every byte of every part is checked first. A second call finds the work done and changes nothing. Raises
    CorpusNotFound without parts, SpecError when some are missing, FormatError when one is damaged or does not belong
    to the others, CorpusExists when another corpus is there and `replace` was not given.
    """
    started = time.perf_counter()
    target = Path(os.path.realpath(packed))
    recover(target)
    folder = parts_folder(target)
    if not replace and not folder.exists() and (target / "zarr.json").is_file():
        note = "there are no parts: it was merged before, or packed whole"
        report = PackReport.of(PackedCorpus(target), notes=(note,))
    else:
        report = _merge_all(target, folder / "merged.json", replace, progress)
        if remove_parts:
            report.notes += remove_folder(folder)
    report.path, report.seconds = Path(packed), time.perf_counter() - started
    return report


def _merge_all(target: Path, note: Path, replace: bool, progress: Callable[..., None] | None) -> PackReport:
    parts = _open_parts(target)
    sources = [p.digest for p in parts]
    try:
        with disk_errors(target):
            report = _merged_already(target, note, sources)
            if report is None:
                check_target(target, replace)
                report = _merge(parts, target, replace, progress)
                write_file(note, json.dumps({"parts": sources, "digest": report.digest}).encode())
        return report
    finally:
        # Systems that do not remove a mapped file would leave the parts lying.
        for part in parts:
            part.close()


def _open_parts(target: Path) -> list[PackedCorpus]:
    folder = parts_folder(target)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    counts = {int(m[2]) for m in (re.fullmatch(r"(\d+)-of-(\d+)", n) for n in names) if m}
    if not counts:
        raise CorpusNotFound(f"{folder}: no parts; make them with: phonedata pack RAW {target} --part I/N")
    if len(counts) > 1:
        raise SpecError(f"{folder}: parts of {sorted(counts)} are mixed; remove those that do not belong here")
    of = counts.pop()
    missing = [i for i in range(1, of + 1) if not (part_path(target, (i, of)) / "zarr.json").is_file()]
    if missing:
        raise SpecError(
            f"{folder}: {len(missing)} of {of} parts are missing (first: {missing[0]}/{of}); "
            f"run, with the options of the others: phonedata pack RAW {target} --part {missing[0]}/{of}"
        )
    parts = [PackedCorpus(part_path(target, (i, of))) for i in range(1, of + 1)]
    seen: dict[str, tuple[str, Path]] = {}
    for i, part in enumerate(parts, 1):
        own = part.attributes.get("part")
        if not own or (own.get("index"), own.get("of")) != (i, of) or not own.keys() >= _ORIGIN:
            raise FormatError(f"{part.path}: is not part {i} of {of} but {own}; pack it again")
        keys = [k for k in _MUST_AGREE if part.attributes.get(k) != parts[0].attributes.get(k)]
        first = parts[0].attributes["part"]
        what = f"{keys[0]} {part.attributes.get(keys[0])!r:.80}" if keys else ""
        what = what or ("other raw files or options" if own["source"] != first["source"] else "")
        what = what or ("other statistics" if own["statistics"] != first["statistics"] else "")
        if what:
            raise FormatError(f"{part.path}: made from {what}, unlike {parts[0].path}; pack it again with replace=True")
        # Copies of the raw folder may have any times; in one folder, other times are files that were written between.
        for place in own["place"]:
            written, where = seen.setdefault(place, (own["written"], part.path))
            if written != own["written"]:
                raise FormatError(
                    f"{part.path}: raw files were written between it and {where}; send all parts again, which packs "
                    "those that are out of date"
                )
    bad = {o["partition"]: o["reason"] for p in reversed(parts) for o in reversed(p.attributes["left_out"])}
    for name in sorted(bad.keys() - {name for part in parts for name in part.partitions}):
        raise RawDataError(f"{folder}: partition {name} has no utterance left to merge; first: {bad[name]}")
    return parts


def _merged_already(target: Path, note: Path, sources: list[str]) -> PackReport | None:
    try:
        done = json.loads(note.read_bytes())
        corpus = PackedCorpus(target)
    except (OSError, ValueError):
        return None
    if done != {"parts": sources, "digest": corpus.digest}:
        return None
    return PackReport.of(corpus, notes=("these parts were merged before",))


def _merge(parts: list[PackedCorpus], target: Path, replace: bool, progress: Callable[..., None] | None) -> PackReport:
    for part in parts:
        part.verify(progress)
    staging = Staging(target, f"merge {[p.digest for p in parts]}")
    try:
        row, label = parts[0].feature_dim * parts[0].dtype.itemsize, parts[0].phonemes.label_dtype.itemsize
        sizes = [p.num_rows * (row + label * p.labelled) for part in parts for p in part.partitions.values()]
        check_space(staging.path, sum(sizes), staging.size_on_disk())
        attributes: dict[str, dict[str, Any]] = {}
        entries: dict[str, dict[str, Any]] = {}
        for name in sorted({name for part in parts for name in part.partitions}):
            with ExitStack() as shards:
                written = _concatenate(name, parts, staging.corpus, shards, progress)
                attributes[name], entries[name] = finish_partition(
                    staging.corpus, written, parts[0].dtype, parts[0].phonemes, keep_moments=False
                )
        left_out = sorted({LeftOut(**o) for part in parts for o in part.attributes["left_out"]})
        root = {**parts[0].attributes, "digest": "", "partitions": entries, "left_out": [o.to_dict() for o in left_out]}
        del root["part"]
        finish_root(staging.corpus, root, attributes)
        check_target(target, replace)
        # A part is exchanged as a whole, so one that still has its digest was the same all the time.
        for part in parts:
            part.check_unchanged()
        notes = put_in_place(staging.corpus, target)
    except BaseException:
        # A merge begins anew anyway: nothing of it is worth keeping.
        staging.remove()
        raise
    staging.remove()
    return PackReport.of(PackedCorpus(target), notes=notes)


def _concatenate(
    name: str, parts: list[PackedCorpus], root: Path, shards: ExitStack, progress: Callable[..., None] | None
) -> WrittenPartition:
    """Copy the rows of a partition from all its parts: one gap of padding stands between two of them.

    `shards` closes the files, whatever happens until they are finished.
    """
    sources = [part.partitions[name] for part in parts if name in part.partitions]
    corpus, first = parts[0], sources[0]
    lengths = np.concatenate([np.diff(s.utterance_end, prepend=0) for s in sources])
    rows = rows_of(lengths, corpus.context)
    row_bytes = corpus.feature_dim * corpus.dtype.itemsize
    chunks, at_a_time = num_chunks(rows), chunk_rows(rows)
    features = shards.enter_context(ShardFile(root / name / "features/c/0/0", chunks, at_a_time * row_bytes))
    pieces: list[np.ndarray] = [s.features[corpus.context if s is not first else 0 :] for s in sources]
    feature_digests = _copy(pieces, features, np.zeros((at_a_time, corpus.feature_dim), corpus.dtype), 0, progress)
    labels: ShardFile | None = None
    label_digests: list[str] = []
    if first.labelled:
        dtype = corpus.phonemes.label_dtype
        labels = shards.enter_context(ShardFile(root / name / "labels/c/0", chunks, at_a_time * dtype.itemsize))
        pieces = [s.labels[corpus.context if s is not first else 0 :] for s in sources if s.labels is not None]
        label_digests = _copy(pieces, labels, np.empty(at_a_time, dtype), corpus.phonemes.padding_label, None)
    histograms = [s.label_histogram for s in sources if s.label_histogram is not None]
    moments = [s.part_moments() for s in sources]
    return WrittenPartition(
        name=name,
        labelled=first.labelled,
        order=first.attributes["order"],
        utterance_ids=[i for s in sources for i in s.utterance_ids],
        speakers=[i for s in sources for i in s.speakers],
        lengths=lengths,
        rows=rows,
        features=features,
        feature_digests=feature_digests,
        labels=labels,
        label_digests=label_digests,
        histogram=np.sum(histograms, axis=0) if histograms else None,
        means=[means for means, _ in moments],
        squares=[squares for _, squares in moments],
    )


def _copy(
    pieces: list[np.ndarray],
    file: ShardFile,
    buffer: np.ndarray,
    padding: int,
    progress: Callable[..., None] | None,
) -> list[str]:
    """Lay the pieces' rows end to end into the chunks of `file`; returns the chunks' digests."""
    digests: list[str] = []
    filled = 0

    def flush() -> None:
        file.write(len(digests), buffer)
        digests.append(digest(buffer))
        if progress:
            progress("merging", len(digests), file.chunks, "chunks")

    for piece in pieces:
        done = 0
        while done < len(piece):
            count = min(len(buffer) - filled, len(piece) - done)
            buffer[filled : filled + count] = piece[done : done + count]
            filled, done = filled + count, done + count
            if filled == len(buffer):
                flush()
                filled = 0
    if filled:
        buffer[filled:] = padding
        flush()
    return digests
