"""What a window is: one frame with its left and right neighbours, one contiguous slice of the packed rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import SpecError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WindowSpec:
    """How many neighbours a window has on each side, in frames; they may differ.

    The window of the frame at row `r` is `rows[r - left : r + right + 1]`, its width `left + right + 1`.
    """

    left: int
    right: int

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise SpecError(f"window.{name} is {value!r}; wanted a whole number of frames, 0 or more")

    @classmethod
    def of(cls, window: WindowSpec | Sequence[int] | int) -> WindowSpec:
        """A WindowSpec as it is, k as k frames on both sides, (left, right) as those; raises SpecError for the rest."""
        if isinstance(window, cls):
            return window
        if isinstance(window, (tuple, list)) and len(window) == 2:
            return cls(*window)
        if isinstance(window, int | np.integer):
            return cls(window, window)  # checked in __post_init__, where True is refused too
        raise SpecError(f"window {window!r}; wanted WindowSpec(left, right), (left, right) or one number for both")

    @property
    def width(self) -> int:
        """W, the frames in one window."""
        return int(self.left) + int(self.right) + 1

    def check_fits(self, context: int) -> None:
        """Raise SpecError if the window reaches past the `context` rows of padding around each utterance."""
        reach = max(self.left, self.right)
        if reach > context:
            raise SpecError(
                f"the window wants {self.left} frames to the left and {self.right} to the right, but the corpus was "
                f"packed with context {context}; pack it again: phonedata pack RAW PACKED --context {reach} --replace"
            )


class WindowBatch(NamedTuple):
    """One batch: windows (B, W, D) float16 or float32, labels (B,) int64 or None, frames (B,) int64.

    `frames[i]` is the frame's index in the selection, 0..N-1 in utterance order. A batch that an epoch yields is valid
    until the next one is asked for; `windows` may have a row pitch wider than W * D (its first stride says).
    """

    windows: torch.Tensor
    labels: torch.Tensor | None
    frames: torch.Tensor

    def apply(self, change: Callable[[torch.Tensor], torch.Tensor]) -> WindowBatch:
        """A batch of what `change` makes of each tensor."""
        labels = None if self.labels is None else change(self.labels)
        return WindowBatch(change(self.windows), labels, change(self.frames))
