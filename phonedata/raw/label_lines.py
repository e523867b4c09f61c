"""LabelLines: text files, perhaps gzipped, with a line of labels per utterance, read line by line where they lie."""

import gzip
import os
import tempfile
import weakref
import zlib
from collections import Counter
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path

import numpy as np

from ..errors import RawDataError, StrayLabel
from ..files import exists
from ..phonemes import PhonemeSet
from .base import check_name, decode
from .frame_labels import fit_labels
from .npy import READ_FLAGS

_LONGEST_LINE = 1 << 26  # 64 MB: hours of one utterance; longer is no label file
# Label text shrinks 10 to 50 times; deflate's most, a thousand, is what files made to fill a disk have.
_MOST_INFLATED = 200
_MARK = b"\xef\xbb\xbf"  # UTF-8's, which Windows editors write before the first line


class OpenFile:
    """The file that was read last, kept open for the next read; a copy in another process opens its own."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._file: BufferedReader | None = None

    def __reduce__(self) -> tuple[type["OpenFile"], tuple[()]]:
        return OpenFile, ()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def open(self, path: str) -> BufferedReader:
        """`path`, opened unless it is open already. Raises OSError."""
        if path != self._path or self._file is None:
            self.__del__()
            self._file = None
            # Lines and heads of matrices are short and lie far apart. By default a buffer is what the file system likes
            # to hand over, on a network a megabyte or more, and each of them would cost as much.
            self._file = BufferedReader(FileIO(path, opener=lambda name, _: os.open(name, READ_FLAGS)), 4096)
            self._path = path
        return self._file

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer at the end of the file. Raises OSError."""
        file = self.open(path)
        file.seek(offset)
        return file.read(length)

    def read_into(self, path: str, offset: int, array: np.ndarray) -> None:
        """Fill a C-order `array` with the bytes from `offset` on. Raises RawDataError if there are fewer, OSError.

        The array was made before the first byte is read: what no memory can hold shows at once.
        """
        file = self.open(path)
        file.seek(offset)
        if file.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:
            raise RawDataError(f"{path}: changed while it was read; start again")


