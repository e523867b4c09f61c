"""Audio files of a raw folder: which there are, which alignment belongs to each, their headers and waveforms."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import MissingReader, RawDataError
from .alignments import SUFFIXES
from .frontend import resample

AUDIO = (".wav", ".flac")
DEPTH = 8  # LibriSpeech has speakers and chapters, TIMIT dialects and speakers below a partition
LONGEST_SECONDS = 4 * 3600
# Folders that tell what their files are, not whose they are: wav/ID.wav and lab/ID.lab are partners.
_AUDIO_FOLDER = re.compile(r"wavs?|waves?|audio|flac|wav\d+k?", re.IGNORECASE)
_LABEL_FOLDER = re.compile(r"labs?|labels?|text_?grids?|phns?|align(ed|ments?)?|phones?", re.IGNORECASE)


def _folders(root: Path) -> list[Path]:
    folders = (child for child in sorted(root.iterdir()) if child.is_dir())
    return [child for child in folders if not child.name.startswith((".", "__MACOSX"))]


def has_audio(root: Path) -> bool:
    """Whether a folder in `root` holds audio, up to DEPTH folders below it."""
    return any(
        name.lower().endswith(AUDIO) for folder in _folders(root) for _, names in _walk(folder, []) for name in names
    )


def _walk(folder: Path, too_deep: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of `folder` and of what lies in it, down to DEPTH; `too_deep` gets the folders below that.

    Links are followed, each folder once: a link to a folder above it would lead round in circles.
    """
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        if folders and len(Path(path).relative_to(folder).parts) >= DEPTH:
            too_deep += [os.path.join(path, name) for name in folders]
            folders.clear()
        yield path, [name for name in sorted(names) if not name.startswith(".")]


class AudioFiles(NamedTuple):
    """The files of a partition. A key is a path within the partition, without suffix: `speaker/chapter/name`.

    audio: path -> key. alignments: key as text -> the alignments of it, of different formats.
    """

    audio: dict[str, Path]
    alignments: dict[str, list[Path]]


