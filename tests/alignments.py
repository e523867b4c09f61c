"""Random corpora of audio with alignments, written in every format, unit, rate and tree that `phonedata pack` reads.

As a program, `python -m tests.alignments SCRATCH FIRST COUNT` packs corpora FIRST..FIRST+COUNT-1 and prints each one
whose labels differ from those of `tests.reference.frame_labels`.
"""

import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from phonedata import ARPABET, AlignmentOptions, FrontEnd, PackedCorpus, extract, pack
from tests.reference import frame_labels

RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)
VOWELS = tuple(symbol for symbol in ARPABET.symbols[1:] if symbol[0] in "AEIOU")
CONSONANTS = tuple(symbol for symbol in ARPABET.symbols[1:] if symbol[0] not in "AEIOU")
PAUSES = ("sil", "sp", "pau", "SIL", "h#", "silB", "<eps>", "SIL_S", "#", "[SIL]", "<p:>")
IPA = ("kʰ", "æ", "tʃ", "ɔː", "b̥", "ʔ", "ɪə", "aː", '"e', "{", "@", "t_h", "ɡ", "5", "1.5", "n-")
TIMIT = ("ix", "ax", "axr", "dx", "q", "bcl", "kcl", "hv", "nx", "ux", "aa", "b", "d", "er", "f", "k", "l", "m", "z")

Rows = list[tuple[Fraction, Fraction, str]]


@dataclass(frozen=True)
class Inventory:
    """Spelling -> class of phones, of pauses and of unknown words; `silence`: the class of what nothing covers."""

    phones: dict[str, str]
    pauses: dict[str, str]
    unknown: dict[str, str]
    silence: str
    listed: tuple[str, ...] | None = None

    @property
    def classes(self) -> dict[str, str]:
        return {**self.phones, **self.pauses, **self.unknown, "": self.silence}


def inventories(dice: random.Random) -> Inventory:
    """ARPABET as aligners spell it, IPA and X-SAMPA, TIMIT's own, or a list in phonemes.txt."""
    kind = dice.choice(["arpabet", "ipa", "timit", "listed"])
    unknown = dict.fromkeys(dice.sample(["spn", "<unk>", "SPN_S"], dice.choice([0, 0, 1])))
    unknown = {symbol: symbol for symbol in unknown}
    if kind == "ipa":
        return Inventory({s: s for s in IPA}, dict.fromkeys(PAUSES, "[SIL]"), unknown, "[SIL]")
    if kind == "timit":
        return Inventory({s: s for s in TIMIT}, {"h#": "h#", "pau": "pau", "epi": "epi"}, unknown, "h#")
    arpabet = {
        s: phone for phone in ARPABET.symbols[1:] for s in (phone, phone.lower(), f"{phone}_{dice.choice('BIES')}")
    }
    arpabet |= {f"{vowel}{stress}": vowel for vowel in VOWELS for stress in ("0", "1", "2", "1_B", "0_E")}
    if kind == "arpabet":
        return Inventory(arpabet, dict.fromkeys(PAUSES, "[SIL]"), unknown, "[SIL]")
    silence = dice.choice(["sil", "SIL", "[SIL]", "pau"])
    listed = [silence, *VOWELS, *CONSONANTS, *unknown]
    dice.shuffle(listed)
    return Inventory(arpabet, dict.fromkeys(PAUSES, silence) | {silence: silence}, unknown, silence, tuple(listed))


# One utterance


