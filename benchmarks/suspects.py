"""How well `phonetrain suspects` finds labels that were made wrong on purpose, in places that are known.

    python benchmarks/suspects.py RAW OUT [--folds 3] [key=value ...]

RAW: a folder in the HW1P2 layout. OUT: a folder; a corpus and a run that are there already are used again. Settings
are those of the net.

In the training partition the labels of whole phones are exchanged for another class until 2 % of the frames are wrong,
and those of 1 % of the utterances are moved by 80 ms, which changes the frames near each boundary. Then a net is
trained on these labels and asked. A wrong phone is found where a listed segment overlaps at least half of it, a moved
utterance where it is listed; recall and precision of the segments are stated for lists of 2 % and 5 % of them.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from phonedata import PackedCorpus, pack
from phonetrain import fit
from phonetrain.results.suspects import suspects
from phonetrain.runs.directory import Run

WRONG_FRAMES, MOVED_UTTERANCES, MOVED_FRAMES, SEED = 0.02, 0.01, 8, 16
LISTED = (0.02, 0.05)


def runs_of(labels: np.ndarray) -> np.ndarray:
    """(K + 1,) first frames of the K runs of equal labels, and the number of labels."""
    return np.concatenate(([0], np.flatnonzero(labels[1:] != labels[:-1]) + 1, [len(labels)]))


def spoil(raw: Path, out: Path, partition: str) -> tuple[dict[str, list[tuple[int, int]]], list[str]]:
    """Write `out` like `raw`, its training labels spoilt: utterance -> wrong (first frame, end), moved utterances."""
    random = np.random.default_rng(SEED)
    shutil.rmtree(out, ignore_errors=True)
    (out / partition / "transcript").mkdir(parents=True)
    for entry in raw.iterdir():
        if entry.name != partition:
            (out / entry.name).symlink_to(entry.resolve())
    (out / partition / "mfcc").symlink_to((raw / partition / "mfcc").resolve())
    files = sorted((raw / partition / "transcript").glob("*.npy"))
    labels = {file.stem: np.load(file) for file in files}
    symbols = np.unique(np.concatenate([text[1:-1] for text in labels.values()]))
    moved = sorted(random.choice(sorted(labels), round(MOVED_UTTERANCES * len(labels)), replace=False))
    for name in moved:
        inner = labels[name][1:-1]
        labels[name][1:-1] = np.concatenate((np.repeat(inner[:1], MOVED_FRAMES), inner[:-MOVED_FRAMES]))
    segments = [(name, *pair) for name in sorted(set(labels) - set(moved))
                for pair in zip(runs_of(labels[name][1:-1])[:-1], runs_of(labels[name][1:-1])[1:])]  # fmt: skip
    left = WRONG_FRAMES * sum(len(text) - 2 for text in labels.values())
    wrong: dict[str, list[tuple[int, int]]] = {}
    for place in random.permutation(len(segments)):
        name, first, end = segments[place]
        inner = labels[name][1:-1]
        near = {inner[first], inner[max(first - 1, 0)], inner[min(end, len(inner) - 1)]}
        inner[first:end] = random.choice([symbol for symbol in symbols if symbol not in near])
        wrong.setdefault(name, []).append((int(first), int(end)))
        left -= end - first
        if left <= 0:
            break
    for name, text in labels.items():
        np.save(out / partition / "transcript" / f"{name}.npy", text)
    return wrong, moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--folds", type=int)
    parser.add_argument("--partition", default="train-clean")
    options = parser.parse_args()
    raw, packed, run = (options.out / name for name in ("raw", "packed", "run"))
    wrong, moved = spoil(options.raw, raw, options.partition)
    if not packed.exists():
        pack(raw, packed)
    if not Run(run).has_trained:
        fit("default", *options.settings, corpus=packed, run=run)
    result = suspects(run, options.partition, folds=options.folds, share=max(LISTED), out=options.out / "suspects",
                      replace=True)  # fmt: skip
    for line in report(result, wrong, {str(name) for name in moved}, PackedCorpus(packed), options.partition):
        print(line)


def report(result, wrong, moved, corpus, partition) -> list[str]:
    """Lines with recall and precision."""
    total = sum(map(len, wrong.values()))
    lines = [f"{len(moved)} moved utterances of {corpus[partition].num_utterances:,}, {total:,} wrong phones of "
             f"{result['segments_checked']:,}"]  # fmt: skip
    names = [row["utterance"].rpartition("/")[2] for row in result["utterances"]]
    right = sum(name in moved for name in names)
    lines.append(f"utterances listed: {len(names)}, of which moved: {right} "
                 f"(recall {right / len(moved):.1%}, precision {right / max(1, len(names)):.1%})")  # fmt: skip
    shift = corpus.frame_shift_ms / 1000
    for share in LISTED:
        listed = result["segments"][: round(share * result["segments_checked"])]
        found, hits = set(), 0
        for row in listed:
            name = row["utterance"].rpartition("/")[2]
            first, end = round(row["start"] / shift), round(row["end"] / shift)
            over = [(a, b) for a, b in wrong.get(name, ()) if min(b, end) - max(a, first) >= (b - a) / 2]
            found |= {(name, *pair) for pair in over}
            hits += bool(over)
        lines.append(f"segments, {share:.0%} listed ({len(listed):,}): recall "
                     f"{len(found) / total:.1%}, precision {hits / len(listed):.1%}")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
