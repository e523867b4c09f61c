"""Vocal tract length warps: matrices that turn cepstra into those of a longer or a shorter vocal tract."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phonedata import Selection

Floats = npt.NDArray[np.float64]
WARPS = 33  # an odd number: the middle one changes nothing
SEEN_ROWS = 1 << 16  # 11 minutes say how coefficients vary
SLOW = 4  # frames over which C0 still changes little
MOST_UNKNOWN = 32  # coefficients without a known front end; from 36 on there are deltas among them
BENDS_AT = 0.6  # of the highest frequency, where the warp begins to bend back (Jaitly and Hinton: 4,800 of 8,000 Hz)


def warps_of(selection: Selection, largest: float, count: int = WARPS) -> tuple[npt.NDArray[np.float32] | None, str]:
    """(count, D, D) float32 for rows of the features, and one line on what they are or why there are none.

    `window @ warps[k]` is a window (W, D) whose frequency axis is stretched by exp(largest * s), s from -1 to 1
    (vocal tract length perturbation: Jaitly and Hinton, ICML workshop on deep learning for audio, 2013; on cepstra it
    is linear, Pitz and Ney, IEEE Trans. Speech Audio Process. 13(5), 2005). Each coefficient keeps its deviation over
    the first rows that are trained on. Only cepstra can be warped so: the corpus's front end says whether it has some;
    of a corpus without one the rows must look like it.
    """
    frontend: dict[str, Any] = selection.corpus.attributes.get("frontend") or {}
    rows = np.asarray(selection.partitions[0].features[:SEEN_ROWS], np.float64)
    blocks, what = cepstra(frontend, rows)
    if blocks is None:
        return None, f"features are not warped: {what}"
    rate = float(frontend.get("rate_hz", 16000))
    low, high = float(frontend.get("low_hz", 20.0)), float(frontend.get("high_hz") or rate / 2)
    bins = max(int(frontend.get("mel_bins", 40)), max(map(len, blocks)))
    covariance = np.cov(rows.T)
    warps = np.zeros((count, rows.shape[1], rows.shape[1]))
    for warp, stretch in zip(warps, np.exp(np.linspace(-largest, largest, count))):
        for columns in blocks:
            warp[np.ix_(columns, columns)] = warp_matrix(len(columns), stretch, bins=bins, low=low, high=high)
        after = np.einsum("ij,jk,ik->i", warp, covariance, warp)
        warp *= np.sqrt(np.diag(covariance) / np.where(after > 0, after, 1.0))[:, None]
    return np.ascontiguousarray(warps.transpose(0, 2, 1), np.float32), what


def warp_matrix(size: int, stretch: float, *, bins: int, low: float, high: float) -> Floats:
    """(size, size): cepstra C0, C1, ... of a frame -> those of the frame with its frequencies times `stretch`.

    Cepstra are the cosine series of a log spectrum over `bins` mel bins between `low` and `high` Hz: the series is
    read where a bin's frequency comes from, and taken apart again. 1 is the identity.
    """
    orders, places = np.arange(size), np.arange(bins)
    weights = np.sqrt(np.where(orders == 0, 1.0, 2.0) / bins)[:, None]
    first, last = mel(low), mel(high)
    came_from = mel(warped(hertz(first + (places + 1) * (last - first) / (bins + 1)), stretch, high))
    came_from = np.clip((came_from - first) * (bins + 1) / (last - first) - 1, 0, bins - 1)
    series = weights * np.cos(np.pi * orders[:, None] * (came_from + 0.5) / bins)
    analysis = weights * np.cos(np.pi * orders[:, None] * (places + 0.5) / bins)
    matrix: Floats = analysis @ series.T
    return matrix


def warped(frequency: Floats, stretch: float, high: float) -> Floats:
    """Frequencies (Hz) times `stretch`, from BENDS_AT on along a line that ends at `high`: equation 1 of Jaitly and
    Hinton."""
    bend = BENDS_AT * high * min(stretch, 1.0) / stretch
    above = high - (high - bend * stretch) / (high - bend) * (high - frequency)
    return np.where(frequency <= bend, frequency * stretch, above)


def mel(frequency: Any) -> Any:
    """Kaldi's mel scale, of Hz."""
    return 1127.0 * np.log1p(frequency / 700.0)


def hertz(mels: Any) -> Any:
    return 700.0 * np.expm1(mels / 1127.0)


def cepstra(frontend: dict[str, Any], rows: Floats) -> tuple[list[npt.NDArray[np.int64]] | None, str]:
    """The columns of features that are C0, C1, ..., for the cepstra and for each of their deltas; None where they are
    none; and one line that says so.

    frontend: what the corpus records of it, empty where it does not. rows: (R, D) consecutive rows.
    """
    dim = rows.shape[1]
    if frontend:
        if frontend.get("features", "mfcc") != "mfcc":
            return None, f"they are {frontend['features']}, and only cepstra can be"
        blocks = int(frontend.get("deltas", 0)) + 1
        if dim % blocks:
            return None, f"{dim} values are not cepstra and {blocks - 1} derivatives"
        last, source = frontend.get("c0", "first") == "last", "as the front end says"
    else:
        blocks = 1
        if dim < 8 or dim > MOST_UNKNOWN:
            return None, f"the corpus does not say what its {dim} coefficients are"
        beside = np.abs([np.corrcoef(rows[:, i], rows[:, i + 1])[0, 1] for i in range(dim - 1)])
        slow = (rows[SLOW:] * rows[:-SLOW]).sum(0) / np.maximum((rows * rows).sum(0), 1e-12)
        # High cepstra are ripples that change fast; neighbouring energies of filters go together, cepstra do not.
        if not np.median(beside) < 0.7 or not slow[: dim // 3].mean() > 1.2 * slow[-dim // 3 : -1].mean():
            return None, "the corpus does not say what its features are, and they do not look like cepstra"
        last, source = slow[-1] > (slow[0] + slow[-2]) / 2, "as it changes slowly"
    size = dim // blocks
    order = np.roll(np.arange(size), 1) if last else np.arange(size)
    return [order + size * block for block in range(blocks)], f"C0 is {'last' if last else 'first'}, {source}"
