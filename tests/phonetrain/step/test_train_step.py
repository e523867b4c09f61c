"""TrainStep: equals a plain loop, can be replayed, and changes nothing once a number is not finite."""

import copy
import functools
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from phonedata import EpochOrder, SlabOrder, WindowSpec
from phonetrain.config.sections import AugmentConfig, OptimizerConfig
from phonetrain.device import choose_device
from phonetrain.model.ema import AveragedWeights
from phonetrain.optim.loss_scale import LossScale
from phonetrain.optim.optimizers import build_optimizer
from phonetrain.step.augment import Augment
from phonetrain.step.metrics import FrameMetrics
from phonetrain.step.train_step import TrainStep, total_norm
from tests import reference

CLASSES, WIDTH, DIM = 7, 5, 6


def net(dropout: float = 0.0, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(WIDTH * DIM, 32),
        nn.BatchNorm1d(32),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(32, CLASSES),
    )
    model.logits_matrix = "5.weight"  # for Muon, as build_model notes it
    return model


def batches(count: int, frames: int = 48):
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        labels = torch.randint(0, CLASSES, (frames,), generator=generator)
        windows = torch.randn(frames, WIDTH, DIM, generator=generator) + labels[:, None, None] * 0.3
        made.append((windows.half(), labels))
    return made


def build(model, *, precision="fp32", name="adamw", accumulation=1, averaged=False, clip_norm=None, **options):
    config = OptimizerConfig(name=name, lr=2e-3, weight_decay=0.1)
    compute = choose_device("cpu", precision)
    return TrainStep(
        model,
        build_optimizer(config, model, "cpu"),
        FrameMetrics(CLASSES),
        compute,
        seed=3,
        accumulation=accumulation,
        averaged=AveragedWeights(model, 0.9) if averaged else None,
        clip_norm=clip_norm,
        loss_scale=LossScale("cpu", initial=2.0**10) if precision == "fp16" else None,
        **options,
    )


def run(step, made, first=0, rate=2e-3):
    losses = []
    for number, (windows, labels) in enumerate(made, first):
        before = step.metrics.sums()
        step(windows, labels, torch.arange(len(labels)), epoch=0, step=number, rate=rate)
        losses.append((step.metrics.sums() - before).result()["loss"])
    return losses


def everything(step) -> list[torch.Tensor]:
    """Every tensor that a step may change."""
    tensors = [*step.model.state_dict().values(), *step.metrics.state_dict().values()]
    for state in step.optimizer.state_dict()["state"].values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    for part in (step.averaged, step.loss_scale):
        if part is not None:
            tensors += [value for value in part.state_dict().values() if isinstance(value, torch.Tensor)]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"clip_norm": 0.2}])
def test_fifty_steps_equal_a_plain_loop(options):
    made = batches(50)
    plain = reference.train_plainly(net(), made, lr=2e-3, weight_decay=0.1, **options)
    ours = run(build(net(), **options), made)
    assert ours == pytest.approx(plain, rel=2e-5)
    assert ours[-1] < 0.8 * ours[0]


def test_accumulated_parts_equal_one_batch_without_norm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * DIM, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    made = batches(20, frames=50)
    whole = run(build(copy.deepcopy(model)), made)
    parts = run(build(copy.deepcopy(model), accumulation=4), made)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_dropout_depends_on_seed_and_step_number_alone():
    made = batches(6)
    first = build(net(dropout=0.5))
    losses = run(first, made)
    second = build(net(dropout=0.5))
    run(second, made[:3])
    torch.rand(17)  # whatever else draws from the generator must not matter
    assert run(second, made[3:], first=3) == losses[3:]
    assert all(torch.equal(a, b) for a, b in zip(everything(first), everything(second), strict=True))
    assert run(build(net(dropout=0.5)), made[:1], first=1) != losses[:1]


