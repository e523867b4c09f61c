"""Fused hidden layers: equal to torch's modules for any number of threads; masks repeat, NaN comes through."""

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from phonetrain.kernels import cpu_layer, known
from phonetrain.kernels.cpu_layer import converted, hidden_layer
from phonetrain.kernels.layer import Dropout, kernels_for
from tests.reference import kept_by_dropout

ROWS, COLUMNS = 517, 83  # whole vectors and leftovers, several tasks
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": None}
ACTIVATIONS = tuple(known.KERNEL_NUMBERS)
# A kernel takes about a second to compile where it is not yet on disk: every activation once, every norm once.
PAIRS = [("none", act) for act in ACTIVATIONS] + [(norm, nn.SiLU) for norm in ("batch", "layer", "rms")]


def make_norm(name: str, dtype=torch.float32) -> nn.Module | None:
    if NORMS[name] is None:
        return None
    norm = NORMS[name](COLUMNS).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(COLUMNS, generator=generator))
    return norm


def inputs(dtype=torch.float32, mean: float = 2.0):
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(ROWS, COLUMNS, generator=generator) * 3 + mean
    gradient = torch.randn(ROWS, COLUMNS, generator=generator)
    return hidden.to(dtype).requires_grad_(), gradient.to(dtype)


def exact(hidden, gradient, name, activation, norm_state=None):
    """Output, derivatives and buffers by torch's modules in float64."""
    norm = make_norm(name, torch.float64)
    hidden = hidden.detach().double().requires_grad_()
    output = activation()(hidden if norm is None else norm(hidden))
    output.backward(gradient.double())
    parameters = [] if norm is None else [p.grad for p in norm.parameters()]
    return [output.detach(), hidden.grad, *parameters], [] if norm is None else list(norm.buffers())


def ours(hidden, gradient, name, activation):
    norm = make_norm(name)
    assert kernels_for(hidden, norm, activation(), None) is cpu_layer
    output = hidden_layer(hidden, norm, activation(), None)
    output.backward(gradient)
    parameters = [] if norm is None else [p.grad for p in norm.parameters()]
    return [output.detach(), hidden.grad, *parameters], [] if norm is None else list(norm.buffers())


def check_float32(layer, name, activation):
    """`layer`, as `ours`, equals torch's modules in float64 to float32 rounding."""
    hidden, gradient = inputs()
    found, buffers = layer(hidden, gradient, name, activation)
    wanted, wanted_buffers = exact(hidden, gradient, name, activation)
    for value, true in zip(found, wanted, strict=True):
        # ReLU and its kin have a kink, on which float32 may stand on the other side than float64.
        away = ((value - true).abs() > 3e-6 * max(1, float(true.abs().max()))).double().mean()
        assert away <= (1e-4 if activation in (nn.ReLU, nn.LeakyReLU) else 0)
    for value, true in zip(buffers, wanted_buffers, strict=True):
        torch.testing.assert_close(value.double(), true.double(), rtol=2e-6, atol=2e-6)


def check_half_precision(layer, name, dtype):
    """`layer`, as `ours`, is rounded to its dtype once."""
    hidden, gradient = inputs(dtype)
    found, buffers = layer(hidden, gradient, name, nn.SiLU)
    wanted, wanted_buffers = exact(hidden, gradient, name, nn.SiLU)
    precision = torch.finfo(dtype).eps
    for value, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=precision, atol=precision * float(true.abs().max()))
    for value, true in zip(buffers, wanted_buffers, strict=True):
        torch.testing.assert_close(value.double(), true.double(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "activation"), PAIRS, ids=lambda part: getattr(part, "__name__", part))
def test_float32_equals_torch_in_float64_to_float32_rounding(name, activation):
    check_float32(ours, name, activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["batch", "layer", "rms", "none"])
def test_half_precision_is_as_exact_as_its_dtype(dtype, name):
    check_half_precision(ours, name, dtype)


def test_large_mean_beside_a_small_deviation_loses_no_digits_of_the_variance():
    hidden, gradient = inputs(mean=3000.0)
    norm = make_norm("batch")
    hidden_layer(hidden, norm, nn.SiLU(), None)
    torch.testing.assert_close(
        norm.running_var.double(), 0.9 + 0.1 * hidden.detach().double().var(0), rtol=1e-5, atol=1e-5
    )


def test_gradients_agree_with_finite_differences():
    norm, activation = make_norm("batch"), nn.Mish()
    hidden, gradient = inputs()
    output = hidden_layer(hidden, norm, activation, None)
    (output * gradient).sum().backward()
    direction = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(9))
    high, low = (
        (hidden_layer(hidden + side * 1e-2 * direction, norm, activation, None).double() * gradient).sum().detach()
        for side in (1, -1)
    )
    assert float((hidden.grad * direction).sum()) == pytest.approx(float(high - low) / 2e-2, rel=2e-3)


