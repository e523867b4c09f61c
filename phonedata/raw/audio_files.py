"""Audio files of a raw folder: which there are, which alignment belongs to each, their headers and waveforms."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import MissingReader, RawDataError
from ..files import is_file, walk
from .alignments import SUFFIXES
from .base import folders_in
from .frontend import resample

AUDIO = (".wav", ".flac")
DEPTH = 8  # LibriSpeech has speakers and chapters, TIMIT dialects and speakers below a partition
LONGEST_SECONDS = 4 * 3600
# Folders that tell what their files are, not whose they are: wav/ID.wav and lab/ID.lab are partners.
_AUDIO_FOLDER = re.compile(r"wavs?|waves?|audio|flac|wav\d+k?", re.IGNORECASE)
_KIND_FOLDER = re.compile(
    rf"{_AUDIO_FOLDER.pattern}|labs?|labels?|text_?grids?|phns?|align(ed|ments?)?|phones?", re.IGNORECASE
)
_ORIGINALS = "orig"  # CMU ARCTIC's recordings, two channels, that its wav/ was made of
_SPLIT = re.compile(
    r"(train(ing)?|dev|test(ing)?|val(id(ation)?)?|eval)([-_.](clean|other))?([-_.]?\d+)?", re.IGNORECASE
)
_CONVERT = "audio is read from .wav and .flac; convert them, as with ffmpeg -i IN OUT.wav"
_UNREAD = {
    _CONVERT: frozenset(
        [".mp3", ".m4a", ".ogg", ".opus", ".aac", ".aif", ".aiff", ".sph", ".wma", ".au", ".mp4", ".webm", ".amr"]
        + [".raw", ".pcm", ".wv"]
    ),
    "alignments are read from .TextGrid, .phn and .lab": frozenset(
        [".ctm", ".mlf", ".eaf", ".phones", ".phoneme", ".phonemes", ".seg", ".rttm", ".lbl"]
    ),
}


def has_audio(root: Path) -> bool:
    """Whether `root` holds audio, itself or up to DEPTH folders below a folder in it."""
    return any(name.lower().endswith(AUDIO) for _, names in _walk_all(root, []) for name in names)


def unread_audio(root: Path) -> list[str]:
    """What is said of a folder's audio where none of it can be read; nothing where there is none."""
    files = (os.path.join(path, name) for path, names in _walk_all(root, []) for name in names)
    first = next((file for file in files if os.path.splitext(file)[1].lower() in _UNREAD[_CONVERT]), None)
    return [] if first is None else [f"but of {first}: {_CONVERT}"]


