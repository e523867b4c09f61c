"""The window kernel: every byte of every window, in every mode, and none of the bytes around them."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonedata.loaders import window_kernel
from phonedata.loaders.window_kernel import IS_X86, LINE, FrameTable, buckets_of, pool_rows
from phonedata.loaders.windows import WindowSpec


def make_table(lengths, dim, context, dtype, label_dtype, seed=0):
    """A one-partition selection with random rows, its table, each frame's row, and the arrays."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    starts = ends - lengths + context * np.arange(1, len(lengths) + 1)
    rows = random.normal(size=(int(ends[-1]) + context * (len(lengths) + 1), dim)).astype(dtype)
    labels = random.integers(0, np.iinfo(label_dtype).max, len(rows)).astype(label_dtype)
    selection = SimpleNamespace(
        utterance_end=ends, utterance_source=np.zeros(len(lengths), np.int64), utterance_start_row=starts
    )
    row_of = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths)])
    return FrameTable(selection, [rows], [labels]), rows, labels, row_of


def aligned(size):
    memory = np.full(size + LINE, 0xAB, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 40),
    st.integers(0, 6),
    st.integers(0, 6),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["uint8", "uint16"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_kernel_equals_slices_for_any_shape(lengths, dim, left, right, stored, wanted, label_dtype, stream):
    # The tightest context: the last window ends with the last byte of the rows.
    table, rows, labels, row_of = make_table(lengths, dim, max(left, right), stored, label_dtype)
    window, count = WindowSpec(left, right), len(row_of)
    width = window.width * dim * np.dtype(wanted).itemsize
    pitch = -(-width // LINE) * LINE
    memory = aligned((count + 2) * pitch)
    out_labels = np.empty(count, np.int64)
    frames = np.random.default_rng(1).permutation(count)
    with patch.object(window_kernel, "IS_X86", stream):
        table.gather(frames, out_labels, window, memory.ctypes.data + pitch, pitch, np.dtype(wanted))
    slots = memory.reshape(count + 2, pitch)
    expected = np.stack([rows[row_of[f] - left : row_of[f] + right + 1] for f in frames]).astype(wanted)
    found = slots[1:-1, :width].copy().view(wanted).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(out_labels, labels[row_of[frames]])
    assert (slots[0] == 0xAB).all()
    assert (slots[-1] == 0xAB).all()


@pytest.mark.parametrize(("stored", "wanted"), [("float16", "float32"), ("float32", "float16")])
def test_conversion_of_every_float16_and_of_hard_float32_is_numpys(stored, wanted):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        values = halves.astype(np.float32)
        if stored == "float32":
            # Ties and their neighbours on both sides, subnormals, what overflows and what vanishes included.
            ordered = np.append(np.sort(values[np.isfinite(values)]), np.float32(65536))
            middles = ((ordered[:-1].astype(np.float64) + ordered[1:]) / 2).astype(np.float32)
            beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
            extremes = np.float32([65519.996, 65520, 65536, 1e30, 3.4e38, 2**-25, 2**-26, 1e-30, 1e-45])
            values = np.concatenate([values, middles, *beside, extremes, -extremes])
        rows = values.astype(stored)
        rows = np.append(rows, np.zeros(-len(rows) % 16, stored)).reshape(-1, 16)
        expected = rows.astype(wanted)
    selection = SimpleNamespace(
        utterance_end=np.array([len(rows)]), utterance_source=np.array([0]), utterance_start_row=np.array([0])
    )
    table = FrameTable(selection, [rows], None)
    memory = aligned(len(rows) * LINE)
    frames, no_labels = np.arange(len(rows)), np.empty(0, np.int64)
    table.gather(frames, no_labels, WindowSpec(0, 0), memory.ctypes.data, LINE, np.dtype(wanted))
    found = memory.reshape(-1, LINE)[:, : 16 * np.dtype(wanted).itemsize].copy().view(wanted)
    np.testing.assert_array_equal(found, expected)
    # -0.0 == 0.0, but their bits differ; of a NaN only that it is one is agreed on.
    np.testing.assert_array_equal(np.signbit(found) | np.isnan(found), np.signbit(expected) | np.isnan(expected))


@pytest.mark.skipif(not IS_X86, reason="other processors have no such choice")
@pytest.mark.parametrize("law", [
    pytest.param("test_conversion_of_every_float16", id="conversion"),
    pytest.param("test_kernel_equals_slices", id="slices", marks=pytest.mark.long),
])  # fmt: skip
def test_a_processor_without_half_instructions_converts_like_all_others(law, tmp_path):
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", law]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@given(st.lists(st.integers(1, 3) | st.integers(1, 3000), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_buckets_find_every_utterance_however_uneven(lengths):
    ends = np.cumsum(lengths)
    buckets, shift = buckets_of(ends)
    size = int(ends[-1])
    frames = np.arange(size)
    rows = np.empty(size, np.int64)
    # One slab that starts at row 0, context 0 and 1: their difference counts the utterances before the frame.
    answers = []
    for context in (0, 1):
        zeros, zero = np.zeros(size, np.int64), np.zeros(1, np.int64)
        pool_rows(frames, zeros, rows, ends[:, None].copy(), buckets, shift, context, zero, zero, 0, 1)
        answers.append(rows.copy())
    assert answers[0].tolist() == frames.tolist()
    np.testing.assert_array_equal(answers[1] - answers[0] - 1, np.searchsorted(ends, frames, side="right"))
    # About two buckets an utterance: nothing grows with the frames.
    assert len(buckets) <= 4 * len(ends) + 3


def test_table_takes_bytes_per_utterance_not_per_frame():
    lengths = np.full(2000, 1265)
    table, *_ = make_table(lengths, 1, 0, "float16", "uint8")
    assert table.rows.nbytes + table.buckets.nbytes < 60 * len(lengths)
