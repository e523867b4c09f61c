"""Vocal tract warps: against a spectrum that is warped bin by bin; which columns are cepstra; one warp a window."""

import numpy as np
import pytest
import torch

from phonedata import PackedCorpus, Selection, WindowSpec, pack_utterances
from phonetrain import ConfigError, evaluate, predict
from phonetrain.config.sections import AugmentConfig
from phonetrain.console.base import Console
from phonetrain.display.tables import evaluation_text
from phonetrain.results.posteriors import posteriors
from phonetrain.results.trained import open_trained
from phonetrain.results.transcribe import log_posteriors
from phonetrain.step.augment import Augment
from phonetrain.step.warp import WARPS, cepstra, warp_matrix, warps_of
from tests.reference import warped_cepstra
from tests.training import fit_tiny

BAND = {"bins": 40, "low": 20.0, "high": 8000.0}


@pytest.mark.parametrize("stretch", [0.85, 0.93, 1.0, 1.04, 1.2])
def test_matrix_warps_the_spectrum_that_cepstra_stand_for(stretch):
    frame = np.random.default_rng(0).normal(size=28) / np.arange(1, 29)
    truth = warped_cepstra(frame, stretch, **BAND)
    np.testing.assert_allclose(warp_matrix(28, stretch, **BAND) @ frame, truth, atol=1e-9)


def test_no_stretch_is_the_identity_and_a_formant_moves_the_way_it_should():
    np.testing.assert_allclose(warp_matrix(28, 1.0, **BAND), np.eye(28), atol=1e-12)
    orders, bins = np.arange(28), np.arange(40)
    basis = np.sqrt(np.where(orders == 0, 1, 2) / 40)[:, None] * np.cos(np.pi * orders[:, None] * (bins + 0.5) / 40)
    peak = basis @ np.exp(-0.5 * ((bins - 15) / 2.0) ** 2)
    # What stands at f now stood at f * stretch, so a formant goes down where the axis is stretched.
    places = [int((basis.T @ warp_matrix(28, stretch, **BAND) @ peak).argmax()) for stretch in (0.85, 1.0, 1.15)]
    assert places[0] > places[1] == 15 > places[2]


def slow_and_fast(count: int, dim: int, last: bool) -> np.ndarray:
    """Rows of which C0 changes slowly and each further coefficient faster."""
    generator = np.random.default_rng(1)
    rows, keep = np.zeros((count, dim)), np.linspace(0.97, 0.5, dim)
    for row in range(1, count):
        rows[row] = keep * rows[row - 1] + np.sqrt(1 - keep**2) * generator.normal(size=dim)
    return np.roll(rows, -1, axis=1) if last else rows


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dim", [13, 28])
def test_place_of_c0_is_seen_where_nothing_says_it(dim, last):
    blocks, what = cepstra({}, slow_and_fast(4000, dim, last))
    assert [list(block) for block in blocks] == [[dim - 1, *range(dim - 1)] if last else list(range(dim))]
    assert f"C0 is {'last' if last else 'first'}" in what


def test_front_end_is_believed_and_deltas_are_warped_apart():
    rows = np.random.default_rng(0).normal(size=(50, 39))
    blocks, _ = cepstra({"features": "mfcc", "deltas": 2, "c0": "last"}, rows)
    assert [list(block) for block in blocks] == [[12 + k, *range(k, 12 + k)] for k in (0, 13, 26)]
    assert cepstra({"features": "fbank"}, rows)[0] is None


@pytest.mark.parametrize("kind", ["fbank", "embedding", "wide", "narrow"])
def test_what_does_not_look_like_cepstra_is_left_alone(kind):
    generator = np.random.default_rng(2)
    rows = {
        "fbank": lambda: slow_and_fast(4000, 1, False) + 0.3 * slow_and_fast(4000, 24, False),
        "embedding": lambda: generator.normal(size=(4000, 24)),
        "wide": lambda: slow_and_fast(4000, 39, False),
        "narrow": lambda: slow_and_fast(4000, 4, False),
    }[kind]()
    blocks, why = cepstra({}, rows)
    assert blocks is None and "the corpus does not say" in why


@pytest.fixture(scope="module")
def cepstral(tmp_path_factory) -> PackedCorpus:
    """Two partitions whose labels hang on the features."""
    rows = slow_and_fast(3000, 14, last=True).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.int64) + 2 * (rows[:, 1] > 0)
    path = tmp_path_factory.mktemp("cepstral") / "packed"
    spans = {"train": range(0, 2400, 300), "dev": range(2400, 3000, 300)}
    yielded = (
        (name, f"{name}-{start}", rows[start : start + 300], labels[start : start + 300], None)
        for name, starts in spans.items()
        for start in starts
    )
    pack_utterances(yielded, path, symbols=["SIL", "A", "B", "C"])
    return PackedCorpus(path)


