"""Epoch orders: which frame comes when, as pure functions of (seed, epoch, position).

`EpochOrder` ("global") shuffles all frames and needs no memory. `SequentialOrder` is for scoring. `SlabOrder` ("slab")
is for data that streams: it reads the corpus slab after slab and mixes frames inside a pool of slabs.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np

from ..errors import SpecError
from .permutation import (
    KEYS,
    MAX_NUMBERS,
    SLAB_ORDER,
    epoch_keys,
    rectangle,
    shuffle_range,
    shuffle_slabs,
    unshuffle,
    unshuffle_slabs,
)

SLAB_FRAMES = 1 << 16
"""11 minutes of speech, 3.7 MB of 28 float16 coefficients: a long enough read for any disk."""
POOL_SLABS = 128
"""What the frames of one batch are drawn from: 8.4 M frames, 0.5 GB."""


class Order(abc.ABC):
    """An order of `num_frames` frames, 1..MAX_NUMBERS; another number is a SpecError."""

    name: ClassVar[str]

    def __init__(self, num_frames: int):
        if not 1 <= num_frames <= MAX_NUMBERS:
            raise SpecError(f"an order of {num_frames} frames; wanted 1..{MAX_NUMBERS}; is the selection empty?")
        self.num_frames = int(num_frames)

    @abc.abstractmethod
    def into(self, start: int, out: np.ndarray) -> None:
        """Write the frames at positions `start`, `start + 1`, ... into `out` int64."""

    def frames(self, start: int, stop: int) -> np.ndarray:
        """The frames (stop - start,) int64 at positions `start..stop-1`."""
        if not 0 <= start <= stop <= self.num_frames:
            raise SpecError(
                f"positions {start}..{stop} asked for; wanted 0 <= start <= stop <= {self.num_frames} frames"
            )
        out = np.empty(stop - start, np.int64)
        self.into(start, out)
        return out

    def positions(self, frames: np.ndarray) -> np.ndarray:
        """Where in the epoch each of `frames` comes: the inverse of `frames`."""
        frames = np.ascontiguousarray(frames, np.int64)
        outside = (frames < 0) | (frames >= self.num_frames)
        if outside.any():
            raise SpecError(f"frame {frames[outside][0]} asked for; wanted 0..{self.num_frames - 1}")
        out = np.empty(len(frames), np.int64)
        self._positions(frames, out)
        return out

    @abc.abstractmethod
    def _positions(self, frames: np.ndarray, out: np.ndarray) -> None:
        """Write the positions of `frames` (n,) int64 into `out` (n,) int64."""


class SequentialOrder(Order):
    """Frames as they lie: position = frame. For scoring and predicting."""

    name = "sequential"

    def into(self, start: int, out: np.ndarray) -> None:
        """Write the frames at positions `start`, `start + 1`, ... into `out` int64."""
        out[:] = np.arange(start, start + len(out))

    def _positions(self, frames: np.ndarray, out: np.ndarray) -> None:
        out[:] = frames


class EpochOrder(Order):
    """All `num_frames` frames in random order: `frames(0, N)` is a permutation of 0..N-1, decided by (seed, epoch)."""

    name = "global"

    def __init__(self, num_frames: int, seed: int, epoch: int):
        super().__init__(num_frames)
        self.keys = epoch_keys(seed, epoch)
        self.cells = rectangle(num_frames)

    def into(self, start: int, out: np.ndarray) -> None:
        """Write the frames at positions `start`, `start + 1`, ... into `out` int64; releases the GIL."""
        shuffle_range(start, out, *self.cells, self.keys)

    def _positions(self, frames: np.ndarray, out: np.ndarray) -> None:
        unshuffle(frames, out, *self.cells, self.keys)


class SlabOrder(Order):
    """All frames, such that a pool of `pool_slabs` slabs holds every frame that the next positions need.

    The corpus is cut into n slabs of nearly `slab_frames` consecutive frames, put in random sequence. The frames of a
    slab are shuffled and dealt into P = min(pool_slabs, n) cells. Step t of the epoch (n steps of about `slab_frames`
    positions) takes cell j of the slab that is j places before t in the sequence, for j = 0..P-1, and shuffles their
    frames. So each batch draws evenly from P slabs, one slab leaves the pool and one enters at every step, and the
    sequence being a circle, the first and the last step mix as well as any other. Load m (from 1-P to n-1) brings slab
    `m mod n` of the sequence, needed in steps m..m+P-1.
    """

    name = "slab"

    def __init__(
        self, num_frames: int, seed: int, epoch: int, slab_frames: int = SLAB_FRAMES, pool_slabs: int = POOL_SLABS
    ):
        super().__init__(num_frames)
        if slab_frames < 1 or pool_slabs < 1:
            raise SpecError(f"slab_frames {slab_frames} and pool_slabs {pool_slabs}; wanted 1 or more of each")
        self.num_slabs = n = num_slabs(num_frames, slab_frames)
        self.num_cells = cells = min(pool_slabs, n)
        self.bounds = slab_bounds(num_frames, n)
        draws = np.random.SeedSequence(seed, spawn_key=(SLAB_ORDER, epoch, n, cells))
        words = draws.generate_state(KEYS * (1 + 2 * n), np.uint32)
        step_keys, slab_keys = words[KEYS:].reshape(2, n, KEYS)
        self.sequence = np.empty(n, np.int64)
        shuffle_range(0, self.sequence, *rectangle(n), words[:KEYS])
        sizes = (self.bounds[1:] - self.bounds[:-1])[self.sequence]
        slab_cell = sizes[:, None] * np.arange(cells + 1) // cells
        taken = np.diff(slab_cell, axis=1)[(np.arange(n)[:, None] - np.arange(cells)) % n, np.arange(cells)]
        step_cell = np.concatenate([np.zeros((n, 1), np.int64), np.cumsum(taken, axis=1)], axis=1)
        self.step_start = np.concatenate([[0], np.cumsum(step_cell[:, -1])])
        step_shape = np.array([rectangle(max(1, size)) for size in step_cell[:, -1].tolist()], np.uint32)
        slab_shape = np.array([rectangle(size) for size in sizes.tolist()], np.uint32)
        slab_start = np.ascontiguousarray(self.bounds[:-1][self.sequence])
        self._tables = (
            self.step_start, step_cell, slab_cell, slab_start, step_shape, slab_shape, step_keys, slab_keys
        )  # fmt: skip

    def into(self, start: int, out: np.ndarray, loads: np.ndarray | None = None) -> None:
        """Write the frames at positions `start`, ... into `out` int64 and, if given, the loads they come with."""
        shuffle_slabs(start, out, np.empty(len(out), np.int64) if loads is None else loads, *self._tables)

    def step_of(self, position: int) -> int:
        """The step that position belongs to."""
        return int(np.searchsorted(self.step_start, position, side="right")) - 1

    def _positions(self, frames: np.ndarray, out: np.ndarray) -> None:
        places = np.argsort(self.sequence)[np.searchsorted(self.bounds, frames, side="right") - 1]
        unshuffle_slabs(frames, out, places, *self._tables)


def num_slabs(num_frames: int, slab_frames: int) -> int:
    """Slabs of at most `slab_frames` frames that make `num_frames`."""
    return -(-num_frames // slab_frames)


def slab_bounds(num_frames: int, slabs: int) -> np.ndarray:
    """Where slabs begin and end: slab i is frames [bounds[i], bounds[i + 1]); sizes differ by at most one."""
    return np.array([i * num_frames // slabs for i in range(slabs + 1)], np.int64)
