"""pack: raw -> packed: list, measure if needed, write chunk by chunk, describe, put in place."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from ..errors import NoSpace, RawDataError, SpecError, StrayLabel, WorkerError
from ..files import disk_errors, is_disk_full, put_in_place, recover
from ..format.corpus import PackedCorpus
from ..raw import views
from ..raw.audio import AlignmentOptions
from ..raw.base import RawCorpus
from ..raw.frame_labels import LabelOptions, list_strays
from ..raw.open import open_raw
from .checks import check_options, check_partitions, check_target, find_feature_dim, notes_on_speakers
from .executor import check_workers, threads_or
from .journal import Staging
from .packer import Packing
from .plan import PackOptions
from .report import PackReport


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
    executor: Executor | None = None,
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

    `executor` has workers of its own, here or on other machines: any `concurrent.futures.Executor` whose workers see
    the raw folder and the place of `packed` under the same paths (docs/CLUSTER.md). It changes no byte either.

    `alignment` says how alignments of audio become labels. `classes`: labels are the numbers 0..classes-1.
    `label_shift`: milliseconds from one label to the next, where that is a multiple of the frame shift; each is
    repeated. `split`, as "dev=0.1,test=0.1", takes parts from labelled partitions, each speaker in one of them.
    `phone_map`, "timit-48", "timit-39" or a file with lines `symbol class`, folds symbols into classes. `skip` is a
    file with a line PARTITION/UTTERANCE for each utterance that is left out, as `phonetrain suspects` writes it.

    An interrupted call continues where it stopped when it is repeated. Raises CorpusExists, CorpusNotFound,
    RawDataError (the first thing wrong in the raw folder), SpecError, WorkerError (of the executor), PhonedataError
    (disk).
    """
    started = time.perf_counter()
    target = Path(os.path.realpath(packed))
    options = PackOptions(cmvn, train_partition, dtype, context, skip_bad)
    check_options(options)
    check_workers(executor, workers)
    recover(target)
    if executor is not None:
        raw = os.path.abspath(raw)  # its workers may stand elsewhere
    corpus = open_raw(raw, layout, alignment, LabelOptions(classes, label_shift))
    if executor is not None and any(not hasattr(partition, "files_of") for partition in corpus.partitions):
        raise SpecError(
            f"layout {corpus.layout!r} does not say which files it reads, which workers elsewhere compare; add "
            "RawPartition.files_of to it, or pack without an executor"
        )
    if phone_map is not None:
        corpus = views.fold(corpus, phone_map)
    if split is not None:
        corpus = views.split(corpus, split)
    if skip is not None:
        corpus = views.leave_out(corpus, os.fspath(skip))
    check_partitions(corpus, options)
    with disk_errors(target), threads_or(executor, workers) as threads:
        try:
            found_dim = find_feature_dim(corpus)
            check_target(target, replace)
            staging = Staging(target, options.fingerprint(corpus, found_dim[0]))
            try:
                report = build(corpus, options, found_dim, staging, target, replace, threads, progress)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, NoSpace, WorkerError)) or is_disk_full(error):
                    staging.release()
                else:
                    staging.remove()
                raise
            staging.remove()
        except StrayLabel as error:
            # Whoever corrects one label wants to know of the others.
            found = list_strays((p, i) for p in corpus.partitions for i in range(len(p.utterance_ids)))
            raise RawDataError(f"{error} (in all: {found})" if found else str(error)) from None
    report.path, report.seconds = Path(packed), time.perf_counter() - started
    return report


def build(
    corpus: RawCorpus,
    options: PackOptions,
    feature_dim: tuple[int, str],
    staging: Staging,
    target: Path,
    replace: bool,
    threads: tuple[Executor, int],
    progress: Callable[..., None] | None,
) -> PackReport:
    """Pack a corpus that is listed and checked in `staging`, and give it its name. feature_dim: of `find_feature_dim`;
    threads: of `threads_or`."""
    work = Packing(corpus, options, *feature_dim, staging, *threads, progress)
    work.run()
    notes = corpus.notes + notes_on_speakers(corpus, options) + work.notes()
    check_target(target, replace)
    notes += put_in_place(staging.corpus, target)
    return PackReport.of(PackedCorpus(target), notes=notes, labelling=corpus.labelling, chunks_reused=work.reused)
