"""Cepstral mean and variance normalisation: float64 moments that merge, and the kernels that apply them.

Per coefficient d over T frames: mean = sum(x) / T, standard deviation = sqrt(sum((x - mean)^2) / T) (population, as
Kaldi's apply-cmvn). Stored value = (x - mean) * scale in float64, rounded once to float32 and then to the stored
dtype, with scale = 1 / deviation. A coefficient that does not vary is only centred (scale 1).
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .system import check_compiler

check_compiler()

# A deviation below this share of the mean's size is rounding noise of float32, not speech.
RELATIVE_FLOOR = 1e-6
# Below this one, 1 / deviation and its square leave the range of numbers.
ABSOLUTE_FLOOR = 1e-30


@intrinsic
def _bits(typingctx, value):
    """The bits of a float32 as uint32."""
    if value != types.float32:
        return None

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@njit(inline="always")
def half_bits(value):
    """float32 of magnitude below 65,520 -> the bits of the nearest float16 (ties to even), as numpy converts.

    Integer arithmetic only: numba has no float16 on CPUs, and LLVM's own conversion calls a library function that is
    not everywhere. The magic numbers are those of Fabian Giesen's float_to_half_fast3_rtne; his branch for infinities
    is left out, since the callers refuse what float16 cannot hold.
    """
    bits = _bits(np.float32(value))
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude + np.uint32(0xC8000FFF) + ((magnitude >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    # Below 2^-14 the value is aligned by adding 0.5: the adder rounds at the last bit of a float16 subnormal.
    small = _bits(np.float32(abs(value)) + np.float32(0.5)) - np.uint32(0x3F000000)
    half = small if magnitude < np.uint32(113 << 23) else normal
    return np.uint16(half | sign)


@njit(cache=True, nogil=True)
def moments(rows, mean, square):
    """Mean (D,) and sum of squared deviations (D,) of `rows` (T, D), T >= 1, in float64; False if not all finite.

    Sums run about the first row, so that a constant coefficient gives exactly its value and exactly zero.
    """
    frames, dim = rows.shape
    mean[:] = 0.0
    square[:] = 0.0
    first = rows[0].astype(np.float64)
    t = 1
    while t + 3 < frames:
        for d in range(dim):
            mean[d] += ((rows[t, d] - first[d]) + (rows[t + 1, d] - first[d])) + (
                (rows[t + 2, d] - first[d]) + (rows[t + 3, d] - first[d])
            )
        t += 4
    while t < frames:
        for d in range(dim):
            mean[d] += rows[t, d] - first[d]
        t += 1
    finite = True
    for d in range(dim):
        mean[d] = first[d] + mean[d] / frames
        finite &= np.isfinite(mean[d])
    t = 0
    while t + 3 < frames:
        for d in range(dim):
            a = rows[t, d] - mean[d]
            b = rows[t + 1, d] - mean[d]
            c = rows[t + 2, d] - mean[d]
            e = rows[t + 3, d] - mean[d]
            square[d] += (a * a + b * b) + (c * c + e * e)
        t += 4
    while t < frames:
        for d in range(dim):
            a = rows[t, d] - mean[d]
            square[d] += a * a
        t += 1
    for d in range(dim):
        finite &= np.isfinite(square[d])
    return finite


@njit(cache=True, nogil=True)
def normalise_half(rows, mean, scale, out):
    """(rows - mean) * scale -> float16 bits in `out` (T, D) uint16; returns the largest magnitude as float32."""
    frames, dim = rows.shape
    largest = np.zeros(dim, np.float32)
    for t in range(frames):
        for d in range(dim):
            value = np.float32((np.float64(rows[t, d]) - mean[d]) * scale[d])
            size = abs(value)
            largest[d] = size if size > largest[d] else largest[d]
            out[t, d] = half_bits(value)
    return largest.max()


@njit(cache=True, nogil=True)
def normalise_single(rows, mean, scale, out):
    """(rows - mean) * scale -> `out` (T, D) float32; returns the largest magnitude."""
    frames, dim = rows.shape
    largest = np.zeros(dim, np.float32)
    for t in range(frames):
        for d in range(dim):
            value = np.float32((np.float64(rows[t, d]) - mean[d]) * scale[d])
            size = abs(value)
            largest[d] = size if size > largest[d] else largest[d]
            out[t, d] = value
    return largest.max()


@njit(cache=True, nogil=True)
def _merge(counts, means, squares, count, mean, square):
    """Fold U utterances, one after the other, into (count, mean, square); Chan, Golub and LeVeque 1979."""
    for u in range(counts.size):
        n = counts[u]
        total = count + n
        if total == 0:
            continue
        for d in range(mean.size):
            step = means[u, d] - mean[d]
            mean[d] += step * n / total
            square[d] += squares[u, d] + step * step * count * n / total
        count = total
    return count


class Moments:
    """Count, mean (D,) and sum of squared deviations (D,) of frames, float64.

    Utterances are always merged one by one in their order, so the result does not depend on how they were split
    among workers.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.square = np.zeros(dim)

    def merge(self, counts: np.ndarray, means: np.ndarray, squares: np.ndarray) -> "Moments":
        """Add utterances: counts (U,) frames, means (U, D), squares (U, D) sums of squared deviations."""
        self.count = int(_merge(np.asarray(counts, np.int64), means, squares, self.count, self.mean, self.square))
        return self

    @property
    def std(self) -> np.ndarray:
        """(D,) population standard deviation; zero without frames."""
        return np.sqrt(self.square / max(self.count, 1))

    @property
    def scale(self) -> np.ndarray:
        """(D,) what normalisation multiplies with."""
        scale = np.empty_like(self.mean)
        scale_into(self.mean, self.square, max(self.count, 1), scale)
        return scale


@njit(cache=True, nogil=True)
def scale_into(mean, square, count, scale):
    """Fill `scale` (D,): 1 / deviation of `count` frames, or 1 where the coefficient does not vary."""
    for d in range(mean.size):
        std = np.sqrt(square[d] / count)
        scale[d] = 1.0 if std <= max(RELATIVE_FLOOR * abs(mean[d]), ABSOLUTE_FLOOR) else 1.0 / std