def random_rows(dice: random.Random, inventory: Inventory, seconds: float, contiguous: bool) -> Rows:
    """Phones of an utterance as an aligner might find them: also on the very centre of a frame, of a millisecond, of no
    length, with gaps between them (unless `contiguous`) or ending early or late."""
    last = Fraction(str(seconds)) + Fraction(dice.choice([0, 0, 0, 2, -2, -dice.randint(0, 15)]), 100)
    cuts = set()
    for _ in range(dice.randint(1, 12)):
        at = dice.random() * seconds
        kind = dice.randrange(4)
        cuts.add(
            Fraction(round(at * 100), 100)
            if kind == 0
            else Fraction(125 + 100 * int(at * 100), 10_000)  # the centre of a frame
            if kind == 1
            else Fraction(round(at * 1_000_000), 1_000_000)
        )
        if kind == 2:
            cuts.add(max(cuts) + Fraction(1, 1000))
    first = Fraction(0) if contiguous or dice.random() < 0.8 else Fraction(dice.randint(1, 40), 1000)
    edges = [first, *sorted(cut for cut in cuts if first < cut < last), max(last, Fraction(1, 20))]
    spellings = [list(inventory.phones), list(inventory.pauses), list(inventory.unknown) or list(inventory.phones)]
    symbols = [dice.choice(dice.choices(spellings, [8, 3, 1])[0]) for _ in edges[1:]]
    rows = [(start, end, symbol) for start, end, symbol in zip(edges, edges[1:], symbols)]
    if not contiguous and dice.random() < 0.3:
        rows = [row for n, row in enumerate(rows) if n == 0 or dice.random() < 0.8]
    if dice.random() < 0.2:
        at = dice.randrange(len(rows))
        rows.insert(at + 1, (rows[at][1], rows[at][1], dice.choice(symbols)))
    if not contiguous and dice.random() < 0.2:  # what rounding explains
        rows = [(start, end + Fraction(dice.choice([0, 0, 9]), 1000), symbol) for start, end, symbol in rows]
    return rows


@dataclass
class Writer:
    """Times as text, and what the text means. unit: how many are a second; digits: behind the point, None for all of
    them; read_as: the unit that a reader must take them for, another one where a file breaks its format's rule."""

    unit: int
    digits: int | None
    read_as: int
    meant: Rows = field(default_factory=list)

    def rows(self, rows: Rows) -> Iterator[tuple[str, str, str]]:
        """(start, end, symbol) as text; also kept in `meant`."""
        for start, end, symbol in rows:
            texts = self.text(start), self.text(end)
            self.meant.append((Fraction(texts[0]) / self.read_as, Fraction(texts[1]) / self.read_as, symbol))
            yield *texts, symbol

    def text(self, time: Fraction) -> str:
        if self.digits is None:
            return repr(float(time * self.unit))
        return f"{float(time * self.unit):.{self.digits}f}"


