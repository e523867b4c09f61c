"""The HW1P2 layout of CMU 11-785, every semester: PARTITION/mfcc/ID.npy and PARTITION/transcript/ID.npy."""

import os
import stat
from pathlib import Path

import numpy as np
import xxhash

from phonedata.errors import RawDataError
from phonedata.phonemes import ARPABET, PhonemeSet
from phonedata.raw import Problem, RawCorpus, check_name, check_names, read_frontend, read_phonemes
from phonedata.raw.npy import NpyReader, parse_header

LOOKS_FOR = "PARTITION/mfcc/ID.npy, e.g. train-clean-100/mfcc/103-1240-0000.npy"
_TRANSCRIPTS = ("transcript", "transcripts")


def detect(root: Path) -> bool:
    """Whether any folder in `root` holds a folder `mfcc`."""
    return any((child / "mfcc").is_dir() for child in root.iterdir() if not child.name.startswith("."))


def open_layout(root: Path) -> RawCorpus:
    """List the partitions of `root`: every folder that has `mfcc/`. Raises RawDataError."""
    phonemes = read_phonemes(root, ARPABET)
    names = sorted(c.name for c in root.iterdir() if not c.name.startswith(".") and (c / "mfcc").is_dir())
    partitions = tuple(Hw1p2Partition(root, name, phonemes) for name in names)
    notes = []
    for i, a in enumerate(partitions):
        for b in partitions[i + 1 :]:
            both = set(a.utterance_ids) & set(b.utterance_ids)
            if both:
                notes.append(f"{len(both)} utterance ids are in both {a.name} and {b.name}, e.g. {min(both)}")
    return RawCorpus(root, "hw1p2", partitions, phonemes, read_frontend(root), tuple(notes))


def speaker_of(utterance_id: str) -> str:
    """`103-1240-0000` (speaker-chapter-utterance) -> `103`; other ids name no speaker and stand for themselves."""
    parts = utterance_id.split("-")
    return parts[0] if len(parts) >= 3 and parts[0] else utterance_id


def _list_npy(folder: Path, problems: list[Problem]) -> dict[str, os.stat_result]:
    """id -> (file name, stat) of every .npy file; hidden files (`._ID.npy` of a Mac) and other suffixes are "
    "not ours."""
    files = {}
    try:
        entries = [e for e in os.scandir(folder) if e.name[-4:].lower() == ".npy" and e.name[0] != "."]
    except OSError as error:
        raise RawDataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
    check_names((e.name[:-4] for e in entries), "utterance id", folder)
    for entry in sorted(entries, key=lambda entry: entry.name):
        stem, broken = entry.name[:-4], None
        try:
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                broken = "is not a file"
        except OSError as error:
            broken = f"cannot be read ({error.strerror})"
        if stem in files:
            broken = f"the id {stem} was seen already in {files[stem][0]}"
        if broken:
            problems.append(Problem(stem, f"{entry.path}: {broken}; remove or mend it"))
            continue
        files[stem] = entry.name, status
    return files


