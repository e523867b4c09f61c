"""Ways to make windows: ours, the limit, and the rivals in their honest forms. Each fills or yields whole batches."""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from phonedata import EpochOrder, WindowSpec, open_loader
from phonedata.format.selection import Selection
from phonedata.loaders.window_kernel import FrameTable

RING_BYTES = 64 << 20


@dataclass
class Case:
    """What is measured: a corpus of one dtype, a window, a batch size, and where the rows lie ("map" or "ram")."""

    corpus: object
    partition: str
    context: int = 30
    batch_size: int = 1024
    memory: str = "map"
    seed: int = 0
    selection: Selection = field(init=False)

    def __post_init__(self):
        self.selection = Selection.of(self.corpus, self.partition)
        self.window = WindowSpec(self.context, self.context)
        partition = self.selection.partitions[0]
        self.rows, self.labels = partition.features, partition.labels
        if self.memory == "ram":
            self.rows, self.labels = np.array(self.rows), np.array(self.labels)
        self.dtype = self.rows.dtype
        self.order = EpochOrder(self.selection.num_frames, self.seed, 0)
        self.num_batches = self.selection.num_frames // self.batch_size
        self.window_bytes = self.window.width * self.rows.shape[1] * self.dtype.itemsize

    @property
    def name(self) -> str:
        return f"{self.dtype} context {self.context} batch {self.batch_size} {self.memory}"

    def frames(self, index: int) -> np.ndarray:
        start = index % self.num_batches * self.batch_size
        return self.order.frames(start, start + self.batch_size)

    def rows_of(self, index: int) -> np.ndarray:
        return self.selection.locate(self.frames(index))[1]

    def truth(self, index: int) -> np.ndarray:
        rows, width = self.rows_of(index), self.window.width
        return self.rows[rows[:, None] - self.context + np.arange(width)]


