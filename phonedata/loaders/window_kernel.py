"""The window kernel, in numba: finds where frames lie and copies their windows and labels into given buffers.

Everything moves by address, so one kernel serves any number of memory-mapped partitions, any dtype and pinned memory.
numba has no float16 on CPUs: values move as bytes or as LLVM vectors of `half`, 64 bytes of output at a time.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..format.selection import Selection
from ..system import check_compiler
from .windows import WindowSpec

check_compiler()

MACHINE = platform.machine().lower()
IS_X86 = MACHINE in ("x86_64", "amd64")
CONVERTS = (
    "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if IS_X86
    else MACHINE in ("aarch64", "arm64")
)
"""Whether the processor converts float16 itself. Elsewhere LLVM would call a library function that is not there, and
end the process: numpy converts."""

LINE = 64
"""Bytes of a cache line: window slots start on one and are whole ones, and a vector store writes one."""
PREFETCH_WINDOWS, PREFETCH_BYTES = 2, 512
"""How far ahead the kernel asks for a window, and for how much of it; the hardware prefetcher follows from there."""
PREFETCH_LOOKUPS, TABLE_ROW = 12, 32
"""How many frames ahead the kernel asks for a row of the utterance table, and the bytes of such a row."""

COPY, STREAM, WIDEN, NARROW = 0, 1, 2, 3
"""What the kernel does with values: copy bytes (memcpy); copy bytes past the cache; float16 to float32; float32 to
float16. The last three write whole cache lines with non-temporal stores on x86, plain ones elsewhere."""

_BYTE, _HALF, _FLOAT = ir.IntType(8), ir.HalfType(), ir.FloatType()
_void = types.void


def _load(builder, address, element, count):
    vector = ir.VectorType(element, count)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _store_line(builder, address, value):
    store = builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=LINE)
    if IS_X86:
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))


@intrinsic
def _copy_line(typingctx, target, source):
    """Copy 64 bytes from any address to an aligned one, past the cache."""

    def codegen(context, builder, signature, args):
        _store_line(builder, args[0], _load(builder, args[1], _BYTE, LINE))
        return context.get_dummy_value()

    return _void(types.int64, types.int64), codegen


@intrinsic
def _widen_line(typingctx, target, source):
    """16 float16 at `source` to 16 float32 at `target` (64 bytes, aligned)."""

    def codegen(context, builder, signature, args):
        if CONVERTS:
            halves = _load(builder, args[1], _HALF, 16)
            _store_line(builder, args[0], builder.fpext(halves, ir.VectorType(_FLOAT, 16)))
        return context.get_dummy_value()

    return _void(types.int64, types.int64), codegen


@intrinsic
def _narrow_line(typingctx, target, source):
    """32 float32 at `source` to 32 float16 at `target` (64 bytes, aligned), rounded to nearest even."""

    def codegen(context, builder, signature, args):
        if CONVERTS:
            floats = _load(builder, args[1], _FLOAT, 32)
            _store_line(builder, args[0], builder.fptrunc(floats, ir.VectorType(_HALF, 32)))
        return context.get_dummy_value()

    return _void(types.int64, types.int64), codegen


@intrinsic
def _copy_bytes(typingctx, target, source, count):
    """memcpy."""

    def codegen(context, builder, signature, args):
        pointer = _BYTE.as_pointer()
        target, source = (builder.inttoptr(address, pointer) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return _void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _prefetch(typingctx, address):
    """Ask for the cache line at `address`; never faults."""

    def codegen(context, builder, signature, args):
        pointer, word = _BYTE.as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        )
        builder.call(function, [builder.inttoptr(args[0], pointer), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return _void(types.int64), codegen


@intrinsic
def _fence(typingctx):
    """Make non-temporal stores visible before anything that follows (sfence); nothing off x86."""

    def codegen(context, builder, signature, args):
        if IS_X86:
            function = builder.module.declare_intrinsic("llvm.x86.sse.sfence", [], ir.FunctionType(ir.VoidType(), []))
            builder.call(function, [])
        return context.get_dummy_value()

    return _void(), codegen


@intrinsic
def _read_label(typingctx, address, size):
    """The unsigned integer of `size` 1 or 2 bytes at `address`, as int64."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        with builder.if_else(builder.icmp_unsigned("==", args[1], word(1))) as (one, two):
            with one:
                short = builder.zext(builder.load(builder.inttoptr(args[0], _BYTE.as_pointer())), word)
                one_block = builder.block
            with two:
                kind = ir.IntType(16)
                long = builder.zext(builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1), word)
                two_block = builder.block
        label = builder.phi(word)
        label.add_incoming(short, one_block)
        label.add_incoming(long, two_block)
        return label

    return types.int64(types.int64, types.int64), codegen


