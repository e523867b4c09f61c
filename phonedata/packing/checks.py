"""What may be packed, and where to: every refusal that needs no features to be read."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

from ..errors import CorpusExists, CorpusNotFound, NoSpace, RawDataError, SpecError
from ..files import exists, is_folder, is_litter
from ..format.attributes import CMVN_KINDS, DTYPES, LARGEST_CONTEXT, LARGEST_DIM
from ..raw.base import RawCorpus, check_names
from .plan import PackOptions

_PARTITION_NAMES = {"zarr.json", "features", "labels", "utterance_end", "utterance_id_bytes", "utterance_id_end"}
_PARTITION_NAMES |= {"speaker_bytes", "speaker_end"}


def check_options(options: PackOptions) -> None:
    """Refuse options that no corpus can have."""
    if options.cmvn not in CMVN_KINDS:
        raise SpecError(f"cmvn {options.cmvn!r} is unknown; kinds are {', '.join(CMVN_KINDS)}")
    if options.dtype not in DTYPES:
        raise SpecError(f"dtype {options.dtype!r}, wanted float16 or float32")
    # True is an int, and no number of rows.
    if type(options.context) is not int or not 0 <= options.context <= LARGEST_CONTEXT:
        raise SpecError(f"context {options.context!r}, wanted a whole number of rows, 0 to {LARGEST_CONTEXT}")
    if options.train_partition is not None and options.cmvn != "train":
        raise SpecError(
            f"train partition {options.train_partition!r} is named, but cmvn is {options.cmvn!r}; add cmvn='train'"
        )


def check_target(target: Path, replace: bool) -> None:
    """Refuse a target that is there, unless it is a packed corpus and may be replaced, or an empty folder."""
    if not exists(target):
        if not is_folder(target.parent):
            wrong = "is a file; choose another" if exists(target.parent) else "does not exist; make it first"
            raise CorpusNotFound(f"{target}: its folder {target.parent} {wrong}")
        return
    try:
        if is_folder(target) and not os.listdir(target):
            return
        attributes = json.loads((target / "zarr.json").read_bytes())["attributes"]["phonedata"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusExists(
            f"{target}: is there and is no packed corpus, so it is never replaced; choose another name"
        ) from None
    if not replace:
        raise CorpusExists(f"{target}: a packed corpus is already there; replace it with replace=True")
    foreign = _foreign_names(target, attributes)
    if foreign:
        names = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise CorpusExists(f"{target}: holds {names} besides the corpus, which would be removed with it; move it first")


def _foreign_names(target: Path, attributes: object) -> list[str]:
    """What lies in the folder of a corpus, or of a partition in it, and is none of its own."""
    partitions = attributes.get("partitions") if isinstance(attributes, dict) else None
    found: list[str] = []
    for entry in os.scandir(target):
        if not isinstance(partitions, dict) or entry.name not in partitions:
            found += [entry.name] if entry.name != "zarr.json" else []
        elif is_folder(entry):
            found += [f"{entry.name}/{name}" for name in os.listdir(entry.path) if name not in _PARTITION_NAMES]
    return sorted(path for path in found if not is_litter(path.rpartition("/")[2]))


def check_space(place: Path, wanted: int, there: int) -> None:
    """Refuse before the first byte what cannot fit; `there` of the `wanted` bytes are on the disk already."""
    free = shutil.disk_usage(place).free
    if wanted - there > free:
        already = f", {there / 1e6:,.1f} MB of it are there" if there else ""
        raise NoSpace(
            f"{place}: the packed corpus needs {wanted / 1e6:,.1f} MB{already}, but {free / 1e6:,.1f} MB are free; "
            f"free some space or choose another disk"
        )


def check_partitions(corpus: RawCorpus, options: PackOptions) -> None:
    """Refuse listings with problems (unless they may be skipped), and a training partition that is not there."""
    names = [p.name for p in corpus.partitions]
    if not names:
        raise RawDataError(f"{corpus.path}: no partitions; fill it first")
    for name in names:
        if "+" in name:
            raise RawDataError(
                f"{corpus.path}: partition {name!r} cannot be named where A + B means both; rename its folder without +"
            )
    if options.cmvn == "train":
        if not options.train_partitions:
            found = [n for n in names if n.startswith("train")]
            raise SpecError(
                f"cmvn train needs the partition that its statistics come from: add "
                f"train_partition={found[0] if found else names[0]!r} (partitions: {', '.join(names)})"
            )
        for wanted in options.train_partitions:
            if wanted not in names:
                raise SpecError(f"train partition {wanted!r} is not there; partitions: {', '.join(names)}")
    _check_names(corpus)
    for partition in corpus.partitions:
        bad = [problem for problem in partition.problems if not problem.asked]
        if bad and not options.skip_bad:
            raise RawDataError(bad[0].message + (f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""))
        if not partition.utterance_ids:
            first = f"; first: {partition.problems[0].message}" if partition.problems else ""
            raise RawDataError(
                f"{corpus.path}: partition {partition.name} has no utterance to pack; mend or remove it{first}"
            )
        if options.cmvn == "speaker" and partition.speakers == partition.utterance_ids:
            raise SpecError(
                f"cmvn speaker, but no utterance of {partition.name} has a known speaker (first: "
                f"{partition.utterance_ids[0]!r}); name them SPEAKER-CHAPTER-NUMBER, list them in Kaldi's utt2spk, or "
                "use cmvn='utterance', which is the same here"
            )


def notes_on_speakers(corpus: RawCorpus, options: PackOptions) -> tuple[str, ...]:
    """What is said where statistics of speakers are wanted and only some are known."""
    notes = []
    for partition in corpus.partitions if options.cmvn == "speaker" else ():
        unknown = [u for u, speaker in zip(partition.utterance_ids, partition.speakers) if speaker == u]
        if unknown:
            notes.append(
                f"{partition.name}: {len(unknown)} of {len(partition.utterance_ids)} utterances have no known speaker, "
                f"e.g. {unknown[0]!r}; each of them is normalised by itself"
            )
    return tuple(notes)


def _check_names(corpus: RawCorpus) -> None:
    """Refuse a layout's names that would not stand in one line of text, whoever made the layout."""
    if not corpus.layout.isprintable():
        raise RawDataError(f"{corpus.path}: layout {corpus.layout!r:.80} has control characters; rename it")
    check_names((p.name for p in corpus.partitions), "partition name", corpus.path)
    for p in corpus.partitions:
        check_names(p.utterance_ids, "utterance id", f"{corpus.path}: {p.name}")
        odd = next((s for s in p.speakers if not s.isprintable() or not s), None)
        if odd is not None:
            raise RawDataError(
                f"{corpus.path}: {p.name}: speaker {odd!r:.80} is empty or has control characters; name it otherwise"
            )
        if len(p.speakers) != len(p.utterance_ids) or len(set(p.utterance_ids)) != len(p.utterance_ids):
            raise RawDataError(
                f"{corpus.path}: {p.name}: {len(p.utterance_ids)} ids ({len(set(p.utterance_ids))} different) and "
                f"{len(p.speakers)} speakers, wanted different ids and a speaker for each; mend layout {corpus.layout}"
            )


