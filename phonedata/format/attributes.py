"""The zarr.json of a corpus and of its partitions: read, checked against their digests and value by value.

Whoever opens a corpus may rely on each attribute that docs/FORMAT.md lists: its type, its range, and that it agrees
with the others. Attributes that it does not list are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, PhonedataError, SpecError
from ..files import unusable_name
from ..phonemes import PhonemeSet
from .zarr_files import ArraySpec, digest, num_chunks, render, root_digest

FORMAT_VERSION = 2
CMVN_KINDS = ("utterance", "speaker", "train", "none")
DTYPES = ("float16", "float32")
LARGEST_DIM = 4096  # one inner chunk must fit the memory of a laptop
LARGEST_CONTEXT = 10_000
LARGEST_METADATA = 1 << 28  # bytes of a zarr.json
LARGEST_NUMBER = 1e300
MOST_FRAMES = 1 << 40

Table = dict[str, Any]


def damaged(path: Path, what: str) -> FormatError:
    """The error of a file that is not what was packed."""
    return FormatError(f"{path}: {what}; copy the corpus again or pack again")


_HELPS = {
    errno.EACCES: "mend its permissions",
    errno.EPERM: "mend its permissions",
    errno.EMFILE: "this process has too many files open: close some, or allow more with `ulimit -n`",
}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within the block, a file that cannot be read raises a PhonedataError that names `path`."""
    try:
        yield
    except PhonedataError:
        raise
    except OSError as error:
        helps = _HELPS.get(error.errno or 0, "check the path and the disk")
        raise PhonedataError(f"{str(path)[:500]}: cannot be read ({error.strerror or error}); {helps}") from None


