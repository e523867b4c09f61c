"""The loader benchmark still runs, checks every way against plain slices and writes its conditions."""

import json
import subprocess
import sys
from pathlib import Path


def test_benchmark_runs_with_timing_off(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks/loader_throughput.py"
    out = tmp_path / "results.json"
    command = [sys.executable, "-W", "error", str(script), "--quick", "--profile", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"cpu", "cores", "versions", "commit", "device"} <= set(found["conditions"])
    assert len(found["results"]) == 2
    assert "DataLoader per item" in found["results"][0]["rates"]
    assert "loader 2 threads" in done.stdout
