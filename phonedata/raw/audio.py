"""Audio with phone alignments (wav, flac; TextGrid, .phn, .lab): features and labels, made while reading."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import RawDataError, SpecError
from ..files import exists, is_folder
from ..phonemes import ARPABET, PhonemeSet
from .alignments import SUFFIXES, Intervals, as_arpabet, is_silence, is_unknown, likely_unit, read_alignment
from .audio_files import AudioFiles, has_audio, list_files, read_header, read_waveform, utterance_id
from .base import Labelling, Listing, Problem, RawCorpus, check_name, copy_of, first_said, read_phonemes
from .frontend import FrontEnd, labels_at, num_resampled
from .hw1p2 import speaker_of

LOOKS_FOR = "PARTITION/.../ID.wav or .flac, with ID.TextGrid, ID.phn or ID.lab beside it"
_BEYOND = 0.1  # seconds that an alignment may reach beyond its audio: MFA and TIMIT round
_MAX_UNCOVERED, _LONGEST_GAP = 0.1, 1.0  # share of an utterance, seconds
_FEW_STRAYS, _FEWEST_TIMIT = 0.2, 0.005  # shares of a corpus's phones
_MOST_PHONES = 300  # of all languages' inventories with tones and lengths; words are thousands
# TIMIT's inventory and Festival's, beside ARPABET: classes of their own, its pauses too.
_TIMIT = frozenset(
    ["bcl", "dcl", "gcl", "pcl", "tcl", "kcl", "dx", "q", "nx", "hv", "ux", "ax", "ix", "axr", "ax-h", "em", "en"]
    + ["eng", "el", "pau", "epi", "h#"]
)


@dataclass(frozen=True)
class AlignmentOptions:
    """How alignments become labels.

    alignments: folder of a tree of their own, paired by utterance id; None: beside the audio.
    tier: the tier of TextGrids that holds phones, by its name or its number from 1; None: the one named as phones.
    alignment_unit: how many units of the alignments' times are one second; None: what the format says.
    unknown: "class" keeps unknown words (spn, unk, oov) as classes of their own, "skip" leaves their utterances out.
    max_uncovered: largest share of an utterance's frames that no interval covers; None: 0.1, and no stretch above 1 s.
    """

    alignments: str | os.PathLike[str] | None = None
    tier: str | None = None
    alignment_unit: float | None = None
    unknown: str = "class"
    max_uncovered: float | None = None

    def __post_init__(self) -> None:
        if self.unknown not in ("class", "skip"):
            raise SpecError(f"unknown {self.unknown!r}, wanted class or skip")
        if self.max_uncovered is not None and not 0 <= self.max_uncovered <= 1:
            raise SpecError(f"max uncovered {self.max_uncovered}, wanted a share of an utterance, 0 to 1")
        if self.alignment_unit is not None and not 1 <= self.alignment_unit <= 1e9:
            raise SpecError(f"alignment unit {self.alignment_unit}, wanted units in a second, 1 to 1e9")
        if self.alignments is not None:
            object.__setattr__(self, "alignments", os.fspath(self.alignments))
            if not is_folder(self.alignments):
                raise SpecError(f"alignments {self.alignments!r} is not a folder; give the root of their tree")


def detect(root: Path) -> bool:
    """Whether `root` holds audio, itself or in folders."""
    return has_audio(root)


def open_layout(root: Path, options: AlignmentOptions | None = None, frontend: FrontEnd | None = None) -> RawCorpus:
    """One partition per folder of `root` that holds audio, or one of what lies in `root` itself. Reads every alignment
    and the header of its audio file.

    Phones of MFA or CMUdict become ARPABET, without stress digits; any other inventory stays as it is, in sorted order,
    unless `phonemes.txt` lists it. An utterance whose alignment leaves too much uncovered, or has no phone, is a
    problem. Raises RawDataError.
    """
    frontend, options = frontend or FrontEnd(), options or AlignmentOptions()
    notes: list[str] = []
    files = list_files(root, options.alignments, notes)
    partitions = [
        AudioPartition(root, name, frontend, options, files[name]) for name in sorted(files) if files[name].audio
    ]
    _refuse_without_effect(root, partitions, options)
    phonemes = _phonemes(root, partitions, options, notes)
    for partition in partitions:
        partition.use(phonemes)
    if exists(root / "frontend.toml"):
        notes.append(f"{root / 'frontend.toml'} is not read: it is for features that are there, these are made here")
    labelling = {partition.name: partition.labelling() for partition in partitions if partition.labelled}
    return RawCorpus(root, "audio", tuple(partitions), phonemes, frontend.describe(), tuple(notes), labelling)


def _refuse_without_effect(root: Path, partitions: list["AudioPartition"], options: AlignmentOptions) -> None:
    """Raises SpecError for an option that changes nothing, RawDataError where one leaves nothing."""
    said = first_said(options)
    if said and not any(partition.labelled for partition in partitions):
        raise SpecError(f"{root}: {said} is for alignments, but there are none; leave it out, or add them")
    if options.tier is not None and not any(partition.has_grids() for partition in partitions):
        raise SpecError(f"{root}: tier={options.tier!r} is for TextGrids, but no alignment is one; leave it out")
    for partition in partitions:
        if partition.skipped and not partition.utterance_ids:
            raise RawDataError(
                f"{root}: all {partition.skipped} utterances of {partition.name} that could be read have unknown "
                "words, which leaves none; use unknown='class'"
            )


def _phonemes(
    root: Path, partitions: list["AudioPartition"], options: AlignmentOptions, notes: list[str]
) -> PhonemeSet:
    """The classes: `phonemes.txt`, ARPABET where all phones are, else what is there; strays become problems."""
    given = read_phonemes(root)
    counts: Counter[str] = Counter()
    for partition in partitions:
        counts.update(partition.inventory())
    if given is not None:
        missing = {s: n for s, n in counts.items() if _class_of(s, given) is None}
        for partition in partitions:
            partition.refuse_symbols(missing, f"is not among the {len(given)} of phonemes.txt")
        return given
    unknown = sorted(filter(is_unknown, counts))
    phones = Counter({s: n for s, n in counts.items() if not is_silence(s) and not is_unknown(s)})
    if len(phones) > _MOST_PHONES:
        rarest = min(phones, key=lambda symbol: (phones[symbol], symbol))
        raise RawDataError(
            f"{root}: has {len(phones)} different phones, e.g. {rarest!r} in {_file_with(rarest, partitions)}; are "
            "they words? name the tier of the phones with tier='NAME', or list all phones in phonemes.txt"
        )
    timit = {s: n for s, n in phones.items() if as_arpabet(s) is None and s.lower() in _TIMIT}
    strays = {s: n for s, n in phones.items() if as_arpabet(s) is None and s.lower() not in _TIMIT}
    if 0 < sum(timit.values()) <= _FEWEST_TIMIT * phones.total():
        strays |= timit
    if sum(strays.values()) > _FEW_STRAYS * phones.total():
        strays = {}
    if strays:
        for partition in partitions:
            partition.refuse_symbols(strays, "is none of the set that nearly all others are of")
    kept = [s for s in phones if s not in strays]
    own = [s for s in kept if as_arpabet(s) is None]
    symbols = list(ARPABET.symbols)
    if own:
        pauses = [s for s in counts if s.lower() in _TIMIT and is_silence(s)]
        pauses = pauses if all(s.lower() in _TIMIT for s in own) else []
        symbols = sorted([*kept, *pauses])
        if not pauses and any(partition.has_silence() for partition in partitions):
            symbols.insert(0, ARPABET.symbols[0])
        notes.append(
            f"{len(own)} phones are not ARPABET (e.g. {min(own)!r}), so all {len(symbols)} are kept as they are, in "
            "sorted order"
        )
        if rare := sorted(s for s in own if phones[s] == 1) if phones.total() > 100 else []:
            notes.append(
                f"{len(rare)} of them occur once, as {rare[0]!r} in {_file_with(rare[0], partitions)}; are they slips?"
            )
    if unknown and options.unknown == "class":
        symbols += unknown
        notes.append(
            f"unknown words ({', '.join(unknown)}) are speech and get classes of their own; unknown='skip' leaves "
            "their utterances out"
        )
    return PhonemeSet(tuple(symbols))


def _file_with(symbol: str, partitions: list["AudioPartition"]) -> str:
    return next(filter(None, (partition.file_with(symbol) for partition in partitions)), "")


def _silence_of(phonemes: PhonemeSet) -> str | None:
    """The class of pauses that are no classes of their own, and of what nothing covers."""
    silences = list(filter(is_silence, phonemes.symbols))
    # TIMIT marks the ends of an utterance with h#, and pauses within with pau: uncovered frames are at the ends.
    return next((s for s in ("[SIL]", "sil", "h#", "SIL", "pau") if s in silences), silences[0] if silences else None)


def _class_of(symbol: str, phonemes: PhonemeSet) -> int | None:
    """The class of an alignment's symbol; None where `phonemes` has none for it."""
    known = symbol if symbol in phonemes.classes else as_arpabet(symbol) or symbol
    if known not in phonemes.classes and is_silence(symbol):
        known = _silence_of(phonemes) or known
    return phonemes.classes.get(known)


