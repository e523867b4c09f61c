"""Hidden layers by Triton: equal to torch's modules, on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from torch import nn

from phonetrain.config.sections import ModelConfig
from phonetrain.device import DeviceSpec
from phonetrain.kernels import cuda_layer, known
from phonetrain.kernels.cuda_layer import hidden_layer
from phonetrain.kernels.layer import Dropout, Product, kernels_for
from phonetrain.model.classifier import FrameClassifier
from tests.phonetrain.kernels.test_cpu_layer import (
    ACTIVATIONS,
    check_float32,
    check_half_precision,
    exact,
    inputs,
    make_norm,
)
from tests.reference import kept_by_dropout

# numpy's, in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """An interpreted program costs the same however much is in it."""
    from phonetrain.kernels import triton_layer

    if DEVICE == "cpu":
        for name, value in {"BLOCK_R": 64, "BLOCK_C": 64, "WHOLE_C": 64, "MOST_CHUNKS": 4}.items():
            monkeypatch.setattr(triton_layer, name, value)


@pytest.fixture(params=["whole batch", "chunks"])
def passes(request, monkeypatch):
    """Batch norm by kernels that hold all rows of a column, and by those that go over them chunk by chunk."""
    from phonetrain.kernels import triton_layer

    if request.param == "chunks":
        monkeypatch.setattr(triton_layer, "WHOLE_ROWS", 0)


# Without a norm there are chunks alone.
norms_and_passes = pytest.mark.parametrize(
    ("name", "passes"), [("batch", "whole batch"), ("batch", "chunks"), ("none", "chunks")], indirect=["passes"]
)


def ours(hidden, gradient, name, activation, dropout=None):
    norm = make_norm(name)
    norm = None if norm is None else norm.to(DEVICE)
    hidden = hidden.detach().to(DEVICE).requires_grad_()
    output = hidden_layer(hidden, norm, activation(), dropout)
    output.backward(gradient.to(DEVICE))
    parameters = [] if norm is None else [p.grad for p in norm.parameters()]
    found = [value.detach().cpu() for value in (output, hidden.grad, *parameters)]
    return found, [] if norm is None else [buffer.cpu() for buffer in norm.buffers()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda part: part.__name__)
@norms_and_passes
def test_float32_equals_torch_in_float64_to_float32_rounding(name, passes, activation):
    check_float32(ours, name, activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@norms_and_passes
def test_half_precision_is_as_exact_as_its_dtype(dtype, name, passes):
    check_half_precision(ours, name, dtype)


@pytest.mark.parametrize("rows", [3, 64, 65, 1024, 1025])
@pytest.mark.parametrize("columns", [1, 8, 72])
def test_every_row_and_column_counts_whatever_the_chunks(rows, columns, passes):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, columns, generator=generator).to(DEVICE).requires_grad_()
    gradient = torch.randn(rows, columns, generator=generator).to(DEVICE)
    copy = hidden.detach().double().requires_grad_()
    norm, true_norm = nn.BatchNorm1d(columns).to(DEVICE), nn.BatchNorm1d(columns).double().to(DEVICE)
    output, true = hidden_layer(hidden, norm, nn.SiLU(), None), nn.SiLU()(true_norm(copy))
    output.backward(gradient)
    true.backward(gradient.double())
    assert norm.num_batches_tracked == 1
    for found, wanted in (
        (output, true),
        (hidden.grad, copy.grad),
        (norm.weight.grad, true_norm.weight.grad),
        (norm.running_mean, true_norm.running_mean),
        (norm.running_var, true_norm.running_var),
    ):
        scale = 1e-5 * max(1, float(wanted.detach().abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=scale)


def test_large_mean_beside_a_small_deviation_loses_no_digits_of_the_variance(passes):
    hidden, gradient = inputs(mean=3000.0)
    (output, *_), _ = ours(hidden, gradient, "batch", nn.SiLU)
    (wanted, *_), _ = exact(hidden, gradient, "batch", nn.SiLU)
    assert float((output - wanted).abs().max()) < 1e-3


def test_evaluation_uses_running_moments_and_moves_nothing():
    hidden, _ = inputs()
    norm = make_norm("batch").to(DEVICE).eval()
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        before = [buffer.clone() for buffer in norm.buffers()]
        hidden = hidden.detach().to(DEVICE)
        output, wanted = hidden_layer(hidden, norm, nn.GELU(), Dropout(0.5).eval()), nn.GELU()(norm(hidden))
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_numbers_that_are_not_finite_spoil_their_column_and_no_other(bad, activation, passes):
    hidden, gradient = inputs()
    hidden = hidden.detach()
    hidden[5, 3] = bad
    (output, by_hidden, *_), _ = ours(hidden, gradient, "batch", activation)
    assert output[:, 3].isnan().all() and by_hidden[:, 3].isnan().all()
    others = [column for column in range(hidden.shape[1]) if column != 3]
    assert output[:, others].isfinite().all() and by_hidden[:, others].isfinite().all()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_dropout_drops_its_share_keeps_the_mean_and_repeats_its_mask_backward(share):
    torch.manual_seed(5)
    hidden = torch.ones(1500, 80, device=DEVICE, requires_grad=True)
    output = hidden_layer(hidden, None, nn.ReLU(), Dropout(share))
    output.backward(torch.ones_like(output))
    kept = (output != 0).double()
    assert float(kept.mean()) == pytest.approx(1 - share, abs=0.006)
    assert torch.equal(hidden.grad, output.detach())
    if share < 1:
        assert float(output.detach().mean()) == pytest.approx(1, abs=0.01)
        for axis in (0, 1):  # rows and columns share alike, and neighbours do not know of each other
            spread = kept.mean(axis).std() * (kept.shape[axis] / (share * (1 - share))) ** 0.5
            assert 0.7 < float(spread) < 1.3
            moved = kept.roll(1, axis)
            assert abs(float(((kept - kept.mean()) * (moved - kept.mean())).mean())) < 0.005


def test_masks_of_two_calls_differ_and_a_seed_repeats_them():
    hidden = torch.ones(64, 64, device=DEVICE)
    masks = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.manual_seed(seed)
        masks.append(hidden_layer(hidden, None, nn.ReLU(), Dropout(0.5)) != 0)
    assert torch.equal(masks[0], masks[2])
    assert 0.4 < float((masks[0] ^ masks[1]).double().mean()) < 0.6


def test_masks_are_the_references():
    key = 0x2B7E151628AED2A6 % 2**62
    dropout = Dropout(0.3)
    dropout.key = torch.tensor([key, 0], device=DEVICE)
    kept = hidden_layer(torch.ones(67, 41, device=DEVICE), None, nn.ReLU(), dropout) != 0
    assert kept.flatten().tolist() == kept_by_dropout(67 * 41, key, 0.3).tolist()


def test_mask_of_a_slice_is_the_slice_of_the_mask():
    def kept(rows: slice, rows_before: int) -> torch.Tensor:
        dropout = Dropout(0.3)
        dropout.key, dropout.rows_before = torch.tensor([2**61 + 12345, 2**62 - 3], device=DEVICE), rows_before
        return hidden_layer(torch.ones(67, 41, device=DEVICE)[rows], None, nn.ReLU(), dropout) != 0

    assert torch.equal(kept(slice(20, 67), 20), kept(slice(0, 67), 0)[20:])


def test_a_second_derivative_is_refused():
    hidden = torch.randn(8, 8, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(hidden_layer(hidden, None, nn.SiLU(), None).sum(), hidden, create_graph=True)


def test_derivatives_of_a_product_are_those_of_float64_to_float32_rounding():
    """Where autocast rounds them to 16 bits."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(512, 40, generator=generator).bfloat16().to(DEVICE).requires_grad_()
    weight = torch.randn(24, 40, generator=generator).bfloat16().float().to(DEVICE).requires_grad_()
    bias = torch.randn(24, generator=generator).to(DEVICE).requires_grad_()
    gradient = torch.randn(512, 24, generator=generator).bfloat16().to(DEVICE)
    output = Product.apply(inputs, weight, bias, weight.detach().bfloat16())
    output.backward(gradient)
    assert output.dtype == inputs.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    true = inputs.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(output.double(), true, rtol=0.02, atol=0.1)
    true = gradient.double().T @ inputs.detach().double()
    torch.testing.assert_close(weight.grad.double(), true, rtol=1e-5, atol=1e-5 * float(true.abs().max()))
    torch.testing.assert_close(bias.grad.double(), gradient.double().sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_what_is_covered_on_a_gpu_and_what_is_left_to_torch():
    hidden = torch.randn(16, 8, device=DEVICE)
    assert cuda_layer.why_not(hidden.device) is None
    norm = nn.BatchNorm1d(8).to(DEVICE)
    assert kernels_for(hidden, norm, nn.SiLU(), Dropout(0.1)) is cuda_layer
    assert kernels_for(hidden, None, nn.GELU(), None) is cuda_layer
    assert kernels_for(hidden, nn.LayerNorm(8).to(DEVICE), nn.SiLU(), None) is None
    assert kernels_for(hidden, norm, nn.GELU(approximate="tanh"), None) is None
    assert kernels_for(hidden.double(), norm, nn.SiLU(), None) is None


def test_without_triton_or_a_compiler_the_reason_is_told(monkeypatch):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(cuda_layer, "hidden_layer", broken)
    told = cuda_layer.why_not.__wrapped__(torch.device(DEVICE))
    assert told == "RuntimeError: Failed to find C compiler. Please specify via CC environment variable."


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_windows_whose_rows_lie_apart_are_padded_and_converted_in_one_pass(dtype, monkeypatch):
    monkeypatch.setattr(cuda_layer, "runs_here", lambda hidden: True)
    slots = torch.randn(9, 1100, device=DEVICE).to(dtype)
    windows = slots.as_strided((9, 61, 17), (1100, 17, 1))
    # The interpreter rounds to bfloat16 in a way of its own.
    for wanted in (torch.float32, torch.float16, torch.bfloat16)[: 3 if DEVICE == "cuda" else 2]:
        padded = cuda_layer.padded(windows, 3, wanted)
        assert padded.dtype == wanted and padded.shape == (9, 1040)
        assert torch.equal(padded[:, :1037], windows.flatten(1).to(wanted)) and not padded[:, 1037:].any()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_classifier_trains_as_it_does_with_torchs_modules(precision, norm, passes, monkeypatch):
    """Losses of a dozen steps, and its scores, without dropout."""
    config = ModelConfig(archetype="cylinder", depth=3, hidden=72, norm=norm, activation="gelu", dropout=0.0)
    compute = DeviceSpec(torch.device(DEVICE), precision, "")
    generator = torch.Generator().manual_seed(1)
    windows = torch.randn(12, 256, 7, 13, generator=generator).half().to(DEVICE)
    labels = torch.randint(0, 40, (12, 256), generator=generator).to(DEVICE)

    def losses() -> list[float]:
        torch.manual_seed(3)
        model = FrameClassifier(config, 13, 7, 40).to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        found = []
        for batch, truth in zip(windows, labels):
            with compute.autocast():
                logits = model(batch if covered else batch.to(compute.window_dtype))
            loss = nn.functional.cross_entropy(logits.float(), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        model.eval()
        with torch.no_grad(), compute.autocast():
            logits = model(windows[0] if covered else windows[0].to(compute.window_dtype))
        return [*found, float(nn.functional.cross_entropy(logits.float(), labels[0]))]

    covered = True
    ours = losses()
    covered = False
    monkeypatch.setattr(cuda_layer, "runs_here", lambda hidden: False)
    monkeypatch.setattr("phonetrain.model.classifier.product", lambda linear, inputs, half=None: linear(inputs))
    assert ours == pytest.approx(losses(), rel=1e-5 if precision == "fp32" else 0.01)


def test_kernels_number_activations_as_the_table_does():
    from phonetrain.kernels import cpu_math, triton_math

    wanted = {name: row.kernel for name, row in known.ACTIVATIONS.items() if row.kernel is not None}
    assert cpu_math.IDENTITY == known.IDENTITY and known.IDENTITY not in wanted.values()
    assert {name: getattr(triton_math, name.upper()).value for name in wanted} == wanted
    assert {name: getattr(cpu_math, name.upper()) for name in wanted} == wanted


def test_a_second_derivative_through_a_product_is_refused():
    inputs = torch.randn(8, 8, device=DEVICE).bfloat16().requires_grad_()
    weight = torch.randn(8, 8, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(
            Product.apply(inputs, weight, None, weight.detach().bfloat16()).sum(), inputs, create_graph=True
        )
