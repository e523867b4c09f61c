"""Writers of prediction files, the CSV and the other forms of `--as`: whole or absent, utterance by utterance.

Labels come as utterances with a symbol a frame; scores as the (N_u, C) float32 rows of each utterance. Times are in
seconds; a phone lasts as many frame shifts as it has frames.
"""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from phonedata import Selection
from phonedata.files import write_folder, write_stream

from ..errors import ConfigError, PhonetrainError, writing
from .sounds import is_silence

INSTEAD = "give another place with --out FILE"
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """An utterance's id, the id of its first frame in the partition, a symbol a frame, and the frames' distance."""

    name: str
    first_frame: int
    symbols: list[str]
    frame_shift_ms: float

    @property
    def phones(self) -> list[tuple[str, float, float]]:
        """(phone, start, end) of the runs of equal symbols, in seconds."""
        shift, frame, found = self.frame_shift_ms / 1000.0, 0, []
        for symbol, run in groupby(self.symbols):
            length = sum(1 for _ in run)
            found.append((symbol, frame * shift, (frame + length) * shift))
            frame += length
        return found


def check_header(header: str) -> list[str]:
    """The two column names of a CSV. Raises ConfigError."""
    names = header.split(",")
    if len(names) != 2 or not all(name.strip() for name in names):
        raise ConfigError(f"header: got {header!r}, wanted two column names with a comma between, as id,label")
    return names


def check_target(path: Path, folder: bool, replace: bool) -> None:
    """Refuse a place that somebody named and that holds something, before anything is computed.

    Raises PhonetrainError.
    """
    if folder and path.is_dir():
        if not all(entry.suffix == ".TextGrid" for entry in path.iterdir()):
            raise PhonetrainError(f"{path}: is in the way and holds other things than TextGrids; {INSTEAD}")
    elif path.is_dir() or (folder and path.exists()):
        raise PhonetrainError(f"{path}: a {'folder' if path.is_dir() else 'file'} is in the way; {INSTEAD}")
    refuse_present(path, replace)


def refuse_present(path: Path, replace: bool) -> None:
    """Raise PhonetrainError for a place that somebody named and that holds something, unless they want it replaced."""
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PhonetrainError(f"{path}: is there already; give another place with --out, or add --replace")


def check_names(form: str, names: Iterable[str]) -> None:
    """Raise PhonetrainError for an id with white space where `form` separates by it."""
    bad = next((name for name in names if len(name.split()) != 1), None) if form in ("ark", "ctm", "text") else None
    if bad is not None:
        raise PhonetrainError(f"{bad!r}: an utterance's id with white space cannot stand in {form}; take json or csv")


def csv_pieces(utterances: Iterable[Utterance], names: Sequence[str]) -> Iterator[str]:
    """A header, and a line a frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for utterance in utterances:
        writer.writerows(enumerate(utterance.symbols, utterance.first_frame))
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def ctm_pieces(utterances: Iterable[Utterance], names: Sequence[str]) -> Iterator[str]:
    """NIST's time-marked lines: utterance, channel 1, start, duration, phone."""
    for utterance in utterances:
        for phone, start, end in utterance.phones:
            yield f"{utterance.name} 1 {start:.3f} {end - start:.3f} {phone}\n"


def text_pieces(utterances: Iterable[Utterance], names: Sequence[str]) -> Iterator[str]:
    """Kaldi's text: utterance and phones, without silence."""
    for utterance in utterances:
        spoken = [phone for phone, _, _ in utterance.phones if not is_silence(phone)]
        yield " ".join([utterance.name, *spoken]) + "\n"


def json_pieces(utterances: Iterable[Utterance], names: Sequence[str]) -> Iterator[str]:
    """{utterance: [{"phone", "start", "end"}, ...]}."""
    before = "{\n"
    for utterance in utterances:
        phones = [
            {"phone": phone, "start": round(start, 6), "end": round(end, 6)} for phone, start, end in utterance.phones
        ]
        yield f"{before}{json.dumps(utterance.name, ensure_ascii=False)}: {json.dumps(phones, ensure_ascii=False)}"
        before = ",\n"
    yield "\n}\n"


