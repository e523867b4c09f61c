"""The benchmark of clusters still runs and compares what it times; timing itself is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/cluster.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux's /proc")
def test_benchmark_runs_and_plans_the_chunks_of_its_hours(tmp_path):
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    command = [sys.executable, BENCHMARK, "--utterances", "12", "--repeats", "1", "--hours", "2"]
    done = subprocess.run(
        [*command, "--folder", tmp_path, "--json", tmp_path / "it.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "it.json").read_text())
    assert [len(seconds) for seconds in found["seconds"].values()] == [1, 1]
    assert {name: plan["chunks"] for name, plan in found["plans"].items()} == {"utterance": 12, "speaker": 12}
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]
