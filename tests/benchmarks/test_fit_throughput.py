"""The training benchmark runs in full on tiny nets: its lines cannot rot, whatever its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_quick_run_checks_the_losses_and_writes_every_table(tmp_path):
    script, out = Path(__file__).parents[2] / "benchmarks/fit_throughput.py", tmp_path / "fit.json"
    command = [sys.executable, "-W", "error", str(script), "--quick", "--profile", "--device", "cpu"]
    command += ["--json", str(out), "--plot", str(tmp_path / "fit.png")]
    # Nets this small only wait for each other's threads.
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert told.returncode == 0, told.stderr
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
