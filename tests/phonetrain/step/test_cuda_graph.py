"""A captured step is the eager step: on a GPU as a graph, on a CPU recorded operation by operation."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from phonedata import Selection, WindowSpec, open_loader
from phonedata.loaders import resident
from phonetrain.config.sections import AugmentConfig, ModelConfig, OptimizerConfig
from phonetrain.device import DeviceSpec, choose_device
from phonetrain.kernels import cpu_layer
from phonetrain.model.classifier import FrameClassifier
from phonetrain.model.ema import AveragedWeights
from phonetrain.optim.loss_scale import LossScale
from phonetrain.optim.optimizers import build_optimizer
from phonetrain.step.augment import Augment
from phonetrain.step.cuda_graph import CapturedStep
from phonetrain.step.epoch import Updates
from phonetrain.step.metrics import FrameMetrics
from phonetrain.step.neighbours import Neighbours
from phonetrain.step.train_step import NormBuffers, TrainStep

WINDOW, BATCH, SEED = WindowSpec(3, 2), 32, 11


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: keeps every operation with its very tensors and numbers, and does them again.

    Numbers that the host put in are frozen, results go where they went, and an operation that asks for a number of a
    tensor is refused. Views are not made again: they lie where they lay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host asks for a number")
        made = function(*arguments, **named)
        before = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_flatten((arguments, named))[0]
            if isinstance(leaf, Tensor)
        }
        fresh = [
            leaf
            for leaf in tree_flatten(made)[0]
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in before
        ]
        self.calls.append((function, arguments, named, made, bool(fresh)))
        return made

    def replay(self) -> None:
        with torch.no_grad():
            for function, arguments, named, made, is_fresh in self.calls:
                again = function(*arguments, **named)
                if is_fresh:
                    for old, new in zip(tree_flatten(made)[0], tree_flatten(again)[0], strict=True):
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)


def record_tape(unit):
    with Tape() as tape:
        unit()
    return tape.replay


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The code that runs on a CUDA device, on this one: no kernels of our own, nothing that the host decides."""
    monkeypatch.setattr(cpu_layer, "why_not", lambda: "as on a CUDA device")
    monkeypatch.setattr(AveragedWeights, "update", lambda self, skip: AveragedWeights.update_on_device(self, skip))
    monkeypatch.setattr(NormBuffers, "restore", torch.no_grad()(NormBuffers.restore_on_device))


@pytest.fixture(autouse=True)
def tables_run_out(monkeypatch):
    """A resident loader's table of frames ends within an epoch, as those of long epochs do."""
    for name in ("TABLE_FRAMES", "CPU_TABLE_FRAMES"):
        monkeypatch.setattr(resident, name, 4 * BATCH)


def net(dim: int, classes: int, dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(WINDOW.width * dim, 24),
        nn.BatchNorm1d(24),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(24, 24),
        nn.LayerNorm(24),
        nn.GELU(),
        nn.Linear(24, classes),
    )
    model.logits_matrix = "8.weight"  # for Muon, as build_model notes it
    return model


def classifier(dim: int, classes: int) -> nn.Module:
    """What a recipe builds: its layers have kernels of their own on a GPU."""
    torch.manual_seed(1)
    config = ModelConfig(archetype="cylinder", depth=2, hidden=24, norm="batch", activation="silu", dropout=0.3)
    return FrameClassifier(config, dim, WINDOW.width, classes)


def make_step(
    corpus,
    device="cpu",
    *,
    name="adamw",
    precision="fp32",
    accumulation=1,
    clip_norm=None,
    averaged=True,
    model=None,
    neighbours=0,
) -> TrainStep:
    classes, dim = len(corpus.phonemes), corpus.feature_dim
    predicted = 2 * neighbours + 1
    if neighbours:
        model = nn.Sequential(*net(dim, predicted * classes), nn.Unflatten(1, (predicted, classes)))
    model = (classifier(dim, classes) if model == "classifier" else model or net(dim, classes)).to(device)
    selection = Selection.of(corpus, "train-clean", subset=0.05, seed=0)
    config = OptimizerConfig(name=name, lr=1e-3, weight_decay=0.1)
    augment = Augment(AugmentConfig(time_mask=2, freq_mask=2, noise=0.1), WINDOW, dim, seed=SEED)
    compute = choose_device("cpu", precision) if device == "cpu" else DeviceSpec(torch.device(device), precision, "")
    step = TrainStep(
        model,
        build_optimizer(config, model, device),
        FrameMetrics(classes, device),
        compute,
        seed=SEED,
        augment=augment,
        neighbours=Neighbours.of(selection, neighbours, device) if neighbours else None,
        averaged=AveragedWeights(model, 0.9) if averaged else None,
        clip_norm=clip_norm,
        accumulation=accumulation,
        label_smoothing=0.1,
        loss_scale=LossScale(device, initial=2.0**10, interval=4) if precision == "fp16" else None,
    )
    if step.skips_on_device and step.rates is None:
        step.put_rates_on_device()
    return step