def list_files(root: Path, alignments: str | None, notes: list[str]) -> dict[str, AudioFiles]:
    """Partition -> its files; the alignments are beside the audio, or in the tree `alignments`.

    `notes` gets a line for each thing that is not read.
    """
    found: dict[str, AudioFiles] = {}
    too_deep: list[str] = []
    for folder in _folders(root):
        for path, names in _walk(folder, too_deep):
            parts = Path(path).relative_to(root).parts
            for name in names:
                stem, suffix = _split(name)
                kind_folder = _AUDIO_FOLDER if suffix in AUDIO else _LABEL_FOLDER
                if suffix not in (*AUDIO, *SUFFIXES):
                    continue
                own = tuple(part for part in parts if not kind_folder.fullmatch(part))
                partition = own[0] if own else Path(os.path.abspath(root)).name
                audio, aligned = found.setdefault(partition, AudioFiles({}, {}))
                key = Path(*own[1:], stem)
                if suffix in AUDIO:
                    audio[os.path.join(path, name)] = key
                elif alignments is None:
                    aligned.setdefault(str(key), []).append(Path(path, name))
    if too_deep:
        notes.append(
            f"{too_deep[0]} and {len(too_deep) - 1} more folders lie too deep and are not read (limit {DEPTH})"
        )
    for partition, (audio, _) in found.items():
        # Kaggle's TIMIT has each recording twice: SA1.WAV, and SA1.WAV.wav, which every reader can read.
        copies = [f for f in audio if f"{f}.wav" in audio]
        for copy in copies:
            del audio[copy]
        if copies:
            notes.append(
                f"{partition}: {len(copies)} files are not read, a copy with .wav behind the name is ({copies[0]})"
            )
    if alignments is not None:
        _pair_tree(Path(alignments), found, notes)
    return found


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix in lower case; the stem of SA1.WAV.wav is SA1."""
    stem, suffix = os.path.splitext(name)
    bare, other = os.path.splitext(stem)
    return (bare if other.lower() in AUDIO and bare else stem), suffix.lower()


def _pair_tree(tree: Path, found: dict[str, AudioFiles], notes: list[str]) -> None:
    """Pair audio with the alignments of another tree: by the file's name, and where several have it by the folders
    that hold them, from the speaker upwards."""
    named: dict[str, list[Path]] = {}
    for path, names in _walk(tree, []):
        for name in names:
            if _split(name)[1] in SUFFIXES:
                named.setdefault(_split(name)[0], []).append(Path(path, name))
    recordings = Counter(key.name for audio, _ in found.values() for key in audio.values())
    used: set[Path] = set()
    for partition, (audio, aligned) in found.items():
        for key in audio.values():
            candidates = named.get(key.name, [])
            if len(candidates) > 1 or recordings[key.name] > 1:
                folders = (partition, *key.parts[:-1])
                depths = [_common_end(folders, file.relative_to(tree).parts[:-1]) for file in candidates]
                most = max(depths, default=0)
                candidates = [f for f, depth in zip(candidates, depths) if depth == most] if most else []
            if len({file.suffix.lower() for file in candidates}) == len(candidates):
                aligned.setdefault(str(key), []).extend(candidates)
                used.update(candidates)
    count = sum(map(len, named.values())) - len(used)
    if count:
        notes.append(f"{count} alignments of {tree} are not used: no audio has their name and folder")


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many names two paths have in common, counted from their ends."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def utterance_id(key: Path) -> str:
    """The id of the file `key` (see `AudioFiles`): LibriSpeech's names as they are; else SPEAKER-FOLDERS-NAME, the
    speaker being the folder that holds the file."""
    if len(key.name.split("-")) >= 3 or len(key.parts) == 1:
        return key.name
    *above, speaker = (part.replace("-", "_") for part in key.parts[:-1])
    return "-".join([speaker, *(above or ["0"]), key.name.replace("-", "_")])


def read_waveform(path: str, rate_hz: int) -> np.ndarray:
    """Mono waveform (n,) float32 at `rate_hz` in the scale of int16. Raises RawDataError."""
    own_rate, length = read_header(path)
    import soundfile

    try:
        waveform = soundfile.read(path, dtype="float32")[0]
    except OSError as error:
        raise _unreadable(path, error) from None
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:  # LibsndfileError is a RuntimeError
        raise _unreadable(path, error) from None
    if waveform.shape != (length,) or not np.isfinite(waveform).all():
        raise RawDataError(f"{path}: {len(waveform)} of {length} samples could be read as numbers; mend or remove it")
    return resample(waveform * np.float32(32768), own_rate, rate_hz)


def read_header(path: str) -> tuple[int, int]:
    """Rate in Hz and number of samples of a mono audio file. Raises RawDataError, MissingReader."""
    try:
        import soundfile
    except ImportError:
        raise MissingReader(
            "reading audio needs soundfile, which is not installed; pip install 'phonedata[audio]'"
        ) from None
    if not os.path.isfile(path):
        raise RawDataError(f"{path}: is not a file; remove it, or put the audio there")
    try:
        found = soundfile.info(path)
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise _unreadable(path, error) from None
    if found.channels != 1:
        raise RawDataError(
            f"{path}: {found.channels} channels, wanted one; mix them down, e.g. sox IN OUT remix -, or keep the first "
            "with sox IN OUT remix 1"
        )
    if not 1000 <= found.samplerate <= 384000 or found.frames > LONGEST_SECONDS * found.samplerate:
        raise RawDataError(
            f"{path}: {found.frames} samples at {found.samplerate} Hz, wanted one utterance; cut or mend the file"
        )
    return found.samplerate, found.frames


def _unreadable(path: str, error: BaseException) -> RawDataError:
    if isinstance(error, OSError):
        return RawDataError(f"{path}: cannot be read ({error.strerror}); check its disk and permissions")
    line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return RawDataError(f"{path}: is no audio that libsndfile can read ({line}); mend or remove it")
