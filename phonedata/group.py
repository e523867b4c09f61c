"""Finishes the groups of a packed corpus: small arrays, statistics and digests into each zarr.json."""

import base64

import numpy as np

from phonedata.chunks import ChunkResult, Reading
from phonedata.cmvn import RELATIVE_FLOOR, Moments
from phonedata.corpus import FORMAT_VERSION
from phonedata.shard import (
    array_metadata,
    group_metadata,
    render,
    root_digest,
    sync_folders,
    write_array,
    write_file,
    write_strings,
)


def _pack64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _unpack64(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).copy()


class StatedMoments:
    """Readings and chunk results as journal records, exact to the last bit."""

    @staticmethod
    def to_record(reading: Reading) -> dict:
        return {
            "measured": _pack64(reading.index, "<i8"),
            "counts": _pack64(reading.counts, "<i8"),
            "means": _pack64(reading.means, "<f8"),
            "squares": _pack64(reading.squares, "<f8"),
            "faults": list(reading.bad.items()),
        }

    @staticmethod
    def from_record(entry: dict, dim: int) -> Reading:
        index, counts = _unpack64(entry["measured"], "<i8"), _unpack64(entry["counts"], "<i8")
        return Reading(
            index,
            counts,
            _unpack64(entry["means"], "<f8").reshape(-1, dim),
            _unpack64(entry["squares"], "<f8").reshape(-1, dim),
            dict(zip(index.tolist(), counts.tolist())),
            {int(i): m for i, m in entry["faults"]},
        )

    @staticmethod
    def chunk_record(result: ChunkResult) -> dict:
        histogram = None if result.histogram is None else result.histogram.tolist()
        return {
            "features": result.features,
            "labels": result.labels,
            "histogram": histogram,
            **StatedMoments.to_record(result.reading),
        }

    @staticmethod
    def chunk_result(entry: dict, dim: int) -> ChunkResult:
        histogram = None if entry["histogram"] is None else np.array(entry["histogram"], np.int64)
        return ChunkResult(entry["features"], entry["labels"], histogram, StatedMoments.from_record(entry, dim))


def finish_partition(packing, plan, raw, results: list[ChunkResult]) -> tuple[dict, dict]:
    """Write everything of a partition but its rows; returns its attributes and the entry of its zarr.json."""
    folder = packing.staging.corpus / plan.name
    phonemes, dim = packing.corpus.phonemes, packing.feature_dim
    stored = Moments(dim)
    for result in results:
        stored.merge(result.reading.counts, result.reading.means, result.reading.squares)
    dtype = np.dtype(packing.options.dtype)
    files = {}
    features, labels = packing.open_files(plan.name)
    metadata = array_metadata((plan.rows, dim), dtype, 0.0, sharded=True)
    files["features/zarr.json"] = write_file(folder / "features/zarr.json", render(metadata))
    files["features/c/0/0"] = features.finish([r.features for r in results])
    if labels is not None:
        metadata = array_metadata((plan.rows,), phonemes.label_dtype, phonemes.padding_label, sharded=True)
        files["labels/zarr.json"] = write_file(folder / "labels/zarr.json", render(metadata))
        files["labels/c/0"] = labels.finish([r.labels for r in results])
    files |= write_array(folder / "utterance_end", plan.utterance_end.astype(np.int64))
    index = plan.index.tolist()
    files |= write_strings(folder, "utterance_id", [raw.utterance_ids[i] for i in index])
    files |= write_strings(folder, "speaker", [raw.speakers[i] for i in index])
    lengths = plan.lengths[plan.index]
    attributes = {
        "utterances": len(index),
        "frames": int(plan.utterance_end[-1]),
        "rows": plan.rows,
        "labelled": raw.labelled,
        "order": raw.order,
        "lengths": {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())},
        "label_histogram": np.sum([r.histogram for r in results], axis=0).tolist() if raw.labelled else None,
        "mean": stored.mean.tolist(),
        "std": stored.std.tolist(),
        "files": dict(sorted(files.items())),
    }
    entry = write_file(folder / "zarr.json", render(group_metadata(attributes)))
    return attributes, {"digest": entry["xxh3_128"], "bytes": entry["bytes"]}


def describe_root(packing, entries: dict, left_out: list) -> str:
    """Write the root's zarr.json and make all names durable; returns the digest of the whole corpus."""
    corpus, options = packing.corpus, packing.options
    cmvn = {"kind": options.cmvn, "relative_floor": RELATIVE_FLOOR}
    if options.cmvn == "train":
        found = packing.group_moments["train"]
        cmvn |= {"partition": options.train_partition, "frames": found.count}
        cmvn |= {"mean": found.mean.tolist(), "std": found.std.tolist()}
    attributes = {
        "format": FORMAT_VERSION,
        "digest": "",
        "layout": corpus.layout,
        "phonemes": {"symbols": list(corpus.phonemes.symbols), "fingerprint": corpus.phonemes.fingerprint},
        "feature_dim": packing.feature_dim,
        "frame_shift_ms": corpus.frame_shift_ms,
        "dtype": options.dtype,
        "context": options.context,
        "cmvn": cmvn,
        "frontend": corpus.frontend,
        "partitions": entries,
        "left_out": [{"partition": o.partition, "utterance": o.utterance, "reason": o.reason} for o in left_out],
    }
    document = group_metadata(attributes)
    attributes["digest"] = root_digest(document)
    write_file(packing.staging.corpus / "zarr.json", render(document))
    sync_folders(packing.staging.corpus)
    return attributes["digest"]