def textgrid(dice: random.Random, rows: Rows, writer: Writer, seconds: float) -> str:
    """Praat's long or short format, with other tiers beside that of the phones."""
    name = dice.choice(["phones", "Phones", "MAU", "PhonAlign", "phone", "spk1 - phones", "segments"])
    nameless = dice.random() < 0.5
    found = list(writer.rows([(a, b, "" if nameless and s == "sil" else s) for a, b, s in rows]))
    tiers = [("IntervalTier", name, found)]
    timit = any(symbol in ("h#", "pau", "epi") for _, _, symbol in rows)  # which has classes of pauses
    if dice.random() < 0.2 and not timit and all(a[1] == b[0] for a, b in zip(rows, rows[1:])):
        tiers = _two_speakers(dice, found, writer)
    if dice.random() < 0.6:
        words = [("0", str(seconds), 'the "cat" 1.0 xmin = 3')]
        tiers.insert(0, ("IntervalTier", dice.choice(["words", "ORT-MAU"]), words))
    if dice.random() < 0.2:
        tiers.append(("TextTier", "clicks", [("0.1", "", "1")]))
    if dice.random() < 0.1:
        tiers.append(("IntervalTier", name, [("0", str(seconds), "")]))
    end, long = str(seconds), dice.random() < 0.5
    pad = dice.choice(["", " "])

    def quote(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    if not long:
        lines = ['File type = "ooTextFile"', '"TextGrid"', "", "0", end, "<exists>", str(len(tiers))]
        for kind, tier, marks in tiers:
            lines += [quote(kind), quote(tier), "0", end, str(len(marks))]
            lines += [x for a, b, s in marks for x in (a, *[b] * (kind == "IntervalTier"), quote(s + pad))]
        return "\n".join(lines) + "\n"
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for n, (kind, tier, marks) in enumerate(tiers, 1):
        lines += [f"    item [{n}]:", f"        class = {quote(kind)} ", f"        name = {quote(tier)} "]
        word = "intervals" if kind == "IntervalTier" else "points"
        lines += ["        xmin = 0 ", f"        xmax = {end} ", f"        {word}: size = {len(marks)} "]
        for m, (a, b, s) in enumerate(marks, 1):
            lines += [f"        {word} [{m}]:"]
            if kind == "IntervalTier":
                values = [("xmin", a), ("xmax", b), ("text", quote(s + pad))]
            else:
                values = [("number", a), ("mark", quote(s))]
            lines += [f"            {key} = {value} " for key, value in values]
    return "\n".join(lines) + "\n"


def _two_speakers(dice: random.Random, found: list[tuple[str, str, str]], writer: Writer) -> list:
    """The phones of one tier dealt out to two speakers who take turns; where neither speaks is silence."""
    turns = [dice.choice("AB") for _ in found]
    return [
        ("IntervalTier", f"{who} - phones", [(a, b, s if turn == who else "") for (a, b, s), turn in zip(found, turns)])
        for who in "AB"
    ]


def phn(dice: random.Random, rows: Rows, writer: Writer, seconds: float) -> str:
    gap, found = dice.choice([" ", "\t"]), list(writer.rows(rows))
    if dice.random() < 0.2 and len({start for start, *_ in found}) == len(found):
        dice.shuffle(found)
    return "".join(f"{a}{gap}{b}{gap}{s}\n" for a, b, s in found)


def htk(dice: random.Random, rows: Rows, writer: Writer, seconds: float) -> str:
    """HTK's .lab: plain, with a score, with the word, as triphones, HTS contexts or HVite's states."""
    found = list(writer.rows(rows))
    kinds = ["plain", "score", "word", *["states"] * all(a[1] <= b[0] for a, b in zip(rows, rows[1:]))]
    if not any(set("-+") & set(s) for _, _, s in rows):
        kinds += ["triphones", "contexts"]
    kind, end = dice.choice(kinds), dice.choice(["", ".\n"])
    if kind == "triphones":
        names = ["sil", *(s for _, _, s in found), "sil"]
        return "".join(
            f"{a} {b} {names[n]}-{s}+{names[n + 2]}\n" if n or len(found) == 1 else f"{a} {b} {s}+{names[n + 2]}\n"
            for n, (a, b, s) in enumerate(found)
        )
    if kind == "contexts":
        return "".join(f"{a} {b} x^sil-{s}+aa=b@1_2/A:0_0_0/B:1-1-2@1-1\n" for a, b, s in found)
    if kind == "states":
        writer.meant.clear()
        lines = []
        for start, stop, symbol in rows:
            edges = [start, *(start + (stop - start) * n / 3 for n in (1, 2)), stop]
            thirds = list(writer.rows([(p, q, symbol) for p, q in zip(edges, edges[1:])]))
            lines += [f"{a} {b} s{n + 2} -1.5" + f" {s} -9.5" * (n == 0) + "\n" for n, (a, b, s) in enumerate(thirds)]
        return "".join(lines)
    if dice.random() < 0.2 and len({start for start, *_ in found}) == len(found):
        dice.shuffle(found)
    more = {"plain": "", "score": " -62.5", "word": " -62.5 cat"}[kind]
    return "".join(f"{a} {b} {s}{more}\n" for a, b, s in found) + end


def festival(dice: random.Random, rows: Rows, writer: Writer, seconds: float) -> str:
    """Ends alone: a phone begins where the one before ends. With a header, or with the same colour throughout."""
    found, colour = list(writer.rows(rows)), dice.choice(["125", "26", "0"])
    if len(found) > 1 and float(found[0][1]) > 0 and dice.random() < 0.3:
        return "".join(f"{b} {colour} {s}\n" for _, b, s in found)
    head = dice.choice(["#\n", "separator ;\nnfields 1\n#\n", "signal x\ntype 0\ncolor 121\n#\n"])
    one = len({symbol for *_, symbol in found}) == 1  # and if that is a number, it is taken for the colour
    colour = f" {colour} " if one or dice.random() < 0.6 else " "
    return head + "".join(f"    {b}{colour}{s}\n" for _, b, s in found)


FORMATS: dict[str, tuple[str, Callable[..., str]]] = {
    "TextGrid": (".TextGrid", textgrid),
    "TIMIT": (".phn", phn),
    "HTK": (".lab", htk),
    "Festival": (".lab", festival),
}


def write_alignment(dice, file, name, rows, rate, unit, seconds, slips) -> Rows:
    """Write `rows` in the format `name`; returns them as the file means them. unit: the one that all formats are
    in; slips: perhaps in a unit that is not its format's."""
    make = FORMATS[name][1]
    own = {"TextGrid": 1, "TIMIT": rate, "HTK": 10_000_000, "Festival": 1}[name]
    if unit is not None:
        # Where the unit is named, both whole numbers and those with a point count it.
        writer = Writer(unit, dice.choice([0, 3]) if unit >= 1000 else 4, unit)
    elif own > 1 and dice.random() < 0.7:
        slip = dice.choice([16000, 1000, 100, 10_000_000]) if slips and dice.random() < 0.15 else own
        writer = Writer(slip, 0, own)
    else:
        writer = Writer(1, dice.choice([2, 3, 4, 6, None]), 1)
    text = make(dice, rows, writer, seconds)
    text = text.replace("\n", dice.choice(["\n", "\n", "\r\n", "\r"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    encoding = dice.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
    mark = "\ufeff" if encoding.startswith("utf-16") and dice.random() < 0.7 else ""
    file.write_bytes((mark + text).encode(encoding))
    return writer.meant


# One corpus

TREES = ("beside", "siblings inside", "siblings outside", "elsewhere", "tree", "tree of speakers", "flat tree")


@dataclass
class Case:
    """A corpus on disk: its folder, how to read it, and (partition, id) -> the symbol of each frame, None where the
    utterance must be left out."""

    root: Path
    options: AlignmentOptions
    frontend: FrontEnd | None
    truth: dict[tuple[str, str], list[str] | None] = field(default_factory=dict)
    named: set[tuple[str, str]] = field(default_factory=set)  # speaker and file


def place(tree: str, partition: str, folders: tuple[str, ...], name: str) -> tuple[str, str]:
    """Where audio and alignment lie, without suffix, under the corpus's folder; TREE/... is under a second one."""
    inner = "/".join([*folders, name])
    usual = f"{partition}/{inner}"
    places = {
        "beside": (usual, usual),
        "siblings inside": (f"{partition}/wav/{inner}", f"{partition}/lab/{inner}"),
        "siblings outside": (f"wav/{usual}", f"TextGrid/{usual}"),
        "elsewhere": (usual, f"{partition}/mfa/{name}"),
        "tree": (usual, f"TREE/{usual}"),
        "tree of speakers": (usual, f"TREE/{folders[-1]}/{name}"),
        "flat tree": (usual, f"TREE/{name}"),
    }
    return places[tree]


def write_case(root: Path, dice: random.Random) -> Case:
    """A random corpus under `root`, of one or two partitions with labels and perhaps one without."""
    inventory, unit = inventories(dice), dice.choice([None] * 6 + [1, 100, 1000, 16000, 44100, 10_000_000])
    tree = dice.choice(TREES)
    unique = tree in ("elsewhere", "flat tree") or dice.random() < 0.5
    limit = dice.choice([None, None, 1.0, 0.3])
    unknown = dice.choice(["class", "skip"]) if inventory.unknown else "class"
    (root / "audio").mkdir(parents=True)
    frontend = None
    if dice.random() < 0.15:
        length, shift = dice.choice([(25.0, 10.0), (25.0, 5.0), (32.0, 8.0), (20.0, 20.0), (25.0, 12.5)])
        frontend = FrontEnd(rate_hz=dice.choice([8000, 16000]), frame_length_ms=length, frame_shift_ms=shift)
    if tree.startswith(("tree", "flat")):
        (root / "grids").mkdir()
    options = AlignmentOptions(str(root / "grids") if (root / "grids").is_dir() else None, None, unit, unknown, limit)
    case = Case(root, options, frontend)
    if inventory.listed:
        (root / "audio/phonemes.txt").write_text("\n".join(inventory.listed) + "\n", encoding="utf-8")
    partitions = dice.choice([["train"], ["train", "dev"], ["train-clean", "dev clean"]])
    number = 0
    for partition in partitions:
        for u in range(dice.randint(2, 6)):
            speaker = dice.choice(["s1", "F BG0", "é2", "9"])
            folders = dice.choice([(speaker,), ("DR1", speaker)])
            number += 1
            name = f"utt{number}" if unique else dice.choice([f"SA{number}", f"SX{u}{speaker}"])
            if dice.random() < 0.2:
                name = f"{speaker.replace(' ', '')}-7-{number:04}"
            _write_utterance(case, dice, inventory, tree, partition, folders, name, whole=u == 0)
    if dice.random() < 0.3:
        _write_audio(root / "audio/test/s9/t1.wav", dice, 8000, 0.4)
    return case


def _write_utterance(case, dice, inventory, tree, partition, folders, name, whole) -> None:
    rate, seconds = dice.choice(RATES), round(dice.uniform(0.1, 2.5), 2)
    kind = dice.choice(list(FORMATS))
    audio, alignment = place(tree, partition, folders, name)
    suffix = FORMATS[kind][0]
    suffix = dice.choice([suffix, suffix.lower(), suffix.upper()])
    file = case.root / "audio" / f"{audio}{dice.choice(['.wav', '.flac', '.WAV'])}"
    target = case.root / "audio" / f"{alignment}{suffix}"
    if alignment.startswith("TREE/"):
        target = case.root / "grids" / f"{alignment.removeprefix('TREE/')}{suffix}"
    utterance = name
    if len(name.split("-")) < 3:
        speaker, above = folders[-1].replace("-", "_"), [part.replace("-", "_") for part in folders[:-1]]
        utterance = "-".join([speaker, *(above or ["0"]), name])
    if (partition, utterance) in case.truth or (tree == "tree of speakers" and (folders[-1], name) in case.named):
        return
    case.named.add((folders[-1], name))
    samples = _write_audio(file, dice, rate, seconds)
    rows = random_rows(dice, inventory, samples / rate, whole or kind == "Festival")
    if whole:  # so that each partition has an utterance that is packed
        middle, end = Fraction(samples, 2 * rate), Fraction(samples, rate) + Fraction(1, 100)
        rows = [(Fraction(0), middle, next(iter(inventory.phones))), (middle, end, next(iter(inventory.pauses)))]
    meant = write_alignment(dice, target, kind, rows, rate, case.options.alignment_unit, samples / rate, not whole)
    if kind == "TextGrid" and dice.random() < 0.2:  # what MFA read to make it
        target.with_suffix(".lab").write_text("THE CAT SAT\n")
    if file.suffix == ".WAV" and dice.random() < 0.3:  # Kaggle's TIMIT
        soundfile.write(f"{file}.wav", soundfile.read(file)[0], rate)
    labels = frame_labels(meant, samples, rate, case.frontend or FrontEnd())
    case.truth[partition, utterance] = _expected(labels, meant, inventory, case, Fraction(samples, rate))


def _write_audio(file: Path, dice: random.Random, rate: int, seconds: float) -> int:
    samples = int(seconds * rate)
    file.parent.mkdir(parents=True, exist_ok=True)
    container = {"format": "NIST"} if file.suffix == ".WAV" else {}  # TIMIT's own
    noise = 0.1 * np.random.default_rng(samples).standard_normal(samples)
    soundfile.write(file, noise, rate, subtype=dice.choice(["PCM_16", "PCM_24"]), **container)
    return samples


def _expected(labels, meant: Rows, inventory: Inventory, case: Case, seconds: Fraction) -> list[str] | None:
    """The classes of frames, or None where the utterance is a problem: an end beyond the audio, no phone, too much that
    nothing covers, or an unknown word that is skipped."""
    runs, longest = 0, 0
    for label in labels:
        runs = runs + 1 if label is None else 0
        longest = max(longest, runs)
    spoken = [symbol for start, end, symbol in meant if end > start]
    if max(end for _, end, _ in meant) > seconds + Fraction(1, 10):
        return None
    share, limit = labels.count(None) / len(labels), case.options.max_uncovered
    shift = (case.frontend or FrontEnd()).frame_shift_ms
    if share > (0.1 if limit is None else limit) or (limit is None and longest * shift / 1000 > 1):
        return None
    if not any(spoken) or (case.options.unknown == "skip" and set(spoken) & set(inventory.unknown)):
        return None
    classes = inventory.classes
    return [inventory.silence if label is None else classes[label] for label in labels]


# What comes of it


def packed_symbols(packed: Path) -> dict[tuple[str, str], list[str]]:
    """(partition, id) -> the symbol of each frame, of the partitions with labels."""
    corpus, found = PackedCorpus(packed), {}
    for name, partition in corpus.partitions.items():
        starts, ends = partition.utterance_start_row.tolist(), partition.utterance_end.tolist()
        for utterance, row, begin, end in zip(partition.utterance_ids, starts, [0, *ends], ends):
            if partition.labelled:
                classes = np.asarray(partition.labels[row : row + end - begin]).tolist()
                found[name, utterance] = [corpus.phonemes.symbols[label] for label in classes]
    return found


def try_case(root: Path, seed: int) -> int:
    """Pack corpus `seed` in the folder `root`, and hold every frame to the truth; returns how many frames there are."""
    dice = random.Random(seed)
    case = write_case(root, dice)
    left_out, raw, options = [], root / "audio", {"alignment": case.options, "skip_bad": True}
    if case.frontend is not None:
        left_out = extract(root / "audio", root / "raw", frontend=case.frontend, workers=1, **options).left_out
        raw, options = root / "raw", {}
    report = pack(raw, root / "packed", workers=1, context=dice.choice([0, 3]), **options)
    found, wanted = packed_symbols(root / "packed"), {key: labels for key, labels in case.truth.items() if labels}
    assert found.keys() == wanted.keys(), f"{seed}: {found.keys() ^ wanted.keys()}\n{left_out or report}"
    for key, labels in wanted.items():
        wrong = [(t, got, want) for t, (got, want) in enumerate(zip(found[key], labels)) if got != want]
        assert len(found[key]) == len(labels), f"{seed}: {key}: {len(found[key])} frames, wanted {len(labels)}"
        assert not wrong, f"{seed}: {key}: (frame, label, wanted) {wrong[:5]}"
    return sum(map(len, wanted.values()))


def main(scratch: Path, first: int, count: int) -> int:
    """Try corpora; returns how many were packed otherwise than they mean."""
    frames = failures = 0
    for seed in range(first, first + count):
        root = scratch / str(seed)
        shutil.rmtree(root, ignore_errors=True)
        try:
            frames += try_case(root, seed)
            shutil.rmtree(root)
        except Exception:
            failures += 1
            print(f"{seed}: {traceback.format_exc()}", flush=True)
    print(f"{count} corpora, {frames:,} frames, {failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])) > 0)
