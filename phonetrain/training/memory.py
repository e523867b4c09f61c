"""The memory that training needs, calculated before any of it is taken, and whether it is there.

A model without values (torch's meta device) says how large everything is: one that does not fit is refused in a
sentence, where the system would kill the process without one.
"""

from __future__ import annotations

import torch
from torch import nn

from phonedata import PackedCorpus, Selection, available_memory

from ..config.run_config import RunConfig
from ..device import DeviceSpec
from ..distributed import current
from ..model.classifier import planned_model
from ..optim.optimizers import OPTIMIZERS
from ..step.neighbours import Neighbours
from ..step.warp import WARPS
from ..text import short
from .build import training_selection
from .data import choose_roles

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def needed(
    config: RunConfig,
    model: nn.Module,
    feature_dim: int,
    precision: str,
    frames: int,
    resident: PackedCorpus | None = None,
) -> dict[str, int]:
    """Bytes that a process needs to train with the settings of one stage, by use, and their total.

    Weights and what is kept beside them are float32, with a copy in the training precision; activations are in that
    precision, until the loss: the logits, their log posteriors and the gradients of both are 16 bytes a logit. Warps
    need a matrix a window and the warped windows, before there are activations. A checkpoint's weights are in memory
    twice while it is written, on the host. What the libraries take for themselves (about 0.4 GB) is not in it.

    frames: those that are trained on and scored. resident: the corpus, where its rows lie on the device.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    processes = max(current().world_size, 1 if config.devices == "auto" else int(config.devices))
    batch = -(-config.batch_size // config.optimizer.accumulation // processes)
    bytes_each = BYTES[precision]
    window, warps = config.window.width * feature_dim, config.augment.warp > 0
    kept, logits = kept_values(model, config.window.width, feature_dim)
    warping = (window + feature_dim**2) * bytes_each if warps else 0
    by_use = {
        "weights": (4 + bytes_each % 4) * parameters,
        "gradients": 4 * parameters,
        "optimizer": 4 * parameters * OPTIMIZERS[config.optimizer.name].moments,
        "averaged": 4 * parameters if config.averaging.decay is not None else 0,
        "activations": batch * max(kept * bytes_each + 16 * logits, warping),
        "windows": batch * window * (2 + bytes_each),
        "warps": bytes_each * WARPS * feature_dim**2 if warps else 0,
        "neighbours": Neighbours.FRAME_BYTES * frames if config.model.neighbours else 0,
        "checkpoint": 8 * parameters,
        "corpus": 0 if resident is None else sum(part.features.nbytes for part in resident.partitions.values()),
    }
    return by_use | {"total": sum(by_use.values())}


def kept_values(model: nn.Module, window_width: int, feature_dim: int) -> tuple[int, int]:
    """How many values a window leaves for the backward pass, what autograd saves without weights and buffers, and how
    many logits."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # held, so that its address stays its own
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    learning, device = model.training, next(model.parameters()).device
    # Evaluation mode draws nothing and moves no norm buffers; what dropout adds is a mask.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model.eval()(torch.zeros(2, window_width, feature_dim, device=device))
    model.train(learning)
    return sum(storage.nbytes() for storage in kept.values()) // (2 * 4), logits.numel() // 2


def lacking(config: RunConfig, corpus: PackedCorpus, device_spec: DeviceSpec) -> str | None:
    """A sentence where training needs more memory than is free now, None where it fits or nobody says what is free.

    On CUDA the device holds all but the checkpoint in the making, which the host does; on a CPU all processes share it.
    """
    sizes = {"feature_dim": corpus.feature_dim, "num_classes": len(corpus.phonemes)}
    roles = choose_roles(corpus, config.data)
    scored = Selection.of(corpus, roles.dev).num_frames
    for plan in config.plans:
        frames = training_selection(corpus, roles, plan.config).num_frames + scored
        model = planned_model(plan.config, **sizes)
        needs = needed(plan.config, model, corpus.feature_dim, device_spec.precision, frames)
        host = available_memory(swap=True)
        if device_spec.device.type == "cpu":
            processes = current().world_size
            places = [("memory", processes * needs["total"], host)]
        else:
            on_device, name = needs["total"] - needs["checkpoint"], str(device_spec.device)
            places = [(f"memory of {name}", on_device, free_on(device_spec.device)),
                      ("the host's memory", needs["checkpoint"], host)]  # fmt: skip
        for place, wanted, free in places:
            if free is not None and wanted > free:
                return too_large(place, wanted, free, needs)
    return None


def too_large(place: str, wanted: int, free: int, needs: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {short(size)}B" for name, size in needs.items() if size and name != "total")
    return (
        f"training needs about {short(wanted)}B ({parts}), and {short(free)}B of {place} are free; "
        "a smaller model.hidden or batch_size helps, or more optimizer.accumulation"
    )


def free_on(device: torch.device) -> int | None:
    """Bytes of a CUDA device that this process can still fill: free ones, and those that its torch keeps for reuse."""
    if device.type != "cuda":
        return None
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reusable