@njit
def utterance_of(frame, table, buckets, shift):
    """The utterance of `frame`: its bucket bounds it to a few, a binary search finds it among them."""
    bucket = frame >> shift
    low, high = np.int64(buckets[bucket]), np.int64(buckets[bucket + 1])
    while low < high:
        middle = (low + high) >> 1
        if table[middle, 0] <= frame:
            low = middle + 1
        else:
            high = middle
    return low


@njit
def _write_window(target, source, limit, source_bytes, target_bytes, mode, scratch):
    """One window of `source_bytes` at `source` to `target`, in whole lines; reads nothing at or past `limit`."""
    step = LINE
    if mode == WIDEN:
        step = LINE // 2
    elif mode == NARROW:
        step = 2 * LINE
    lines = (target_bytes + LINE - 1) // LINE
    whole = lines
    if source + lines * step > limit:
        whole = target_bytes // LINE
    if mode == STREAM:
        for line in range(whole):
            _copy_line(target + line * LINE, source + line * LINE)
    elif mode == WIDEN:
        for line in range(whole):
            _widen_line(target + line * LINE, source + line * (LINE // 2))
    else:
        for line in range(whole):
            _narrow_line(target + line * LINE, source + line * (2 * LINE))
    if whole < lines:
        # The last line's vector would read past the end of the file: it goes through a copy that ends in zeros.
        _copy_bytes(scratch, source + whole * step, source_bytes - whole * step)
        if mode == STREAM:
            _copy_line(target + whole * LINE, scratch)
        elif mode == WIDEN:
            _widen_line(target + whole * LINE, scratch)
        else:
            _narrow_line(target + whole * LINE, scratch)


@njit(
    "void(int64[::1], int64[::1], int64[:, ::1], int32[::1],"
    " int64, int64, int64, int64, int64, int64, int64, int64, int64)",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def gather_windows(
    frames, labels, table, buckets, shift, row_bytes, left, source_bytes, label_bytes, slots, pitch, target_bytes, mode
):
    """Windows and labels of `frames` (B,), looked up in a `FrameTable`.

    `slots` is the address of B slots of `pitch` bytes (both multiples of 64); slot i receives the `source_bytes` of
    window i as `target_bytes`, by `mode`. `labels` (B,) is filled where the table has labels (`label_bytes` > 0).
    """
    count = frames.shape[0]
    sources = np.empty(count, np.int64)
    limits = np.empty(count, np.int64)
    spare = np.zeros(2 * LINE, np.uint8)
    scratch = spare.ctypes.data
    first_row, first_bucket = table.ctypes.data, buckets.ctypes.data
    for i in range(count):
        _prefetch(first_bucket + 4 * (frames[min(i + 2 * PREFETCH_LOOKUPS, count - 1)] >> shift))
        coming = buckets[frames[min(i + PREFETCH_LOOKUPS, count - 1)] >> shift]
        _prefetch(first_row + coming * TABLE_ROW)
        frame = frames[i]
        utterance = utterance_of(frame, table, buckets, shift)
        sources[i] = table[utterance, 1] + (frame - left) * row_bytes
        limits[i] = table[utterance, 3]
        if label_bytes:
            labels[i] = table[utterance, 2] + frame * label_bytes
            _prefetch(labels[i])
    head = min(source_bytes, PREFETCH_BYTES)
    for i in range(count):
        coming = sources[min(i + PREFETCH_WINDOWS, count - 1)]
        for line in range(0, head, LINE):
            _prefetch(coming + line)
        target = slots + i * pitch
        if mode == COPY:
            _copy_bytes(target, sources[i], source_bytes)
        else:
            _write_window(target, sources[i], limits[i], source_bytes, target_bytes, mode, scratch)
        if label_bytes:
            labels[i] = _read_label(labels[i], label_bytes)
    _fence()


def buckets_of(ends: np.ndarray) -> tuple[np.ndarray, int]:
    """For `utterance_of`: frame f lies in one of the utterances buckets[f >> shift] .. buckets[(f >> shift) + 1]."""
    # About two buckets an utterance: most lookups then compare once.
    shift = max(0, (int(ends[-1]) // (2 * len(ends))).bit_length() - 1)
    starts = np.arange((int(ends[-1]) >> shift) + 2) << shift
    return np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1).astype(np.int32), shift


@njit(
    "void(int64[::1], int64[::1], int64[::1], int64[:, ::1], int32[::1], int64, int64, int64[::1], int64[::1],"
    " int64, int64)",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def pool_rows(frames, loads, rows, ends, buckets, shift, context, sequence, first_row, slab_rows, slots):
    """`rows[i]` = where frame `frames[i]`, brought by load `loads[i]`, lies in a pool of `slots` slabs.

    `ends` (U, 1) and buckets find its utterance, `sequence` (n,) and `first_row` (n,) its slab's first row; a slab has
    room for `slab_rows` rows.
    """
    last, first_end, first_bucket = frames.shape[0] - 1, ends.ctypes.data, buckets.ctypes.data
    for i in range(frames.shape[0]):
        _prefetch(first_bucket + 4 * (frames[min(i + 2 * PREFETCH_LOOKUPS, last)] >> shift))
        _prefetch(first_end + 8 * buckets[frames[min(i + PREFETCH_LOOKUPS, last)] >> shift])
        row = frames[i] + context * (utterance_of(frames[i], ends, buckets, shift) + 1)
        slab = sequence[loads[i] % sequence.shape[0]]
        rows[i] = (loads[i] % slots) * slab_rows + row - first_row[slab]


class FrameTable:
    """Where every frame's row and label lie in memory: U rows of 32 bytes and a few buckets, nothing per frame.

    For frame `f` of utterance `u`: its features are at address `rows[u, 1] + f * row_bytes`, its label at
    `rows[u, 2] + f * label_bytes`, its utterance ends before frame `rows[u, 0]`, and the features that its partition
    holds before address `rows[u, 3]`. The arrays are kept alive by this object.
    """

    def __init__(self, selection: Selection, features: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None):
        """`features[p]` (R, D) and `labels[p]` (R,) are the arrays of partition p; labels None where there are none."""
        self.keep = (tuple(features), None if labels is None else tuple(labels))
        self.dtype = features[0].dtype
        self.row_bytes = features[0].shape[1] * self.dtype.itemsize
        self.label_bytes = 0 if labels is None else labels[0].dtype.itemsize
        ends, source = selection.utterance_end, selection.utterance_source
        row_minus_frame = selection.utterance_start_row - np.concatenate(([0], ends[:-1]))
        self.rows = np.zeros((len(ends), 4), np.int64)
        self.rows[:, 0] = ends
        self.rows[:, 1] = np.array([a.ctypes.data for a in features])[source] + row_minus_frame * self.row_bytes
        if labels is not None:
            self.rows[:, 2] = np.array([a.ctypes.data for a in labels])[source] + row_minus_frame * self.label_bytes
        self.rows[:, 3] = np.array([a.ctypes.data + a.nbytes for a in features])[source]
        self.buckets, self.shift = buckets_of(ends)

    def gather(
        self, frames: np.ndarray, labels: np.ndarray, window: WindowSpec, windows: int, pitch: int, dtype: np.dtype
    ) -> None:
        """Write the windows of `frames` (B,) int64 to address `windows`, `pitch` bytes apart, and labels (B,) int64.

        `pitch` and the address are multiples of 64 and a slot has room for a window in whole lines. Releases the GIL.
        """
        if self.dtype == dtype:
            # Stores past the cache are the faster ones on x86 even where a CPU reads the windows next: what they save,
            # reading the slot before overwriting it, is more than what the reader loses.
            self._gather(frames, labels, window, windows, pitch, dtype, STREAM if IS_X86 else COPY)
        elif CONVERTS:
            self._gather(frames, labels, window, windows, pitch, dtype, WIDEN if dtype == np.float32 else NARROW)
        else:
            stored = np.empty((len(frames), window.width * self.row_bytes // self.dtype.itemsize), self.dtype)
            self._gather(frames, labels, window, stored.ctypes.data, stored.strides[0], self.dtype, COPY)
            slots = memoryview((ctypes.c_byte * (len(frames) * pitch)).from_address(windows))
            with np.errstate(all="ignore"):
                np.ndarray(stored.shape, dtype, slots, strides=(pitch, dtype.itemsize))[:] = stored

    def _gather(
        self,
        frames: np.ndarray,
        labels: np.ndarray,
        window: WindowSpec,
        windows: int,
        pitch: int,
        dtype: np.dtype,
        mode: int,
    ) -> None:
        gather_windows(
            frames,
            labels,
            self.rows,
            self.buckets,
            self.shift,
            self.row_bytes,
            window.left,
            window.width * self.row_bytes,
            self.label_bytes,
            windows,
            pitch,
            window.width * self.row_bytes // self.dtype.itemsize * dtype.itemsize,
            mode,
        )
