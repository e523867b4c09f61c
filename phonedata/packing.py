"""pack: raw -> packed: list, measure if needed, write chunk by chunk, describe, put in place."""

import os
import time
from pathlib import Path

from phonedata.admission import check_options, check_partitions, check_target, find_feature_dim
from phonedata.errors import NoSpace, PhonedataError, SpecError
from phonedata.exchange import put_in_place, recover
from phonedata.journal import Staging
from phonedata.packreport import PackReport
from phonedata.parts import make_parts_folder, part_path, read_stats, write_stats
from phonedata.plan import PackOptions
from phonedata.raw import RawCorpus, open_raw
from phonedata.shard import full_disk
from phonedata.work import Packing


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
    part: tuple[int, int] | None = None,
    stats_only: bool = False,
) -> PackReport:
    """Pack the raw folder `raw` into the corpus `packed`, whole or not at all; returns what was done.

    `cmvn` is "utterance", "speaker" (within a partition), "train" (from `train_partition`) or "none". `dtype` is
    "float16" or "float32". `context` rows of zeros separate utterances: the largest window side that can be asked
    for. `skip_bad` leaves out utterances that cannot be packed and lists them. `workers` threads (default: the
    processors) change nothing but the time. `progress(stage, done, total)` counts frames or utterances.

    `part` (i, n) packs the i-th of n parts into `packed`.parts, for `merge`; with cmvn "speaker" or "train" every part
    first runs with `stats_only`.

    An interrupted call continues where it stopped when it is repeated. Raises CorpusExists, CorpusNotFound,
    RawDataError (the first thing wrong in the raw folder), SpecError, PhonedataError (disk).
    """
    started = time.perf_counter()
    whole = Path(os.path.realpath(packed))
    options = PackOptions(cmvn, train_partition, dtype, context, skip_bad, part)
    check_options(options)
    if stats_only and (part is None or cmvn not in ("speaker", "train")):
        raise SpecError("stats only makes sense for a part with cmvn speaker or train; other packs need no statistics")
    recover(whole)
    corpus = open_raw(raw, layout)
    check_partitions(corpus, options)
    target = whole
    try:
        if part is not None:
            check_target(whole, replace=True)
            make_parts_folder(whole)
            # A part's statistics stand beside its corpus, under another name: both may be built, one after the other.
            target = part_path(whole, part)
            target = target.with_name(f"stats-{target.name}") if stats_only else target
        check_target(target, replace)
        report = _pack(corpus, options, whole, target, workers, progress, replace, stats_only)
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise full_disk(target, error) or error from None
    report.path, report.seconds = Path(packed) if part is None else target, time.perf_counter() - started
    return report


def _pack(corpus: RawCorpus, options: PackOptions, whole, target, workers, progress, replace, stats_only) -> PackReport:
    feature_dim, dim_from = find_feature_dim(corpus)
    source = options.source(corpus, feature_dim)
    statistics = None
    if options.part and options.cmvn in ("speaker", "train") and not stats_only:
        command = f"phonedata pack {corpus.path} {whole} --cmvn {options.cmvn}"
        if options.train_partition:
            command += f" --train-partition {options.train_partition}"
        statistics = read_stats(whole, options.part[1], source, feature_dim, command)
    staging = Staging(target, options.fingerprint(corpus, feature_dim))
    try:
        workers = workers or os.cpu_count() or 1
        work = Packing(corpus, options, feature_dim, dim_from, source, staging, workers, progress)
        if stats_only:
            written = write_stats(whole, options.part, source, work.measure())
            report = work.report({}, [], "")
            report.notes += (f"statistics of part {options.part[0]}/{options.part[1]} are in {written}",)
            staging.remove()
            return report
        report = work.run(statistics)
        check_target(target, replace)
        report.notes += put_in_place(staging.corpus, target)
    except (KeyboardInterrupt, NoSpace):
        staging.release()
        raise
    except BaseException:
        staging.remove()
        raise
    staging.remove()
    return report