def find_feature_dim(corpus: RawCorpus) -> tuple[int, str]:
    """D, and a file that has it: what most of a few utterances of the largest partition say, so that no odd file or
    partition can rule the others.

    Raises RawDataError when none is readable.
    """
    problem: RawDataError | None = None
    seen: dict[int, str] = {}
    votes: Counter[int] = Counter()
    for partition in sorted(corpus.partitions, key=lambda p: (not p.labelled, -len(p.utterance_ids), p.name)):
        count = len(partition.utterance_ids)
        for index in sorted({i * (count - 1) // 8 for i in range(9)}):
            try:
                features, _ = partition.read(index)
            except RawDataError as error:
                problem = problem or error
                continue
            dim = features.shape[1]
            if 1 <= dim <= LARGEST_DIM:
                votes[dim] += 1
                seen.setdefault(dim, partition.where(index))
            else:
                problem = problem or RawDataError(
                    f"{partition.where(index)}: {dim} coefficients a frame, wanted 1 to {LARGEST_DIM}; make it again"
                )
        if votes:
            dim = votes.most_common(1)[0][0]
            return dim, seen[dim]
    # check_partitions has seen an utterance in each partition, so one was read or was a problem.
    raise problem or RawDataError(f"{corpus.path}: no utterance to pack; fill it first")