def write_labels(path: Path, form: str, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    """Write phones or labels as one of TEXTS, or "textgrid"; what is no folder is read back before this returns.

    names: the header of a CSV. Raises PhonetrainError where the disk refuses, or holds something else afterwards.
    """
    if form == "textgrid":
        write_textgrids(path, utterances)
        return
    _write(path, (piece.encode() for piece in TEXTS[form](utterances, names)))


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file and read it back. Raises PhonetrainError."""
    written, found = xxhash.xxh3_128(), xxhash.xxh3_128()

    def counted() -> Iterator[bytes]:
        for piece in pieces:
            written.update(piece)
            yield piece

    with writing(path, INSTEAD):
        write_stream(path, counted())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    if found.digest() != written.digest():
        raise PhonetrainError(
            f"{path}: what is read back is not what was written; the disk or a second writer changed it: predict again"
        )


def write_textgrids(path: Path, utterances: Iterable[Utterance]) -> None:
    """A folder with UTTERANCE.TextGrid for each, as Praat's long text format, in a tier "phones"."""
    check_target(path, folder=True, replace=True)
    with writing(path, INSTEAD), write_folder(path) as folder:
        for utterance in utterances:
            text = textgrid({"phones": utterance.phones})
            (folder / f"{utterance.name}.TextGrid").write_text(text, encoding="utf-8")


def textgrid(tiers: Mapping[str, Sequence[tuple[str, float, float]]]) -> str:
    """Praat's long text format. tiers: name -> (text, start, end) in seconds, without gaps and of equal length."""
    end = max(intervals[-1][2] for intervals in tiers.values())
    lines = [
        'File type = "ooTextFile"\nObject class = "TextGrid"\n',
        f"xmin = 0\nxmax = {end:.6f}\ntiers? <exists>\nsize = {len(tiers)}\nitem []:",
    ]
    for tier, (name, intervals) in enumerate(tiers.items(), 1):
        lines.append(f'    item [{tier}]:\n        class = "IntervalTier"\n        name = "{name}"')
        lines.append(f"        xmin = 0\n        xmax = {end:.6f}\n        intervals: size = {len(intervals)}")
        for number, (text, start, stop) in enumerate(intervals, 1):
            lines.append(
                f"        intervals [{number}]:\n            xmin = {start:.6f}\n            xmax = {stop:.6f}"
            )
            doubled = text.replace('"', '""')
            lines.append(f'            text = "{doubled}"')
    return "\n".join(lines) + "\n"


def write_npy(path: Path, selection: Selection, utterances: Iterable[Rows]) -> None:
    """One (N, C) float32 array over all frames of the partition."""

    def pieces() -> Iterable[bytes]:
        head = io.BytesIO()
        shape = selection.num_frames, len(selection.corpus.phonemes)
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        yield head.getvalue()
        for rows in utterances:
            yield rows.astype("<f4").tobytes()

    _write(path, pieces())


def write_ark(path: Path, selection: Selection, utterances: Iterable[Rows]) -> None:
    """Kaldi's binary archive: the utterance's id, then a float matrix (N_u, C), columns in class order."""

    def pieces() -> Iterable[bytes]:
        for name, rows in zip(selection.utterance_ids, utterances, strict=True):
            head = b" \0BFM \4" + struct.pack("<i", rows.shape[0]) + b"\4" + struct.pack("<i", rows.shape[1])
            yield name.encode() + head + rows.astype("<f4").tobytes()

    _write(path, pieces())


TEXTS: dict[str, Callable[[Iterable[Utterance], Sequence[str]], Iterator[str]]] = {
    "csv": csv_pieces,
    "ctm": ctm_pieces,
    "text": text_pieces,
    "json": json_pieces,
}
SCORE_WRITERS: dict[str, Callable[[Path, Selection, Iterable[Rows]], None]] = {"npy": write_npy, "ark": write_ark}