class LabelLines:
    """Where each utterance's line lies in `files`; the labels themselves stay on disk. Picklable.

    A gzipped file is unpacked into the temporary folder for as long as this object lives, since nobody can begin to
    read in its middle; copies share it, and one on another machine unpacks it there.

    `table` is the file that would name the symbols, for messages. Raises RawDataError for a file that cannot be read,
    an id that is listed twice or cannot be an id.
    """

    def __init__(self, files: list[Path], table: str):
        self.files, self.table = [str(file) for file in files], table
        self.places: dict[str, tuple[int, int, int]] = {}
        self._file = OpenFile()
        self._readable = list(self.files)
        for number, file in enumerate(files):
            try:
                if file.suffix == ".gz":
                    self._unpack(number)
                with open(self._readable[number], "rb") as lines:
                    offset = len(_MARK) if lines.read(len(_MARK)) == _MARK else 0
                    lines.seek(offset)
                    while line := lines.readline(_LONGEST_LINE):
                        if len(line) == _LONGEST_LINE:
                            raise RawDataError(
                                f"{file}: a line is longer than 64 MB, wanted `ID label label ...` lines"
                            )
                        self._add(file, number, offset, line)
                        offset += len(line)
            except OSError as error:
                raise RawDataError(f"{file}: cannot be read ({error.strerror}); check the file") from None

    def _unpack(self, number: int) -> None:
        self._readable[number] = _unpack(Path(self.files[number]))
        weakref.finalize(self, _remove, self._readable[number])

    def file_of(self, utterance: str) -> str:
        """The file that has the line of an utterance."""
        return self.files[self.places[utterance][0]]

    def _add(self, file: Path, number: int, offset: int, line: bytes) -> None:
        head = line.split(None, 1)
        if not head:
            return
        if head[1:] and head[1][:2] == b"\0B":
            raise RawDataError(
                f"{file}: is a binary archive, wanted text with one label a frame; write it with "
                "ali-to-phones --per-frame final.mdl 'ark:gunzip -c ali.1.gz|' ark,t:ali.1.txt (or ali-to-pdf)"
            )
        utterance = text_id(head[0], file)
        words = line.split(None, 6)
        if len(words) in (5, 6) and all(b"." in word and _is_number(word) for word in words[2:4]):
            raise RawDataError(
                f"{file}: is a CTM file (ID channel start duration phone), wanted one label a frame; write it with "
                "ali-to-phones --per-frame"
            )
        if words[3:4] == [b";"]:
            raise RawDataError(
                f"{file}: has a phone and how many frames it lasts, wanted one label a frame; write it with "
                "ali-to-phones --per-frame, without --write-lengths"
            )
        if utterance in self.places:
            raise RawDataError(f"{file}: lists {utterance!r} twice; remove one line")
        self.places[utterance] = number, offset, len(line)

    def _line(self, utterance: str) -> bytes:
        number, offset, length = self.places[utterance]
        try:
            if self.files[number].endswith(".gz") and not exists(self._readable[number]):
                self._unpack(number)
            line = self._file.read(self._readable[number], offset, length)
        except OSError as error:
            raise RawDataError(f"{self.files[number]}: cannot be read ({error.strerror}); check the file") from None
        if line.split(None, 1)[:1] != [utterance.encode()]:
            raise RawDataError(f"{self.files[number]}: changed while it was read; start again")
        return line

    def where(self, utterance: str) -> str:
        """The file of an utterance's line, and its id."""
        return f"{self.file_of(utterance)}: {utterance}"

    def labels(self, utterance: str, classes: dict[str, int] | None = None) -> np.ndarray:
        """Labels (T,) int64 of the utterance: integers as they stand, symbols by `classes`. Raises RawDataError."""
        words = self._line(utterance).split()[1:]
        where = self.where(utterance)
        if all(map(bytes.isdigit, words)):
            try:
                return np.array(list(map(int, words)), dtype=np.int64)
            except (OverflowError, ValueError):
                raise RawDataError(f"{where}: a label is larger than any class index; write the line again") from None
        try:
            return np.array([(classes or {})[word.decode()] for word in words], dtype=np.int64)
        except (KeyError, UnicodeDecodeError):
            known = classes or {}
            bad = next(w for w in words if w.decode(errors="replace") not in known)
            raise StrayLabel(
                f"{where}: label {bad.decode(errors='replace')!r} is neither an integer nor a known symbol; "
                f"wanted one per frame, or a {self.table} that lists it"
            ) from None

    def checked(
        self, utterance: str, num_frames: int, features: str, phonemes: PhonemeSet, frames_each: int
    ) -> np.ndarray:
        """Labels of the corpus's dtype, if there is one for each frame and each is a class. Raises RawDataError."""
        labels = self.labels(utterance, phonemes.classes)
        where = self.where(utterance)
        if len(labels) and labels.max() >= len(phonemes):
            raise StrayLabel(
                f"{where}: label {int(labels.max())} is outside 0..{len(phonemes) - 1}; list all symbols in "
                f"{self.table}, or, if these are Kaldi's transition ids, write phones with ali-to-phones --per-frame"
            )
        return fit_labels(labels.astype(phonemes.label_dtype), num_frames, frames_each, where, features)

    def strays(self, utterance: str, phonemes: PhonemeSet) -> tuple[str, dict[str, int]]:
        """Where an utterance's line stands, and the count of each label that is no class. Raises RawDataError."""
        words = Counter(word.decode(errors="replace") for word in self._line(utterance).split()[1:])
        plain = all(word.isascii() and word.isdigit() for word in words)
        known = phonemes.classes
        found = {w: n for w, n in words.items() if (int(w) >= len(phonemes) if plain else w not in known)}
        return self.where(utterance), found


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unpack(file: Path) -> str:
    """A temporary file with the text of gzipped `file`; the caller removes it. Raises RawDataError, OSError."""
    left = os.stat(file).st_size * _MOST_INFLATED + _LONGEST_LINE
    try:
        descriptor, path = tempfile.mkstemp(prefix="phonedata-", suffix=".txt")
    except OSError as error:
        raise _no_room(file, error) from None
    try:
        with open(descriptor, "wb", buffering=0) as text, gzip.open(file) as packed:
            while piece := packed.read(1 << 20):
                left -= len(piece)
                if left < 0:
                    raise RawDataError(
                        f"{file}: unpacks to more than {_MOST_INFLATED} times its size, which no labels do; "
                        "if it is in order, unpack it with gunzip"
                    )
                _write(text, piece, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _remove(path)
        raise RawDataError(f"{file}: damaged or cut gzip file ({str(error)[:80]}); copy or make it again") from None
    except BaseException:
        _remove(path)
        raise
    return path


def _write(text: FileIO, piece: bytes, file: Path) -> None:
    try:
        while piece:
            piece = piece[text.write(piece) :]
    except OSError as error:
        raise _no_room(file, error) from None


def _no_room(file: Path, error: OSError) -> RawDataError:
    return RawDataError(
        f"{file}: cannot be unpacked into {tempfile.gettempdir()} ({error.strerror}); free some space there, or set "
        "TMPDIR to another folder"
    )


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def text_id(word: bytes, where: str | Path) -> str:
    """An utterance id from a foreign list, checked. Raises RawDataError."""
    try:
        utterance = word.decode()
    except UnicodeDecodeError:
        raise RawDataError(f"{where}: id {word!r} is not UTF-8 text; mend the list") from None
    check_name(utterance, "utterance id", where)
    return utterance


def read_list(file: Path) -> list[list[str]]:
    """The words of each non-empty line of a small text file. Raises RawDataError."""
    try:
        text = decode(file.read_bytes())
    except OSError as error:
        raise RawDataError(f"{file}: cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError as error:
        raise RawDataError(f"{file}: not UTF-8 text ({error.reason}); mend the list") from None
    return [words for line in text.split("\n") if (words := line.split())]
