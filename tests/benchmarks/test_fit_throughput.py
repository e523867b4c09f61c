"""The training benchmark runs in full on tiny nets: its lines cannot rot, whatever its numbers."""

import json

from tests.forked import run_benchmark


def test_quick_run_checks_the_losses_and_writes_every_table(tmp_path):
    out = tmp_path / "fit.json"
    words = ("--quick", "--profile", "--device", "cpu", "--json", out, "--plot", tmp_path / "fit.png")
    run_benchmark("fit_throughput.py", *words, output=tmp_path / "told.txt")
    written = json.loads(out.read_text())
    assert written["benchmark"] == "fit_throughput" and written["conditions"]["versions"]["torch"]
    assert [result["net"] for result in written["results"]] == ["cylinder5", "hourglass17"]
    for result in written["results"]:
        assert set(result["seconds_a_step"]) == {"ours", "notebook", "products", "scoring"}
        assert abs(sum(result["profile"].values()) - 1) < 1e-6
    assert all(row["calculated"] and row["launches"] > 50 for row in written["t4"])
    (fed,) = written["with_loader"]
    assert set(fed["frames_per_second"]) == {"given", "host", "resident", "slab", "notebook"}
    assert (tmp_path / "fit.png").stat().st_size > 1000
