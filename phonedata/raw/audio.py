"""Audio with phone alignments beside it (wav, flac; TextGrid, .phn, .lab): MFCC and labels, made while reading."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import MissingReader, RawDataError
from ..phonemes import ARPABET, PhonemeSet
from .alignments import SILENCE, SUFFIXES, Intervals, as_arpabet, read_alignment
from .base import Problem, RawCorpus, Stamp, check_name, read_phonemes
from .frontend import FrontEnd, labels_at, resample
from .hw1p2 import speaker_of

LOOKS_FOR = "PARTITION/.../ID.wav or .flac, with ID.TextGrid, ID.phn or ID.lab beside it"
AUDIO = (".wav", ".flac")
DEPTH = 5  # LibriSpeech has speakers and chapters, TIMIT dialects and speakers below a partition
LONGEST_SECONDS = 4 * 3600
_BEYOND = 0.1  # seconds that an alignment may reach beyond its audio: MFA and TIMIT round


def detect(root: Path) -> bool:
    """Whether a folder in `root` holds audio, up to DEPTH folders below it (links to folders are not followed)."""
    return any(_has_audio(child) for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _has_audio(folder: Path) -> bool:
    return any(name.lower().endswith(AUDIO) for _, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of `folder` and of what lies in it, down to DEPTH: some trees have no end worth reaching."""
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= DEPTH:
            folders.clear()
        yield place, names


def open_layout(root: Path, frontend: FrontEnd | None = None) -> RawCorpus:
    """One partition per folder of `root` that holds audio. Raises RawDataError.

    Phones of MFA or CMUdict become ARPABET, without stress digits; any other inventory stays as it is, in sorted order,
    unless `phonemes.txt` lists it.
    """
    frontend = frontend or FrontEnd()
    folders = [c for c in sorted(root.iterdir()) if c.is_dir() and not c.name.startswith(".") and _has_audio(c)]
    partitions = [AudioPartition(root, folder, frontend) for folder in folders]
    given = read_phonemes(root, None)
    symbols = set()
    if given is None:
        for partition in partitions:
            symbols |= partition.inventory()
    own = sorted(s for s in symbols if as_arpabet(s) is None)
    notes = []
    phonemes = given or ARPABET
    if own:
        # "" (an empty interval) cannot be a symbol; it is a pause like the set's own.
        phonemes = PhonemeSet(tuple(sorted(s for s in symbols if s)))
        notes.append(
            f"{len(own)} phones are not ARPABET (e.g. {own[0]}), so all {len(phonemes)} are kept as they are, in "
            "sorted order"
        )
    for partition in partitions:
        partition.use(phonemes)
    described = {"kind": "mfcc", "rate_hz": frontend.rate_hz, "frame_length_ms": frontend.frame_length_ms}
    described |= {"frame_shift_ms": frontend.frame_shift_ms, "mel_bins": frontend.mel_bins, "low_hz": frontend.low_hz}
    described |= {"coefficients": frontend.coefficients}
    return RawCorpus(root, "audio", tuple(partitions), phonemes, described, tuple(notes))


def read_waveform(path: str, rate_hz: int) -> tuple[np.ndarray, int]:
    """Mono waveform (n,) float32 at `rate_hz` in the scale of int16, and the file's own rate. Raises RawDataError."""
    try:
        import soundfile
    except ImportError:
        raise MissingReader(
            "reading audio needs soundfile, which is not installed; pip install 'phonedata[audio]'"
        ) from None
    try:
        if not os.path.isfile(path):
            raise RawDataError(f"{path}: is not a file; remove or mend it")
        with soundfile.SoundFile(path) as sound:
            own_rate, channels, length = sound.samplerate, sound.channels, sound.frames
            if channels != 1:
                raise RawDataError(f"{path}: {channels} channels, wanted one; mix it down, e.g. sox IN OUT remix 1")
            if not 1000 <= own_rate <= 384000 or length > LONGEST_SECONDS * own_rate:
                raise RawDataError(
                    f"{path}: {length} samples at {own_rate} Hz, wanted one utterance; cut or mend the file"
                )
            waveform = sound.read(dtype="float32")
    except OSError as error:
        raise RawDataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:  # LibsndfileError is a RuntimeError
        line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise RawDataError(f"{path}: is no audio that libsndfile can read ({line}); mend or remove it") from None
    if len(waveform) != length or not np.isfinite(waveform).all():
        raise RawDataError(f"{path}: {len(waveform)} of {length} samples could be read as numbers; mend or remove it")
    return resample(waveform * np.float32(32768), own_rate, rate_hz), own_rate


