"""StepStatus: bad steps halt and add nothing, by torch and by a kernel for GPUs."""

import itertools

import pytest
import torch

from phonetrain.kernels import cuda_layer
from phonetrain.step.metrics import FrameMetrics
from phonetrain.step.status import StepStatus

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# numpy's, in Triton's interpreter
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
BAD = (float("nan"), float("inf"))


@pytest.fixture(params=["torch", "triton"])
def way(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    monkeypatch.setattr(cuda_layer, "runs_here", lambda norm: request.param == "triton")


def update(status: StepStatus, number: int, loss: float = 2.0, norm: float = 3.0, watch_norm: bool = True) -> None:
    numbers = (torch.tensor(value, device=DEVICE) for value in (loss, 5.0, norm, number))
    loss, correct, norm, number = numbers
    status.update(loss, {"accuracy": correct}, 8, norm, number, watch_norm=watch_norm)


def told(status: StepStatus) -> tuple:
    return float(status.nonfinite), int(status.nonfinite_at), *status.metrics.sums().by_name.values()


def test_good_steps_add_up(way):
    status = StepStatus(FrameMetrics(40, DEVICE), torch.device(DEVICE))
    for number in (1, 2, 3):
        update(status, number, loss=0.5, norm=number)
        assert told(status) == (0, -1, 0.5 * number, 5 * number, 8 * number)
        assert float(status.gradient_norm) == number


@pytest.mark.parametrize(("loss", "norm"), [*itertools.product(BAD, (1.0, *BAD)), (1.0, BAD[0]), (1.0, BAD[1])])
def test_the_first_bad_step_halts_all_that_follow_until_the_host_has_looked(way, loss, norm):
    status = StepStatus(FrameMetrics(40, DEVICE), torch.device(DEVICE))
    update(status, 6)
    update(status, 7, loss, norm)
    update(status, 8)
    update(status, 9, loss)
    assert told(status) == (1, 7, 2.0, 5, 8)
    status.clear()
    update(status, 10)
    assert told(status) == (0, -1, 4.0, 10, 16)


@pytest.mark.parametrize("bad", BAD)
def test_under_a_loss_scale_a_gradient_that_overflows_is_no_reason_to_halt(way, bad):
    status = StepStatus(FrameMetrics(40, DEVICE), torch.device(DEVICE))
    update(status, 1, norm=bad, watch_norm=False)
    assert told(status) == (0, -1, 2.0, 5, 8)
    update(status, 2, loss=bad, watch_norm=False)
    assert told(status) == (1, 2, 2.0, 5, 8)