@dataclass
class _Labels:
    """Labels of one utterance as runs of frames: `counts` (S,) of equal `symbols` (S,); -1 is: nothing covers it."""

    counts: np.ndarray
    symbols: np.ndarray


class AudioPartition:
    """The audio of one folder; see raw.RawPartition. `use` gives it the phonemes of the whole corpus."""

    def __init__(
        self,
        root: Path,
        name: str,
        frontend: FrontEnd,
        options: AlignmentOptions,
        files: AudioFiles,
    ):
        check_name(name, "partition name", root)
        self.name, self.frontend, self.options, self.order = name, frontend, options, "sorted"
        self.lengths_hint: Sequence[int] | None = None
        audio, aligned = files
        self.labelled = bool(aligned)
        self.problems: list[Problem] = []
        self.phonemes = ARPABET
        self.skipped = self._without = 0
        self._grids = False
        self._symbols: dict[str, int] = {}
        ids = {path: utterance_id(key) for path, key in audio.items()}
        keys = set(map(str, audio.values()))
        twice = {i for i, count in Counter(ids.values()).items() if count > 1}
        listing = Listing((frontend, options))
        self.utterance_ids: list[str] = []
        self._files: list[tuple[str, str | None]] = []
        self._labels: list[_Labels] = []
        missing = (
            "no alignment beside it (.TextGrid, .phn or .lab)"
            if options.alignments is None
            else (f"no alignment of its name in {options.alignments}")
        )
        for path, utterance in sorted(ids.items(), key=lambda pair: (pair[1], pair[0])):
            check_name(utterance, "utterance id", root / name)
            # MFA's own .lab beside a TextGrid is a transcript in words, not an alignment.
            partners = sorted(aligned.get(str(audio[path]), ()), key=lambda f: SUFFIXES.index(f.suffix.lower()))
            partner = str(partners[0]) if partners else None
            copied = copy_of(str(audio[path]), keys)
            if copied is not None:
                self.problems.append(
                    Problem(utterance, f"{path}: is a second copy of {copied} by its name; remove it", 0)
                )
                continue
            if len(partners) > 1 and partners[0].suffix.lower() == partners[1].suffix.lower():
                self._refuse(utterance, f"{path}: has two alignments, {partners[0]} and {partners[1]}; remove one")
                continue
            if utterance in twice:
                self._refuse(utterance, f"{path}: the id {utterance} belongs to another file too; rename one")
                continue
            if self.labelled and partner is None:
                self._refuse(utterance, f"{path}: {missing}; add it, or skip_bad=True")
                continue
            for file in filter(None, (path, partner)):
                listing.add(file, utterance)  # a link that leads nowhere is refused when it is read
            if partner is not None:
                self._grids = self._grids or partner.lower().endswith(".textgrid")
                try:
                    labels = self._read_labels(path, partner)
                except RawDataError as error:
                    self._refuse(utterance, str(error))
                    continue
                if labels is None:
                    continue
                self._labels.append(labels)
            self.utterance_ids.append(utterance)
            self._files.append((path, partner))
        if options.alignments is None:
            for key in sorted(aligned.keys() - keys):
                copied = copy_of(key, aligned)
                message = f"{aligned[key][0]}: no audio beside it (.wav or .flac); add it, or skip_bad=True"
                if copied is not None:
                    message = f"{aligned[key][0]}: is a second copy of {copied} by its name; remove it"
                self._refuse(utterance_id(Path(key)), message)
        self._listed = {path: listing.files[path] for path, _ in self._files}  # alignments are read by now
        self.stamp, self.written = listing.digests()
        self.speakers = [speaker_of(utterance) for utterance in self.utterance_ids]

    def _refuse(self, utterance: str, message: str) -> None:
        self.problems.append(Problem(utterance, message))

    def _read_labels(self, path: str, partner: str) -> _Labels | None:
        """The labels of one utterance as symbols, checked against the audio; None where it is to be skipped."""
        rate, samples = read_header(path)
        intervals = read_alignment(partner, rate, self.options.tier, self.options.alignment_unit)
        seconds = samples / rate
        num_frames = self.frontend.num_frames(num_resampled(samples, rate, self.frontend.rate_hz))
        if not num_frames:
            raise RawDataError(f"{path}: {seconds:.3f} s are shorter than one frame; remove it")
        end = float(intervals.ends[-1]) if len(intervals.ends) else 0.0
        cause = likely_unit(end, intervals.unit, seconds, rate)
        if end > seconds + _BEYOND:
            raise RawDataError(
                f"{partner}: ends at {end:.3f} s, but {path} has {seconds:.3f} s; {cause or 'align it again'}"
            )
        codes = np.array([self._symbols.setdefault(s, len(self._symbols)) for s in intervals.symbols], dtype=np.int64)
        centres = self.frontend.centres(num_frames)
        frames = labels_at(centres, intervals.starts, intervals.ends, codes, -1, np.int64)
        edges = np.flatnonzero(np.diff(frames, prepend=-2, append=-2))
        labels = _Labels(np.diff(edges).astype(np.int32), frames[edges[:-1]].astype(np.int32))
        self._check_coverage(labels, intervals, partner, seconds, cause)
        if self.options.unknown == "skip" and any(map(is_unknown, intervals.symbols)):
            self.skipped += 1
            return None
        return labels

    def _check_coverage(self, labels: _Labels, intervals: Intervals, partner: str, seconds: float, cause: str) -> None:
        """Refuse an alignment without any phone, or one that leaves too much of its audio uncovered."""
        end = float(intervals.ends[-1]) if len(intervals.ends) else 0.0
        gaps = labels.counts[labels.symbols < 0]
        share = gaps.sum() / labels.counts.sum()
        longest = gaps.max(initial=0) * self.frontend.frame_shift_ms / 1000
        limit = self.options.max_uncovered
        too_much = share > limit if limit is not None else share > _MAX_UNCOVERED or longest > _LONGEST_GAP
        if not any(intervals.symbols):
            self._without += 1
            raise RawDataError(
                f"{partner}: has no phone, although the audio has {seconds:.3f} s (did its alignment fail?); align it "
                "again, or skip_bad=True"
            )
        if too_much:
            allow = (
                f"align it again, allow it with max_uncovered={np.ceil(share * 100) / 100:.2f}, or leave such "
                "utterances out with skip_bad=True"
            )
            raise RawDataError(
                f"{partner}: nothing labels {share:.0%} of {seconds:.3f} s of audio (it ends at {end:.3f} s, the "
                f"longest gap has {longest:.2f} s); {cause or allow}"
            )

    def inventory(self) -> Counter[str]:
        """How many intervals of the partition's utterances have each symbol."""
        counts: Counter[int] = Counter()
        for labels in self._labels:
            counts.update(labels.symbols.tolist())
        return Counter({symbol: counts[code] for symbol, code in self._symbols.items() if counts[code]})

    def has_silence(self) -> bool:
        """Whether a frame is a pause by name, or nothing covers it."""
        silent = {code for symbol, code in self._symbols.items() if is_silence(symbol)} | {-1}
        return any(not silent.isdisjoint(labels.symbols.tolist()) for labels in self._labels)

    def file_with(self, symbol: str) -> str | None:
        """The first alignment that has `symbol`."""
        code = self._symbols.get(symbol)
        found = (f for (_, f), labels in zip(self._files, self._labels) if code in labels.symbols.tolist())
        return next(found, None)

    def has_grids(self) -> bool:
        """Whether an alignment is a TextGrid."""
        return self._grids

    def refuse_symbols(self, symbols: dict[str, int], why: str) -> None:
        """Make a problem of each utterance with one of `symbols`, symbol -> count in the corpus."""
        names = {code: symbol for symbol, code in self._symbols.items() if symbol in symbols}
        most = sorted(symbols.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{symbol!r} {count} times" for symbol, count in most[:10])
        listed += f" and {len(most) - 10} more" if len(most) > 10 else ""
        helps = "correct it, list all phones in phonemes.txt, or skip_bad=True"
        if any(map(is_unknown, symbols)):
            helps += "; unknown='skip' leaves utterances with unknown words out"
        elif any(map(is_silence, symbols)):
            helps = "it is a pause: add a line sil to phonemes.txt"
        bad = {}
        for index, labels in enumerate(self._labels):
            if found := [names[code] for code in labels.symbols.tolist() if code in names]:
                bad[index] = found[0]
        for index, symbol in bad.items():
            self._refuse(
                self.utterance_ids[index],
                f"{self._files[index][1]}: phone {symbol!r} {why} (in all: {listed}); {helps}",
            )
        if bad:
            self._keep([index for index in range(len(self._files)) if index not in bad])

    def _keep(self, indices: list[int]) -> None:
        self.utterance_ids = [self.utterance_ids[index] for index in indices]
        self.speakers = [self.speakers[index] for index in indices]
        self._files = [self._files[index] for index in indices]
        self._labels = [self._labels[index] for index in indices]

    def labelling(self) -> Labelling:
        """Counts of what the alignments leave unlabelled."""
        unknown = [code for symbol, code in self._symbols.items() if is_unknown(symbol)]
        frames = uncovered = unknown_frames = 0
        for labels in self._labels:
            frames += int(labels.counts.sum())
            uncovered += int(labels.counts[labels.symbols < 0].sum())
            unknown_frames += int(labels.counts[np.isin(labels.symbols, unknown)].sum())
        return Labelling(frames, uncovered, self._without, unknown_frames, self.skipped)

    def use(self, phonemes: PhonemeSet) -> None:
        """Label with `phonemes` from now on; what no interval covers is their silence, where they have one."""
        self.phonemes = phonemes
        silence = _silence_of(phonemes)
        found = [_class_of(symbol, phonemes) for symbol in self._symbols]
        found.append(None if silence is None else phonemes.classes[silence])  # the last: what nothing covers
        self._classes = np.array([-1 if label is None else label for label in found], dtype=np.int64)

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        try:
            rate, samples = read_header(self.where(index))
        except RawDataError:
            return None
        return self.frontend.num_frames(num_resampled(samples, rate, self.frontend.rate_hz))

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of. Alignments were read when they were listed."""
        return [self._listed[self.where(index)]]

    def where(self, index: int) -> str:
        return self._files[index][0]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        path, partner = self._files[index]
        waveform = read_waveform(path, self.frontend.rate_hz)
        features = self.frontend.compute(waveform)
        if not len(features):
            raise RawDataError(
                f"{path}: {len(waveform) / self.frontend.rate_hz:.3f} s are shorter than one frame; remove it"
            )
        if partner is None:
            return features, None
        labels = self._labels[index]
        if labels.counts.sum() != len(features):
            raise RawDataError(f"{path}: changed while it was read; start again")
        classes = self._classes[labels.symbols]
        if (classes < 0).any():
            frame = int(labels.counts[: int(np.argmax(classes < 0))].sum())
            raise RawDataError(
                f"{partner}: no phone covers frame {frame}, and phonemes.txt names no silence; add a line sil to it"
            )
        return features, np.repeat(classes, labels.counts).astype(self.phonemes.label_dtype)
