"""Files of predictions: a writer for each `--as`, whole or absent.

Label writers take utterances with a symbol a frame; score writers the (N_u, C) float32 rows of each utterance. Times
are in seconds; a phone lasts as many frame shifts as it has frames.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phonedata import PackedCorpus, Selection
from phonedata.files import replace_folder, sync_tree, write_file, write_stream

from ..errors import ConfigError, PhonetrainError, writing
from .sounds import is_silence

INSTEAD = "give another place with --out FILE"
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """An utterance's id, the id of its first frame in the partition, and a symbol a frame."""

    name: str
    first_frame: int
    symbols: list[str]
    corpus: PackedCorpus

    @property
    def phones(self) -> list[tuple[str, float, float]]:
        """(phone, start, end) of the runs of equal symbols, in seconds."""
        shift, frame, found = self.corpus.frame_shift_ms / 1000.0, 0, []
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


def write_csv(path: Path, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for utterance in utterances:
        writer.writerows(enumerate(utterance.symbols, utterance.first_frame))
    _write(path, text.getvalue())


def check_csv(path: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    """Read a CSV back. Raises PhonetrainError where it does not hold these labels."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        same, count = next(rows, None) == list(names), 0
        for count, row in enumerate(rows, 1):
            same = same and count <= len(labels) and row == [str(count - 1), labels[count - 1]]
    if not same or count != len(labels):
        raise PhonetrainError(
            f"{path}: read back {count} rows that are not the {len(labels)} written; the disk or a second writer "
            "changed them: predict again"
        )


def write_ctm(path: Path, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    """NIST's time-marked lines: utterance, channel 1, start, duration, phone."""
    _write(path, "".join(
        f"{utterance.name} 1 {start:.3f} {end - start:.3f} {phone}\n"
        for utterance in utterances for phone, start, end in utterance.phones
    ))  # fmt: skip


def write_text(path: Path, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    """Kaldi's text: utterance and phones, without silence."""
    _write(path, "".join(
        " ".join([utterance.name, *(phone for phone, _, _ in utterance.phones if not is_silence(phone))]) + "\n"
        for utterance in utterances
    ))  # fmt: skip


def write_json(path: Path, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    """{utterance: [{"phone", "start", "end"}, ...]}."""
    content = {
        utterance.name: [
            {"phone": phone, "start": round(start, 6), "end": round(end, 6)} for phone, start, end in utterance.phones
        ]
        for utterance in utterances
    }
    _write(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_textgrids(path: Path, utterances: Iterable[Utterance], names: Sequence[str]) -> None:
    """A folder with UTTERANCE.TextGrid for each, as Praat's long text format, in a tier "phones"."""
    if path.exists() and not (path.is_dir() and all(entry.suffix == ".TextGrid" for entry in path.iterdir())):
        raise PhonetrainError(f"{path}: is in the way and holds other things than TextGrids; {INSTEAD}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, INSTEAD):
        try:
            partial.mkdir(parents=True)
            for utterance in utterances:
                (partial / f"{utterance.name}.TextGrid").write_text(_textgrid(utterance.phones), encoding="utf-8")
            sync_tree(partial)
            old = replace_folder(partial, path, partial.with_suffix(".old"))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _textgrid(phones: Sequence[tuple[str, float, float]]) -> str:
    end = phones[-1][2]
    lines = [
        'File type = "ooTextFile"\nObject class = "TextGrid"\n',
        f"xmin = 0\nxmax = {end:.6f}\ntiers? <exists>\nsize = 1\nitem []:\n    item [1]:",
        f'        class = "IntervalTier"\n        name = "phones"\n        xmin = 0\n        xmax = {end:.6f}',
        f"        intervals: size = {len(phones)}",
    ]
    for number, (phone, start, stop) in enumerate(phones, 1):
        text = phone.replace('"', '""')
        lines.append(f"        intervals [{number}]:\n            xmin = {start:.6f}\n            xmax = {stop:.6f}")
        lines.append(f'            text = "{text}"')
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

    with writing(path, INSTEAD):
        write_stream(path, pieces())


def write_ark(path: Path, selection: Selection, utterances: Iterable[Rows]) -> None:
    """Kaldi's binary archive: the utterance's id, then a float matrix (N_u, C), columns in class order."""

    def pieces() -> Iterable[bytes]:
        for name, rows in zip(selection.utterance_ids, utterances, strict=True):
            head = b" \0BFM \4" + struct.pack("<i", rows.shape[0]) + b"\4" + struct.pack("<i", rows.shape[1])
            yield name.encode() + head + rows.astype("<f4").tobytes()

    with writing(path, INSTEAD):
        write_stream(path, pieces())


def _write(path: Path, text: str) -> None:
    with writing(path, INSTEAD):
        write_file(path, text.encode())


LABEL_WRITERS: dict[str, Callable[[Path, Iterable[Utterance], Sequence[str]], None]] = {
    "csv": write_csv,
    "ctm": write_ctm,
    "text": write_text,
    "json": write_json,
    "textgrid": write_textgrids,
}
SCORE_WRITERS: dict[str, Callable[[Path, Selection, Iterable[Rows]], None]] = {"npy": write_npy, "ark": write_ark}
