"""Masks and noise: what they hide, how often, and that they hang on (seed, epoch, frame) alone."""

import numpy as np
import pytest
import torch

from phonedata import WindowSpec
from phonetrain.config.sections import AugmentConfig
from phonetrain.errors import ConfigError
from phonetrain.kernels import cuda_layer
from phonetrain.step.augment import Augment
from tests.reference import masked_truth

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of kernels by Triton
COUNT = 200 if DEVICE == "cuda" else 50  # of windows for them: the interpreter takes long for each
SPEC, D = WindowSpec(10, 10), 9
W = SPEC.width


def augment(seed: int = 5, **settings) -> Augment:
    return Augment(AugmentConfig(**settings), SPEC, D, seed=seed)


def windows_of(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows without a zero, and the frames they stand for, far apart and in no order."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 2**40, (count,), generator=generator)
    return (torch.randn(count, W, D, generator=generator).abs() + 1).to(dtype), frames


ALL = {"time_mask": 8, "freq_mask": 4, "noise": 0.3, "probability": 0.8}


@pytest.fixture(params=["torch", "triton"])
def way(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    monkeypatch.setattr(cuda_layer, "runs_here", lambda windows: request.param == "triton")
    return DEVICE if request.param == "triton" else "cpu"


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("mask_mode", ["window", "batch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_kernel_masks_what_torch_masks(dtype, mask_mode, monkeypatch):
    """Also windows whose rows lie apart, as those of a loader's slots do, and values that an AND would not touch."""
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    windows, frames = (tensor.to(DEVICE) for tensor in windows_of(COUNT, dtype))
    windows[:, 3, 2] = torch.nan
    slots = torch.zeros(COUNT, W * D + 11, dtype=dtype, device=DEVICE)
    slots[:, : W * D] = windows.flatten(1)
    apart = slots.as_strided(windows.shape, (W * D + 11, D, 1))
    for settings in ({"time_mask": 8, "freq_mask": 4, "probability": 0.6}, {"time_mask": W}, {"freq_mask": D}):
        found = []
        for by_kernel in (False, True):
            monkeypatch.setattr(cuda_layer, "runs_here", lambda windows, by_kernel=by_kernel: by_kernel)
            one = augment(mask_mode=mask_mode, **settings)
            one.set_step(4, 17, windows.device)
            found.append(one(apart if by_kernel else windows, frames, 4))
        assert found[0].shape == found[1].shape and found[1].is_contiguous()
        whole = {2: torch.int16, 4: torch.int32}[found[0].element_size()]
        assert torch.equal(found[0].view(whole), found[1].view(whole))


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masks_are_those_of_the_reference_for_every_frame(way, dtype):
    windows, frames = windows_of(COUNT if cuda_layer.runs_here(None) else 300, dtype)
    settings = {"time_mask": 8, "freq_mask": 4, "probability": 0.8}
    masked = augment(seed=5, **settings)(windows.to(way), frames.to(way), 3).cpu()
    assert masked.dtype == dtype
    for window, frame, found in zip(windows.float().numpy(), frames.tolist(), masked.float().numpy()):
        np.testing.assert_array_equal(found, masked_truth(window, frame, seed=5, epoch=3, **settings))


def test_the_same_frame_is_augmented_alike_in_any_batch():
    windows, frames = windows_of(200)
    whole = augment(**ALL)(windows, frames, 2)
    order = torch.randperm(200)
    parts = [augment(**ALL)(windows[rows], frames[rows], 2) for rows in order.split((1, 70, 129))]
    assert torch.equal(torch.cat(parts), whole[order])


def test_epochs_and_seeds_augment_differently():
    windows, frames = windows_of(50)
    one = augment(seed=0, **ALL)
    first, second = one(windows, frames, 0), one(windows, frames, 1)
    assert not torch.equal(first, second)
    assert torch.equal(first, one(windows, frames, 0))
    assert not torch.equal(second, augment(seed=1, **ALL)(windows, frames, 0))


def test_clean_windows_are_not_touched():
    windows, frames = windows_of(20)
    for settings in (ALL, {"freq_mask": 3}, {"time_mask": 3}, {"noise": 1.0}):
        before = windows.clone()
        augment(**settings)(windows, frames, 0)
        assert torch.equal(windows, before)


def test_mask_widths_are_spread_evenly_and_reach_every_place():
    windows, frames = windows_of(20_000)
    hidden = augment(time_mask=8)(windows, frames, 0)[:, :, 0] == 0
    counts = torch.bincount(hidden.sum(1), minlength=9)
    assert len(counts) == 9
    assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert hidden.float().mean() == pytest.approx(4 / W, rel=0.03)
    assert hidden.any(0).all()
    changes = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert changes.max() <= 2


def test_probability_is_how_often_windows_are_masked():
    windows, frames = windows_of(20_000)
    masked = augment(freq_mask=4, probability=0.7)(windows, frames, 0)
    assert ((masked == 0).any(2).any(1)).float().mean() == pytest.approx(0.7 * 4 / 5, abs=0.02)
    assert torch.equal(augment(freq_mask=4, probability=0.0)(windows, frames, 0), windows)


def test_batch_mode_masks_the_whole_batch_alike():
    windows, frames = windows_of(100)
    how_often = []
    for step in range(200):
        one = augment(time_mask=8, freq_mask=4, mask_mode="batch", probability=0.7)
        one.set_step(3, step, windows.device)
        hidden = one(windows, frames, 3) == 0
        pieces = [one(windows[rows], frames[rows], 3) for rows in torch.arange(100).split(30)]
        assert torch.equal(torch.cat(pieces) == 0, hidden)
        assert torch.equal(hidden, hidden[:1].expand_as(hidden))
        how_often.append(bool(hidden.any()))
    assert np.mean(how_often) == pytest.approx(0.7 * (1 - 1 / 45), abs=0.1)


def test_noise_is_gaussian_of_the_deviation_asked_and_independent_between_places():
    windows, frames = windows_of(5_000)
    noise = (augment(noise=0.5)(windows, frames, 0) - windows).flatten(1).double()
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01)
    assert float((noise**4).mean() / noise.var() ** 2) == pytest.approx(3, abs=0.05)
    correlation = torch.corrcoef(noise.T).fill_diagonal_(0).abs().max()
    assert float(correlation) < 6 / 5_000**0.5


def test_masked_values_are_zero_under_noise_too():
    windows, frames = windows_of(500)
    settings = {"time_mask": 8, "freq_mask": 4}
    assert torch.equal(
        augment(noise=0.3, **settings)(windows, frames, 1) == 0, augment(**settings)(windows, frames, 1) == 0
    )


def test_nothing_asked_is_inactive_and_returns_the_windows_themselves():
    windows, frames = windows_of(3)
    off = augment()
    assert not off.active
    assert off(windows, frames, 0) is windows
    assert not augment(time_mask=3, probability=0.0).active
    assert augment(noise=0.1).active


def test_masks_never_exceed_the_window():
    windows, frames = windows_of(500)
    hidden = augment(freq_mask=D)(windows, frames, 0)[:, 0] == 0
    assert hidden.sum(1).max() == D
    with pytest.raises(ConfigError, match="augment.noise = -1"):
        AugmentConfig(noise=-1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_windows_that_the_kernel_would_misread_are_left_to_torch(monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    windows, frames = (tensor.to(DEVICE) for tensor in windows_of(60))
    wide = torch.zeros(60, W, 2 * D, device=DEVICE)
    wide[..., ::2] = windows
    apart = torch.stack([frames, frames], 1)[:, 0]
    one = augment(time_mask=8, freq_mask=4)
    wanted = one(windows, frames, 1)
    monkeypatch.setattr(cuda_layer, "runs_here", lambda windows: True)
    assert torch.equal(one(wide[..., ::2], frames, 1), wanted) and torch.equal(one(windows, apart, 1), wanted)
