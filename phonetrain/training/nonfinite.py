"""NaN and infinity: replays the batch to name the layer where the first arose, keeps evidence; warns of divergence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from phonedata import WindowBatch

from ..checkpoints.checkpoint import apart_on_cpu
from ..step.train_step import TrainStep
from ..text import to_json

NOT_REPRODUCED = "not reproduced"
# In a row, from the first scale of 2^16: down to a scale of 1, which is odd, and to 2^-24, which nothing needs.
ODD_OVERFLOWS, ENDLESS_OVERFLOWS = 16, 40


@dataclass
class NonfiniteReport:
    """Where a number first went bad, as found by replaying the batch."""

    where: str  # "windows", a module's name, "loss", a parameter's name, or "not reproduced"
    kind: str  # class of the module, or what the tensor is
    tensor: str  # "input", "output", "gradient", or the name of a parameter that is itself not finite
    largest_input: float | None  # largest finite absolute value that went into it
    epoch: int = 0
    step: int = 0
    batch: int = 0
    rate: float = 0.0
    loss: float | None = None
    loss_scale: float | None = None
    precision: str = ""
    utterances: list[str] = field(default_factory=list)
    bad_frames: list[int] = field(default_factory=list)  # of windows that came in bad, in the loader's numbering
    bad_utterances: list[str] = field(default_factory=list)  # that those windows are from

    def sentence(self) -> str:
        """One line for people."""
        scale = "" if self.loss_scale is None else f", loss scale {self.loss_scale:g}"
        largest = "" if self.largest_input is None else f" (largest value going in {self.largest_input:.4g})"
        frames = ""
        if self.bad_frames:
            named = ", ".join(self.bad_utterances[:3]) + ", ..." * (len(self.bad_utterances) > 3)
            frames = f"; {len(self.bad_frames)} of its windows were bad before the net saw them (utterance {named})"
        return (
            f"not finite at step {self.step} (epoch {self.epoch + 1}, batch {self.batch}): {self.tensor} of "
            f"{self.where} [{self.kind}]{largest}; learning rate {self.rate:.3g}, {self.precision}{scale}{frames}"
        )


def replay(step: TrainStep, batch: WindowBatch, *, epoch: int, number: int) -> NonfiniteReport:
    """Compute the bad batch again, eagerly and with a hook on every layer, changing nothing.

    batch: as the loader gives it. number: of the step, which seeds dropout as it did then. The first module in forward
    order whose output is not finite is named; failing that the loss, and the last gradient in backward order.
    """
    before = [buffer.clone() for buffer in step.buffers]
    found: list[NonfiniteReport] = []

    def look(name: str):
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if found or not isinstance(output, Tensor) or bool(torch.isfinite(output).all()):
                return
            tensors = [value for value in inputs if isinstance(value, Tensor)]
            bad_weight = next(
                (key for key, p in module.named_parameters(recurse=False) if not bool(torch.isfinite(p).all())), None
            )
            came_in_bad = any(not bool(torch.isfinite(tensor).all()) for tensor in tensors)
            what = bad_weight or ("input" if came_in_bad else "output")
            found.append(NonfiniteReport(name or "the model", type(module).__name__, what, _largest(tensors)))

        return hook

    # A module is called after what is inside it, so the innermost is named; an outer one where its own sum overflows.
    network, step.network = step.network, step.model  # compiled code calls no hooks
    handles = [module.register_forward_hook(look(name)) for name, module in step.model.named_modules()]
    try:
        step.begin(epoch, number)
        step.optimizer.zero_grad()
        labels = batch.labels
        assert labels is not None  # what is trained on has labels
        results = step.forward_backward(batch.windows, labels, batch.frames)
        loss = sum(float(result.loss) for result in results) / len(labels)
        bad_windows = ~torch.isfinite(batch.windows.flatten(1)).all(1)
        if bool(bad_windows.any()):
            finding = NonfiniteReport(
                "windows",
                "features of the corpus",
                "input",
                _largest([batch.windows]),
                bad_frames=batch.frames[bad_windows].tolist(),
            )
        elif found:
            finding = found[0]
        elif not math.isfinite(loss):
            finding = NonfiniteReport(
                "loss", "cross entropy", "output", _largest([result.logits for result in results])
            )
        else:
            finding = _bad_gradient(step) or NonfiniteReport(
                NOT_REPRODUCED, f"loss {loss:.4g} on replay", "output", None
            )
    finally:
        step.network = network
        for handle in handles:
            handle.remove()
        step.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, value in zip(step.buffers, before, strict=True):
                buffer.copy_(value)
    finding.epoch, finding.step = epoch, number
    finding.loss = loss
    finding.precision = step.device_spec.precision
    finding.loss_scale = None if step.loss_scale is None else float(step.loss_scale.scale)
    return finding


def on_host(batch: WindowBatch) -> WindowBatch:
    """A copy of a batch that can be sent to other processes."""
    return batch.apply(lambda part: part.detach().cpu().contiguous())


def _bad_gradient(step: TrainStep) -> NonfiniteReport | None:
    for name, parameter in reversed(list(step.model.named_parameters())):
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return NonfiniteReport(name, "gradient in backward order", "gradient", _largest([parameter.grad]))
    return None


def _largest(tensors: list[Tensor]) -> float | None:
    values = [value.detach().float().abs() for value in tensors if value.is_floating_point() and value.numel()]
    finite = [float(value[torch.isfinite(value)].max()) for value in values if bool(torch.isfinite(value).any())]
    return max(finite, default=None)


def save_evidence(directory: Path, finding: NonfiniteReport, batch: WindowBatch, model: nn.Module) -> None:
    """Write nonfinite.json, batch.safetensors (windows, labels, frames) and model.safetensors of the moment before.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: part for name, part in batch._asdict().items() if part is not None}
    # Into memory first: on a full disk safetensors' own writing raises an error of its own.
    (directory / "batch.safetensors").write_bytes(tensors_to_bytes(apart_on_cpu(tensors)))
    (directory / "model.safetensors").write_bytes(tensors_to_bytes(apart_on_cpu(model.state_dict())))
    (directory / "nonfinite.json").write_text(to_json(asdict(finding)) + "\n", encoding="utf-8")


