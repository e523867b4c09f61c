"""Ways to smooth the labels of a run's dev partition, side by side: frames right, phone errors, F1 of boundaries.

    python benchmarks/smoothing.py RUN [RUN ...] [--corpus DIR]

Several runs are averaged. Best settings are marked on all of dev, so each row is optimistic by what choosing one of a
few settings gains; `phonetrain evaluate` chooses on one half of the speakers and scores the other.
"""

import argparse

import numpy as np

from phonedata import Selection
from phonetrain.results.phones import (
    boundaries,
    boundary_score,
    edit_distance,
    matched_boundaries,
    phones,
    tolerance_frames,
)
from phonetrain.results.posteriors import open_ensemble, posteriors
from phonetrain.results.smoothing import median_labels, viterbi
from phonetrain.results.sounds import is_silence
from phonetrain.training.data import partition_of

SCALES, PENALTIES, WIDTHS, SHARES = (
    (0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0),
    (0.5, 1.0, 2.0),
    (3, 5, 7, 9, 11),
    (0.25, 0.5, 1.0),
)


def ways(nets) -> dict[str, object]:
    """Name -> a function from log posteriors (N, C) to classes (N,)."""
    counts = nets[0].label_counts()
    transitions, priors = counts.transitions, counts.log_priors
    table = {"as they are": lambda rows: rows.argmax(1)}
    table |= {f"median of {width} frames": lambda rows, width=width: median_labels(rows, width) for width in WIDTHS}
    table |= {f"path, scale {scale:g}": lambda rows, scale=scale: viterbi(rows, transitions, scale) for scale in SCALES}
    for penalty in PENALTIES:
        table[f"path, scale 1.5, penalty {penalty:g}"] = lambda rows, penalty=penalty: viterbi(
            rows, transitions, 1.5, penalty
        )
    for share in SHARES:
        for scale in (1.0, 1.5):
            table[f"path, scale {scale:g}, posteriors / priors^{share:g}"] = lambda rows, scale=scale, share=share: (
                viterbi(rows - np.float32(share) * priors, transitions, scale)
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--corpus")
    options = parser.parse_args()
    nets = open_ensemble(options.runs, corpus=options.corpus)
    partition = partition_of("dev", nets[0].corpus, nets[0].data)
    selection = Selection.of(nets[0].corpus, partition)
    silent = np.array([is_silence(symbol) for symbol in nets[0].corpus.phonemes.symbols])
    tolerance = tolerance_frames(nets[0].corpus.frame_shift_ms)
    table = ways(nets)
    # right frames, phone errors, phones, boundaries of the labels, found; then matched ones by distance
    counts = {name: np.zeros(5 + tolerance + 1, np.int64) for name in table}
    for index, rows in enumerate(posteriors(nets, partition, "smoothing")):
        source = selection.partitions[int(selection.utterance_source[index])]
        start = int(selection.utterance_start_row[index])
        labels = source.labels[start : start + len(rows)].astype(np.int64)
        wanted, edges = phones(labels)[0], boundaries(labels)
        wanted = wanted[~silent[wanted]]
        for name, decide in table.items():
            found = np.asarray(decide(rows), np.int64)
            heard, found_edges = phones(found)[0], boundaries(found)
            errors = edit_distance(wanted, heard[~silent[heard]])
            matched = matched_boundaries(edges, found_edges, tolerance)
            counts[name] += [(found == labels).sum(), errors, len(wanted), len(edges), len(found_edges), *matched]
    print(f"{partition}, {selection.num_frames:,} frames of {selection.num_utterances} utterances")
    print("| way | frames right % | phone error rate % | F1 of boundaries % |\n|---|---|---|---|")
    for name, (right, errors, total, edges, found, *matched) in counts.items():
        f1 = boundary_score(np.array(matched), int(edges), int(found), nets[0].corpus.frame_shift_ms).f1
        rates = 100 * right / selection.num_frames, 100 * errors / total, 100 * (f1 or 0.0)
        print(f"| {name} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