class AudioPartition:
    """The audio of one folder; see raw.RawPartition. `use` gives it the phonemes of the whole corpus."""

    def __init__(self, root: Path, folder: Path, frontend: FrontEnd):
        check_name(folder.name, "partition name", root)
        self.name, self.frontend, self.order, self.lengths_hint = folder.name, frontend, "sorted", None
        self.problems: list[Problem] = []
        audio, aligned = [], {}
        for place, names in _walk(folder):
            for name in sorted(names):
                stem, suffix = os.path.splitext(os.path.join(place, name))
                if name.startswith("."):
                    continue
                if suffix.lower() in AUDIO:
                    audio.append(stem + suffix)
                elif suffix.lower() in SUFFIXES:
                    # MFA's own .lab beside a TextGrid is a transcript in words, not an alignment.
                    known = aligned.get(stem, "")
                    if not known or SUFFIXES.index(suffix.lower()) < SUFFIXES.index(os.path.splitext(known)[1].lower()):
                        aligned[stem] = stem + suffix
        ids = {path: _utterance_id(Path(path).relative_to(folder)) for path in audio}
        twice = {i for i, count in Counter(ids.values()).items() if count > 1}
        self.labelled = bool(aligned)
        stamp, found = Stamp(), {}
        for path, utterance in sorted(ids.items(), key=lambda pair: (pair[1], pair[0])):
            check_name(utterance, "utterance id", folder)
            partner = aligned.get(os.path.splitext(path)[0])
            if utterance in twice:
                self.problems.append(
                    Problem(utterance, f"{path}: the id {utterance} belongs to another file too; rename one")
                )
            elif self.labelled and partner is None:
                self.problems.append(
                    Problem(
                        utterance, f"{path}: no alignment beside it (.TextGrid, .phn or .lab); add it, or skip_bad=True"
                    )
                )
            else:
                found[utterance] = path, partner
                for file in filter(None, (path, partner)):
                    # A link that leads nowhere is refused when it is read.
                    stamp.add(utterance, os.stat(file) if os.path.exists(file) else None)
        heard = {os.path.splitext(path)[0] for path in audio}
        for stem in sorted(aligned.keys() - heard):
            utterance = _utterance_id(Path(aligned[stem]).relative_to(folder))
            message = f"{aligned[stem]}: no audio beside it (.wav or .flac); add it, or skip_bad=True"
            self.problems.append(Problem(utterance, message))
        stamp.add(repr(frontend), None)
        self.stamp, self.written = stamp.digests()
        self.utterance_ids = sorted(found)
        self.speakers = [speaker_of(utterance) for utterance in self.utterance_ids]
        self._files = [found[utterance] for utterance in self.utterance_ids]

    def inventory(self) -> set[str]:
        """All symbols of the partition's alignments; a damaged file is named when it is read, not here."""
        symbols: set[str] = set()
        for _, partner in self._files if self.labelled else ():
            try:
                symbols.update(read_alignment(partner, 16000).symbols)
            except RawDataError:
                continue
        return symbols

    def use(self, phonemes: PhonemeSet) -> None:
        """Label with `phonemes` from now on; what no interval covers is their silence, where they have one."""
        self.phonemes = phonemes
        silences = [s for s in phonemes.symbols if s.lower() in SILENCE]
        # TIMIT marks the ends of an utterance with h#, and pauses within with pau: uncovered frames are at the ends.
        self._silence = next(
            (s for s in ("[SIL]", "sil", "h#", "SIL", "pau") if s in silences), (silences or [None])[0]
        )

    def where(self, index: int) -> str:
        return self._files[index][0]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        path, partner = self._files[index]
        waveform, own_rate = read_waveform(path, self.frontend.rate_hz)
        features = self.frontend.mfcc(waveform)
        if not len(features):
            raise RawDataError(
                f"{path}: {len(waveform) / self.frontend.rate_hz:.3f} s are shorter than one frame; remove it"
            )
        if not self.labelled:
            return features, None
        intervals = read_alignment(partner, own_rate)
        seconds = len(waveform) / self.frontend.rate_hz
        if len(intervals.ends) and intervals.ends[-1] > seconds + _BEYOND:
            raise RawDataError(
                f"{partner}: ends at {intervals.ends[-1]:.3f} s, but {path} has {seconds:.3f} s; align it again"
            )
        return features, self._labels(intervals, len(features), partner)

    def _labels(self, intervals: Intervals, num_frames: int, partner: str) -> np.ndarray:
        classes = []
        for symbol in intervals.symbols:
            known = symbol if symbol in self.phonemes.classes else as_arpabet(symbol)
            if known not in self.phonemes.classes and symbol.lower() in SILENCE:
                known = self._silence
            if known not in self.phonemes.classes:
                raise RawDataError(
                    f"{partner}: phone {symbol!r} is not in the set of {len(self.phonemes)}; list it in phonemes.txt"
                )
            classes.append(self.phonemes.classes[known])
        outside = len(self.phonemes) if self._silence is None else self.phonemes.index(self._silence)
        labels = labels_at(
            self.frontend.centres(num_frames),
            intervals.starts,
            intervals.ends,
            np.array(classes, int),
            outside,
            np.int64,
        )
        if labels.max() >= len(self.phonemes):
            frame = int(np.argmax(labels))
            raise RawDataError(
                f"{partner}: no phone covers frame {frame}, and the phonemes have no silence; add an interval"
            )
        return labels.astype(self.phonemes.label_dtype)


def _utterance_id(relative: Path) -> str:
    """LibriSpeech's names as they are; else SPEAKER-FOLDERS-NAME, the speaker being the folder that holds the file."""
    if len(relative.stem.split("-")) >= 3 or len(relative.parts) == 1:
        return relative.stem
    *above, speaker = (part.replace("-", "_") for part in relative.parts[:-1])
    return "-".join([speaker, *(above or ["0"]), relative.stem.replace("-", "_")])