def state_of(step: TrainStep) -> list[Tensor]:
    """Every tensor that an update may change."""
    tensors = [*step.model.state_dict().values(), *step.metrics.state_dict().values()]
    tensors += [step.status.nonfinite, step.status.nonfinite_at]
    for state in step.optimizer.state_dict()["state"].values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    for part in (step.averaged, step.loss_scale):
        tensors += [] if part is None else part.state_dict().values()
    return [tensor.clone() for tensor in tensors]


def same(left: TrainStep, right: TrainStep) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state_of(left), state_of(right), strict=True))


@pytest.fixture
def corpus(learnable_corpus):
    return learnable_corpus


def loader_of(corpus, kind="resident", device="cpu"):
    """About nine batches an epoch."""
    selection = Selection.of(corpus, "train-clean", subset=0.05, seed=0)
    order = "slab" if kind == "slab" else "global"
    return open_loader(
        selection, window=WINDOW, batch_size=BATCH, seed=5, kind=kind, order=order, device=device, drop_last=True
    )


def rates_of(loader, epoch: int) -> np.ndarray:
    return 1e-3 * (1 + np.arange(loader.batches_per_epoch) % 7) / (1 + epoch)


def captured_updates(step, loader, whole=True) -> Updates:
    updates = Updates(step, loader, capture=True)
    updates.captured = CapturedStep(step, loader, whole=whole, record=record_tape)
    return updates


def train(updates: Updates, first: int = 0, last: int = 20, momenta: bool = False) -> list[int]:
    """Make the run's updates number `first` to `last` - 1; returns the frames of each."""
    made, batches = [], updates.loader.batches_per_epoch
    while first < last:
        epoch, index = divmod(first, batches)
        moving = np.linspace(0.8, 0.9, batches) if momenta else None
        stream = updates.epoch(epoch, index, first, rates_of(updates.loader, epoch), moving)
        for frames in stream:
            made.append(frames)
            first += 1
            if first == last:
                break
        stream.close()
    return made


CASES = [
    {},
    {"model": "classifier"},
    {"name": "adam"},
    {"name": "sgd"},
    {"name": "nesterov"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"accumulation": 4},
    {"clip_norm": 0.1},
    {"averaged": False},
    {"neighbours": 2},
    {"name": "sgd", "precision": "fp16", "accumulation": 2, "clip_norm": 0.5},
]


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "resident") for case in CASES), ({}, "host"), ({}, "slab"), (CASES[-1], "host")],
    ids=str,
)
def test_replays_equal_eager_steps_bit_for_bit(corpus, as_on_cuda, case, kind):
    with loader_of(corpus, kind) as loader:
        count = loader.batches_per_epoch + 5  # over an epoch's end
        eager, captured = make_step(corpus, **case), make_step(corpus, **case)
        assert train(Updates(eager, loader, capture=False), 0, count) == [BATCH] * count
        assert train(captured_updates(captured, loader), 0, count) == [BATCH] * count
        assert same(eager, captured)


@pytest.mark.parametrize(
    "case", [{"name": "rmsprop"}, {"name": "muon"}, {"name": "adamw"}, {"precision": "fp16"}], ids=str
)
def test_forward_and_backward_alone_equal_eager_steps_too(corpus, as_on_cuda, case):
    with loader_of(corpus) as loader:
        eager, captured = make_step(corpus, **case), make_step(corpus, **case)
        train(Updates(eager, loader, capture=False), momenta=True)
        train(captured_updates(captured, loader, whole=False), momenta=True)
        assert same(eager, captured)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_capturing_moves_nothing(corpus, as_on_cuda, whole, name):
    with loader_of(corpus) as loader:
        step = make_step(corpus, name=name, precision="fp16")
        train(Updates(step, loader, capture=False), 0, 5)
        before = state_of(step)
        CapturedStep(step, loader, whole=whole, record=record_tape).begin(0, 5, 5, rates_of(loader, 0))
        assert all(torch.equal(a, b) for a, b in zip(before, state_of(step), strict=True))
        assert all(parameter.grad is None for parameter in step.parameters)


def test_a_capture_before_the_first_step_makes_moments_that_are_those_of_no_step(corpus, as_on_cuda):
    with loader_of(corpus) as loader:
        step = make_step(corpus)
        CapturedStep(step, loader, whole=True, record=record_tape).begin(0, 0, 0, rates_of(loader, 0))
        for state in step.optimizer.state.values():
            assert all(not value.any() for value in state.values())


