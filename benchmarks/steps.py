"""Ways to make one training step of the same net: ours, a notebook's, and its bare matrix products as the limit."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from phonedata import LOADERS, WindowSpec
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.device import DeviceSpec
from phonetrain.kernels.known import ACTIVATIONS
from phonetrain.model.classifier import FrameClassifier, build_model
from phonetrain.model.ema import AveragedWeights
from phonetrain.optim.loss_scale import LossScale
from phonetrain.optim.optimizers import build_optimizer
from phonetrain.step.augment import Augment
from phonetrain.step.cuda_graph import CapturedStep
from phonetrain.step.metrics import FrameMetrics
from phonetrain.step.scoring import score
from phonetrain.step.train_step import TrainStep

FEATURE_DIM, CLASSES = 28, 40


@dataclass
class Case:
    """One net at one size and batch: `net` is a recipe's name. Windows are random float16, as loaders give them."""

    net: str
    parameters: int
    batch_size: int
    compute: DeviceSpec
    overrides: tuple[str, ...] = ()
    config: RunConfig = field(init=False)

    def __post_init__(self) -> None:
        wanted = (f"model.max_parameters={self.parameters}", f"batch_size={self.batch_size}", *self.overrides)
        self.config = load_recipe(self.net).override(list(wanted))
        torch.manual_seed(self.config.seed)
        self.model = build_model(self.config, feature_dim=FEATURE_DIM, num_classes=CLASSES).to(self.device)
        generator = torch.Generator().manual_seed(1)
        width = self.config.window.left + 1 + self.config.window.right
        self.labels = torch.randint(0, CLASSES, (self.batch_size,), generator=generator)
        windows = torch.randn(self.batch_size, width, FEATURE_DIM, generator=generator)
        self.windows = (windows + self.labels[:, None, None] / CLASSES).half().to(self.device)
        self.labels, self.frames = self.labels.to(self.device), torch.arange(self.batch_size, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.compute.device

    @property
    def name(self) -> str:
        size = f"{self.parameters / 1e6:g} M"
        return f"{self.net} {size} batch {self.batch_size} {self.compute.precision}"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Ours:
    """TrainStep as `phonetrain fit` builds it from the recipe."""

    def __init__(self, case: Case, capture: bool = True) -> None:
        config, self.case, self.number = case.config, case, 0
        model = copy.deepcopy(case.model)
        augment = Augment(config.augment, WindowSpec(config.window.left, config.window.right), FEATURE_DIM)
        decay = config.averaging.decay
        self.step = TrainStep(
            model,
            build_optimizer(config.optimizer, model, case.device),
            FrameMetrics(CLASSES, case.device),
            case.compute,
            seed=config.seed,
            augment=augment if augment.active else None,
            averaged=None if decay is None else AveragedWeights(model, decay),
            clip_norm=config.optimizer.clip_norm,
            loss_scale=LossScale(case.device) if case.compute.scales_loss else None,
        )
        self.captured: CapturedStep | None = None
        if capture and case.device.type == "cuda":
            self.captured = CapturedStep(self.step, SameBatch(case), whole=True)
            self.captured.begin(0, 0, 0, np.full(SameBatch.batches_per_epoch, 1e-3))

    def on(self, windows: Tensor, labels: Tensor, frames: Tensor) -> None:
        if self.captured is None or len(labels) != self.case.batch_size:
            self.step(windows, labels, frames, epoch=0, step=self.number, rate=1e-3)
        else:
            self.captured(0, self.number, self.number, (windows, labels, frames))
        self.number += 1

    def __call__(self) -> None:
        self.on(self.case.windows, self.case.labels, self.case.frames)

    def loss(self) -> float:
        """Mean loss of everything trained on so far."""
        return float(self.step.metrics.result()["loss"])


class SameBatch:
    """What a captured step needs of a loader whose batches are given to it."""

    kind = "given"
    batches_per_epoch = 1 << 20  # more steps than anybody times

    def __init__(self, case: Case) -> None:
        self.case = case

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.case.windows, self.case.labels, self.case.frames


class Notebook:
    """The loop of the public notebooks: fp32 on a CPU, fp16 with GradScaler on CUDA, two `.item()` a batch."""

    def __init__(self, case: Case) -> None:
        self.case, self.losses = case, []
        self.model = notebook_net(case.model, case.config.model.activation).to(case.device)
        settings = case.config.optimizer
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=settings.weight_decay)
        self.criterion = nn.CrossEntropyLoss()
        self.on_cuda = case.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(case.device.type, enabled=self.on_cuda)
        self.correct = 0

    def on(self, windows: Tensor, labels: Tensor, frames: Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        windows = windows.float().to(self.case.device)
        labels = labels.to(self.case.device)
        with torch.autocast("cuda", torch.float16) if self.on_cuda else contextlib.nullcontext():
            logits = self.model(windows)
            loss = self.criterion(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss.item())
        self.correct += (logits.argmax(1) == labels).sum().item()

    def __call__(self) -> None:
        self.on(self.case.windows, self.case.labels)

    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def notebook_net(model: FrameClassifier, activation: str) -> nn.Sequential:
    """The same net with the same weights, as nn.Sequential of torch's own modules, with a bias everywhere."""
    layers: list[nn.Module] = [nn.Flatten()]
    for place, hidden in enumerate(model.hidden):
        inputs = model.input_size if place == 0 else hidden.linear.in_features
        linear = nn.Linear(inputs, hidden.linear.out_features)
        with torch.no_grad():
            linear.weight.copy_(hidden.linear.weight[:, :inputs])
            linear.bias.zero_()
        layers += [linear, nn.BatchNorm1d(linear.out_features), ACTIVATIONS[activation].module()]
        if hidden.dropout is not None:
            layers.append(nn.Dropout(hidden.dropout.p))
    return nn.Sequential(*layers, copy.deepcopy(model.output)).train()


class Products:
    """The limit: the matrix products of a step, forward and backward, in sequence, in the step's precision."""

    def __init__(self, case: Case) -> None:
        self.case = case
        dtype = case.compute.window_dtype
        linears = [hidden.linear for hidden in case.model.hidden] + [case.model.output]

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=case.device).mul_(0.1).to(dtype)

        sizes = [linears[0].in_features, *(linear.out_features for linear in linears)]
        self.weights = [random(linear.out_features, linear.in_features) for linear in linears]
        self.values = [random(case.batch_size, size) for size in sizes]
        self.gradients = [random(case.batch_size, size) for size in sizes]
        self.updates = [torch.empty_like(weight) for weight in self.weights]
        self.flops = sum(
            2 * case.batch_size * weight.numel() * (2 if place == 0 else 3) for place, weight in enumerate(self.weights)
        )
        self.replay: Callable[[], None] = self.multiply
        if case.device.type == "cuda":
            self.multiply()
            case.wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.multiply()
            self.replay = graph.replay

    def multiply(self) -> None:
        for place, weight in enumerate(self.weights):
            torch.mm(self.values[place], weight.t(), out=self.values[place + 1])
        for place in reversed(range(len(self.weights))):
            torch.mm(self.gradients[place + 1].t(), self.values[place], out=self.updates[place])
            if place:
                torch.mm(self.gradients[place + 1], self.weights[place], out=self.gradients[place])

    def __call__(self) -> None:
        self.replay()