class Hw1p2Partition:
    """One folder with `mfcc/` and, unless it is a test partition, `transcript/`; see raw.RawPartition."""

    def __init__(self, root: Path, name: str, phonemes: PhonemeSet):
        check_name(name, "partition name", root)
        self.name = name
        self.phonemes = phonemes
        self.problems: list[Problem] = []
        folder = root / name
        texts = [folder / t for t in _TRANSCRIPTS if (folder / t).is_dir()]
        self.labelled = bool(texts)
        self._mfcc = str(folder / "mfcc")
        features = _list_npy(folder / "mfcc", self.problems)
        labels = _list_npy(texts[0], self.problems) if texts else {}
        self._transcript = str(texts[0]) if texts else None
        if not features and not self.problems:
            raise RawDataError(
                f"{folder / 'mfcc'}: no .npy files, wanted one per utterance; fill or remove the partition"
            )
        refused = {p.utterance_id for p in self.problems}
        if texts:
            for i in sorted(features.keys() - labels.keys() - refused):
                self.problems.append(
                    Problem(
                        i,
                        f"{self._mfcc}/{features[i][0]}: no transcript {self._transcript}/{i}.npy; add it or "
                        "use skip_bad=True",
                    )
                )
            for i in sorted(labels.keys() - features.keys() - refused):
                self.problems.append(
                    Problem(
                        i,
                        f"{self._transcript}/{labels[i][0]}: no features {self._mfcc}/{i}.npy; add them or use "
                        "skip_bad=True",
                    )
                )
            refused = {p.utterance_id for p in self.problems}
        self.order = "sorted"
        ids = sorted(features.keys() - refused)
        if (folder / "test_order.csv").is_file():
            self.order = "test_order.csv"
            ids = self._given_order(folder / "test_order.csv", ids)
        self.utterance_ids = ids
        self.speakers = [speaker_of(i) for i in ids]
        self._files = [features[i][0] for i in ids]
        self._label_files = [labels[i][0] for i in ids] if texts else None
        self.lengths_hint = self._guess_lengths([features[i][1].st_size for i in ids])
        stats = [features[i][1] for i in ids] + ([labels[i][1] for i in ids] if texts else [])
        seen = np.array([(status.st_size, status.st_mtime_ns) for status in stats], np.int64)
        self.stamp = xxhash.xxh3_128_hexdigest("\n".join(ids).encode() + seen.tobytes())
        self._reader = NpyReader()
        self._label_reader = NpyReader()
        self._table = self._usual = None

    def __getstate__(self):
        return {**self.__dict__, "_table": None, "_usual": None}

    def _given_order(self, file: Path, ids: list[str]) -> list[str]:
        """The order of `test_order.csv` (S22): file names or ids, one a line, perhaps under a header."""
        try:
            lines = [line.split(",")[-1].strip().strip('"') for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise RawDataError(f"{file}: cannot be read as text ({error}); mend or remove it") from None
        names = [os.path.basename(line).removesuffix(".npy") for line in lines if line]
        known = set(ids)
        if names and names[0] not in known:
            names = names[1:]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise RawDataError(f"{file}: lists {twice!r} twice; remove one line")
        if set(names) != known:
            other = min(set(names) ^ known)
            side = "lists" if other not in known else "does not list"
            raise RawDataError(
                f"{file}: {side} {other!r} and mfcc/ holds the contrary; both must name the same utterances"
            )
        return names

    def _guess_lengths(self, sizes: list[int]) -> list[int] | None:
        """Frame counts from file sizes and the first readable header: the files of a corpus are made alike."""
        for file in self._files[:20]:
            try:
                with open(f"{self._mfcc}/{file}", "rb") as f:
                    dtype, _, shape, offset = parse_header(f.read(10_016), file)
            except (OSError, RawDataError):
                continue
            if len(shape) == 2 and shape[1] and dtype.itemsize:
                return [max(1, (size - offset) // (shape[1] * dtype.itemsize)) for size in sizes]
        return None

    def where(self, index: int) -> str:
        return f"{self._mfcc}/{self._files[index]}"

    def _symbols(self):
        if self._table is None:
            from phonedata.raw.symbols import SymbolTable

            self._table = SymbolTable(self.phonemes)
        return self._table

    def fill_usual(self, indices: list[int], *chunk) -> np.ndarray:
        """See UsualFiles.fill; `indices` name the utterances."""
        if self._usual is None:
            from phonedata.raw.usual import UsualFiles

            self._usual = UsualFiles(self._symbols())
        paths = [[f"{self._mfcc}/{self._files[i]}" for i in indices]]
        if self.labelled:
            paths.append([f"{self._transcript}/{self._label_files[i]}" for i in indices])
        return self._usual.fill(paths, *chunk)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        path = f"{self._mfcc}/{self._files[index]}"
        features = self._reader.load(path)
        if features.ndim != 2 or features.dtype.kind != "f" or features.dtype.itemsize > 8:
            raise RawDataError(
                f"{path}: features of shape {features.shape} and type {features.dtype.str}, "
                f"wanted (T, D) float32 or float64; make it again"
            )
        wanted = np.dtype(np.float64 if features.dtype.itemsize == 8 else np.float32)
        if features.dtype != wanted or not features.flags.c_contiguous or not features.flags.aligned:
            features = np.require(features, wanted, ["C", "A"])
        if not self.labelled:
            return features, None
        path = f"{self._transcript}/{self._label_files[index]}"
        labels = self._symbols().encode(self._label_reader.load(path), path)
        if len(labels) != len(features):
            raise RawDataError(
                f"{path}: {len(labels)} labels, but {self.where(index)} has {len(features)} frames; both must count "
                f"the same frames: make one of them again, or use skip_bad=True"
            )
        return features, labels
