"""An open corpus and `pack --replace`: what was opened keeps its data, what is opened later is refused."""

import os

import numpy as np
import pytest

from phonedata import FormatError, PackedCorpus, Partition, Selection, open_loader, pack

REPLACED = "packed: no longer holds the corpus that was opened; open it again"


@pytest.fixture
def corpus(tiny_raw, tmp_path):
    pack(tiny_raw, tmp_path / "packed", context=12)
    return PackedCorpus(tmp_path / "packed")


def replace(corpus, raw):
    """Another corpus in its place, of more rows: a smaller one would be refused for its size."""
    pack(raw, corpus.path, context=20, cmvn="speaker", replace=True)


def test_rows_of_a_replaced_corpus_are_the_old_ones_or_refused(corpus, tiny_raw):
    opened, not_opened = corpus["train-clean"], corpus["dev-clean"]
    features, labels = np.array(opened.features), np.array(opened.labels)
    replace(corpus, tiny_raw)
    np.testing.assert_array_equal(opened.features, features)
    np.testing.assert_array_equal(opened.labels, labels)
    for name in ("features", "labels", "utterance_end", "utterance_ids", "speakers"):
        with pytest.raises(FormatError, match=REPLACED):
            getattr(not_opened, name)
    assert len(PackedCorpus(corpus.path)["dev-clean"].features) > not_opened.num_rows


def test_a_corpus_that_was_packed_again_as_it_was_stays_open(corpus, tiny_raw):
    pack(tiny_raw, corpus.path, context=12, replace=True)
    assert corpus["dev-clean"].utterance_ids == PackedCorpus(corpus.path)["dev-clean"].utterance_ids


@pytest.mark.parametrize(
    ("kind", "order", "options"),
    [
        ("host", "global", {}),
        ("host", "global", {"memory": "ram"}),
        ("resident", "global", {}),
        ("slab", "slab", {"slab_frames": 37, "pool_slabs": 3}),
    ],
)
def test_a_loader_opened_after_a_replacement_is_refused(corpus, tiny_raw, kind, order, options):
    selection = Selection.of(corpus, "train-clean + train-other")
    options = {"window": 2, "batch_size": 16, "kind": kind, "order": order, **options}
    with open_loader(selection, **options) as first_stage:
        batches = [batch.windows.clone() for batch in first_stage.epoch(0)]
        replace(corpus, tiny_raw)
        # What is open goes on with what it has opened.
        assert all(batch.windows.equal(kept) for batch, kept in zip(first_stage.epoch(0), batches, strict=True))
        with pytest.raises(FormatError, match=REPLACED):
            open_loader(selection, **options)


def test_verify_during_a_replacement_says_replaced_not_damaged(corpus, tiny_raw):
    calls = []

    def replace_once(*event):
        if not calls:
            replace(corpus, tiny_raw)
        calls.append(event)

    with pytest.raises(FormatError, match=REPLACED):
        corpus.verify(replace_once)
    PackedCorpus(corpus.path).verify()


def test_a_corpus_replaced_while_it_is_opened_is_refused(corpus, tiny_raw, monkeypatch):
    real = Partition.__init__

    def replace_first(self, *arguments):
        monkeypatch.undo()
        replace(corpus, tiny_raw)
        real(self, *arguments)

    monkeypatch.setattr(Partition, "__init__", replace_first)
    with pytest.raises(FormatError, match=REPLACED):
        PackedCorpus(corpus.path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors are counted in /proc")
def test_an_opened_corpus_holds_no_descriptor(corpus):
    before = len(os.listdir("/proc/self/fd"))
    opened = PackedCorpus(corpus.path)
    assert len(os.listdir("/proc/self/fd")) == before and len(opened.partitions) == 4
