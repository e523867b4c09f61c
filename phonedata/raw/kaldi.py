"""The Kaldi layout: data directories with feats.scp -> ark (also compressed), text alignments, phones.txt, utt2spk."""

import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ..errors import MissingReader, RawDataError, SpecError
from ..files import is_file, is_folder
from ..phonemes import PhonemeSet
from .base import Listing, Problem, RawCorpus, check_name, folders_in, frame_shift_of, numbered, read_frontend
from .frame_labels import LabelOptions, numbered_note
from .label_lines import LabelLines, OpenFile, read_list, text_id

LOOKS_FOR = "feats.scp, or folders that have one (also in data/), with ali*.txt or pdf*.txt (also .gz) beside it"
_VALUE_BYTES = {b"FM": 4, b"DM": 8, b"CM": 1, b"CM2": 2, b"CM3": 1}
_ALIGNMENTS = re.compile(r"(ali|pdf|phones?[-_.]ali|ali[-_.]pdf)[\w.-]*\.(txt|gz)")
_LIKE_ALIGNMENTS = re.compile(r"(?<![a-z])(ali|align|alignments?|pdfs?)(?![a-z])", re.IGNORECASE)
_DISAMBIGUATION = re.compile(r"#\d+")
_MOST_CLASSES = 65535
_LONGEST_KEY = 1100  # bytes; an id has 255 characters at most


def detect(root: Path) -> bool:
    """Whether `root`, a folder in it or one in its `data/` holds feats.scp."""
    return bool(_data_directories(root))


def _data_directories(root: Path) -> list[Path]:
    if is_file(root / "feats.scp"):
        return [root]
    # A recipe's folder, s5/, has its data directories in data/ and its arks elsewhere, often in mfcc/.
    for parent in (root, root / "data"):
        if is_folder(parent) and (found := [child for child in folders_in(parent) if is_file(child / "feats.scp")]):
            return found
    return []


def open_layout(root: Path, labels: LabelOptions | None = None) -> RawCorpus:
    """One partition per data directory. Raises RawDataError, SpecError."""
    labels, frontend = labels or LabelOptions(), read_frontend(root)
    folders = _data_directories(root)
    alignments = {folder: LabelLines(_alignment_files(folder), "phones.txt") for folder in folders}
    names = {os.path.basename(file) for lines in alignments.values() for file in lines.files}
    pdf = {"pdf" in name for name in names}
    if len(pdf) > 1:
        raise RawDataError(f"{root}: {sorted(names)} mix phone and pdf alignments; keep one kind")
    places = (root, root / "lang", root / "data/lang", *folders)
    table = next(filter(is_file, (place / "phones.txt" for place in places)), None)
    notes: list[str] = []
    if table and pdf != {True}:
        if labels.classes is not None:
            raise SpecError(f"classes={labels.classes}: {table} says what the classes are; leave it out")
        phonemes = _symbol_table(table)
    elif labels.classes is not None:
        phonemes = numbered(labels.classes)
    else:
        phonemes = _numbered(root, alignments, notes)
    arks: dict[str, str] = {}
    notes += _unread_alignments(folders)
    each = labels.frames_each(frame_shift_of(frontend))
    partitions = [KaldiPartition(root, folder, alignments[folder], phonemes, arks, each) for folder in folders]
    return RawCorpus(root, "kaldi", tuple(partitions), phonemes, frontend, tuple(notes))


def _alignment_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _ALIGNMENTS.fullmatch(file.name) and is_file(file))


def _unread_alignments(folders: list[Path]) -> list[str]:
    """A note for each file that may be meant as alignments and is not called so."""
    names = [f for folder in folders for f in sorted(folder.iterdir()) if _LIKE_ALIGNMENTS.search(f.name)]
    unread = [f for f in names if is_file(f) and not _ALIGNMENTS.fullmatch(f.name)]
    return [f"{file} is not read; alignments are ali*.txt or pdf*.txt, also .gz" for file in unread]


