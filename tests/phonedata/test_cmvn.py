"""Moments agree with numpy in float64, merge without a trace of the split, and round like numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonedata.cmvn import Moments, half_bits, moments, normalise_half, normalise_single, scale_into
from tests.reference import cmvn_truth


def stats_of(rows):
    mean, square = np.empty((2, rows.shape[1]))
    assert moments(rows, mean, square)
    return mean, square


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 300), st.integers(1, 80), st.floats(-4, 6), st.booleans())
def test_moments_are_those_of_numpy(seed, frames, dim, offset, wide):
    rows = np.random.default_rng(seed).normal(10.0**offset, 3.0, (frames, dim)).astype("f8" if wide else "f4")
    mean, square = stats_of(rows)
    assert np.allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=0, atol=1e-14 * (10**offset + 3))
    assert np.allclose(
        square / frames, rows.astype(np.float64).var(axis=0), rtol=1e-10, atol=1e-12 * 10 ** (2 * offset)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frame", [0, 3, 4, 8])
def test_one_number_that_is_not_finite_is_seen(bad, frame):
    rows = np.ones((9, 3), np.float32)
    rows[frame, 1] = bad
    assert not moments(rows, *np.empty((2, 3)))


def test_every_float16_value_and_every_tie_rounds_as_numpy_rounds():
    """All 63,488 finite values, the midpoints between them, and both float32 neighbours of each."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    points = np.concatenate([points, np.nextafter(points, np.float32(-1e9)), np.nextafter(points, np.float32(1e9))])
    rows = np.ascontiguousarray(points[np.abs(points) < 65520].reshape(-1, 1))
    out = np.empty(rows.shape, np.uint16)
    normalise_half(rows, np.zeros(1), np.ones(1), out)
    wanted = rows.astype(np.float16)
    zeros = wanted == 0
    assert np.array_equal(out.view(np.float16)[~zeros], wanted[~zeros])
    assert np.array_equal(out[zeros], wanted.view(np.uint16)[zeros])


@pytest.mark.long
def test_every_float32_below_the_limit_rounds_as_numpy_rounds():
    """All 2.4 thousand million of them."""
    from numba import njit

    @njit
    def convert(values, out):
        for i in range(values.size):
            out[i] = half_bits(values[i])

    out = np.empty(1 << 24, np.uint16)
    for high in range(256):
        values = (np.arange(1 << 24, dtype=np.uint32) + np.uint32(high << 24)).view(np.float32)
        with np.errstate(all="ignore"):
            kept = np.abs(values) < 65520
            if not kept.any():
                continue
            wanted = values.astype(np.float16).view(np.uint16)
        convert(values, out)
        assert np.array_equal(out[kept], wanted[kept]), high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 8))
def test_merged_moments_do_not_show_the_split(seed, lengths, dim):
    random = np.random.default_rng(seed)
    parts = [random.normal(random.normal() * 50, 2, (t, dim)) for t in lengths]
    means, squares = (np.array(x) for x in zip(*map(stats_of, parts)))
    counts = np.array(lengths)
    whole = Moments(dim).merge(counts, means, squares)
    for cut in range(len(lengths) + 1):
        two = Moments(dim).merge(counts[:cut], means[:cut], squares[:cut])
        two.merge(counts[cut:], means[cut:], squares[cut:])
        assert two.count == whole.count
        assert np.array_equal(two.mean, whole.mean) and np.array_equal(two.square, whole.square)
    joined = np.concatenate(parts)
    assert np.allclose(whole.mean, joined.mean(axis=0), rtol=1e-12, atol=1e-12)
    assert np.allclose(whole.std, joined.std(axis=0), rtol=1e-9, atol=1e-12)


def test_constant_coefficients_are_only_centred():
    rows = np.repeat(np.array([[0.1, -7e5, 0.0]], np.float32), 1000, axis=0)
    mean, square = stats_of(rows)
    scale = np.empty(3)
    scale_into(mean, square, 1000, scale)
    assert np.array_equal(scale, np.ones(3))
    out = np.empty(rows.shape, np.float32)
    assert normalise_single(rows, mean, scale, out) == 0
    assert not out.any()
    assert not cmvn_truth(rows)[:, 2].any()


def test_largest_magnitude_is_reported():
    rows = np.array([[1, -70000], [3, 5]], np.float32)
    assert normalise_half(rows, np.zeros(2), np.ones(2), np.empty((2, 2), np.uint16)) == 70000
