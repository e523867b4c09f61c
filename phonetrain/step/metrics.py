"""FrameMetrics: named sums over frames on the device; ratios only at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..device import sum_dtype


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """() int64: frames whose highest logit is at their label."""
    return (logits.argmax(1) == labels).sum()


# What is counted of a batch besides its loss: name -> (logits (B, C), labels (B,) int64) -> () sum over its frames.
# The mean over frames is the metric of that name, in training and on dev, in metrics.jsonl, tracker and console.
COUNTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"accuracy": right}


class FrameMetrics:
    """Sums over frames by name ("loss", those of COUNTS, "frames"), kept on the device and fetched when asked for.

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
        self.by_name = {"loss": torch.zeros((), dtype=sum_dtype(device), device=device)}
        self.by_name |= {name: torch.zeros((), dtype=torch.int64, device=device) for name in (*COUNTS, "frames")}
        size = num_classes if confusion else 0
        self.confusion = torch.zeros(size, size, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, counts: Mapping[str, Tensor], frames: int | Tensor, keep: Tensor | None = None) -> None:
        """Add one batch.

        loss, counts: () sums over its `frames`.
        keep: () bool on the device; False adds nothing at all (a batch that the guard refused).
        """
        if keep is not None:
            loss, frames = torch.where(keep, loss, 0), frames * keep
            counts = {name: count * keep for name, count in counts.items()}
        self.by_name["loss"] += loss
        self.by_name["frames"] += frames
        for name, count in counts.items():
            self.by_name[name] += count.long()

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
        return self.by_name | ({"confusion": self.confusion} if self.confusion.numel() else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy sums in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def sums(self) -> FrameSums:
        """The sums as Python numbers: one transfer from the device (float64 holds counts up to 2^53)."""
        if self.by_name["loss"].dtype == torch.float64:
            numbers = torch.stack([value.double() for value in self.by_name.values()]).tolist()
        else:
            numbers = [value.item() for value in self.by_name.values()]
        return FrameSums({name: n if name == "loss" else int(n) for name, n in zip(self.by_name, numbers, strict=True)})

    def result(self) -> dict[str, float]:
        """As `FrameSums.result`."""
        return self.sums().result()


@dataclass(frozen=True)
class FrameSums:
    """Sums on the host: what was fetched from `FrameMetrics`. Differences of two give an interval."""

    by_name: Mapping[str, float] = field(default_factory=dict)

    def __sub__(self, earlier: FrameSums) -> FrameSums:
        return FrameSums({name: value - earlier.by_name.get(name, 0) for name, value in self.by_name.items()})

    def means(self) -> dict[str, float]:
        """`loss` (mean, nats a frame) and the metrics of COUNTS (`accuracy`: 0 to 1); NaN without frames."""
        frames = self.by_name["frames"]
        return {name: n / frames if frames else float("nan") for name, n in self.by_name.items() if name != "frames"}

    def result(self) -> dict[str, float]:
        """The means, the frame `error_rate` (0 to 1) and `frames`."""
        means = self.means()
        return means | {"error_rate": 1.0 - means["accuracy"], "frames": self.by_name["frames"]}
