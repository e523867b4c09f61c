"""FrameMetrics: sums of loss, correct frames and confusion on the device; ratios only at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import sum_dtype


class FrameMetrics:
    """Sums over frames, kept on the device and fetched when asked for.

    A mean of batch means weighs a short last batch like a full one; sums do not. The loss is summed in float64
    (36 M float32 additions lose the fourth digit) where the device has it, counts are int64.

    Parameters
    ----------
    num_classes:
        C, the number of phonemes.
    device:
        Where the sums live.
    confusion:
        Keep the (C, C) matrix of true class (row) against predicted class (column).
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", confusion: bool = False) -> None:
        self.num_classes = num_classes
        self.loss_sum = torch.zeros((), dtype=sum_dtype(device), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.frames = torch.zeros((), dtype=torch.int64, device=device)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device) if confusion else None

    @torch.no_grad()
    def add(self, loss_sum: Tensor, correct: Tensor, frames: int | Tensor, keep: Tensor | None = None) -> None:
        """Add one batch.

        loss_sum, correct: () sum of the losses of its `frames`, and how many of them are right.
        keep: () bool on the device; False adds nothing at all (a batch that the guard refused).
        """
        if keep is not None:
            loss_sum = torch.where(keep, loss_sum, 0)
            correct, frames = correct * keep, frames * keep
        self.loss_sum += loss_sum
        self.correct += correct.long()
        self.frames += frames

    @torch.no_grad()
    def add_confusion(self, logits: Tensor, labels: Tensor) -> None:
        """Count true classes against predicted ones. logits: (B, C). labels: (B,) int64."""
        cells = torch.bincount(labels * self.num_classes + logits.argmax(1), minlength=self.num_classes**2)
        self.confusion += cells.view(self.num_classes, self.num_classes)

    def reset(self) -> None:
        """Set every sum to zero, in place (a captured graph keeps writing to the same memory)."""
        for value in self.state_dict().values():
            value.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The live sums by name."""
        state = {"loss_sum": self.loss_sum, "correct": self.correct, "frames": self.frames}
        return state if self.confusion is None else state | {"confusion": self.confusion}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy sums in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def sums(self) -> FrameSums:
        """The three sums as Python numbers: one transfer from the device (float64 holds counts up to 2^53)."""
        if self.loss_sum.dtype != torch.float64:
            return FrameSums(self.loss_sum.item(), int(self.correct), int(self.frames))
        loss, correct, frames = torch.stack([self.loss_sum, self.correct.double(), self.frames.double()]).tolist()
        return FrameSums(loss, int(correct), int(frames))

    def result(self) -> dict[str, float | int]:
        """`loss` (mean, nats a frame), frame `accuracy` and `error_rate` (0 to 1), `frames`."""
        return self.sums().result()


class FrameSums:
    """Three sums on the host: what was fetched from `FrameMetrics`. Differences of two give an interval."""

    def __init__(self, loss_sum: float = 0.0, correct: int = 0, frames: int = 0) -> None:
        self.loss_sum, self.correct, self.frames = loss_sum, correct, frames

    def __sub__(self, earlier: FrameSums) -> FrameSums:
        return FrameSums(self.loss_sum - earlier.loss_sum, self.correct - earlier.correct, self.frames - earlier.frames)

    def as_list(self) -> list[float | int]:
        """[loss_sum, correct, frames], for a checkpoint."""
        return [self.loss_sum, self.correct, self.frames]

    def result(self) -> dict[str, float | int]:
        """`loss` (mean, nats a frame), frame `accuracy` and `error_rate` (0 to 1), `frames`; NaN without frames."""
        frames = self.frames
        accuracy = self.correct / frames if frames else float("nan")
        loss = self.loss_sum / frames if frames else float("nan")
        return {"loss": loss, "accuracy": accuracy, "error_rate": 1.0 - accuracy, "frames": frames}