class Ring:
    """At least 64 MB of slots, so that no way writes into cache that is already warm."""

    def __init__(self, case: Case):
        self.pitch = -(-case.window_bytes // 64) * 64
        self.slot_bytes = self.pitch * case.batch_size
        self.slots = max(3, -(-RING_BYTES // self.slot_bytes))
        self.memory = np.frombuffer(mmap.mmap(-1, self.slots * self.slot_bytes), np.uint8)
        self.memory[:] = 1

    def address(self, index: int) -> int:
        return self.memory.ctypes.data + index % self.slots * self.slot_bytes

    def windows(self, index: int, case: Case, pitch: int) -> np.ndarray:
        start = index % self.slots * self.slot_bytes
        slot = self.memory[start : start + pitch * case.batch_size].view(case.dtype)
        dim, size = case.rows.shape[1], case.dtype.itemsize
        shape = (case.batch_size, case.window.width, dim)
        return np.lib.stride_tricks.as_strided(slot, shape, (pitch, dim * size, size))


def memcpy(case: Case, threads: int):
    """The limit: as many bytes as the windows have, from rows that are not in cache, into the same ring."""
    ring = Ring(case)
    size = case.window_bytes * case.batch_size
    # A toy corpus is smaller than one batch of windows.
    rows = case.rows if case.rows.nbytes > 2 * size else np.ones(2 * size + 64, np.uint8)
    source, room = rows.ctypes.data, rows.nbytes - size
    pool = ThreadPoolExecutor(threads)
    # Far apart, so that the source is cold, and page after page, which is memcpy's best case.
    stride = (room // 61) // 64 * 64

    def copy(index: int, rows=rows) -> None:
        ctypes.memmove(ring.address(index), source + index * stride % room, size)

    def run(first: int, count: int) -> None:
        list(pool.map(copy, range(first, first + count)))

    run.check = lambda: None
    run.close = pool.shutdown
    return run


def kernel(case: Case):
    """Our kernel on one thread: lookup, gather and labels of frames that are given."""
    ring = Ring(case)
    table = FrameTable(case.selection, [case.rows], [case.labels])
    labels = np.empty(case.batch_size, np.int64)
    frames = [case.frames(n) for n in range(min(case.num_batches, 512))]

    def run(first: int, count: int) -> None:
        for n in range(first, first + count):
            table.gather(frames[n % len(frames)], labels, case.window, ring.address(n), ring.pitch, case.dtype)

    def check() -> None:
        run(0, 1)
        np.testing.assert_array_equal(ring.windows(0, case, ring.pitch), case.truth(0))
        np.testing.assert_array_equal(labels, case.labels[case.rows_of(0)])

    run.check, run.close = check, lambda: None
    return run


def loader(case: Case, **options):
    """Our whole loader, order to yielded tensors."""
    opened = open_loader(
        case.selection, window=case.window, batch_size=case.batch_size, dtype=str(case.dtype), seed=case.seed, **options
    )

    def run(first: int, count: int) -> None:
        # To the end of an epoch, so that nothing is produced ahead and thrown away.
        while count > 0:
            part = min(count, case.num_batches)
            for _ in opened.epoch(first, case.num_batches - part):
                pass
            count -= part

    def check() -> None:
        for n, batch in zip(range(2), opened.epoch(0)):
            np.testing.assert_array_equal(batch.frames.numpy(), case.frames(n))
            np.testing.assert_array_equal(batch.windows.numpy(), case.truth(n))
            np.testing.assert_array_equal(batch.labels.numpy(), case.labels[case.rows_of(n)])

    run.check, run.close = check, opened.close
    return run


def flat_view(case: Case):
    """numpy: one line, one fancy index into overlapping rows; builds no order and no labels."""
    width, dim = case.window.width, case.rows.shape[1]
    flat = np.lib.stride_tricks.sliding_window_view(case.rows.reshape(-1), width * dim)[::dim]
    starts = [case.rows_of(n) - case.context for n in range(min(case.num_batches, 512))]

    def run(first: int, count: int):
        for n in range(first, first + count):
            windows = flat[starts[n % len(starts)]]
        return windows

    run.check = lambda: np.testing.assert_array_equal(run(0, 1).reshape(case.truth(0).shape), case.truth(0))
    run.close = lambda: None
    return run


def fancy_index(case: Case):
    """numpy: rows[index[:, None] + arange]."""
    offsets = np.arange(case.window.width) - case.context
    rows = [case.rows_of(n) for n in range(min(case.num_batches, 512))]

    def run(first: int, count: int):
        for n in range(first, first + count):
            windows = case.rows[rows[n % len(rows)][:, None] + offsets]
        return windows

    run.check = lambda: np.testing.assert_array_equal(run(0, 1), case.truth(0))
    run.close = lambda: None
    return run


def index_select(case: Case):
    """torch: index_select(out=) on an as_strided view, into a ring."""
    ring = Ring(case)
    width, dim = case.window.width, case.rows.shape[1]
    # A private mapping is writable, which torch wants, and shares the pages.
    rows = np.memmap(case.rows.filename, case.dtype, "c", shape=case.rows.shape) if case.memory == "map" else case.rows
    view = torch.from_numpy(rows).as_strided((len(rows) - width + 1, width * dim), (dim, 1))
    starts = [torch.from_numpy(case.rows_of(n) - case.context) for n in range(min(case.num_batches, 512))]
    tight = case.window_bytes
    outs = [torch.from_numpy(ring.windows(n, case, tight).reshape(case.batch_size, -1)) for n in range(ring.slots)]

    def run(first: int, count: int) -> None:
        for n in range(first, first + count):
            torch.index_select(view, 0, starts[n % len(starts)], out=outs[n % len(outs)])

    def check() -> None:
        run(0, 1)
        np.testing.assert_array_equal(outs[0].numpy().reshape(case.truth(0).shape), case.truth(0))

    run.check, run.close = check, lambda: None
    return run


class WindowDataset(torch.utils.data.Dataset):
    """What notebooks write: one window and one label per item."""

    def __init__(self, case: Case):
        self.rows, self.labels, self.context = case.rows, case.labels, case.context
        self.locate = case.selection.locate(np.arange(case.selection.num_frames))[1]

    def __len__(self):
        return len(self.locate)

    def __getitem__(self, frame):
        row = self.locate[frame]
        return torch.from_numpy(np.array(self.rows[row - self.context : row + self.context + 1])), int(self.labels[row])


class BatchDataset(WindowDataset):
    """The same with `__getitems__`: a whole batch at once."""

    def __getitems__(self, frames):
        rows = self.locate[frames]
        view = np.lib.stride_tricks.sliding_window_view(self.rows, 2 * self.context + 1, axis=0).swapaxes(1, 2)
        return torch.from_numpy(view[rows - self.context]), torch.from_numpy(self.labels[rows].astype(np.int64))


def as_given(batch):
    return batch


def data_loader(case: Case, dataset: type, workers: int):
    """torch's DataLoader over a Dataset, in our order."""
    source = dataset(case)
    options = {"collate_fn": as_given} if dataset is BatchDataset else {}

    def batches(first: int, count: int):
        start = first % max(1, case.num_batches - count) * case.batch_size
        frames = case.order.frames(start, start + count * case.batch_size).tolist()
        return torch.utils.data.DataLoader(source, case.batch_size, sampler=frames, num_workers=workers, **options)

    def run(first: int, count: int) -> None:
        for _ in batches(first, count):
            pass

    def check() -> None:
        windows, labels = next(iter(batches(0, 1)))
        np.testing.assert_array_equal(windows.numpy(), case.truth(0))
        np.testing.assert_array_equal(labels.numpy(), case.labels[case.rows_of(0)])

    run.check, run.close = check, lambda: None
    return run
