"""The order of frames: a bijection of any N, random enough, the same on every device and from every position."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phonedata.errors import SpecError
from phonedata.loaders.order import EpochOrder, SequentialOrder, SlabOrder
from phonedata.loaders.permutation import KEYS, device_frames, epoch_keys, rectangle
from tests import reference

SPECIAL = sorted(
    {1, 2, 3, 4, 5}
    | {7, 97, 997, 9973, 65537}
    | {n * n + d for n in (2, 3, 10, 31, 100, 255) for d in (-1, 0, 1)}
    | {2**k + d for k in range(1, 17) for d in (-1, 0, 1)}
)
HUGE = [35_999_999, 36_000_000, 345_000_000, 2**31 - 1, 2**31 + 1, 10**12 + 39, 2**62]

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 10_000)


def assert_permutation(frames, size):
    assert len(frames) == size
    assert np.array_equal(np.sort(frames), np.arange(size))


def test_rectangle_holds_exactly_n_cells_for_thousands_of_n():
    for size in [*range(1, 5000), *HUGE]:
        cells = rectangle(size)
        assert (cells.rows - 1) * cells.columns + cells.last == size
        assert 1 <= cells.last <= cells.columns
        assert max(cells.rows, cells.columns) <= 2**31


def test_global_order_is_a_permutation_for_every_small_n():
    for size in range(1, 2500):
        assert_permutation(EpochOrder(size, 3, size).frames(0, size), size)


@pytest.mark.parametrize("size", SPECIAL)
def test_global_order_is_a_permutation_at_primes_squares_and_powers(size):
    assert_permutation(EpochOrder(size, 1, 0).frames(0, size), size)


@given(st.sampled_from([1, 2, 3, 10, 64, 101]), seeds, epochs)
@settings(max_examples=40, deadline=None)
def test_global_order_equals_the_plain_one(size, seed, epoch):
    assert EpochOrder(size, seed, epoch).frames(0, size).tolist() == reference.feistel_frames(
        size, epoch_keys(seed, epoch)
    )


@given(st.sampled_from(HUGE), seeds, epochs, st.data())
@settings(max_examples=80, deadline=None)
def test_positions_are_the_inverse_at_huge_sizes(size, seed, epoch, data):
    order = EpochOrder(size, seed, epoch)
    start = data.draw(st.integers(0, size - 1))
    stop = min(size, start + 200)
    frames = order.frames(start, stop)
    assert frames.min() >= 0
    assert frames.max() < size
    assert order.positions(frames).tolist() == list(range(start, stop))
    assert order.frames(*(order.positions(np.array([start])) + [0, 1])).tolist() == [start]


@given(st.integers(1, 5000) | st.sampled_from(HUGE), seeds, st.data())
@settings(max_examples=80, deadline=None)
def test_device_order_equals_the_host_order(size, seed, data):
    order = EpochOrder(size, seed, 7)
    start = data.draw(st.integers(0, size - 1))
    stop = min(size, start + 100)
    keys = torch.from_numpy(order.keys.astype(np.int64))
    found = device_frames(torch.arange(start, stop), keys, order.cells)
    assert found.tolist() == order.frames(start, stop).tolist()


orders = st.sampled_from(["global", "sequential", "slab"])


@given(orders, st.integers(1, 3000), st.integers(1, 700), st.integers(1, 12), seeds, st.data())
@settings(max_examples=120, deadline=None)
def test_any_slice_of_any_order_is_that_slice_of_the_whole(name, size, slab_frames, pool, seed, data):
    order = make_order(name, size, seed, slab_frames, pool)
    whole = order.frames(0, size)
    assert_permutation(whole, size)
    assert order.positions(whole).tolist() == list(range(size))
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    assert order.frames(start, stop).tolist() == whole[start:stop].tolist()


def make_order(name, size, seed, slab_frames, pool):
    if name == "global":
        return EpochOrder(size, seed, 1)
    if name == "sequential":
        return SequentialOrder(size)
    return SlabOrder(size, seed, 1, slab_frames, pool)


# Randomness. Each statistic is a z-score or a ratio that six half-rounds keep small and two do not.


def lagged_pairs(frames, lag, bins=16):
    """z of a chi-square test on where the pairs (frame at p, frame at p + lag) fall, as the shift between them."""
    size = len(frames)
    shift = (frames[lag:] - frames[:-lag]) % size
    counts = np.bincount(shift * bins // size, minlength=bins)
    expected = len(shift) / bins
    return (((counts - expected) ** 2 / expected).sum() - (bins - 1)) / math.sqrt(2 * (bins - 1))


def worst_pairs(frames):
    columns = rectangle(len(frames)).columns
    return max(abs(lagged_pairs(frames, lag)) for lag in (1, 2, columns - 1, columns, columns + 1, 2 * columns))


@pytest.mark.parametrize("size", [40_000, 65_537, 250_001])
def test_pairs_at_telling_distances_are_independent(size):
    scores = [worst_pairs(EpochOrder(size, seed, 0).frames(0, size)) for seed in range(8)]
    # 48 scores of about unit variance: 6 is beyond chance.
    assert max(scores) < 6


def test_two_half_rounds_would_fail_the_pair_test():
    size = 10_007
    two = [np.array(reference.feistel_frames(size, epoch_keys(seed, 0), half_rounds=2)) for seed in range(3)]
    assert min(worst_pairs(frames) for frames in two) > 100
    six = np.array(reference.feistel_frames(size, epoch_keys(0, 0), half_rounds=6))
    assert worst_pairs(six) < 6


def test_neighbours_are_uncorrelated():
    size = 200_000
    for seed in range(8):
        frames = EpochOrder(size, seed, 3).frames(0, size).astype(float)
        correlation = np.corrcoef(frames[1:], frames[:-1])[0, 1]
        assert abs(correlation) * math.sqrt(size) < 5


def test_a_batch_draws_from_as_many_utterances_as_chance_would():
    size, length, batch = 1_000_000, 1000, 512
    order = EpochOrder(size, 0, 0)
    counts = [len(np.unique(order.frames(s, s + batch) // length)) for s in range(0, 100 * batch, batch)]
    utterances = size // length
    expected = utterances * (1 - (1 - 1 / utterances) ** batch)
    assert abs(np.mean(counts) - expected) < 1.5
    assert 3 < np.std(counts) < 15


@pytest.mark.parametrize("name", ["global", "slab"])
def test_epochs_and_seeds_are_uncorrelated(name):
    size = 100_000
    runs = [MAKERS[name](size, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]]
    # Slabs move as one: 100 of them, not 100,000 frames, are what is independent there.
    independent = size if name == "global" else 100
    for i, first in enumerate(runs):
        for second in runs[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(independent) < 5
            # Two random permutations agree at one position on average.
            assert (first == second).sum() < 12


MAKERS = {
    "global": lambda size, seed, epoch: EpochOrder(size, seed, epoch).frames(0, size).astype(float),
    "slab": lambda size, seed, epoch: SlabOrder(size, seed, epoch, 1000, 8).frames(0, size).astype(float),
}


def test_seed_plus_epoch_is_no_key():
    assert not np.array_equal(EpochOrder(1000, 0, 1).frames(0, 1000), EpochOrder(1000, 1, 0).frames(0, 1000))
    assert len(set(epoch_keys(0, 0).tolist())) == KEYS


# The slab order


@given(st.integers(1, 4000), st.integers(1, 600), st.integers(1, 9), seeds)
@settings(max_examples=60, deadline=None)
def test_a_pool_holds_every_frame_of_its_step(size, slab_frames, pool, seed):
    order = SlabOrder(size, seed, 0, slab_frames, pool)
    frames, loads = np.empty(size, np.int64), np.empty(size, np.int64)
    order.into(0, frames, loads)
    steps = np.array([order.step_of(p) for p in range(size)])
    assert (loads <= steps).all()
    assert (loads > steps - order.num_cells).all()
    slabs = order.sequence[loads % order.num_slabs]
    assert (order.bounds[slabs] <= frames).all()
    assert (frames < order.bounds[slabs + 1]).all()
    assert max(order.bounds[1:] - order.bounds[:-1]) <= slab_frames


def test_every_step_draws_evenly_from_the_whole_pool():
    order = SlabOrder(64_000, 5, 2, 1000, 8)
    for step in (0, 1, 31, 63):
        start, stop = order.step_start[step : step + 2]
        loads = np.empty(stop - start, np.int64)
        order.into(int(start), np.empty(stop - start, np.int64), loads)
        assert np.unique(loads, return_counts=True)[1].tolist() == [125] * 8
        half = np.unique(loads[:500], return_counts=True)[1]
        assert abs(half - 62.5).max() < 30


# Impossible questions


@pytest.mark.parametrize("order", [EpochOrder(10, 0, 0), SequentialOrder(10), SlabOrder(10, 0, 0, 4, 2)])
def test_positions_and_frames_outside_are_refused(order):
    for start, stop in ((-1, 3), (3, 2), (0, 11)):
        with pytest.raises(SpecError, match="10 frames"):
            order.frames(start, stop)
    for frame in (-1, 10):
        with pytest.raises(SpecError, match="wanted 0..9"):
            order.positions(np.array([0, frame]))


@pytest.mark.parametrize("size", [0, -5, 2**62 + 1])
def test_an_order_of_nothing_is_refused(size):
    with pytest.raises(SpecError, match="wanted 1"):
        EpochOrder(size, 0, 0)
