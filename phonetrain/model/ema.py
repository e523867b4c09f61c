"""AveragedWeights: an exponential moving average of a model, kept beside it and scored in its place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..device import sum_dtype
from ..kernels import cuda_layer


class AveragedWeights:
    """average <- d * average + (1 - d) * model after every update, with d = min(decay, (1 + k) / (10 + k)).

    k counts the updates so far. The growing factor is TensorFlow's (`tf.train.ExponentialMovingAverage`): the first
    averages follow the model closely instead of keeping its random start. Running means and variances of batch norms
    are averaged like the weights: the batches they describe went through weights that are in the average too, and
    the last batch's statistics would be noise beside smooth weights. Whole-number buffers are copied.

    Works without a look from the host on CUDA. `model` is the average itself: a copy, in evaluation mode, without
    gradients, on the device of the original.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        source, target = tensors(model), tensors(self.model)
        device = next(iter(target.values())).device
        self.num_updates = torch.zeros((), dtype=torch.int64, device=device)
        smooth = [name for name, tensor in target.items() if tensor.is_floating_point()]
        whole = [name for name, tensor in target.items() if not tensor.is_floating_point()]
        self.averages, self.sources = [target[name] for name in smooth], [source[name] for name in smooth]
        self.copies, self.copied = [target[name] for name in whole], [source[name] for name in whole]

    @torch.no_grad()
    def update(self, skip: Tensor | None = None) -> None:
        """Take the model's weights into the average; nothing at all where `skip`, () float32, is 1."""
        if self.num_updates.device.type == "cpu":
            self.update_on_host(skip)
        else:
            self.update_on_device(torch.zeros((), device=self.num_updates.device) if skip is None else skip)

    def update_on_host(self, skip: Tensor | None) -> None:
        if skip is not None and skip.item() > 0:
            return
        updates = self.num_updates.item()
        torch._foreach_lerp_(self.averages, self.sources, 1 - min(self.decay, (1 + updates) / (10 + updates)))
        self.copy_whole_numbers()
        self.num_updates += 1

    def update_on_device(self, skip: Tensor) -> None:
        step = self.step_on_device(skip)
        # One pass each: a factor that lives on the device cannot be a scalar of _foreach_lerp_.
        for average, source in zip(self.averages, self.sources, strict=True):
            average.lerp_(source, step.to(average.dtype))
        self.copy_whole_numbers()

    def step_on_device(self, skip: Tensor) -> Tensor:
        """How far the averages go towards the weights, () float32, exactly 0 where they skip; counts the update."""
        if cuda_layer.runs_here(skip.view(1, 1)):
            from ..kernels import triton_step as kernels

            step = torch.empty_like(skip)
            with torch.cuda.device_of(skip):
                kernels.average_step[1,](self.num_updates, skip, 1 - self.decay, step, num_warps=1)
            return step
        updates = self.num_updates.to(sum_dtype(skip.device))
        factor = torch.clamp((1 + updates) / (10 + updates), max=self.decay)
        self.num_updates += (1 - skip).long()
        return ((1 - factor) * (1 - skip)).float()

    def copy_whole_numbers(self) -> None:
        if self.copies:
            torch._foreach_copy_(self.copies, self.copied)

    def state_dict(self) -> dict[str, Tensor]:
        """The average under the model's own names, and `num_updates`."""
        return {**self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy in place. A plain state of the model starts a new average from it."""
        weights = {name: tensor for name, tensor in state.items() if name != "num_updates"}
        self.model.load_state_dict(weights)
        self.num_updates.copy_(state.get("num_updates", torch.zeros((), dtype=torch.int64)))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer, by name; the very tensors, not copies."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
