"""A selection is whole utterances, numbered through; subsets are nested."""

import os
import pickle
import shutil
import tempfile

import numpy as np
import pytest

from phonedata import FormatError, PackedCorpus, PhonedataError, Selection, SpecError, pack
from tests.conftest import TINY_LENGTHS


def test_every_frame_is_located_at_its_row(tiny_exact_corpus):
    selection = Selection.of(tiny_exact_corpus, "train-other + train-clean")
    lengths = TINY_LENGTHS["train-other"] + TINY_LENGTHS["train-clean"]
    assert selection.num_frames == sum(lengths)
    source, row, utterance = selection.locate(np.arange(selection.num_frames))
    assert utterance.tolist() == [u for u, t in enumerate(lengths) for _ in range(t)]
    values = [selection.partitions[s].features[r, 0] for s, r in zip(source, row)]
    numbers = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    wanted = [numbers[u] * 1e5 + t * 1e2 + 1 for u, count in enumerate(lengths) for t in range(count)]
    assert values == wanted
    assert selection.names == ("train-other", "train-clean")
    assert selection.utterance_ids[:1] == tiny_exact_corpus["train-other"].utterance_ids[:1]


def test_subsets_are_nested_whole_utterances_in_order(learnable_corpus):
    sizes = [
        Selection.of(learnable_corpus, "train-clean", share, seed=3).utterance_ids for share in (0.1, 0.5, 0.75, 1.0)
    ]
    assert [len(s) for s in sizes] == [4, 20, 30, 40]
    for small, large in zip(sizes, sizes[1:]):
        assert set(small) < set(large)
        assert small == [i for i in large if i in set(small)]
    assert sizes[0] != Selection.of(learnable_corpus, "train-clean", 0.1, seed=4).utterance_ids


def test_subset_keeps_at_least_one_utterance(tiny_corpus):
    selection = Selection.of(tiny_corpus, ["dev-clean"], 1e-9)
    assert selection.num_utterances == 1
    assert len(selection.speakers) == 1
    _, row, _ = selection.locate([0, selection.num_frames - 1])
    assert row[1] - row[0] == selection.num_frames - 1


@pytest.mark.parametrize(
    "partitions, subset, message",
    [
        ("nowhere", 1.0, "no partition 'nowhere'; it has dev-clean"),
        ("dev-clean + dev-clean", 1.0, "different names"),
        ([], 1.0, "different names"),
        ("dev-clean", 0.0, "subset 0.0"),
        ("dev-clean", 1.5, "subset 1.5"),
        ("dev-clean + test-clean", 1.0, "test-clean has no labels"),
    ],
)
def test_impossible_selections_are_refused(tiny_corpus, partitions, subset, message):
    with pytest.raises(SpecError, match=message):
        Selection.of(tiny_corpus, partitions, subset)


def test_frames_outside_are_refused(tiny_corpus):
    selection = Selection.of(tiny_corpus, "dev-clean")
    for frame in (-1, selection.num_frames):
        with pytest.raises(SpecError):
            selection.locate([frame])


def test_a_pickle_names_its_corpus_and_carries_none_of_its_rows(tiny_raw, tmp_path):
    pack(tiny_raw, tmp_path / "packed")
    corpus = PackedCorpus(tmp_path / "packed")
    partition, selection = corpus["dev-clean"], Selection.of(corpus, "train-clean + train-other", 0.5)
    sizes = []
    for _ in range(2):
        sizes.append([len(pickle.dumps(each)) for each in (corpus, partition, selection)])
        # From here on its maps are open.
        assert len(partition.features) and len(partition.labels) and len(corpus["train-clean"].features)
    assert sizes[0] == sizes[1] and max(sizes[1][:2]) < 500
    there = pickle.loads(pickle.dumps(partition))
    np.testing.assert_array_equal(there.features, partition.features)
    again = pickle.loads(pickle.dumps(selection))
    assert again.partitions[0].corpus is again.corpus and again.utterance_ids == selection.utterance_ids
    kept = pickle.dumps(selection)
    pack(tiny_raw, tmp_path / "packed", context=9, replace=True)
    with pytest.raises(FormatError, match="another corpus than when it was pickled"):
        pickle.loads(kept)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
@pytest.mark.parametrize("shut", ["", "zarr.json", "dev-clean", "dev-clean/features/c/0/0"])
def test_a_corpus_that_may_not_be_read_is_our_own_error(tiny_corpus, shut):
    root = os.geteuid() == 0
    # Not pytest's folder: others may not enter that, so that nobody could not tell which folder is shut.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        packed = shutil.copytree(tiny_corpus.path, os.path.join(folder, "packed"))
        os.chmod(os.path.join(packed, shut), 0)
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(PhonedataError, match=r"packed.*: cannot be read \(Permission denied\); mend"):
                PackedCorpus(packed)["dev-clean"].features  # noqa: B018
        finally:
            if root:
                os.seteuid(0)
            os.chmod(os.path.join(packed, shut), 0o755)