def test_evaluation_uses_running_moments_and_moves_nothing():
    norm, (hidden, _) = make_norm("batch"), inputs(torch.bfloat16)
    hidden_layer(hidden, norm, nn.SiLU(), None)
    norm.eval()
    before = [buffer.clone() for buffer in norm.buffers()]
    with torch.no_grad():
        assert kernels_for(hidden, norm, nn.SiLU(), Dropout(0.5).eval()) is cpu_layer
        found = hidden_layer(hidden, norm, nn.SiLU(), Dropout(0.5).eval())
        wanted = nn.SiLU()(norm(hidden.float()))
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


@pytest.mark.parametrize("learning", ["nothing", "input", "weight"])
def test_evaluation_while_gradients_are_on(learning):
    norm, (hidden, _) = make_norm("batch").eval().requires_grad_(False), inputs()
    hidden = hidden.detach().requires_grad_(learning == "input")
    norm.weight.requires_grad_(learning == "weight")
    covered = kernels_for(hidden, norm, nn.SiLU(), None) is cpu_layer
    assert covered == (learning == "nothing")
    if covered:
        found = hidden_layer(hidden, norm, nn.SiLU(), None)
        torch.testing.assert_close(found, nn.SiLU()(norm(hidden)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["batch", "layer", "none"])
def test_a_second_derivative_is_refused(name):
    hidden, gradient = inputs()
    output = hidden_layer(hidden, make_norm(name), nn.SiLU(), None)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(output, hidden, gradient, create_graph=True)


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_result_is_the_same_for_any_number_of_threads(name):
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            norm, (hidden, gradient) = make_norm(name), inputs(torch.bfloat16)
            output = hidden_layer(hidden, norm, nn.SiLU(), Dropout(0.3))
            output.backward(gradient)
            results.append([output.detach(), hidden.grad, norm.weight.grad, norm.bias.grad])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    torch.manual_seed(2)
    hidden = torch.ones(2048, 640)
    kept = Dropout(share)(hidden)
    spread = math.sqrt(share * (1 - share) / hidden.numel())
    assert abs(float((kept == 0).double().mean()) - share) <= 4.5 * spread
    assert set(kept.unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - share)))}


def test_masks_are_the_references():
    torch.manual_seed(3)
    kept = Dropout(0.3)(torch.ones(67, 41)) != 0
    torch.manual_seed(3)
    key = int(torch.randint(0, 2**62, ()))
    assert kept.flatten().tolist() == kept_by_dropout(67 * 41, key, 0.3).tolist()


def test_mask_of_a_slice_is_the_slice_of_the_mask_by_kernels_and_by_torch(monkeypatch):
    """Each process and each piece of a batch makes its rows of one mask."""

    def kept(rows: slice, rows_before: int) -> torch.Tensor:
        torch.manual_seed(5)
        dropout = Dropout(0.4)
        dropout.rows_before = rows_before
        return dropout(torch.ones(50, 7, 3)[rows]) != 0

    whole = kept(slice(0, 50), 0)
    assert torch.equal(kept(slice(17, 50), 17), whole[17:]) and not torch.equal(kept(slice(17, 50), 0), whole[17:])
    monkeypatch.setattr(cpu_layer, "runs_here", lambda hidden: False)
    assert torch.equal(kept(slice(0, 50), 0), whole) and torch.equal(kept(slice(17, 50), 17), whole[17:])


def test_kept_counts_of_whole_masks_vary_as_a_binomials():
    """Their variance was 0.6 of it: one step of the hash was missing."""
    torch.manual_seed(1)
    ones, masks = torch.ones(2048, 640), 200
    counts = torch.stack([(Dropout(0.5)(ones) != 0).sum() for _ in range(masks)]).double()
    # An estimate of the variance from n masks has a relative standard deviation of sqrt(2 / n): 0.1.
    assert float(counts.var()) / (ones.numel() / 4) == pytest.approx(1, abs=0.25)


def test_masks_of_neighbours_rows_and_calls_are_independent():
    torch.manual_seed(2)
    masks = [(Dropout(0.5)(torch.ones(1024, 512)) > 0).double() * 2 - 1 for _ in range(2)]
    noise = 1 / math.sqrt(masks[0].numel())
    first, second = masks
    for shifted in (second, first.roll(1, 1), first.roll(1, 0), first.roll(64, 1), first.roll(256, 0)):
        assert abs(float((first * shifted).mean())) < 5 * noise
    # Sums over rows and columns scatter like those of a fair coin: a variance of 1 each.
    for axis in (0, 1):
        sums = first.sum(axis) / math.sqrt(first.shape[axis])
        assert float(sums.var()) == pytest.approx(1, abs=0.3)