def test_coefficients_keep_their_deviation(cepstral):
    warps, _ = warps_of(Selection.of(cepstral, "train"), 0.1)
    rows = np.asarray(cepstral["train"].features, np.float64)
    assert warps.shape == (WARPS, 14, 14) and warps.dtype == np.float32
    np.testing.assert_allclose(warps[WARPS // 2], np.eye(14), atol=1e-6)
    for warp in (warps[0], warps[-1]):
        np.testing.assert_allclose((rows @ warp).std(0), rows.std(0), rtol=1e-3)


def test_each_window_has_one_warp_that_hangs_on_its_frame_alone(cepstral):
    warps, _ = warps_of(Selection.of(cepstral, "train"), 0.1)
    augment = Augment(AugmentConfig(warp=0.1), WindowSpec(2, 2), 14, seed=3, warps=warps)
    windows, frames = torch.randn(500, 5, 14), torch.randperm(10_000)[:500]
    whole = augment(windows, frames, 0)
    every = torch.einsum("bwd,kde->kbwe", windows, torch.from_numpy(warps))
    used = (every - whole).abs().amax((2, 3)).argmin(0)
    torch.testing.assert_close(whole, every[used, torch.arange(500)], atol=1e-5, rtol=1e-5)
    assert len(used.unique()) == WARPS
    turned = torch.randperm(500)
    for part in turned.split(77):
        torch.testing.assert_close(augment(windows[part], frames[part], 0), whole[part], atol=1e-5, rtol=1e-5)
    assert not torch.equal(augment(windows, frames, 1), whole) and augment.describe()["warp"] == 0.1


def test_a_run_warps_cepstra_and_says_where_it_cannot(cepstral, learnable_corpus, tmp_path):
    settings = ("augment.warp=0.08", "epochs=1", "batch_size=64")
    warped = fit_tiny(cepstral, tmp_path / "cepstra", *settings)
    assert warped.read_json(warped.built_path)["augment"]["warp"] == 0.08
    assert not [event for event in warped.events("warning") if "not warped" in event["message"]]
    other = fit_tiny(learnable_corpus, tmp_path / "other", *settings, console=Console())
    assert other.read_json(other.built_path)["augment"]["warp"] == 0.0
    assert [event for event in other.events("warning") if "features are not warped: the corpus" in event["message"]]


def test_an_utterance_is_heard_under_nine_warps_and_the_five_surest_are_averaged(cepstral, tmp_path):
    run = fit_tiny(cepstral, tmp_path / "run", "epochs=1", "batch_size=64")
    net, part = open_trained(run), cepstral["dev"]
    warps, _ = warps_of(Selection.of(cepstral, "train"), 0.16, 9)
    chosen, slow = [], []
    for start, frames in zip(part.utterance_start_row, np.diff(part.utterance_end, prepend=0)):
        features = np.asarray(part.features[start : start + frames], np.float32)
        heard = np.stack([log_posteriors(net, features @ warp, tmp_path) for warp in warps])
        order = np.argsort(heard.max(2).mean(1))
        chosen.append(set(order[-5:].tolist()))
        mean = heard[order[-5:]].mean(0)
        slow.append(mean - np.log(np.exp(mean).sum(1, keepdims=True)))
    assert any(places != set(range(2, 7)) for places in chosen)  # those in the middle would be no choice
    fast = list(posteriors([net], "dev", "", warps=True))
    for rows, wanted in zip(fast, slow, strict=True):
        np.testing.assert_allclose(rows, wanted, atol=1e-4)
    scores = evaluate(run, warps=True)
    labels = part.labels[np.concatenate([np.arange(s, s + 300) for s in part.utterance_start_row])]
    assert scores["accuracy"] == (np.concatenate(fast).argmax(1) == labels).mean()
    assert "heard as 9 lengths of vocal tract" in evaluation_text(scores) and scores["in_training"] is None
    evaluate(run)
    assert [path.stem[-6:] == "-warps" for path in sorted(run.evaluations.iterdir())] == [True, False]
    written = predict(run, "dev", tmp_path / "labels.csv", warps=True, labels="index").read_text().split()[1:]
    assert [int(row.split(",")[1]) for row in written] == np.concatenate(fast).argmax(1).tolist()


def test_features_that_cannot_be_warped_are_refused_in_one_sentence(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1", "batch_size=64")
    with pytest.raises(ConfigError, match="features are not warped: the corpus does not say"):
        predict(run, warps=True)
    assert not list(run.predictions.glob("*"))
