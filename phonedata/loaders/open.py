"""open_loader: opens a corpus, picks one of the LOADERS, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from ..errors import SpecError
from ..format.corpus import PackedCorpus
from ..format.selection import Selection
from ..system import available_memory
from .base import BatchPlan, Loader, find_device
from .host import HostLoader
from .order import POOL_SLABS, SLAB_FRAMES
from .resident import ResidentLoader
from .rows import joined_label_dtype, num_joined_rows
from .slab import SlabLoader
from .windows import WindowSpec

LOADERS: dict[str, type[Loader]] = {loader.kind: loader for loader in (HostLoader, ResidentLoader, SlabLoader)}
"""Kind -> class. A loader that is added here, from outside too, can be opened by its kind."""
RESERVE_BYTES = 3 << 30
"""Device memory left to the model, its activations and the optimizer before a corpus may move in."""


def open_loader(
    corpus: str | PathLike[str] | PackedCorpus | Selection,
    partitions: str | Sequence[str] | None = None,
    *,
    window: WindowSpec | tuple[int, int] | int,
    batch_size: int | None,
    seed: int = 0,
    order: str = "global",
    subset: float = 1.0,
    kind: str = "auto",
    device: str | torch.device = "cpu",
    dtype: str = "float16",
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool | None = None,
    threads: int | None = None,
    memory: str = "map",
    slab_frames: int = SLAB_FRAMES,
    pool_slabs: int = POOL_SLABS,
) -> Loader:
    """A loader of WindowBatches; `.kind` and `.reason` say which and why.

    Parameters
    ----------
    corpus: a packed corpus or its path, with the names of one or more partitions; or a Selection alone.
    window: a WindowSpec, (left, right), or one number of frames for both sides.
    batch_size: frames in a batch over all ranks, of which a rank yields its fixed slice; None: what suits scoring.
    order: "global" (every frame at random), "slab" or "sequential".
    subset: the share of the utterances that is kept, above 0 and up to 1.
    kind: a key of `LOADERS`, or "auto".
    dtype: of the windows, "float16" or "float32".
    rank, world_size: this process's slice of every batch.
    drop_last: leave out the last batch of an epoch where it is short; None: except in order "sequential".
    threads, memory: of the host loader; memory "map" or "ram".
    slab_frames, pool_slabs: of order "slab".

    Raises SpecError, CorpusNotFound, FormatError.
    """
    if kind not in ("auto", *LOADERS):
        raise SpecError(f"loader kind {kind!r}; wanted one of {', '.join(('auto', *LOADERS))}")
    selection = _select(corpus, partitions, subset, seed)
    device = find_device(device)
    reason = "asked for"
    if kind == "auto":
        kind, reason = choose(selection, device, order)
    loader = LOADERS[kind]
    if batch_size is None:
        batch_size = loader.scoring_batch(device)
    spec = WindowSpec.of(window)
    plan = BatchPlan(
        selection, spec, batch_size, order, seed, dtype, rank, world_size, drop_last, slab_frames, pool_slabs
    )
    options: dict[str, Any] = {"threads": threads, "memory": memory}
    return loader(plan, device, reason, **{name: options[name] for name in loader.options})


def _select(
    corpus: str | PathLike[str] | PackedCorpus | Selection,
    partitions: str | Sequence[str] | None,
    subset: float,
    seed: int,
) -> Selection:
    if isinstance(corpus, Selection):
        if partitions is not None or subset != 1.0:
            raise SpecError("a Selection already names its partitions and subset; give it alone")
        return corpus
    if partitions is None:
        raise SpecError("no partitions named; wanted one or more, for example 'train-clean-100'")
    if not isinstance(corpus, PackedCorpus):
        corpus = PackedCorpus(corpus)
    return Selection.of(corpus, partitions, subset, seed)


def choose(selection: Selection, device: torch.device, order: str) -> tuple[str, str]:
    """The kind of loader for this selection on this device, and the reason in one line."""
    if device.type != "cuda":
        reason = f"on {device.type} the corpus is read where it is mapped, without a copy"
        size, memory = sum(p.features.nbytes for p in selection.partitions), available_memory()
        # A frame at random is then a disk seek; slabs are read in sequence.
        if order == "global" and memory is not None and size > 0.8 * memory:
            reason += (f"; its {size / 2**30:.1f} GiB hardly fit the free memory, {memory / 2**30:.1f} GiB: order slab "
                       "reads it in sequence")  # fmt: skip
        return "host", reason
    corpus, label_dtype = selection.corpus, joined_label_dtype(selection)
    row_bytes = corpus.feature_dim * corpus.dtype.itemsize + (0 if label_dtype is None else label_dtype.itemsize)
    needed = num_joined_rows(selection) * row_bytes
    free = torch.cuda.mem_get_info(device)[0]
    sizes = f"{needed / 2**30:.1f} GiB of rows and {RESERVE_BYTES / 2**30:.0f} GiB reserve"
    if needed + RESERVE_BYTES <= free:
        return "resident", f"{sizes} fit the device's free {free / 2**30:.1f} GiB"
    sizes += f" do not fit the device's free {free / 2**30:.1f} GiB"
    if order == "slab":
        return "slab", f"{sizes}, and order slab lets rows stream through a pool"
    return "host", f"{sizes}; with order slab, rows could stream at a fraction of the traffic"
