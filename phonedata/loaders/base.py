"""What all loaders share: which positions of an epoch make batch k on this rank, and the face of a loader."""

from __future__ import annotations

import abc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..errors import SpecError
from ..format.selection import Selection
from .order import POOL_SLABS, SLAB_FRAMES, EpochOrder, SequentialOrder, SlabOrder
from .prefetch import Prefetcher
from .windows import WindowBatch, WindowSpec

if TYPE_CHECKING:
    import torch

ORDERS = ("global", "slab", "sequential")
DTYPES = ("float16", "float32")
AnyOrder = EpochOrder | SlabOrder | SequentialOrder


def whole_number(name: str, value: Any) -> int:
    """`value` as an int; raises SpecError for 8.0, "8" and True."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SpecError(f"{name} {value!r}; wanted a whole number")
    return int(value)


def find_device(device: str | torch.device) -> torch.device:
    """The torch.device that `device` names; raises SpecError where there is none of that name or number."""
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise SpecError(f"device {device!r}; wanted cpu, cuda, cuda:N or mps") from None
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"torch {torch.__version__} sees {count} CUDA devices"
        raise SpecError(f"device {str(found)!r}, but {seen}; take device='cpu'")
    if found.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, device=found).cpu()
        except (RuntimeError, AssertionError, NotImplementedError):
            raise SpecError(f"device {str(found)!r}, but this torch has none; take device='cpu'") from None
    return found


@dataclass(frozen=True)
class BatchPlan:
    """Which frames make batch k of epoch e on rank r: a function of the fields here, without state.

    Attributes:
        selection: N frames.
        window: what is around each frame; anything that `WindowSpec.of` takes.
        batch_size: frames in one batch over all ranks.
        order: "global", "slab" or "sequential".
        seed: of the order.
        dtype: of the windows, "float16" or "float32".
        rank, world_size: this process's slice of every global batch.
        drop_last: leave out the last batch of an epoch where it is short; None: except in order "sequential".
        slab_frames, pool_slabs: of order "slab".
    """

    selection: Selection
    window: WindowSpec
    batch_size: int
    order: str = "global"
    seed: int = 0
    dtype: str = "float16"
    rank: int = 0
    world_size: int = 1
    drop_last: bool | None = None
    slab_frames: int = SLAB_FRAMES
    pool_slabs: int = POOL_SLABS

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", WindowSpec.of(self.window))
        for name in ("batch_size", "seed", "rank", "world_size", "slab_frames", "pool_slabs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        self.window.check_fits(self.selection.corpus.context)
        if self.order not in ORDERS:
            raise SpecError(f"order {self.order!r}; wanted one of {', '.join(ORDERS)}")
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise SpecError(f"window dtype {self.dtype!r}; wanted one of {', '.join(DTYPES)}")
        if self.drop_last is None:
            # Whoever reads in order scores, and every frame counts.
            object.__setattr__(self, "drop_last", self.order != "sequential")
        if not isinstance(self.drop_last, bool):
            raise SpecError(f"drop_last {self.drop_last!r}; wanted True, False, or None to decide by the order")
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise SpecError(f"rank {self.rank} of {self.world_size}; wanted 0 <= rank < world_size")
        if self.batch_size < self.world_size:
            raise SpecError(f"batch_size {self.batch_size} for {self.world_size} ranks; wanted a frame or more each")
        if self.slab_frames < 1 or self.pool_slabs < 1:
            raise SpecError(f"slab_frames {self.slab_frames}, pool_slabs {self.pool_slabs}; wanted 1 or more of each")
        if not 0 <= self.seed < 2**64:
            raise SpecError(f"seed {self.seed}; wanted 0..2**64-1")
        if self.batches_per_epoch == 0:
            raise SpecError(
                f"{self.num_frames} frames make no full batch of {self.batch_size}; "
                f"wanted batch_size <= {self.num_frames} or drop_last=False"
            )

    @property
    def num_frames(self) -> int:
        """N."""
        return self.selection.num_frames

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch, the same number on every rank."""
        return self.num_frames // self.batch_size if self.drop_last else -(-self.num_frames // self.batch_size)

    @property
    def frames_per_epoch(self) -> int:
        """Frames that one epoch visits, over all ranks."""
        return self.batches_per_epoch * self.batch_size if self.drop_last else self.num_frames

    @property
    def largest_batch(self) -> int:
        """The most frames in one batch over all ranks: a batch may be asked for that is larger than the selection."""
        return min(self.batch_size, self.num_frames)

    @property
    def slots(self) -> int:
        """The most frames this rank receives in one batch."""
        return -(-self.largest_batch // self.world_size)

    def epoch_order(self, epoch: int) -> AnyOrder:
        """The order of one epoch."""
        if whole_number("epoch", epoch) < 0:
            raise SpecError(f"epoch {epoch}; epochs count from 0")
        if self.order == "sequential":
            return SequentialOrder(self.num_frames)
        if self.order == "slab":
            return SlabOrder(self.num_frames, self.seed, epoch, self.slab_frames, self.pool_slabs)
        return EpochOrder(self.num_frames, self.seed, epoch)

    def bounds(self, index: int) -> tuple[int, int]:
        """Positions [start, stop) of batch `index` on this rank: its fixed share of the global batch.

        The shares of all ranks lie side by side and differ by at most one frame; those of a short last batch may be
        empty.
        """
        start = index * self.batch_size
        length = min(self.batch_size, self.num_frames - start)
        return start + length * self.rank // self.world_size, start + length * (self.rank + 1) // self.world_size

    def check_batch(self, index: int, last: int) -> None:
        """Raise SpecError unless 0 <= index <= last."""
        if not 0 <= whole_number("batch", index) <= last:
            raise SpecError(f"batch {index} asked for; an epoch has {self.batches_per_epoch} batches, counted from 0")


class Loader(abc.ABC):
    """A source of WindowBatches; its BatchPlan alone decides which frames they hold.

    A new loader is a subclass that says the four class attributes, makes a batch in `_one_batch`, and
    stands in `LOADERS` of open.py.

    Class attributes:
        kind: its name in `open_loader`.
        orders: the orders that it can give.
        options: the arguments of `open_loader` that only this loader takes; each is an attribute of the loader too.
        gathers_on_device: all rows lie on the device, and `new_table`, `fill_table` and `device_batch` make batches
            from them without the host, so that a CUDA graph can hold them.

    Attributes: `reason` (why this kind, one line), `plan`, `device`; and from the plan `selection`, `window`,
    `batch_size`, `num_frames`, `batches_per_epoch`, `frames_per_epoch`.
    A loader remembers nothing between calls, so any number of epochs may be open at once. One that is pickled, to be
    handed to another process, is opened anew there.
    """

    kind: ClassVar[str]
    orders: ClassVar[tuple[str, ...]] = ORDERS
    options: ClassVar[tuple[str, ...]] = ()
    gathers_on_device: ClassVar[bool] = False

    @classmethod
    def scoring_batch(cls, device: torch.device) -> int:
        """Frames in a batch of a pass without training, where no number is given."""
        return 4096

    def __init__(self, plan: BatchPlan, device: str | torch.device, reason: str = "") -> None:
        if plan.order not in self.orders:
            raise SpecError(
                f"the {self.kind} loader gives order {', '.join(self.orders)}, not {plan.order!r}; "
                f"set order={self.orders[0]!r} or another kind"
            )
        self.plan, self.reason, self.device = plan, reason, find_device(device)
        self.selection, self.window, self.batch_size = plan.selection, plan.window, plan.batch_size
        self.num_frames = plan.num_frames
        self.batches_per_epoch, self.frames_per_epoch = plan.batches_per_epoch, plan.frames_per_epoch
        self._closed = False
        self._prefetchers: weakref.WeakSet[Prefetcher] = weakref.WeakSet()

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[WindowBatch]:
        """The batches `start_batch`, `start_batch + 1`, ... of one epoch; starting late costs nothing.

        Tensors are on `device`; a batch is valid until the next one is asked for. Leaving early ends all that runs
        behind it. Raises SpecError for an impossible position and FormatError when a corpus file has shrunk.
        """
        self._check_open()
        self.plan.check_batch(start_batch, self.batches_per_epoch)
        return self._batches(self.plan.epoch_order(epoch), start_batch)

    def batch(self, epoch: int, index: int) -> WindowBatch:
        """Batch `index` of `epoch` alone, in memory of its own: equal to what `epoch` yields there."""
        self._check_open()
        self.plan.check_batch(index, self.batches_per_epoch - 1)
        return self._one_batch(self.plan.epoch_order(epoch), index)

    def _batches(self, order: AnyOrder, start_batch: int) -> Iterator[WindowBatch]:
        for index in range(start_batch, self.batches_per_epoch):
            yield self._one_batch(order, index)

    @abc.abstractmethod
    def _one_batch(self, order: AnyOrder, index: int) -> WindowBatch:
        """Batch `index` of the epoch whose order this is."""

    def _check_open(self) -> None:
        if self._closed:
            raise SpecError("the loader is closed; open another one")

    def close(self) -> None:
        """End all epochs that are still open and release the corpus."""
        self._closed = True
        for prefetcher in list(self._prefetchers):
            prefetcher.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Its maps, threads and device memory stay here: who unpickles opens the loader anew.
        options = {name: getattr(self, name) for name in self.options}
        return partial(type(self), **options), (self.plan, self.device, self.reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
