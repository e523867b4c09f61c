"""The libriphone layout of NTU's ML course: split lists, feat/{train,test}/ID.pt, a line of labels an utterance."""

import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import MissingReader, RawDataError
from ..files import is_file, is_folder
from ..phonemes import PhonemeSet
from .base import (
    Listing,
    Problem,
    RawCorpus,
    check_name,
    folders_in,
    frame_shift_of,
    numbered,
    read_frontend,
    read_phonemes,
)
from .frame_labels import LabelOptions
from .hw1p2 import speaker_of
from .label_lines import LabelLines, read_list

LOOKS_FOR = "train_split.txt, train_labels.txt and feat/train/ID.pt"
NUM_CLASSES = 41
_QUIET = threading.Lock()
# Split list -> partition. Lists for dev divide what lies in feat/train.
_SPLITS = {"train_split.txt": "train", "dev_split.txt": "dev", "val_split.txt": "dev", "test_split.txt": "test"}


def detect(root: Path) -> bool:
    """Whether `root` has a split list and `feat/`."""
    return is_folder(root / "feat") and any(is_file(root / name) for name in _SPLITS)


def open_layout(root: Path, labels: LabelOptions | None = None) -> RawCorpus:
    """The partitions that have a split list, with the course's own class numbers as symbols. Raises RawDataError,
    SpecError."""
    labels, frontend = labels or LabelOptions(), read_frontend(root)
    phonemes, each = read_phonemes(root, labels.classes), labels.frames_each(frame_shift_of(frontend))
    notes = []
    if phonemes is None:
        phonemes = numbered(NUM_CLASSES)
        notes.append(
            f"{NUM_CLASSES} classes keep the course's numbers (classes=N says that there are more or less, a "
            "phonemes.txt names them)"
        )
    files = [root / name for name in ("train_labels.txt", "dev_labels.txt", "val_labels.txt") if is_file(root / name)]
    lines = LabelLines(files, "phonemes.txt")
    partitions: list[LibriphonePartition] = []
    taken: dict[str, str] = {}
    for split, name in _SPLITS.items():
        if not is_file(root / split):
            continue
        if name in taken.values():
            raise RawDataError(f"{root}: has dev_split.txt and val_split.txt, wanted one of them; remove the other")
        taken[split] = name
        partitions.append(LibriphonePartition(root, split, name, lines, phonemes, each))
    seen: dict[str, str] = {}
    for partition in partitions:
        for utterance in partition.utterance_ids:
            if seen.setdefault(utterance, partition.name) != partition.name:
                raise RawDataError(
                    f"{root}: {utterance} is in the split lists of {seen[utterance]} and {partition.name}; remove one"
                )
    partitions.sort(key=lambda partition: partition.name)
    notes += _unlisted(root, partitions)
    return RawCorpus(root, "libriphone", tuple(partitions), phonemes, frontend, tuple(notes))


def _unlisted(root: Path, partitions: list["LibriphonePartition"]) -> list[str]:
    """A note for each folder of features with files that no split list names."""
    listed = {partition.where(index) for partition in partitions for index in range(len(partition.utterance_ids))}
    listed |= {path for partition in partitions for path in partition.refused}
    notes = []
    for folder in folders_in(root / "feat"):
        names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
        others = [name for name in names if str(folder / name) not in listed]
        if others:
            notes.append(f"{folder}: {len(others)} files are not read, as no split list names them, e.g. {others[0]}")
    return notes


