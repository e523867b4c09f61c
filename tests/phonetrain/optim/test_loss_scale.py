"""LossScale does what torch.amp.GradScaler does, without the look from the host."""

import pytest
import torch

from phonetrain.optim.loss_scale import SMALLEST, LossScale


def test_scale_follows_grad_scaler_through_overflows_and_growth():
    ours = LossScale("cpu", initial=1024.0, interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    weight, mirror = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([mirror], lr=0.0)
    for number in range(14):
        bad = number in (2, 9, 10)
        factor = float("inf") if bad else 1.0
        weight.grad = (torch.arange(4.0) + 1) * ours.scale * factor
        optimizer.zero_grad()
        (theirs.scale((mirror * (torch.arange(4.0) + 1)).sum()) * factor).backward()
        theirs.step(optimizer)
        theirs.update()
        overflow = ours.unscale_([weight.grad])
        assert float(overflow) == float(bad)
        if not bad:
            torch.testing.assert_close(weight.grad, torch.arange(4.0) + 1)
        ours.update_(overflow, frozen=torch.tensor(0.0))
        assert float(ours.scale) == theirs.get_scale()


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_frozen_scale_stays(overflow):
    scale = LossScale("cpu", interval=1)
    scale.update_(torch.tensor(overflow), frozen=torch.tensor(1.0))
    assert float(scale.scale) == 65536.0
    assert int(scale.good_updates) == 0


def test_scale_has_a_floor_below_which_nothing_is_learnt():
    scale = LossScale("cpu", initial=2 * SMALLEST)
    for _ in range(3):
        scale.update_(torch.tensor(1.0), frozen=torch.tensor(0.0))
    assert float(scale.scale) == SMALLEST
