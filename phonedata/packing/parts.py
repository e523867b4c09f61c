"""Parts of a large pack: where each one lies beside the target, and the statistics that all of them share."""

import json
from pathlib import Path

from ..errors import CorpusExists, FormatError, SpecError
from ..files import write_file
from ..format.zarr_files import digest
from .journal import Measurements


def parts_folder(target: Path) -> Path:
    """The folder beside `target` that holds its parts."""
    return target.with_name(target.name + ".parts")


def make_parts_folder(target: Path) -> None:
    """Make it, unless it is there. Raises CorpusExists when something else has its name, OSError."""
    try:
        parts_folder(target).mkdir(exist_ok=True)
    except FileExistsError:
        raise CorpusExists(
            f"{parts_folder(target)}: is a file, but parts go into a folder of that name; rename or remove it"
        ) from None


def part_path(target: Path, part: tuple[int, int]) -> Path:
    """Where part i of n is packed: a corpus of its own, so that no two writers ever touch one file."""
    return parts_folder(target) / f"{part[0]}-of-{part[1]}"


def _stats_path(target: Path, part: tuple[int, int]) -> Path:
    return parts_folder(target) / f"stats-{part[0]}-of-{part[1]}.json"


def part_range(count: int, part: tuple[int, int] | None) -> range:
    """The utterances of `count` that belong to a part: consecutive, so that merging is concatenating."""
    i, n = part or (1, 1)
    return range(count * (i - 1) // n, count * i // n)


def write_stats(target: Path, part: tuple[int, int], fingerprint: str, readings: dict[str, list[Measurements]]) -> Path:
    """Keep the raw moments of a part's utterances; returns the file. Replaced as a whole."""
    path = _stats_path(target, part)
    content = {"fingerprint": fingerprint, "readings": {k: [r.to_record() for r in v] for k, v in readings.items()}}
    body = json.dumps(content).encode()
    write_file(path, digest(body).encode() + b"\n" + body)
    return path


def read_stats(
    target: Path, of: int, fingerprint: str, dim: int, command: str
) -> tuple[dict[str, list[Measurements]], str]:
    """The raw moments of all `of` parts, in utterance order, and a digest of them.

    Raises SpecError when some are missing (it names the command that makes one), FormatError when one is damaged or
    was made from other files or options.
    """
    missing = [i for i in range(1, of + 1) if not _stats_path(target, (i, of)).is_file()]
    if missing:
        raise SpecError(
            f"{target}: statistics of {len(missing)} of {of} parts are missing (first: {missing[0]}/{of}), but "
            "this CMVN "
            f"needs them before any part is written; run: {command} --part {missing[0]}/{of} --stats-only"
        )
    found: dict[str, list[Measurements]] = {}
    heads = []
    for i in range(1, of + 1):
        path = _stats_path(target, (i, of))
        head, _, body = path.read_bytes().partition(b"\n")
        if head != digest(body).encode():
            raise FormatError(f"{path}: damaged; remove it and run: {command} --part {i}/{of} --stats-only")
        heads.append(head)
        content = json.loads(body)
        if content["fingerprint"] != fingerprint:
            raise FormatError(
                f"{path}: made from other raw files or options; run: {command} --part {i}/{of} --stats-only"
            )
        for name, records in content["readings"].items():
            found.setdefault(name, []).extend(Measurements.from_record(r, dim) for r in records)
    return found, digest(b"".join(heads))