class LibriphonePartition:
    """The utterances of one split list; see raw.RawPartition."""

    def __init__(self, root: Path, split: str, name: str, lines: LabelLines, phonemes: PhonemeSet, frames_each: int):
        self.name, self.phonemes, self._lines, self._frames_each = name, phonemes, lines, frames_each
        self.labelled = name != "test"
        # The test list's order is the order of the submission.
        self.order = "sorted" if self.labelled else split
        self.problems: list[Problem] = []
        self.refused: list[str] = []
        folders = [root / "feat" / kind for kind in (name, "train")[: 1 if name == "test" else 2]]
        self._folder = str(next((folder for folder in folders if is_folder(folder)), folders[0]))
        listed = [words[0] for words in read_list(root / split)]
        if not listed:
            raise RawDataError(f"{root / split}: lists no utterance, wanted an id a line; fill or remove it")
        listing, ids = Listing(), []
        seen: set[str] = set()
        for utterance in sorted(listed) if self.labelled else listed:
            check_name(utterance, "utterance id", root / split)
            if utterance in seen:
                raise RawDataError(f"{root / split}: lists {utterance!r} twice; remove one line")
            seen.add(utterance)
            try:
                os.stat(self._path(utterance))
            except OSError as error:
                self._refuse(utterance, f"{self._path(utterance)}: cannot be read ({error.strerror}); {split} lists it")
                continue
            if self.labelled and utterance not in lines.places:
                labels = root / "train_labels.txt"
                self._refuse(utterance, f"{self._path(utterance)}: no line for it in {labels}; add it")
                continue
            listing.add(self._path(utterance), f"{utterance} {lines.places.get(utterance)}")
            ids.append(utterance)
        for file in lines.files:
            listing.add(file, os.path.basename(file))
        self.utterance_ids = ids
        self.speakers = [speaker_of(utterance) for utterance in ids]
        self.lengths_hint: Sequence[int] | None = None
        self._listed = listing.files
        self.stamp, self.written = listing.digests()

    def _refuse(self, utterance: str, message: str) -> None:
        self.refused.append(self._path(utterance))
        self.problems.append(Problem(utterance, message))

    def _path(self, utterance: str) -> str:
        return os.path.join(self._folder, f"{utterance}.pt")

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        try:
            return len(load_tensor(self.where(index)))
        except RawDataError:
            return None

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of."""
        labels = [self._lines.file_of(self.utterance_ids[index])] if self.labelled else []
        return [self._listed[path] for path in (self.where(index), *labels)]

    def where(self, index: int) -> str:
        return self._path(self.utterance_ids[index])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        path = self.where(index)
        features = load_tensor(path)
        if not self.labelled:
            return features, None
        utterance = self.utterance_ids[index]
        return features, self._lines.checked(utterance, len(features), path, self.phonemes, self._frames_each)

    def strays(self, index: int) -> tuple[str, dict[str, int]]:
        """See frame_labels.list_strays."""
        return self._lines.strays(self.utterance_ids[index], self.phonemes)


def load_tensor(path: str) -> np.ndarray:
    """The one (T, D) float tensor of a .pt file, C-order; other objects are never unpickled. Raises RawDataError."""
    try:
        import torch
    except ImportError:
        raise MissingReader("reading .pt features needs torch, which is not installed; pip install torch") from None
    try:
        size = os.stat(path).st_size
        if not is_file(path):
            raise RawDataError(f"{path}: is not a file; remove or mend it")
        # The filters are the process's: two threads that restore them in turn would leave "ignore" behind.
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RawDataError(f"{path}: cannot be read ({error.strerror or error}); mend or remove it") from None
    except RawDataError:
        raise
    except Exception as error:  # a damaged zip or pickle ends in any of a dozen exceptions inside torch.load
        kind, line = type(error).__name__, (str(error).splitlines() or [""])[0][:120]
        raise RawDataError(
            f"{path}: is no .pt file of one plain tensor ({kind}: {line}); save it again with torch.save(tensor)"
        ) from None
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise RawDataError(f"{path}: holds {type(tensor).__name__}, wanted one dense tensor (T, D); save it again")
    if tensor.ndim != 2 or tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        raise RawDataError(
            f"{path}: a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}, wanted (T, D) float32; save it again"
        )
    if tensor.numel() * tensor.element_size() > size:
        # Strides of zero make a small file a huge tensor.
        raise RawDataError(f"{path}: {size} bytes cannot hold a tensor of shape {tuple(tensor.shape)}; save it again")
    tensor = tensor.detach()
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.resolve_neg().resolve_conj().contiguous().numpy())