def _symbol_table(file: Path) -> PhonemeSet:
    """phones.txt, `symbol integer` a line: classes are the integers, without the disambiguation symbols at the end."""
    symbols: dict[int, str] = {}
    for words in read_list(file):
        if len(words) != 2 or not words[1].isascii() or not words[1].isdigit() or int(words[1]) > _MOST_CLASSES:
            raise RawDataError(
                f"{file}: line {' '.join(words)[:60]!r}, wanted `symbol integer` below {_MOST_CLASSES}; mend it"
            )
        if int(words[1]) in symbols:
            raise RawDataError(f"{file}: integer {words[1]} has two symbols; remove one")
        symbols[int(words[1])] = words[0]
    while symbols and _DISAMBIGUATION.fullmatch(symbols[max(symbols)]):
        del symbols[max(symbols)]
    try:
        return PhonemeSet(
            tuple(symbols.get(number, f"<unused-{number}>") for number in range(max(symbols, default=-1) + 1))
        )
    except SpecError as error:
        raise RawDataError(f"{file}: {error}") from None


def _numbered(root: Path, alignments: dict[Path, LabelLines], notes: list[str]) -> PhonemeSet:
    """Classes 0 up to the largest label, which only reading them all can tell."""
    largest, largest_in, seen = 0, "", np.zeros(_MOST_CLASSES, bool)
    for lines in alignments.values():
        for utterance in lines.places:
            labels = lines.labels(utterance)
            top = int(labels.max(initial=0))
            if top > largest or not largest_in:
                largest, largest_in = top, lines.where(utterance)
            seen[labels[labels < _MOST_CLASSES]] = True
    if largest >= _MOST_CLASSES:
        raise RawDataError(
            f"{largest_in}: label {largest}, but at most {_MOST_CLASSES} classes fit; are these transition ids? "
            "make pdf ids with ali-to-pdf, or phones with ali-to-phones --per-frame"
        )
    if largest_in:
        ids = "or, if these are Kaldi's transition ids, write phones with ali-to-phones --per-frame"
        notes.append(numbered_note(seen[: largest + 1], largest_in, ids))
    return numbered(largest + 1)


class KaldiPartition:
    """One data directory; see raw.RawPartition. `arks` collects which path of an scp led to which file."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        lines: LabelLines,
        phonemes: PhonemeSet,
        arks: dict[str, str],
        frames_each: int,
    ):
        self.name = folder.resolve().name if folder == root else folder.name
        check_name(self.name, "partition name", root)
        self.phonemes, self._lines, self._frames_each = phonemes, lines, frames_each
        self.labelled = bool(lines.files)
        self.order = "sorted"
        self.lengths_hint: Sequence[int] | None = None
        self.problems: list[Problem] = []
        scp = folder / "feats.scp"
        places: dict[str, tuple[str, int]] = {}
        for words in read_list(scp):
            utterance = text_id(words[0].encode(), scp)
            if utterance in places:
                raise RawDataError(f"{scp}: lists {utterance!r} twice; remove one line")
            places[utterance] = _ark_place(" ".join(words[1:]), utterance, scp, root, folder, arks)
        if not places:
            raise RawDataError(f"{scp}: lists no utterance, wanted `ID file.ark:offset` lines; fill or remove it")
        speakers = {}
        if is_file(folder / "utt2spk"):
            for words in read_list(folder / "utt2spk"):
                if len(words) != 2:
                    raise RawDataError(
                        f"{folder / 'utt2spk'}: line {' '.join(words)[:60]!r}, wanted `ID speaker`; mend it"
                    )
                speakers[words[0]] = words[1]
        if self.labelled:
            for utterance in sorted(places.keys() - lines.places.keys()):
                self.problems.append(
                    Problem(utterance, f"{scp}: {utterance} has no line in {lines.files[0]}; add it, or skip_bad=True")
                )
            for utterance in sorted(lines.places.keys() - places.keys()):
                self.problems.append(
                    Problem(utterance, f"{lines.files[0]}: {utterance} has no line in {scp}; add it, or skip_bad=True")
                )
        self.utterance_ids = sorted(u for u in places if not self.labelled or u in lines.places)
        self.speakers = [speakers.get(utterance, utterance) for utterance in self.utterance_ids]
        self._places = [places[utterance] for utterance in self.utterance_ids]
        self._file = OpenFile()
        self._keys: dict[str, dict[int, bytes]] = {}
        listing = Listing()
        for file in sorted({ark for ark, _ in self._places} | {str(scp)} | set(lines.files)):
            listing.add(file, os.path.relpath(file, root))
        self._listed = listing.files
        self.stamp, self.written = listing.digests()

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        try:
            return _read_head(self._file, *self._places[index])[1]
        except (RawDataError, OSError):
            return None

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of."""
        ark, utterance = self._places[index][0], self.utterance_ids[index]
        files = [ark, self._lines.file_of(utterance)] if self.labelled else [ark]
        return [self._listed[file] for file in files]

    def where(self, index: int) -> str:
        ark, offset = self._places[index]
        return f"{ark}:{offset}"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        ark, offset = self._places[index]
        try:
            if not is_file(ark):
                raise RawDataError(f"{ark}: is not there or not a file, but feats.scp names it; add it")
            self._check_key(ark, offset, self.utterance_ids[index])
            features = _read_matrix(self._file, ark, offset)
        except OSError as error:
            raise RawDataError(f"{ark}: cannot be read ({error.strerror}); mend or remove it") from None
        if not self.labelled:
            return features, None
        utterance = self.utterance_ids[index]
        labels = self._lines.checked(utterance, len(features), self.where(index), self.phonemes, self._frames_each)
        return features, labels

    def strays(self, index: int) -> tuple[str, dict[str, int]]:
        """See frame_labels.list_strays."""
        return self._lines.strays(self.utterance_ids[index], self.phonemes)

    def _check_key(self, ark: str, offset: int, utterance: str) -> None:
        """Refuse a matrix that its ark keeps under another name: the ark may be another partition's of the same name.

        At offset 0 stands a matrix without an ark around it, which has no name.
        """
        wanted = utterance.encode() + b" "
        if not offset or self._file.read(ark, max(0, offset - len(wanted)), len(wanted)) == wanted:
            return
        if ark not in self._keys:
            self._keys[ark] = _read_keys(self._file, ark)
        key = self._keys[ark].get(offset, b"").decode(errors="replace")
        if not _renamed(key, utterance):
            found = f"the ark has {key[:60]!r} there" if key else "no entry begins there"
            raise RawDataError(
                f"{ark}:{offset}: is {utterance} in feats.scp, but {found}; put the right ark beside the scp, or write "
                "both again with copy-feats"
            )


