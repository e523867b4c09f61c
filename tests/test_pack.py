"""Laws of packing the HW1P2 layout: every frame and label lands where the format says."""

import numpy as np

from tests.conftest import TINY_DIM, TINY_LENGTHS, place_features, place_label


def test_every_frame_lies_at_its_row(tiny_exact_corpus):
    number = 0
    for name, lengths in TINY_LENGTHS.items():
        partition = tiny_exact_corpus[name]
        assert partition.num_frames == sum(lengths)
        rows = np.zeros((partition.num_rows, TINY_DIM), np.float32)
        labels = np.full(partition.num_rows, 255, np.uint8)
        row = tiny_exact_corpus.context
        for u, frames in enumerate(lengths):
            assert partition.utterance_start_row[u] == row
            rows[row : row + frames] = place_features(number, frames, TINY_DIM)
            labels[row : row + frames] = place_label(number, frames)
            row += frames + tiny_exact_corpus.context
            number += 1
        assert np.array_equal(partition.features, rows)
        if partition.labelled:
            assert np.array_equal(partition.labels, labels)
        else:
            assert partition.labels is None


def test_learnable_corpus_is_learnable(learnable_corpus):
    train = learnable_corpus["train-clean"]
    assert 4000 < train.num_frames <= 6000
    assert train.label_histogram.sum() == train.num_frames
    assert learnable_corpus["test-clean"].labels is None
