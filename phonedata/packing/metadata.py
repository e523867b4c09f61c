"""Finishes the groups of a packed corpus: small arrays, statistics and digests into each zarr.json."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cmvn import RELATIVE_FLOOR, Moments
from ..files import sync_tree, walk
from ..format.attributes import FORMAT_VERSION
from ..format.zarr_files import (
    ArraySpec,
    ShardFile,
    group_metadata,
    render,
    root_digest,
    write_array,
    write_entry,
    write_strings,
)
from ..phonemes import PhonemeSet
from ..raw.base import RawCorpus
from .plan import PackOptions
from .report import LeftOut


@dataclass
class WrittenPartition:
    """A partition whose chunks are all written, and what is known of its U utterances.

    `means` and `squares` are the stored moments of every utterance, as pieces (n, D) that end to end are (U, D): one
    array of them all would be a second copy.
    """

    name: str
    labelled: bool
    order: str
    utterance_ids: list[str]
    speakers: list[str]
    lengths: np.ndarray
    rows: int
    features: ShardFile
    feature_digests: list[str]
    labels: ShardFile | None
    label_digests: list[str]
    histogram: np.ndarray | None
    means: list[np.ndarray]
    squares: list[np.ndarray]


def finish_partition(
    root: Path, written: WrittenPartition, dtype: np.dtype, phonemes: PhonemeSet
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write everything of a partition but its rows; returns its attributes and its entry in the root's."""
    folder, dim = root / written.name, written.means[0].shape[1]
    stored, done = Moments(dim), 0
    for means, squares in zip(written.means, written.squares):
        stored.merge(written.lengths[done : done + len(means)], means, squares)
        done += len(means)
    files: dict[str, dict[str, Any]] = {}
    spec = ArraySpec((written.rows, dim), dtype, 0.0, sharded=True)
    files["features/zarr.json"] = write_entry(folder / "features/zarr.json", spec.metadata())
    files["features/c/0/0"] = written.features.finish(written.feature_digests)
    if written.labels is not None:
        spec = ArraySpec((written.rows,), phonemes.label_dtype, phonemes.padding_label, sharded=True)
        files["labels/zarr.json"] = write_entry(folder / "labels/zarr.json", spec.metadata())
        files["labels/c/0"] = written.labels.finish(written.label_digests)
    ends = np.cumsum(written.lengths, dtype=np.int64)
    files |= write_array(folder / "utterance_end", ends)
    files |= write_strings(folder, "utterance_id", written.utterance_ids)
    files |= write_strings(folder, "speaker", written.speakers)
    lengths = written.lengths
    attributes = {
        "utterances": len(lengths),
        "frames": int(ends[-1]),
        "rows": written.rows,
        "labelled": written.labelled,
        "order": written.order,
        "lengths": {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())},
        "label_histogram": None if written.histogram is None else written.histogram.tolist(),
        "mean": stored.mean.tolist(),
        "std": stored.std.tolist(),
        "files": dict(sorted(files.items())),
    }
    entry = write_entry(folder / "zarr.json", render(group_metadata(attributes)))
    return attributes, {"bytes": entry["bytes"], "digest": entry["xxh3_128"]}


def cmvn_attributes(options: PackOptions, train: Moments | None) -> dict[str, Any]:
    """What the root says of the normalisation; `train`: raw moments of the training partitions, with cmvn "train"."""
    if train is None:
        return {"kind": options.cmvn, "relative_floor": RELATIVE_FLOOR}
    return {
        "kind": "train",
        "relative_floor": RELATIVE_FLOOR,
        "partition": " + ".join(options.train_partitions),
        "frames": train.count,
        "mean": train.mean.tolist(),
        "std": train.std.tolist(),
    }


def root_attributes(
    raw: RawCorpus,
    options: PackOptions,
    feature_dim: int,
    cmvn: dict[str, Any],
    entries: dict[str, dict[str, Any]],
    left_out: list[LeftOut],
) -> dict[str, Any]:
    """The root's attributes, its digest still empty; docs/FORMAT.md says what each of them is."""
    return {
        "format": FORMAT_VERSION,
        "digest": "",
        "layout": raw.layout,
        "phonemes": {"symbols": list(raw.phonemes.symbols), "fingerprint": raw.phonemes.fingerprint},
        "feature_dim": feature_dim,
        "frame_shift_ms": raw.frame_shift_ms,
        "dtype": options.dtype,
        "context": options.context,
        "cmvn": cmvn,
        "frontend": raw.frontend,
        "partitions": entries,
        "left_out": [one.to_dict() for one in left_out],
        **({"derived": raw.derived} if raw.derived else {}),
    }


def finish_root(root: Path, attributes: dict[str, Any], partitions: dict[str, dict[str, Any]]) -> None:
    """Write the root's zarr.json with the digest of everything, make all durable.

    `partitions` are the attributes of each. What belongs to none of them is removed: a folder that was exchanged for
    another one, or an earlier try, may have left something.
    """
    document = group_metadata(attributes)
    attributes["digest"] = root_digest(document)
    write_entry(root / "zarr.json", render(document))
    files = {f"{name}/{file}" for name, p in partitions.items() for file in (*p["files"], "zarr.json")}
    for folder, folders, names in walk(root, topdown=False):
        inside = Path(folder).relative_to(root)
        for name in names:
            if (inside / name).as_posix() not in files | {"zarr.json"}:
                os.remove(os.path.join(folder, name))
        for name in folders:
            path = os.path.join(folder, name)
            if not os.listdir(path):
                os.rmdir(path)
    sync_tree(root)
