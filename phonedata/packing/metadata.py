"""Finishes the groups of a packed corpus: small arrays, statistics and digests into each zarr.json."""

import os
from dataclasses import asdict
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
from ..raw.base import RawCorpus, RawPartition
from .journal import ChunkResult
from .plan import FEATURES, LABELS, PackOptions, PartitionPlan
from .report import LeftOut


def finish_partition(
    root: Path,
    raw: RawPartition,
    plan: PartitionPlan,
    shards: list[ShardFile],
    results: list[ChunkResult],
    dtype: np.dtype,
    phonemes: PhonemeSet,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write everything of a partition but its rows; returns its attributes and its entry in the root's.

    All its chunks are written into `shards`, features and then labels, with these `results`.
    """
    folder, lengths, index = root / raw.name, plan.length, plan.index.tolist()
    dim = results[0].means.shape[1]
    # Piece by piece: one array of all utterances' moments would be a second copy of them.
    stored, done = Moments(dim), 0
    for result in results:
        stored.merge(lengths[done : done + len(result.means)], result.means, result.squares)
        done += len(result.means)
    files: dict[str, dict[str, Any]] = {}
    spec = ArraySpec((plan.rows, dim), dtype, 0.0, sharded=True)
    files["features/zarr.json"] = write_entry(folder / "features/zarr.json", spec.metadata())
    files[FEATURES] = shards[0].finish([result.features for result in results])
    histogram = None
    if raw.labelled:
        spec = ArraySpec((plan.rows,), phonemes.label_dtype, phonemes.padding_label, sharded=True)
        files["labels/zarr.json"] = write_entry(folder / "labels/zarr.json", spec.metadata())
        files[LABELS] = shards[1].finish([result.labels for result in results if result.labels is not None])
        histogram = np.sum([r.histogram for r in results if r.histogram is not None], axis=0).tolist()
    files |= write_array(folder / "utterance_end", plan.utterance_end)
    files |= write_strings(folder, "utterance_id", [raw.utterance_ids[i] for i in index])
    files |= write_strings(folder, "speaker", [raw.speakers[i] for i in index])
    attributes = {
        "utterances": len(lengths),
        "frames": int(plan.utterance_end[-1]),
        "rows": plan.rows,
        "labelled": raw.labelled,
        "order": raw.order,
        "lengths": {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())},
        "label_histogram": histogram,
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
        "left_out": [asdict(one) for one in left_out],
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