def file_size(path: Path) -> int:
    """Bytes of a file; raises FormatError where there is none, since opening a pipe would wait for ever."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(path, "missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "is not a file")
    return status.st_size


def read_exactly(path: Path, size: int) -> bytes:
    """The bytes of a file that must have `size` of them; raises FormatError."""
    found = file_size(path)
    if found != size:
        raise damaged(path, f"{found} bytes, wanted {size}")
    with open(path, "rb") as file:
        data = file.read(size + 1)
    if len(data) != size:
        raise damaged(path, "its size changes while it is read")
    return data


def parse_group(file: Path, data: bytes) -> tuple[Table, Table]:
    """The document of a group's zarr.json and its `phonedata` attributes; raises FormatError."""
    try:
        document = json.loads(data)
        attributes = document["attributes"]["phonedata"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(file, "is not the metadata of a packed corpus") from None
    if not isinstance(attributes, dict):
        raise damaged(file, "attributes.phonedata is not a table")
    return document, attributes


def read_root(folder: Path) -> Table:
    """The root's attributes, checked. Raises FormatError."""
    file = folder / "zarr.json"
    size = file_size(file)
    if size > LARGEST_METADATA:
        raise damaged(file, f"{size} bytes, which no metadata has")
    data = read_exactly(file, size)
    document, attributes = parse_group(file, data)
    version = attributes.get("format")
    if version != FORMAT_VERSION or type(version) is not int:
        raise FormatError(
            f"{folder}: format version {version!r:.40}, but this phonedata reads version {FORMAT_VERSION}; "
            f"pack again with: phonedata pack RAW {folder} --replace"
        )
    # It has no parent to vouch for it: it carries its own digest, and has one spelling.
    try:
        intact = render(document) == data and root_digest(document) == attributes.get("digest")
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise damaged(file, "differs from its own digest")
    _check_root(file, attributes)
    return attributes


def read_partition(folder: Path, root: Table, phonemes: PhonemeSet) -> Table:
    """The attributes of the partition at `folder`, held to its digest in the `root` attributes and to each of its
    arrays' own metadata and size. Raises FormatError; reads no values."""
    file, entry = folder / "zarr.json", root["partitions"][folder.name]
    data = read_exactly(file, entry["bytes"])
    if digest(data) != entry["digest"]:
        raise damaged(file, "its bytes differ from their digest")
    _, attributes = parse_group(file, data)
    _check_partition(file, attributes, root)
    arrays = _arrays(file, attributes, root, phonemes)
    listed = {f"{name}/{inside}" for name, spec in arrays.items() for inside in ("zarr.json", spec.file)}
    if attributes["files"].keys() != listed:
        wrong = sorted(listed ^ attributes["files"].keys())[0]
        raise damaged(file, f"files: {wrong!r:.80} is missing or belongs to no array of the partition")
    for name, spec in arrays.items():
        _check_array(folder / name, spec, attributes["files"], name)
    return attributes


def _check_array(folder: Path, spec: ArraySpec, files: Table, name: str) -> None:
    """An array's own zarr.json, the size of its file and both entries fit what the attributes say of it."""
    wanted, file = spec.metadata(), folder.parent / "zarr.json"
    if read_exactly(folder / "zarr.json", len(wanted)) != wanted:
        raise damaged(folder / "zarr.json", f"is not the metadata of {spec.shape} {spec.dtype}")
    if files[f"{name}/zarr.json"] != {"bytes": len(wanted), "xxh3_128": digest(wanted)}:
        raise damaged(file, f"files: the entry of {name}/zarr.json does not fit that file")
    entry, key = files[f"{name}/{spec.file}"], f"{name}/{spec.file}"
    chunks = num_chunks(spec.shape[0]) if spec.sharded else None
    if entry["bytes"] != spec.size or (len(entry["chunks"]) if "chunks" in entry else None) != chunks:
        wanted_chunks = f" with the digests of {chunks} chunks" if spec.sharded else ""
        raise damaged(file, f"files: the entry of {key} is not one of {spec.size} bytes{wanted_chunks}")
    found = file_size(folder / spec.file)
    if found != spec.size:
        raise damaged(folder / spec.file, f"{found} bytes, wanted {spec.size}")


def _arrays(file: Path, attributes: Table, root: Table, phonemes: PhonemeSet) -> dict[str, ArraySpec]:
    """Every array that the partition must have, by name."""
    utterances, rows, dim = attributes["utterances"], attributes["rows"], root["feature_dim"]
    arrays = {"features": ArraySpec((rows, dim), np.dtype(root["dtype"]), 0.0, sharded=True)}
    if attributes["labelled"]:
        arrays["labels"] = ArraySpec((rows,), phonemes.label_dtype, phonemes.padding_label, sharded=True)
    for name in ("utterance_end", "utterance_id_end", "speaker_end"):
        arrays[name] = ArraySpec((utterances,), np.dtype(np.int64))
    for name in ("utterance_id_bytes", "speaker_bytes"):
        # How long the text is stands in its file's entry alone; its ends are compared with that when they are read.
        size = attributes["files"].get(f"{name}/c/0", {}).get("bytes")
        _hold(file, f"files: the size of {name}/c/0", size, _is_count(size, utterances), f"at least {utterances}")
        arrays[name] = ArraySpec((size,), np.dtype(np.uint8))
    return arrays


# Values


def _hold(file: Path, name: str, value: object, fits: bool, wanted: str) -> None:
    if not fits:
        raise damaged(file, f"{name} is {value!r:.80}, wanted {wanted}")


def _is_count(value: object, low: int = 0, high: int = MOST_FRAMES) -> bool:
    """Whether a value is a whole number in the range; True and 1.0 are none."""
    return type(value) is int and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and abs(value) <= LARGEST_NUMBER


def _is_list(value: object, length: int) -> bool:
    """Whether a value is a list of so many numbers."""
    return isinstance(value, list) and len(value) == length and all(map(_is_number, value))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32 and not set(value) - set("0123456789abcdef")


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _get(file: Path, table: Mapping[str, Any], name: str) -> Any:
    try:
        return table[name]
    except KeyError:
        raise damaged(file, f"has no {name}") from None


def _check_root(file: Path, root: Table) -> None:
    def hold(name: str, fits: bool, wanted: str) -> None:
        _hold(file, name, root[name], fits, wanted)

    names = ("digest", "layout", "phonemes", "feature_dim", "frame_shift_ms", "dtype", "context", "cmvn", "frontend")
    values = {name: _get(file, root, name) for name in (*names, "partitions", "left_out")}
    hold("layout", _is_line(values["layout"]), "a name")
    hold("feature_dim", _is_count(values["feature_dim"], 1, LARGEST_DIM), f"1 to {LARGEST_DIM}")
    shift = values["frame_shift_ms"]
    hold("frame_shift_ms", _is_number(shift) and 0 < shift < 1000, "milliseconds above 0 and below 1000")
    hold("dtype", values["dtype"] in DTYPES, " or ".join(DTYPES))
    hold("context", _is_count(values["context"], 0, LARGEST_CONTEXT), f"0 to {LARGEST_CONTEXT}")
    hold("frontend", values["frontend"] is None or isinstance(values["frontend"], dict), "a table or null")
    _check_phonemes(file, values["phonemes"])
    _check_cmvn(file, values["cmvn"], values["feature_dim"])
    partitions = values["partitions"]
    hold("partitions", isinstance(partitions, dict) and len(partitions) > 0, "a table of partitions")
    bad = unusable_name(partitions)
    _hold(file, "a partition's name", bad, bad is None, "the name of a folder")
    for name, entry in partitions.items():
        fits = isinstance(entry, dict) and _is_count(entry.get("bytes"), 1, LARGEST_METADATA)
        _hold(file, f"partitions.{name}", entry, fits and _is_digest(entry.get("digest")), "bytes and a digest")
    fields = ("partition", "utterance", "reason")
    fits = isinstance(values["left_out"], list) and all(
        isinstance(one, dict)
        and all(isinstance(one.get(field), str) for field in fields)
        and (one.get("frames") is None or _is_count(one["frames"], 0, 1 << 40))
        for one in values["left_out"]
    )
    hold("left_out", fits, f"a list of {', '.join(fields)}")
    derived: Any = root.get("derived", {})
    fits = isinstance(derived, dict) and all(map(_is_line, derived.values()))
    _hold(file, "derived", derived, fits, "a table of lines of text")


def _check_phonemes(file: Path, phonemes: object) -> None:
    symbols = phonemes.get("symbols") if isinstance(phonemes, dict) else None
    if not isinstance(phonemes, dict) or not isinstance(symbols, list):
        raise damaged(file, f"phonemes is {phonemes!r:.80}, wanted a table with symbols")
    try:
        found = PhonemeSet(tuple(symbols)).fingerprint
    except (SpecError, TypeError) as error:
        raise damaged(file, f"phonemes: {error}") from None
    stated = phonemes.get("fingerprint")
    _hold(file, "phonemes.fingerprint", stated, stated == found, f"that of its symbols, {found}")


def _check_cmvn(file: Path, cmvn: object, dim: int) -> None:
    if not isinstance(cmvn, dict) or cmvn.get("kind") not in CMVN_KINDS:
        raise damaged(file, f"cmvn is {cmvn!r:.80}, wanted a table with kind {', '.join(CMVN_KINDS)}")
    floor: Any = cmvn.get("relative_floor")
    _hold(file, "cmvn.relative_floor", floor, _is_number(floor) and floor >= 0, "a number from 0 on")
    if cmvn["kind"] == "train":
        named, count = cmvn.get("partition"), cmvn.get("frames")
        _hold(file, "cmvn.partition", named, _is_line(named), "a name")
        _hold(file, "cmvn.frames", count, _is_count(count, 1), "a count of frames")
        for what in ("mean", "std"):
            _hold(file, f"cmvn.{what}", cmvn.get(what), _is_list(cmvn.get(what), dim), f"{dim} numbers")


def _check_partition(file: Path, own: Table, root: Table) -> None:
    def hold(name: str, fits: bool, wanted: str) -> None:
        _hold(file, name, own[name], fits, wanted)

    names = ("labelled", "order", "lengths", "label_histogram", "mean", "std", "files")
    values = {name: _get(file, own, name) for name in ("utterances", "frames", "rows", *names)}
    utterances, frames, context = values["utterances"], values["frames"], root["context"]
    hold("utterances", _is_count(utterances, 1), "a count from 1 on")
    hold("frames", _is_count(frames, utterances), f"at least {utterances}, one an utterance")
    rows = frames + context * (utterances + 1)
    fits = type(values["rows"]) is int and values["rows"] == rows
    hold("rows", fits, f"{rows} for {frames} frames of {utterances} utterances with context {context}")
    hold("labelled", type(values["labelled"]) is bool, "true or false")
    hold("order", _is_line(values["order"]), "a name")
    _check_lengths(file, values["lengths"], utterances, frames)
    histogram, classes = values["label_histogram"], len(root["phonemes"]["symbols"])
    if values["labelled"]:
        fits = isinstance(histogram, list) and len(histogram) == classes and all(map(_is_count, histogram))
        hold("label_histogram", fits and sum(histogram) == frames, f"{classes} counts, {frames} in all")
    else:
        hold("label_histogram", histogram is None, "null without labels")
    dim = root["feature_dim"]
    hold("mean", _is_list(values["mean"], dim), f"{dim} numbers")
    hold("std", _is_list(values["std"], dim) and min(values["std"]) >= 0, f"{dim} numbers from 0 on")
    files = values["files"]
    hold("files", isinstance(files, dict), "a table of files")
    for name, entry in files.items():
        fits = isinstance(entry, dict) and _is_count(entry.get("bytes")) and _is_digest(entry.get("xxh3_128"))
        chunks = entry.get("chunks", []) if fits else []
        fits = fits and isinstance(chunks, list) and all(map(_is_digest, chunks))
        _hold(file, f"files: the entry of {name!r:.80}", entry, fits, "bytes and digests")


def _check_lengths(file: Path, lengths: Any, utterances: int, frames: int) -> None:
    fits = isinstance(lengths, dict) and all(_is_count(lengths.get(name), 1) for name in ("min", "max"))
    if fits and _is_number(lengths.get("mean")):
        mean = frames / utterances
        fits = lengths["min"] <= mean <= lengths["max"] and abs(lengths["mean"] - mean) <= 1e-9 * mean
    else:
        fits = False
    _hold(file, "lengths", lengths, fits, f"min, max and mean of {utterances} utterances with {frames} frames in all")
