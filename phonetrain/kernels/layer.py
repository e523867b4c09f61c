"""Dropout whose masks are hashed where there are kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cpu_layer import ActivationOnly, Work, runs_here


class Dropout(nn.Dropout):
    """nn.Dropout whose mask, where there are kernels of ours, is a hash of the value's place and of one key.

    A key of 62 bits a call in place of a generator's number a value. `key`, on a GPU: one that was drawn for the next
    call, together with those of other layers.
    """

    hashes_masks = True
    key: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training and self.p > 0:
            if runs_here(hidden):
                return ActivationOnly.apply(
                    hidden.contiguous(), Work(hidden, None, self, learns=torch.is_grad_enabled())
                )
            from . import cuda_layer

            if cuda_layer.runs_here(hidden):
                return cuda_layer.hidden_layer(hidden, None, nn.Identity(), self)
        return F.dropout(hidden, self.p, self.training)
