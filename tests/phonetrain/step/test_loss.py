"""Loss and correct frames of a batch: torch's numbers, by torch and by kernels for GPUs."""

import pytest
import torch
import torch.nn.functional as F

from phonetrain.kernels import cuda_layer
from phonetrain.step.loss import frame_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# numpy's, in Triton's interpreter
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


@pytest.fixture(params=["torch", "triton"])
def way(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    monkeypatch.setattr(cuda_layer, "runs_here", lambda logits: request.param == "triton")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "classes"), [(1, 40), (16, 2), (100, 40), (37, 64), (65, 71)])
def test_loss_derivatives_and_correct_frames_are_torchs(way, rows, classes, smoothing):
    generator = torch.Generator().manual_seed(rows)
    logits = (4 * torch.randn(rows, classes, generator=generator)).to(DEVICE).requires_grad_()
    labels = torch.randint(0, classes, (rows,), generator=generator).to(DEVICE)
    exact = logits.detach().double().requires_grad_()
    truth = F.cross_entropy(exact, labels, reduction="sum", label_smoothing=smoothing)
    truth.backward(torch.full_like(truth, 3.0))
    part = frame_loss(logits, labels, smoothing)
    part.loss.backward(torch.full_like(part.loss, 3.0))
    assert float(part.loss.detach()) == pytest.approx(float(truth.detach()), rel=1e-6)
    assert int(part.counts["accuracy"]) == int((exact.argmax(1) == labels).sum()) and part.frames == rows
    assert not part.counts["accuracy"].requires_grad
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_makes_the_loss_so_too(way, bad):
    logits, labels = torch.zeros(40, 40, device=DEVICE), torch.zeros(40, dtype=torch.int64, device=DEVICE)
    logits[39, 7] = bad
    assert not torch.isfinite(frame_loss(logits, labels).loss)


def test_huge_logits_do_not_overflow(way):
    logits = torch.tensor([[3e38, -3e38, 0.0], [0.0, -3e38, -3e38]], device=DEVICE)
    part = frame_loss(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE))
    assert float(part.loss) == 0 and int(part.counts["accuracy"]) == 2


@pytest.mark.parametrize("label", [-100, -1, 10, 12, 99])
def test_a_label_that_is_no_class_makes_the_loss_nan_in_a_kernel(label, monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    monkeypatch.setattr(cuda_layer, "runs_here", lambda logits: True)
    labels = torch.tensor([3, label, 4], device=DEVICE)
    assert frame_loss(torch.zeros(3, 10, device=DEVICE), labels).loss.isnan()