def _renamed(key: str, utterance: str) -> bool:
    """Whether copy_data_dir.sh may have made `utterance` of `key`: a prefix before it, a suffix behind it."""
    if key not in utterance or not key:
        return False
    before, _, behind = utterance.partition(key)
    return not before[-1:].isalnum() and not behind[:1].isalnum()


def _read_keys(file: OpenFile, ark: str) -> dict[int, bytes]:
    """Offset -> key of the entries of an ark, from its start up to the first that is no binary matrix.

    Only so is it certain where a key begins: before it stands the last byte of a matrix, which can be any letter.
    """
    keys: dict[int, bytes] = {}
    at = 0
    while True:
        key, space, _ = file.read(ark, at, _LONGEST_KEY).partition(b" ")
        offset = at + len(key) + 1
        try:
            *_, start, num_bytes = _read_head(file, ark, offset)
        except RawDataError:
            return keys
        keys[offset], at = key, start + num_bytes


def _ark_place(text: str, utterance: str, scp: Path, root: Path, folder: Path, arks: dict[str, str]) -> tuple[str, int]:
    """File and byte offset of an scp entry. Commands are never run, and nothing outside `root` is opened.

    `arks` has the given path of every file so far: two paths that lead to one file are two arks of one name.
    """
    if "|" in text:
        raise RawDataError(
            f"{scp}: {utterance} is a command ({text[:60]!r}), which is never run; write an ark with copy-feats"
        )
    if text.endswith("]"):
        raise RawDataError(
            f"{scp}: {utterance} takes a range ({text[-30:]!r}); write an ark of its own with copy-feats"
        )
    match = re.fullmatch(r"(.+):([0-9]{1,18})", text)
    if not match or not match[1].isprintable():
        raise RawDataError(
            f"{scp}: {utterance} is {text[:60]!r}, wanted file.ark:offset; write it again with copy-feats"
        )
    given, inside = match[1], os.path.abspath(root)
    # Paths in an scp are relative to wherever Kaldi ran, so the file is looked for by what it ends with, too.
    ends = [os.path.join(*Path(given).parts[n:]) for n in range(len(Path(given).parts))]
    for candidate in (place / end for end in ends for place in (folder, root)):
        path = os.path.abspath(candidate)
        if os.path.commonpath([inside, path]) == inside and is_file(path):
            known = arks.setdefault(path, given)
            if not _same_end(known, given):
                raise RawDataError(
                    f"{scp}: {utterance} names {given!r}, but only {path} is there, which is {known!r} elsewhere; "
                    "put each ark, or a link to it, beside its scp"
                )
            return str(root / os.path.relpath(path, inside)), int(match[2])
    relative = [end for end in ends if not os.path.isabs(end)]
    above = next((p for p in Path(inside).parents[:2] for end in relative if is_file(p / end)), None)
    helps = f"did you mean {above}?" if above else "put the ark, or a link to it, beside the scp"
    raise RawDataError(f"{scp}: {utterance} names {given!r}, which is not inside {root}; {helps}")


