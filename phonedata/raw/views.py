"""Views of a raw corpus: symbols folded into classes, split into parts by speaker, without some utterances."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import RawDataError, SpecError
from ..files import is_file
from ..phonemes import PhonemeSet
from .alignments import is_silence
from .base import Problem, RawCorpus, RawPartition, check_name
from .label_lines import read_list

# TIMIT's 61 phones, the 48 that Lee and Hon train, the 39 that they score, the glottal stop q left out: K.-F. Lee and
# H.-W. Hon, Speaker-independent phone recognition using hidden Markov models, IEEE Trans. ASSP 37 (1989).
_TIMIT = """
    aa aa aa; ae ae ae; ah ah ah; ao ao aa; aw aw aw; ax ax ah; ax-h ax ah; axr er er; ay ay ay; b b b; bcl vcl sil;
    ch ch ch; d d d; dcl vcl sil; dh dh dh; dx dx dx; eh eh eh; el el l; em m m; en en n; eng ng ng; epi epi sil;
    er er er; ey ey ey; f f f; g g g; gcl vcl sil; h# sil sil; hh hh hh; hv hh hh; ih ih ih; ix ix ih; iy iy iy;
    jh jh jh; k k k; kcl cl sil; l l l; m m m; n n n; ng ng ng; nx n n; ow ow ow; oy oy oy; p p p; pau sil sil;
    pcl cl sil; q; r r r; s s s; sh sh sh; t t t; tcl cl sil; th th th; uh uh uh; uw uw uw; ux uw uw; v v v; w w w;
    y y y; z z z; zh zh sh
"""
_HELD_OUT = ("dev", "val", "test", "eval")
MAPS = ("timit-48", "timit-39")
"""Names of the maps that come with the package."""


def read_map(name: str) -> dict[str, str | None]:
    """Symbol -> class, None for what is left out; `name` is one of MAPS or a file with a line `symbol class` for each
    symbol, or `symbol` alone. Raises SpecError, RawDataError."""
    if name in MAPS:
        lines = [line.split() for line in _TIMIT.split(";")]
        column = 1 + MAPS.index(name)
        return {line[0]: line[column] if len(line) > 1 else None for line in lines}
    if not is_file(name):
        raise SpecError(
            f"map {name!r} is no file, and none of {', '.join(MAPS)}; give a file with lines `symbol class`"
        )
    found: dict[str, str | None] = {}
    for words in read_list(Path(name)):
        if len(words) > 2:
            raise RawDataError(
                f"{name}: line {' '.join(words)[:60]!r}, wanted `symbol class`, or `symbol` to leave it out"
            )
        if words[0] in found:
            raise RawDataError(f"{name}: {words[0]!r} has two lines; remove one")
        found[words[0]] = words[1] if len(words) > 1 else None
    if not any(found.values()):
        raise RawDataError(f"{name}: has no line `symbol class`; fill it")
    return found


def fold_classes(symbols: Sequence[str], name: str) -> tuple[PhonemeSet, np.ndarray]:
    """The classes of map `name` in the order of its lines, and the class of each of `symbols`, -1 where it is left out.

    A symbol is found as it is or in lower case; a pause without a line of its own is the map's silence. Raises
    SpecError where others have none.
    """
    table = read_map(name)
    targets = list(dict.fromkeys(filter(None, table.values())))
    silence = next((target for symbol, target in table.items() if is_silence(symbol) and target), None)
    silence = silence or next(filter(is_silence, targets), None)
    classes, missing = [], []
    for symbol in symbols:
        known = next((spelling for spelling in (symbol, symbol.lower()) if spelling in table), None)
        target = table[known] if known is not None else silence if is_silence(symbol) else None
        if known is None and target is None:
            missing.append(symbol)
        classes.append(-1 if target is None else targets.index(target))
    if missing:
        listed = ", ".join(map(repr, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise SpecError(f"map {name!r} has no line for {listed}; add one for each (a symbol alone is left out)")
    return PhonemeSet(tuple(targets)), np.array(classes, np.int64)


@dataclass
class PartitionView:
    """Utterances of other partitions under a name of its own; see raw.RawPartition.

    `places` are (which of `sources`, index in it); `fold` (classes of the sources,) the class of each, -1 to leave its
    frames out; None: as they are.
    """

    name: str
    labelled: bool
    utterance_ids: list[str]
    speakers: list[str]
    problems: list[Problem]
    stamp: str
    written: str
    phonemes: PhonemeSet
    sources: list[RawPartition]
    places: list[tuple[int, int]]
    fold: np.ndarray | None = None
    order: str = "sorted"
    lengths_hint: Sequence[int] | None = None

    @classmethod
    def of(cls, source: RawPartition, kept: Sequence[int], **changes: Any) -> "PartitionView":
        """The utterances `kept` (indices) of `source` as they are, but for `changes`: attributes by name."""
        same = ("name", "labelled", "problems", "stamp", "written", "phonemes", "order")
        attributes = {name: getattr(source, name) for name in same} | {
            "utterance_ids": [source.utterance_ids[index] for index in kept],
            "speakers": [source.speakers[index] for index in kept],
            "lengths_hint": None if source.lengths_hint is None else [source.lengths_hint[index] for index in kept],
            "sources": [source],
            "places": [(0, index) for index in kept],
        }
        return cls(**attributes | changes)

    def where(self, index: int) -> str:
        source, place = self.places[index]
        return self.sources[source].where(place)

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        source, place = self.places[index]
        return self.sources[source].num_frames(place)

    def strays(self, index: int) -> tuple[str, dict[str, int]]:
        """See frame_labels.list_strays."""
        source, place = self.places[index]
        partition: Any = self.sources[source]
        return partition.strays(place) if hasattr(partition, "strays") else (self.where(index), {})

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of."""
        source, place = self.places[index]
        return self.sources[source].files_of(place)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        source, place = self.places[index]
        features, labels = self.sources[source].read(place)
        if labels is None or self.fold is None:
            return features, labels
        folded = self.fold[labels]
        if (folded < 0).any():
            features, folded = features[folded >= 0], folded[folded >= 0]
        return features, folded.astype(self.phonemes.label_dtype)


