"""pack: raw -> packed: list, measure if needed, write chunk by chunk, describe, put in place."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import NoSpace, PhonedataError, RawDataError, SpecError, StrayLabel
from ..files import disk_errors, is_disk_full, put_in_place, recover, staging_path
from ..format.corpus import PackedCorpus
from ..raw import views
from ..raw.audio import AlignmentOptions
from ..raw.base import RawCorpus
from ..raw.frame_labels import LabelOptions, list_strays
from ..raw.open import open_raw
from ..system import available_cores
from .checks import check_options, check_partitions, check_target, find_feature_dim, notes_on_speakers
from .journal import Staging
from .packer import Packing
from .parts import make_parts_folder, part_path, read_stats, write_stats
from .plan import PackOptions
from .report import LeftOut, PackReport


def pack(
    raw: str | os.PathLike[str],
    packed: str | os.PathLike[str],
    *,
    layout: str | None = None,
    cmvn: str = "utterance",
    train_partition: str | None = None,
    dtype: str = "float16",
    context: int = 50,
    skip_bad: bool = False,
    replace: bool = False,
    workers: int | None = None,
    progress: Callable[..., None] | None = None,
    part: tuple[int, int] | None = None,
    stats_only: bool = False,
    alignment: AlignmentOptions | None = None,
    classes: int | None = None,
    label_shift: float | None = None,
    split: str | None = None,
    phone_map: str | None = None,
    skip: str | os.PathLike[str] | None = None,
) -> PackReport:
    """Pack the raw folder `raw` into the corpus `packed`, whole or not at all; returns what was done.

    `cmvn` is "utterance", "speaker" (within a partition), "train" (from `train_partition`, "A" or "A + B") or "none".
    `dtype` is "float16" or "float32". `context` rows of zeros separate utterances: the largest window side that can be
    asked for. `skip_bad` leaves out utterances that cannot be packed and lists them; without labels zeros keep the
    place of those whose file says how many frames they have. `workers` threads (default: one for each processor that
    this process may use) change nothing but the time. `progress(stage, done, total)` counts frames or utterances.

    `part` (i, n) packs the i-th of n parts into `packed`.parts, for `merge`; with cmvn "speaker" or "train" every part
    first runs with `stats_only`. A part that is there is kept, unless `replace`, or packed again if a raw file was
    written or the statistics were made again since.

    `alignment` says how alignments of audio become labels. `classes`: labels are the numbers 0..classes-1.
    `label_shift`: milliseconds from one label to the next, where that is a multiple of the frame shift; each is
    repeated. `split`, as "dev=0.1,test=0.1", takes parts from labelled
    partitions, each speaker in one of them. `phone_map`, "timit-48", "timit-39" or a file with lines `symbol class`,
    folds symbols into classes. `skip` is a file with a line
    PARTITION/UTTERANCE for each utterance that is left out, as `phonetrain suspects` writes it.

    An interrupted call continues where it stopped when it is repeated. Raises CorpusExists, CorpusNotFound,
    RawDataError (the first thing wrong in the raw folder), SpecError, PhonedataError (disk).
    """
    started = time.perf_counter()
    whole = Path(os.path.realpath(packed))
    options = PackOptions(cmvn, train_partition, dtype, context, skip_bad, part)
    check_options(options)
    if stats_only and (part is None or cmvn not in ("speaker", "train")):
        raise SpecError("stats only makes sense for a part with cmvn speaker or train; other packs need no statistics")
    if workers is not None and workers < 1:
        raise SpecError(f"workers {workers}, wanted at least 1")
    recover(whole)
    corpus = open_raw(raw, layout, alignment, LabelOptions(classes, label_shift))
    if phone_map is not None:
        corpus = views.fold(corpus, phone_map)
    if split is not None:
        corpus = views.split(corpus, split)
    if skip is not None:
        corpus = views.leave_out(corpus, os.fspath(skip))
    check_partitions(corpus, options)
    target = whole
    if part is not None:
        # A part's statistics stand beside its corpus, under another name: both may be built, one after the other.
        target = part_path(whole, part)
        target = target.with_name(f"stats-{target.name}") if stats_only else target
    with disk_errors(target):
        if part is not None:
            check_target(whole, replace=True)
            make_parts_folder(whole)
        try:
            report = _pack(corpus, options, whole, target, workers, progress, replace, stats_only)
        except StrayLabel as error:
            # Whoever corrects one label wants to know of the others.
            found = list_strays((p, i) for p in corpus.partitions for i in range(len(p.utterance_ids)))
            raise RawDataError(f"{error} (in all: {found})" if found else str(error)) from None
    report.path = Path(packed) if part is None else report.path
    report.seconds = time.perf_counter() - started
    return report


def _pack(
    corpus: RawCorpus,
    options: PackOptions,
    whole: Path,
    target: Path,
    workers: int | None,
    progress: Callable[..., None] | None,
    replace: bool,
    stats_only: bool,
) -> PackReport:
    feature_dim, dim_from = find_feature_dim(corpus)
    source, command = options.source(corpus, feature_dim), options.command(corpus, whole)
    statistics, statistics_digest, notes = None, "", corpus.notes + notes_on_speakers(corpus, options)
    if options.part and options.cmvn in ("speaker", "train") and not stats_only:
        statistics, statistics_digest = read_stats(whole, options.part[1], source, feature_dim, command)
    origin = options.origin(corpus, feature_dim, statistics_digest)
    if options.part and not replace and not stats_only:
        earlier = _earlier_part(target, options.part, source)
        if earlier and all(earlier.get(what) == origin[what] for what in ("written", "statistics")):
            if staging_path(target).exists():
                # A kill just after the part got its name: what it replaced still takes its space.
                Staging(target, "nothing").remove()
            note = "kept: it was packed before, from the same files (names, sizes, times); replace=True packs it again"
            return PackReport.of(PackedCorpus(target), notes=(note,), kept=True)
        if earlier:
            replace = True
            notes += ("packed again: raw files were written, or statistics made, since it was packed before",)
    check_target(target, replace)
    staging = Staging(target, options.fingerprint(origin))
    try:
        workers = workers or available_cores()
        work = Packing(corpus, options, feature_dim, dim_from, origin, command, staging, workers, progress)
        if stats_only:
            report = _keep_statistics(work, whole, command)
            staging.remove()
            return report
        work.run(statistics)
        notes += work.notes()
        check_target(target, replace)
        notes += put_in_place(staging.corpus, target)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, NoSpace)) or is_disk_full(error):
            staging.release()
        else:
            staging.remove()
        raise
    staging.remove()
    return PackReport.of(PackedCorpus(target), notes=notes, labelling=corpus.labelling, chunks_reused=work.reused)


def _earlier_part(target: Path, part: tuple[int, int], source: str) -> dict[str, Any] | None:
    """What the part at `target` says of itself if it is this very one, so that an array that is sent again does only
    what is missing; else None."""
    try:
        found = PackedCorpus(target).attributes.get("part")
    except PhonedataError:
        return None
    ours = found and (found.get("index"), found.get("of"), found.get("source")) == (*part, source)
    return found if ours else None


def _keep_statistics(work: Packing, whole: Path, command: str) -> PackReport:
    """Measure a part, keep its statistics beside its place, and report what was measured."""
    assert work.options.part is not None, "only a part keeps statistics"
    (index, of), readings = work.options.part, work.measure()
    written = write_stats(whole, work.options.part, work.origin["source"], readings)
    partitions = [
        {
            "name": name,
            "utterances": sum(len(r.index) for r in found),
            "frames": sum(int(r.counts.sum()) for r in found),
            "labelled": work.raw[name].labelled,
            "left_out": sum(len(r.bad) for r in found),
        }
        for name, found in readings.items()
    ]
    bad = [(name, i, message) for name, found in readings.items() for r in found for i, message in r.bad.items()]
    return PackReport(
        path=written,
        layout=work.corpus.layout,
        partitions=partitions,
        left_out=sorted(LeftOut(name, work.raw[name].utterance_ids[i], message) for name, i, message in bad),
        frame_shift_ms=work.corpus.frame_shift_ms,
        bytes_written=written.stat().st_size,
        digest="",
        notes=(f"statistics of part {index}/{of}; when all {of} are there: {command} --part {index}/{of}",),
    )