def _same_end(a: str, b: str) -> bool:
    """Whether one path is how the other ends: the same file, seen from two folders."""
    one, other = Path(a).parts, Path(b).parts
    count = min(len(one), len(other))
    return one[-count:] == other[-count:]


def _read_head(file: OpenFile, ark: str, offset: int) -> tuple[bytes, int, int, int, int]:
    """Token, rows, columns, where the values begin, and their bytes. Raises RawDataError, OSError."""
    size, where = os.fstat(file.open(ark).fileno()).st_size, f"{ark}:{offset}"
    head = file.read(ark, offset, 32)
    # kaldiio would unpickle an entry that begins with PKL, so that only binary matrices get that far.
    token, _, rest = head[2:].partition(b" ")
    if head[:2] != b"\0B" or token not in _VALUE_BYTES:
        raise RawDataError(
            f"{where}: begins with {head[:6]!r}, wanted a binary Kaldi matrix (FM, DM, CM); write it with copy-feats"
        )
    # Before each of two numbers stands a 4, or before both of them what compression has subtracted and divided by.
    form = rb"\x04(.{4})\x04(.{4})" if token in (b"FM", b"DM") else rb".{8}(.{4})(.{4})"
    shape = re.match(form, rest, re.DOTALL)
    rows, columns = (int.from_bytes(n, "little", signed=True) for n in shape.groups()) if shape else (-1, -1)
    start = offset + 3 + len(token) + (shape.end() if shape else 0) + (8 * columns if token == b"CM" else 0)
    num_bytes = rows * columns * _VALUE_BYTES[token]
    if rows < 0 or columns < 1 or start + num_bytes > size:
        raise RawDataError(
            f"{where}: a matrix of {rows} x {columns} does not fit into the {size} bytes of the file; write it again"
        )
    return token, rows, columns, start, num_bytes


def _read_matrix(file: OpenFile, ark: str, offset: int) -> np.ndarray:
    """The matrix (T, D) float32 or float64 at `offset`; kaldiio decompresses. Raises RawDataError, OSError."""
    token, rows, columns, start, num_bytes = _read_head(file, ark, offset)
    where = f"{ark}:{offset}"
    try:
        if token in (b"FM", b"DM"):
            values = np.empty((rows, columns), "<f4" if token == b"FM" else "<f8")
            file.read_into(ark, start, values)
            return values.astype(values.dtype.newbyteorder("="), copy=False)
        entry = np.empty(start + num_bytes - offset, np.uint8)
        file.read_into(ark, offset, entry)
    except MemoryError:
        raise RawDataError(
            f"{where}: a matrix of {rows} x {columns} does not fit into memory; write it again in pieces, or use "
            "skip_bad=True"
        ) from None
    try:
        from kaldiio.matio import read_matrix_or_vector
    except ImportError:
        raise MissingReader(
            "compressed Kaldi matrices need kaldiio, which is not installed; pip install 'phonedata[kaldi]'"
        ) from None
    try:
        with np.errstate(all="ignore"):
            features = read_matrix_or_vector(BytesIO(entry.data))
    except Exception as error:  # what a flipped bit does inside kaldiio is not its promise
        raise RawDataError(
            f"{where}: kaldiio cannot read it ({type(error).__name__}: {str(error)[:80]}); write it again"
        ) from None
    return np.ascontiguousarray(features, dtype=np.float32)