def fold(corpus: RawCorpus, name: str) -> RawCorpus:
    """`corpus` with the classes of map `name`; frames of symbols that it leaves out are left out."""
    phonemes, classes = fold_classes(corpus.phonemes.symbols, name)
    stamp = _digest([phonemes.symbols, classes.tolist()])
    views = tuple(
        PartitionView.of(
            p, range(len(p.utterance_ids)), stamp=_digest([p.stamp, stamp]), phonemes=phonemes, fold=classes
        )
        for p in corpus.partitions
    )
    dropped = [symbol for symbol, label in zip(corpus.phonemes.symbols, classes.tolist()) if label < 0]
    note = f"{len(corpus.phonemes)} symbols are folded into {len(phonemes)} classes by {name}"
    note += f"; frames of {', '.join(dropped)} are left out" if dropped else ""
    return replace(
        corpus,
        partitions=views,
        phonemes=phonemes,
        notes=(*corpus.notes, note),
        derived={**corpus.derived, "map": note},
    )


def split(corpus: RawCorpus, shares: str) -> RawCorpus:
    """`corpus` with its labelled partitions as one, less the parts that `shares`, as "dev=0.1,test=0.1", takes from it;
    partitions without labels, and those that are named for testing, stay as they are.

    Speakers are put in the order of a hash of their names, and each part takes its share of them, one at least: no
    speaker is in two parts. Where no speaker is known, utterances take their place. Raises SpecError.
    """
    wanted = _read_shares(corpus, shares)
    sources = [p for p in corpus.partitions if p.labelled and not p.name.lower().startswith(_HELD_OUT)]
    if not sources:
        raise SpecError(f"split {shares!r}: {corpus.path} has no labelled partition for training; leave it out")
    rest = sources[0].name if len(sources) == 1 and sources[0].name.lower().startswith("train") else "train"
    others = [p for p in corpus.partitions if p not in sources]
    for name in (rest, *wanted):
        if name in {p.name for p in others} or (name != rest and name in {p.name for p in sources}):
            raise SpecError(f"split {shares!r}: {corpus.path} has a partition {name} already; name another part")
    if rest in wanted:
        raise SpecError(f"split {shares!r}: {rest} is what is left over, and gets no share of its own; leave it out")
    ids = [utterance for p in sources for utterance in p.utterance_ids]
    doubled = len(set(ids)) < len(ids)
    rows: list[tuple[str, str, int, int]] = []
    for number, p in enumerate(sources):
        for index, (utterance, speaker) in enumerate(zip(p.utterance_ids, p.speakers)):
            if speaker == utterance and len(sources) > 1:
                speaker = p.name  # a folder a speaker, as VCTK has them
            rows.append((f"{p.name}-0-{utterance}" if doubled else utterance, speaker, number, index))
    by_speaker = any(speaker != ids[n] for n, (_, speaker, _, _) in enumerate(rows))
    speakers = sorted({speaker for _, speaker, _, _ in rows}, key=lambda s: (xxhash.xxh3_64_intdigest(s.encode()), s))
    what = "speakers" if by_speaker else "utterances"
    counts = {name: max(1, round(share * len(speakers))) for name, share in wanted.items()}
    if sum(counts.values()) >= len(speakers):
        raise SpecError(f"split {shares!r}: {corpus.path} has {len(speakers)} {what}, which leaves none for {rest}")
    part_of: dict[str, str] = {}
    for name, count in counts.items():
        part_of |= dict.fromkeys(speakers[len(part_of) : len(part_of) + count], name)
    views: list[Any] = []
    for name in (rest, *wanted):
        own = sorted(row for row in rows if part_of.get(row[1], rest) == name)
        views.append(
            PartitionView(
                name,
                sources[0].labelled,
                [row[0] for row in own],
                [row[1] for row in own],
                [problem for p in sources for problem in p.problems] if name == rest else [],
                _digest([p.stamp for p in sources]),
                _digest([p.written for p in sources]),
                corpus.phonemes,
                sources,
                [row[2:] for row in own],
            )
        )
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    note = f"split by a hash of {what}: {said} of {len(speakers)}"
    note += "" if by_speaker else "; no speaker is known, so one may be in several parts"
    return replace(
        corpus,
        partitions=tuple(sorted([*views, *others], key=lambda p: str(p.name))),
        notes=(*corpus.notes, note),
        derived={**corpus.derived, "split": note},
    )