def test_dropout_draws_one_key_and_its_backward_repeats_the_mask():
    hidden = torch.ones(64, 40, requires_grad=True)
    torch.manual_seed(8)
    output = Dropout(0.4)(hidden)
    output.sum().backward()
    assert torch.equal(hidden.grad != 0, output != 0)
    after = torch.rand(3)
    torch.manual_seed(8)
    torch.randint(0, 2**62, ())
    assert torch.equal(torch.rand(3), after)


def test_layer_drops_the_same_values_as_the_modules_one_by_one():
    norm, drop, (hidden, _) = make_norm("batch"), Dropout(0.3), inputs()
    torch.manual_seed(6)
    fused_output = hidden_layer(hidden, norm, nn.SiLU(), drop)
    torch.manual_seed(6)
    plain_output = drop(nn.SiLU()(norm(hidden)))
    torch.testing.assert_close(fused_output, plain_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["batch", "layer", "rms", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_come_through(name, bad):
    hidden, gradient = inputs(torch.bfloat16)
    with torch.no_grad():
        hidden[3, 4] = bad
    norm = make_norm(name)
    output = hidden_layer(hidden, norm, nn.SiLU(), None)
    assert not bool(torch.isfinite(output[3, 4]))
    hidden, gradient = inputs(torch.bfloat16)
    gradient[3, 4] = bad
    output = hidden_layer(hidden, make_norm(name), nn.SiLU(), None)
    output.backward(gradient)
    assert not bool(torch.isfinite(hidden.grad).all())


OTHER_PROCESSOR = """
import torch
from torch import nn
from phonetrain.kernels.cpu_layer import converted, why_not
from phonetrain.kernels.layer import Dropout
assert (why_not() is None) == {has_f16c}
halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(64, 1024)
assert torch.equal(converted(halves, torch.bfloat16).nan_to_num(), halves.bfloat16().nan_to_num())
assert torch.equal(Dropout(0.5)(torch.ones(64, 64, dtype=torch.bfloat16)).unique(), torch.tensor([0.0, 2.0]).bfloat16())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names features of x86")
@pytest.mark.parametrize("features", ["", "+sse4.2,+avx,+f16c,+avx2,+fma"])
def test_code_for_other_processors_gives_torchs_values(features, tmp_path):
    has_f16c = "+f16c" in features
    if has_f16c and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor cannot run code with AVX2")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", OTHER_PROCESSOR.format(has_f16c=has_f16c)], env=environment, check=True)


def test_bfloat16_is_rounded_to_the_nearest_and_nan_stays():
    random = torch.randint(-(2**31), 2**31, (1 << 18,), generator=torch.Generator().manual_seed(1))
    ties = torch.arange(-(2**15), 2**15)[:, None] * 2**16 + torch.tensor([0x7FFF, 0x8000, 0x8001])
    payloads = torch.tensor([0x7FFFFFFF, -1, 0x7F800001])  # NaNs that rounding their bits would make numbers of
    values = torch.cat([random, ties.flatten(), payloads]).to(torch.int32).view(torch.float32)
    found, wanted = torch.empty_like(values, dtype=torch.bfloat16), values.bfloat16()
    work = cpu_layer.Work(values.view(-1, 1), None, None)
    work.block[work.kernels.PITCH] = 1
    work.run(work.kernels.conversion(0, 1), input=values, output=found)
    assert torch.equal(found.isnan(), wanted.isnan())
    normal = values.abs() >= 2**-126  # smaller ones may become 0
    assert torch.equal(found[normal].nan_to_num(), wanted[normal].nan_to_num())
    subnormal = values.abs() < 2**-126
    assert bool((found[subnormal].float().abs() <= 2**-126).all())


def test_conversion_equals_torch_for_every_float16():
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(64, 32, 32)
    found, wanted = converted(values, torch.bfloat16), values.to(torch.bfloat16)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    assert torch.equal(converted(values, torch.float32).nan_to_num(), values.float().nan_to_num())


def test_windows_whose_rows_lie_apart_are_converted_without_what_lies_between():
    whole = torch.full((300, 40), math.nan, dtype=torch.float16)
    whole[:, :33] = torch.randn(300, 33, generator=torch.Generator().manual_seed(3))
    windows = whole[:, :33].unflatten(1, (11, 3))
    assert torch.equal(converted(windows, torch.bfloat16), windows.bfloat16())
    for other in (windows.transpose(1, 2), whole[:, :33].T, windows[:0], windows[:1].expand(5, 11, 3)):
        assert torch.equal(converted(other, torch.bfloat16), other.bfloat16())
    with torch.device("meta"):  # a default device is for tensors that are made, not for those that are there
        assert torch.equal(converted(windows, torch.bfloat16), windows.bfloat16())
    learning = torch.ones(2, 3, requires_grad=True)
    converted(learning, torch.bfloat16).sum().backward()
    assert torch.equal(learning.grad, torch.ones(2, 3))
