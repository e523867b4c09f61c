"""The learning-rate range test: where the loss falls, is lowest and breaks; no run is written."""

import math

import numpy as np
import pytest

from phonetrain.errors import ConfigError
from phonetrain.planning.find_lr import find_lr, find_lr_text, judge, smooth
from tests.training import TINY


def test_smoothed_is_a_running_mean_whose_start_is_corrected():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    slow = [1.0, (4.0 + 0.9) / 1.9, (2.0 + 0.9 * 4.0 + 0.81) / 2.71]
    assert smooth([1.0, 4.0, 2.0]) == pytest.approx(slow)


def test_rates_are_read_off_a_known_curve():
    rates = np.geomspace(1e-6, 1.0, 120)
    decades = np.log10(rates)
    losses = 3.7 - 2.0 / (1 + np.exp(-4 * (decades + 3.5))) + 40 * np.clip(decades + 1, 0, None) ** 2
    told = judge(rates.tolist(), losses.tolist())
    assert 1e-4 < told["steepest"] < 1e-3 and 1e-2 < told["lowest"] < 0.3
    assert told["suggested"] == pytest.approx(told["lowest"] / 10) and told["diverged"] == rates[-1]


def test_a_sweep_breaks_where_the_loss_breaks_and_writes_only_its_picture(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = find_lr("default", *TINY, "model.norm=none", "optimizer.name=sgd", corpus=learnable_corpus.path, high=1e6,
                   steps=60)  # fmt: skip
    assert told["diverged"] is not None and len(told["rates"]) == len(told["losses"]) < 60
    assert math.isfinite(told["suggested"]) and told["lowest"] < told["diverged"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["lr-range.png"]
    assert "suggested: optimizer.lr=" in find_lr_text(told)


def test_impossible_ranges_are_refused():
    with pytest.raises(ConfigError, match="wanted 0 < low < high"):
        find_lr(low=1.0, high=0.1)