def _walk_all(root: Path, notes: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of `root`, then of all that lies in it; see `_walk`."""
    folders = _without_originals(root, [folder.name for folder in folders_in(root)], notes)
    yield str(root), sorted(name for name in os.listdir(root) if not name.startswith(".") and name not in folders)
    for name in folders:
        yield from _walk(root / name, notes)


def _walk(folder: Path, notes: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of `folder` and of what lies in it, down to DEPTH; `notes` gets what is not looked into.

    Links are followed, each folder once: a link to a folder above it would lead round in circles.
    """
    seen: dict[tuple[int, int], str] = {}
    too_deep: list[str] = []

    def closed(path: str) -> None:
        notes.append(f"{path} cannot be looked into and is left out; check its permissions if it is meant")

    for path, folders, names in walk(folder, followlinks=True, closed=closed):
        status = os.stat(path)
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            notes.append(f"{path} is not read, as it is the folder {first} by another name")
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        folders[:] = _without_originals(Path(path), folders, notes)
        if folders and len(Path(path).relative_to(folder).parts) >= DEPTH:
            too_deep += [os.path.join(path, name) for name in folders]
            folders.clear()
        yield path, [name for name in sorted(names) if not name.startswith(".")]
    if too_deep:
        notes.append(
            f"{len(too_deep)} folders lie more than {DEPTH} below {folder} and are not read, e.g. {too_deep[0]}"
        )


def _without_originals(parent: Path, folders: list[str], notes: list[str]) -> list[str]:
    if _ORIGINALS not in folders or not any(map(_AUDIO_FOLDER.fullmatch, folders)):
        return folders
    notes.append(f"{parent / _ORIGINALS} is not read, as the folder of audio beside it was made of it")
    return [name for name in folders if name != _ORIGINALS]


class AudioFiles(NamedTuple):
    """The files of a partition. A key is a path within the partition, without suffix: `speaker/chapter/name`.

    audio: path -> key. alignments: key as text -> the alignments of it, of different formats.
    """

    audio: dict[str, Path]
    alignments: dict[str, list[Path]]


def list_files(root: Path, alignments: str | os.PathLike[str] | None, notes: list[str]) -> dict[str, AudioFiles]:
    """Partition -> its files; the alignments are beside the audio, or in the tree `alignments`.

    `notes` gets a line for each thing that is not read. Raises RawDataError where another folder must be meant.
    """
    found: dict[str, AudioFiles] = {}
    unread: dict[str, list[str]] = {why: [] for why in _UNREAD}
    own_name = Path(os.path.abspath(root)).name
    loose: list[str] = []  # audio in `root` itself
    for path, names in _walk_all(root, notes):
        parts = Path(path).relative_to(root).parts
        for name in names:
            stem, suffix = _split(name)
            for why, suffixes in _UNREAD.items():
                unread[why] += [os.path.join(path, name)] * (suffix in suffixes)
            if suffix not in (*AUDIO, *SUFFIXES):
                continue
            own = tuple(part for part in parts if not _KIND_FOLDER.fullmatch(part))
            audio, aligned = found.setdefault(own[0] if own else own_name, AudioFiles({}, {}))
            key = Path(*own[1:], stem)
            if suffix in AUDIO:
                audio[os.path.join(path, name)] = key
                loose += [os.path.join(path, name)] * (not parts)
            elif alignments is None:
                aligned.setdefault(str(key), []).append(Path(path, name))
    _refuse_if_meant(root, found)
    if loose and any(files.audio for name, files in found.items() if name != own_name):
        for path in loose:
            key = found[own_name].audio.pop(path)
            found[own_name].alignments.pop(str(key), None)
        notes.append(f"{len(loose)} audio files lie beside the partitions and are not read, e.g. {loose[0]}")
    for partition, (audio, _) in found.items():
        # Kaggle's TIMIT has each recording twice: SA1.WAV, and SA1.WAV.wav, which every reader can read.
        copies = [f for f in audio if f"{f}.wav" in audio]
        for copy in copies:
            del audio[copy]
        if copies:
            notes.append(
                f"{partition}: {len(copies)} files are not read, a copy with .wav behind the name is ({copies[0]})"
            )
    notes += [f"{len(files)} files are not read, e.g. {files[0]}: {why}" for why, files in unread.items() if files]
    if alignments is None:
        _pair_by_name(found, notes)
    else:
        _pair_tree(Path(alignments), found, notes)
    return found


def _refuse_if_meant(root: Path, found: dict[str, AudioFiles]) -> None:
    """Refuse a folder above the partitions, or one of them. Raises RawDataError, naming the folder that is meant."""
    folders = {folder for files in found.values() for path in files.audio for folder in Path(path).parents}
    inside = sorted(folder for folder in folders if root in folder.parents)
    if any(_SPLIT.fullmatch(folder.name) for folder in inside if folder.parent == root):
        return
    for folder in sorted(inside, key=lambda folder: len(folder.parts)):
        names = sorted(child.name for child in inside if child.parent == folder)
        splits = [name for name in names if _SPLIT.fullmatch(name)]
        if _AUDIO_FOLDER.fullmatch(folder.name):
            continue  # wav/train is read as train
        if len(splits) > 1 or (splits and splits == names):
            raise RawDataError(
                f"{root}: its folder {folder.relative_to(root)} holds {' and '.join(splits[:3])}, which would become "
                f"one partition; did you mean {folder}?"
            )
    whole = Path(os.path.abspath(root))
    if _SPLIT.fullmatch(whole.name) and any(files.audio for name, files in found.items() if name != whole.name):
        raise RawDataError(f"{root}: each folder in it would become a partition; did you mean {whole.parent}?")


def _pair_by_name(found: dict[str, AudioFiles], notes: list[str]) -> None:
    """Pair the audio of partitions that have no alignment in its place with alignments of its name elsewhere.

    Only where a name is one recording's and one alignment's: SA1 of one speaker must not get the phones of another.
    """
    loose: dict[str, list[tuple[str, str]]] = {}
    for partition, (audio, aligned) in found.items():
        keys = {str(key) for key in audio.values()}
        for place in sorted(aligned.keys() - keys):
            loose.setdefault(Path(place).name, []).append((partition, place))
    for partition, (audio, aligned) in found.items():
        if any(str(key) in aligned for key in audio.values()):
            continue
        recordings, count, example = Counter(key.name for key in audio.values()), 0, None
        for key in audio.values():
            places = loose.get(key.name, [])
            places = [place for place in places if place[0] == partition] or places
            if len(places) == recordings[key.name] == 1:
                files = found[places[0][0]].alignments.pop(places[0][1])
                loose[key.name].remove(places[0])
                aligned[str(key)], count, example = files, count + 1, files[0]
        if count:
            notes.append(f"{partition}: {count} alignments lie elsewhere and are paired by name, e.g. {example}")
    for audio, aligned in found.values():
        keys = {str(key) for key in audio.values()}
        names = {key.name for key in audio.values() if str(key) in aligned}
        # An annotation by hand beside the alignments of all, or a tree that nobody needs: no recording lacks them.
        spare = [key for key in aligned if key not in keys and (not audio or Path(key).name in names)]
        if spare:
            reason = "their audio has others" if audio else "no audio has their name"
            notes.append(f"{len(spare)} alignments are not read, as {reason}, e.g. {aligned[spare[0]][0]}")
        for name in spare:
            del aligned[name]


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix in lower case; the stem of SA1.WAV.wav is SA1."""
    stem, suffix = os.path.splitext(name)
    bare, other = os.path.splitext(stem)
    return (bare if other.lower() in AUDIO and bare else stem), suffix.lower()


def _pair_tree(tree: Path, found: dict[str, AudioFiles], notes: list[str]) -> None:
    """Pair audio with the alignments of another tree: by the file's name, and where several have it by the folders
    that hold them, from the speaker upwards."""
    named: dict[str, list[Path]] = {}
    for path, names in _walk(tree, notes):
        for name in names:
            if _split(name)[1] in SUFFIXES:
                named.setdefault(_split(name)[0], []).append(Path(path, name))
    recordings = Counter(key.name for audio, _ in found.values() for key in audio.values())
    users: dict[Path, list[str]] = {}
    for partition, (audio, aligned) in found.items():
        for path, key in audio.items():
            candidates = named.get(key.name, [])
            if len({file.parent for file in candidates}) > 1 or recordings[key.name] > 1:
                folders = (partition, *key.parts[:-1])
                depths = [_common_end(folders, file.relative_to(tree).parts[:-1]) for file in candidates]
                most = max(depths, default=0)
                candidates = [f for f, depth in zip(candidates, depths) if depth == most] if most else []
            if candidates and len({file.suffix.lower() for file in candidates}) == len(candidates):
                aligned.setdefault(str(key), []).extend(candidates)
                for file in candidates:
                    users.setdefault(file, []).append(path)
    shared = {file: paths for file, paths in users.items() if len(paths) > 1}
    for _, aligned in found.values():
        for place in [place for place, files in aligned.items() if not shared.keys().isdisjoint(files)]:
            del aligned[place]
    if shared:
        file, paths = next(iter(shared.items()))
        notes.append(
            f"{len(shared)} alignments of {tree} are not used, as several recordings have their name and folder, e.g. "
            f"{file} that of {paths[0]} and {paths[1]}"
        )
    used = users.keys()
    if not used:
        audio_file = next((path for audio, _ in found.values() for path in audio), "none")
        raise RawDataError(
            f"{tree}: none of its {sum(map(len, named.values()))} alignments has the name of an audio file, e.g. of "
            f"{audio_file}; give the tree whose files are named as the audio is"
        )
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
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # LibsndfileError is a RuntimeError
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
    if not is_file(path):
        raise RawDataError(f"{path}: is not a file; remove it, or put the audio there")
    if not os.path.getsize(path):
        raise RawDataError(f"{path}: is empty; copy it again or remove it")
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
    line = str(error).splitlines()[0].rpartition(f"{path!r}: ")[2].rstrip(".") if str(error) else type(error).__name__
    return RawDataError(f"{path}: is no audio that libsndfile can read ({line}); mend or remove it")