class DivergenceWatch:
    """Warns when the loss of a log interval is far above its running level (mean of intervals, decay 0.9)."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.level: float | None = None
        self.warned = False

    def forget(self) -> None:
        """Begin anew: the run went back to an earlier place."""
        self.level, self.warned = None, False

    def look(self, loss: float, step: int, rate: float) -> str | None:
        """A sentence once per excursion, else None. loss: mean of the interval."""
        level, self.level = self.level, loss if self.level is None else 0.9 * self.level + 0.1 * loss
        if level is None or loss <= self.factor * level:
            self.warned = False
            return None
        if self.warned:
            return None
        self.warned = True
        return (
            f"the loss is diverging: {loss:.4g} at step {step}, its running level was {level:.4g}; learning rate "
            f"{rate:.3g}; `phonetrain fit --find-lr` shows which rates this net bears"
        )


class OverflowWatch:
    """Watches the loss scale: an overflow now and then is how it finds its level, a long row of them is a fault."""

    def __init__(self) -> None:
        self.warned = False

    def look(self, overflows: int, scale: Tensor) -> str | None:
        """A sentence once per row of overflows that is odd, else None.

        overflows: updates left out in a row. scale: () float32, where they led to.
        """
        warned, self.warned = self.warned, overflows >= ODD_OVERFLOWS
        if warned or not self.warned:
            return None
        return (
            f"gradients overflowed fp16 in the last {overflows} updates, all left out; the loss scale fell to "
            f"{float(scale):g}: lower optimizer.lr, set optimizer.clip_norm, or use precision=fp32"
        )


def dead_net(dev_loss: float, answered: int, num_classes: int) -> str | None:
    """A sentence when a net has learnt nothing so far, else None. answered: phonemes that any dev frame was given."""
    chance = math.log(num_classes)
    if dev_loss >= 0.98 * chance:
        return (
            f"the net has learnt nothing so far: dev loss {dev_loss:.3f}, guessing blindly gives "
            f"ln {num_classes} = {chance:.3f}; look at the learning rate, the initialiser and the norm"
        )
    if answered == 1:
        return (
            "the net answers the same phoneme for every frame of the dev partition; look at the learning rate and "
            "the activation"
        )
    return None
