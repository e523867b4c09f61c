"""NormBuffers: what a forward pass does to a model's buffers, taken back where the batch turns out to be bad."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


class NormBuffers:
    """Copies of a model's buffers, and their way back; a handful of operations however many buffers there are.

    Copies of one dtype lie in one tensor: norms have three small buffers each, and a launch for each would be a third
    of a deep net's step on a fast GPU. A CPU looks whether there is anything to take back.

    Parameters
    ----------
    buffers: live tensors; `keep` and `restore` work on these very ones.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for buffer in buffers:
            alike[buffer.dtype, buffer.device].append(buffer)
        self.groups = [(group, flat := flattened(group), as_views(flat, group)) for group in alike.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers as they are."""
        for buffers, _, before in self.groups:
            torch._foreach_copy_(before, buffers)

    @torch.no_grad()
    def restore(self, undone: Tensor) -> None:
        """As remembered where `undone`, () bool on the device, is true; else as they are."""
        if undone.device.type != "cpu" or undone:
            self.restore_on_device(undone)

    def restore_on_device(self, undone: Tensor) -> None:
        for buffers, flat, _ in self.groups:
            torch._foreach_copy_(buffers, as_views(torch.where(undone, flat, flattened(buffers)), buffers))


def flattened(tensors: list[Tensor]) -> Tensor:
    """All values in one new tensor, (sum of sizes,)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def as_views(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Parts of `flat` in the shapes of `tensors`."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
