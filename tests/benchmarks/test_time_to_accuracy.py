"""The benchmark of time to accuracy runs in full on a toy corpus, and its arithmetic is checked by hand."""

import json
import math

import pytest

from benchmarks.time_to_accuracy import Reached, compare, interval, notebook_net, parameters
from tests.forked import run_benchmark


def test_it_trains_both_ways_and_writes_both_curves(learnable_corpus, tmp_path):
    out = tmp_path / "time.json"
    words = [learnable_corpus.path, "--runs", "2", "--notebook-epochs", "1", "--epochs", "2", "--parameters", "60000"]
    words += ["--device", "cpu", "--json", out, "batch_size=64", "window.left=3", "window.right=3"]
    words += ["augment.time_mask=0", "schedule.warmup_steps=2"]
    run_benchmark("time_to_accuracy.py", *words, output=tmp_path / "told.txt")
    written = json.loads(out.read_text())
    assert written["benchmark"] == "time_to_accuracy" and written["conditions"]["versions"]["torch"]
    for run in written["runs"]:
        curves = run["curves"]
        assert (len(curves["notebook"]), len(curves["phonetrain"])) == (1, 2)
        first, second = curves["phonetrain"]
        assert 0 < first["seconds"] < second["seconds"] and second["frames"] == 2 * first["frames"]


def test_the_clock_of_each_way_stops_when_it_is_first_as_good_as_the_notebooks_best():
    rival = [Reached(10, 100, 0.5), Reached(20, 200, 0.62), Reached(30, 300, 0.61)]
    told = compare(rival, [Reached(1, 50, 0.6), Reached(2, 100, 0.62), Reached(3, 150, 0.7)])
    assert (told["times_less_time"], told["times_fewer_frames"]) == (10, 2)
    missed = compare(rival, [Reached(1, 50, 0.6)])
    assert missed["times_less_time"] is None and missed["phonetrain"] is None and missed["phonetrain_best"] == 0.6


def test_the_interval_is_students_on_logarithms():
    low, high = interval([10.0, 20.0, 40.0])
    # Logarithms of base 2 around 20: -1, 0, 1, so a deviation of 1 and a standard error of 1 / sqrt(3).
    assert math.log2(high / 20) == pytest.approx(4.303 / math.sqrt(3))
    assert math.log2(low / 20) == pytest.approx(-4.303 / math.sqrt(3))
    assert interval([10.0]) is None


@pytest.mark.parametrize("cap", [60_000, 2_000_000])
def test_the_notebooks_net_uses_its_cap(cap):
    net = notebook_net(61 * 28, 40, cap)
    count, width = sum(p.numel() for p in net.parameters()), net[1].out_features
    assert count == parameters(61 * 28, width, 40) <= cap < parameters(61 * 28, width + 1, 40)
