"""inspect shows what is in the files; its picture has the phonemes on it."""

import json

import numpy as np
import pytest

from phonedata import PhonedataError, SpecError, inspect
from phonedata.format.describe import plot_utterance, segments


def test_inspection_agrees_with_the_files(learnable_corpus):
    found = inspect(learnable_corpus.path)
    table = json.loads(json.dumps(found.to_dict()))
    train = learnable_corpus["train-clean"]
    mine = next(p for p in table["partitions"] if p["name"] == "train-clean")
    assert mine["frames"] == train.num_frames
    assert mine["hours"] == pytest.approx(train.num_frames / 360_000)
    on_disk = sum(f.stat().st_size for f in train.path.rglob("*") if f.is_file())
    assert mine["bytes"] == on_disk - (train.path / "zarr.json").stat().st_size
    assert mine["label_histogram"]["ZH"] == int((train.labels == 39).sum())
    assert table["digest"] == learnable_corpus.digest


def test_inspection_reads_well(learnable_corpus):
    text = str(inspect(learnable_corpus.path))
    assert "cmvn utterance, context 50, 40 phonemes" in text
    assert "labels of dev-clean + train-clean, % of 7,500 frames" in text
    assert "no labels" in text
    assert max(map(len, text.splitlines()[3:])) <= 120


def test_segments_are_runs():
    assert segments(np.array([3, 3, 0, 5, 5, 5])) == [(3, 0, 2), (0, 2, 3), (5, 3, 6)]
    assert segments(np.array([1])) == [(1, 0, 1)]


def test_picture_names_every_phoneme_of_the_utterance(learnable_corpus, tmp_path):
    train = learnable_corpus["train-clean"]
    path = plot_utterance(learnable_corpus, tmp_path / "u.svg", "train-clean", train.utterance_ids[1])
    text = path.read_text()
    start, end = int(train.utterance_start_row[1]), int(train.utterance_start_row[1] + np.diff(train.utterance_end)[0])
    for label in set(train.labels[start:end].tolist()):
        assert f"<!-- {learnable_corpus.phonemes.symbols[label]} -->" in text
    again = plot_utterance(learnable_corpus, tmp_path / "v.svg", "train-clean", train.utterance_ids[1])
    assert "<dc:date>" not in again.read_text()


def test_picture_works_without_labels_and_refuses_unknown_names(learnable_corpus, tmp_path):
    assert plot_utterance(learnable_corpus, tmp_path / "u.png", "test-clean").stat().st_size > 1000
    with pytest.raises(SpecError, match="no utterance 'nobody'"):
        plot_utterance(learnable_corpus, tmp_path / "u.svg", "dev-clean", "nobody")
    with pytest.raises(SpecError, match="no partition 'eval'"):
        plot_utterance(learnable_corpus, tmp_path / "u.svg", "eval")
    with pytest.raises(SpecError, match="name it .svg"):
        plot_utterance(learnable_corpus, tmp_path / "u.xyz")
    with pytest.raises(PhonedataError, match="cannot be written"):
        plot_utterance(learnable_corpus, tmp_path / "no/u.svg")


def test_an_inspection_shows_every_table_once_whatever_the_number_of_partitions(tiny_corpus):
    """Twenty lines for four partitions; coefficients one by one are for programs."""
    lines = str(inspect(tiny_corpus.path)).splitlines()
    assert len(lines) == 2 + 1 + 1 + 4 + 1 + 1 + 5
    assert sum("labels of" in line for line in lines) == 1
    counts = sum(p.label_histogram for p in tiny_corpus.partitions.values() if p.labelled)
    share = 100 * counts[0] / counts.sum()
    assert f" [SIL] {share:5.2f}" in lines[-5]