class Scoring:
    """The pass over the dev partition that ends an epoch, a batch of it; as large as a run's where that is timed."""

    def __init__(self, case: Case) -> None:
        self.model = copy.deepcopy(case.model)
        scored = LOADERS["resident"].scoring_batch(case.device)
        size = max(case.batch_size, scored) if case.batch_size >= 512 else case.batch_size
        self.case = case if size == case.batch_size else dataclasses.replace(case, batch_size=size)

    @property
    def frames(self) -> int:
        return self.case.batch_size

    def epoch(self, epoch: int, start_batch: int = 0):
        yield self.case

    def __call__(self) -> None:
        score(self.model, self, self.case.compute, CLASSES)


WAYS = {"ours": Ours, "notebook": Notebook, "products": Products, "scoring": Scoring}


def check(case: Case) -> None:
    """Ours and the notebook's net, without dropout and masks, have the same losses over three steps."""
    plain = Case(
        case.net,
        case.parameters,
        case.batch_size,
        case.compute,
        (*case.overrides, "model.dropout=0.0", "augment.time_mask=0", "augment.freq_mask=0"),
    )
    ours, notebook = Ours(plain), Notebook(plain)
    notebook.scaler = torch.amp.GradScaler(case.device.type, enabled=False)  # its first steps may be skipped
    for _ in range(3):
        ours()
        notebook()
    if not abs(ours.loss() - notebook.loss()) < 0.03 * notebook.loss():
        raise SystemExit(f"{case.name}: loss {ours.loss():.4f}, the notebook's {notebook.loss():.4f}: not the same net")


def measure(case: Case, ways: dict[str, Callable[[], None]], rounds: int, seconds: float) -> dict[str, dict]:
    """Seconds a step, wall and CPU, of each way in each round; the ways take turns of about `seconds`."""
    counts = {}
    for name, way in ways.items():
        way()
        case.wait()
        began = time.perf_counter()
        way()
        case.wait()
        counts[name] = max(1, round(seconds / (time.perf_counter() - began)))
    found = {name: {"wall": [], "cpu": []} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                way()
            case.wait()
            found[name]["wall"].append((time.perf_counter() - wall) / counts[name])
            found[name]["cpu"].append((time.process_time() - cpu) / counts[name])
    return found
