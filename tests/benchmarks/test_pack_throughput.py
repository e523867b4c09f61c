"""The packing benchmark still runs and still checks what it times; timing itself is not tested."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks/pack_throughput.py"


def test_benchmark_runs_and_checks_every_result(tmp_path):
    command = [sys.executable, BENCHMARK, "--utterances", "12", "--repeats", "1"]
    command += ["--folder", tmp_path, "--json", tmp_path / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "one worker:" in done.stdout and "two workers:" in done.stdout
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    frames = {way: runs[way][0]["result"] for way in ("obvious", "pack 1 worker", "pack 2 workers", "pack_utterances")}
    assert len(set(frames.values())) == 1
    assert not [p for p in tmp_path.iterdir() if p.name != "result.json"]