def read_skip_list(file: str) -> list[str]:
    """PARTITION/UTTERANCE of each line; what follows " #", or a line that begins with #, is a remark.

    Raises SpecError.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{file}: is no text; wanted a line PARTITION/UTTERANCE for each to be left out") from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error.strerror}); wanted a list of utterances") from None
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    bad = next((name for name in names if name.count("/") != 1), None)
    if bad is not None:
        raise SpecError(f"{file}: got the line {bad!r}, wanted PARTITION/UTTERANCE, as train-clean/103-1240-0000")
    return names


def leave_out(corpus: RawCorpus, file: str) -> RawCorpus:
    """`corpus` but for the utterances that `file` lists, which are reported as left out. Raises SpecError."""
    listed = set(read_skip_list(file))
    known = {
        f"{p.name}/{name}"
        for p in corpus.partitions
        for name in (*p.utterance_ids, *(problem.utterance_id for problem in p.problems))
    }
    if strange := sorted(listed - known):
        raise SpecError(
            f"{file}: {len(strange)} of {len(listed)} utterances are not in {corpus.path}, as {strange[0]!r}; correct "
            "the list, or give the raw folder that it was made for"
        )
    bare = {p.name for p in corpus.partitions if not p.labelled}
    if moved := sorted(name for name in listed if name.partition("/")[0] in bare):
        raise SpecError(
            f"{file}: {moved[0]!r} is in a partition without labels, where each frame's place counts: what is "
            "predicted of it would be moved; take it off the list"
        )
    views = []
    for p in corpus.partitions:
        kept = [index for index, name in enumerate(p.utterance_ids) if f"{p.name}/{name}" not in listed]
        problems = [problem for problem in p.problems if f"{p.name}/{problem.utterance_id}" not in listed]
        names = sorted(name.partition("/")[2] for name in listed if name.partition("/")[0] == p.name)
        problems += [Problem(name, f"listed in {Path(file).name}", asked=True) for name in names]
        views.append(PartitionView.of(p, kept, problems=problems))
    return replace(corpus, partitions=tuple(views))


def _read_shares(corpus: RawCorpus, text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        try:
            found[name] = float(share)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < 1:
            raise SpecError(f"split {text!r}: {part.strip()!r}, wanted NAME=SHARE, as dev=0.1,test=0.1")
        check_name(name, "partition name", corpus.path)
    if sum(found.values()) >= 1 or len(found) < len(text.split(",")):
        raise SpecError(f"split {text!r}: wanted different names, and shares that leave something for training")
    return found


def _digest(values: list[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(values).encode())
