"""Averaged weights: the formula, norm buffers, skipping, and state."""

import copy

import pytest
import torch
from torch import nn

from phonetrain.kernels import cuda_layer
from phonetrain.model.ema import AveragedWeights


def moving_model(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).to(device)


def move(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator).to(parameter.device)
    model(torch.randn(16, 4, generator=generator).to(parameter.device))


def averaged_plainly(decay: float, steps: int, device: str) -> dict[str, torch.Tensor]:
    model = moving_model(device)
    average = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(steps):
        move(model, step)
        factor = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average[name] = factor * average[name] + (1 - factor) * tensor.double()
    return average


@pytest.fixture(params=["on the host", "on a device", "by a kernel"])
def way(request, monkeypatch) -> tuple[str, str]:
    """The method that updates, and the device."""
    if request.param == "by a kernel":
        pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
        monkeypatch.setattr(cuda_layer, "runs_here", lambda skip: True)
        return "update_on_device", "cuda" if torch.cuda.is_available() else "cpu"
    return "update" if request.param == "on the host" else "update_on_device", "cpu"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_is_the_formula_for_weights_and_norm_buffers(decay, way):
    update, device = way
    model = moving_model(device)
    averaged = AveragedWeights(model, decay)
    for step in range(25):
        move(model, step)
        getattr(averaged, update)(torch.zeros((), device=device))
    wanted = averaged_plainly(decay, 25, device)
    for name, tensor in averaged.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)
    assert averaged.model[1].num_batches_tracked == model[1].num_batches_tracked == 25
    assert averaged.num_updates == 25


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_skipped_update_changes_nothing(way):
    update, device = way
    model = moving_model(device)
    averaged = AveragedWeights(model, 0.9)
    move(model, 0)
    averaged.update()
    before = copy.deepcopy(averaged.state_dict())
    getattr(averaged, update)(torch.ones((), device=device))
    assert all(torch.equal(tensor, before[name]) for name, tensor in averaged.state_dict().items())


def test_the_average_is_a_copy_in_evaluation_mode_that_trains_nothing():
    model = moving_model()
    averaged = AveragedWeights(model, 0.9)
    assert model.training
    assert not averaged.model.training
    assert not any(parameter.requires_grad for parameter in averaged.model.parameters())
    assert averaged.model[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_restored_average_goes_on_bit_for_bit():
    model = moving_model()
    whole = AveragedWeights(model, 0.9)
    for step in range(6):
        move(model, step)
        whole.update()
        if step == 2:
            other = copy.deepcopy(model)
            restored = AveragedWeights(other, 0.9)
            restored.load_state_dict(copy.deepcopy(whole.state_dict()))
        elif step > 2:
            move(other, step)
            restored.update()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])


def test_a_plain_model_state_starts_a_new_average():
    model = moving_model()
    averaged = AveragedWeights(moving_model(), 0.9)
    move(model, 3)
    averaged.update()
    averaged.load_state_dict(model.state_dict())
    assert averaged.num_updates == 0
    assert torch.equal(averaged.model[0].weight, model[0].weight)