def test_what_draws_from_a_seed_shares_no_draws_with_another_use(monkeypatch):
    """Equal numbers, epoch 3 and step 3, must not give an order, masks and dropout the same words."""
    used, sequence_of = [], np.random.SeedSequence

    def noted(*arguments, **named):
        used.append(sequence_of(*arguments, **named).generate_state(16).tolist())
        return sequence_of(*arguments, **named)

    monkeypatch.setattr(np.random, "SeedSequence", noted)
    step = build(net(dropout=0.5))
    for step.seed in (0, 3):
        augment = Augment(AugmentConfig(time_mask=2, mask_mode="batch"), WindowSpec(2, 2), 3, seed=step.seed)
        for number in (0, 3):
            EpochOrder(1000, step.seed, number)
            SlabOrder(1000, step.seed, number)
            augment.set_step(number, number, torch.device("cpu"))
            step.seed_generators(number)
    assert len(used) == 2 * 2 * 5 and len({word for words in used for word in words}) == 16 * len(used)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "nesterov", "rmsprop", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nothing_changes_once_a_loss_is_not_finite(name, precision):
    made = batches(6)
    step = build(net(dropout=0.2), name=name, precision=precision, averaged=True)
    run(step, made[:3])
    before = everything(step)
    bad = made[3][0].clone()
    bad[4, 2, 1] = math.inf
    run(step, [(bad, made[3][1]), *made[4:]], first=3)
    assert int(step.status.nonfinite_at) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True))
    step.status.clear()
    run(step, made[4:], first=4)
    assert int(step.status.nonfinite_at) == -1
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True))


def test_gradient_overflow_in_fp16_is_skipped_counted_and_backs_off():
    step = build(net(), precision="fp16")
    step.loss_scale.scale.fill_(2.0**40)
    weights = [p.clone() for p in step.parameters]
    run(step, batches(1))
    assert int(step.loss_scale.overflows) == 1
    assert int(step.status.nonfinite_at) == -1
    assert float(step.loss_scale.scale) == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(weights, step.parameters, strict=True))


def test_gradient_that_is_not_finite_halts_without_a_loss_scale():
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.inf

    model = net()
    model.register_forward_hook(lambda module, inputs, output: Poison.apply(output))
    step = build(model)
    run(step, batches(1))
    assert int(step.status.nonfinite_at) == 0


def test_rates_are_shared_by_lr_ratio_and_momentum_cycles():
    step = build(net(), name="muon")
    step.set_rates(0.5, 0.87)
    for group in step.optimizer.param_groups:
        assert group["lr"] == 0.5 * group["lr_ratio"]
        assert 0.87 in (group.get("momentum"), group.get("betas", (None,))[0])


def test_norm_of_all_gradients_is_that_of_one_vector():
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(size, generator=generator) for size in ((70, 90), (90,), (), (3, 4, 5), (2, 0), (300, 1))]
    gradients.append(torch.randn(100, 80, generator=generator).T)
    whole = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(total_norm(gradients).double(), whole, rtol=1e-6, atol=0)
    assert total_norm([]) == 0
    for bad in (math.nan, math.inf):
        assert not total_norm([*gradients, torch.tensor([[1.0, bad]])]).isfinite()


@pytest.mark.filterwarnings("default")  # torch's compiler has its own about torch
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_model_trains_like_the_plain_one(backend, monkeypatch):
    """Traced, both ways, and run by torch's own kernels; in the long tests by those that g++ makes."""
    from phonetrain.training.build import compiled

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    made, plain = batches(12), build(net())
    model = net()
    network, told = compiled(model, torch.device("cpu"))
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip(f"no C++ compiler here: {told}")
    assert told == "on"
    losses = run(build(model, network=network), made)
    assert losses == pytest.approx(run(plain, made), rel=1e-4)  # other kernels round otherwise
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("default")
def test_without_a_compiler_the_model_runs_as_it_is_and_the_reason_is_one_line(monkeypatch):
    from phonetrain.training.build import compiled

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    model = net()
    with torch._inductor.utils.fresh_cache():
        network, told = compiled(model, torch.device("cpu"))
    assert network is model
    assert told.startswith("off: ") and "compiler" in told and "\n" not in told