def test_a_loss_that_is_not_finite_halts_replays_until_the_host_has_looked(corpus, as_on_cuda):
    with loader_of(corpus) as loader:
        eager, captured = make_step(corpus), make_step(corpus)
        rows = loader._store.rows.clone()
        plain, replays = Updates(eager, loader, capture=False), captured_updates(captured, loader)
        for step, updates in ((eager, plain), (captured, replays)):
            train(updates, 0, 4)
            loader._store.rows.fill_(torch.inf)
            train(updates, 4, 7)
            assert int(step.status.nonfinite_at) == 4
            loader._store.rows.copy_(rows)
            step.status.clear()
            train(updates, 7, 9)
            assert int(step.status.nonfinite_at) == -1
        assert same(eager, captured)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_step_that_went_bad_is_named_where_only_forward_and_backward_are_captured(corpus, as_on_cuda, name):
    with loader_of(corpus) as loader:
        step = make_step(corpus, name=name)
        updates = captured_updates(step, loader, whole=False)
        train(updates, 0, 4)
        loader._store.rows.fill_(torch.inf)
        train(updates, 4, 6)
        assert int(step.status.nonfinite_at) == 4


@pytest.mark.parametrize("batches", [1, 2])
def test_an_epoch_shorter_than_the_warm_up_is_captured(corpus, as_on_cuda, batches):
    selection = Selection.of(corpus, "train-clean")
    size = selection.num_frames // batches
    with open_loader(selection, window=WINDOW, batch_size=size, seed=5, kind="resident", device="cpu") as loader:
        eager, captured = make_step(corpus), make_step(corpus)
        train(Updates(eager, loader, capture=False), 0, 3)
        train(captured_updates(captured, loader), 0, 3)
        assert same(eager, captured)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_the_key_of_an_epoch_stays_where_a_graph_reads_it(device):
    """Tensors name the number of their device, so "cuda" once made another key before every step."""
    augment = Augment(AugmentConfig(time_mask=2), WINDOW, 12)
    with FakeTensorMode():
        augment.set_epoch(0, torch.device(device))
        key = augment.key
        augment.set_epoch(0, torch.device(device))
        augment.set_epoch(1, torch.device(device))
        assert augment.key is key


def test_tensors_that_a_checkpoint_exchanged_are_captured_anew(corpus, as_on_cuda):
    with loader_of(corpus) as loader:
        eager, captured = make_step(corpus), make_step(corpus)
        plain, updates = Updates(eager, loader, capture=False), captured_updates(captured, loader)
        for step, each in ((eager, plain), (captured, updates)):
            train(each, 0, 3)
            step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))  # other tensors, same values
            train(each, 3, 8)
        assert same(eager, captured)


def test_a_model_that_asks_the_device_runs_eagerly_and_says_so(corpus, as_on_cuda):
    class Asking(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, windows):
            return self.inner(windows) * (1.0 if windows.abs().max().item() > 0 else 2.0)

    dim, classes = corpus.feature_dim, len(corpus.phonemes)
    with loader_of(corpus) as loader:
        eager, tried = (make_step(corpus, model=Asking(net(dim, classes))) for _ in range(2))
        train(Updates(eager, loader, capture=False), 0, loader.batches_per_epoch)
        updates, told = captured_updates(tried, loader), []
        list(updates.epoch(0, 0, 0, rates_of(loader, 0), warn=told.append))
        assert len(told) == 1 and "cannot be captured" in told[0] and "the host asks" in updates.capture_mode
        assert same(eager, tried)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "resident") for case in CASES),
        ({}, "host"),
        ({}, "slab"),
        ({"name": "muon"}, "resident"),
        ({"name": "rmsprop"}, "host"),
        *(({"model": "classifier", "precision": precision}, "resident") for precision in ("fp32", "bf16", "fp16")),
    ],
    ids=str,
)
def test_graphs_equal_eager_steps_on_a_cuda_device(corpus, case, kind):
    if case.get("precision") == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this device only emulates bf16")
    with loader_of(corpus, kind, "cuda") as loader:
        count = loader.batches_per_epoch + 5
        eager, captured = make_step(corpus, "cuda", **case), make_step(corpus, "cuda", **case)
        train(Updates(eager, loader, capture=False), 0, count)
        updates = Updates(captured, loader, capture=True)
        train(updates, 0, count)
        assert "captured" in updates.capture_mode and "cannot" not in updates.capture_mode
        assert same(eager, captured)
