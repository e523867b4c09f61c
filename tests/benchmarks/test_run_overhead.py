"""The overhead benchmark makes a whole run and accounts for all of its time, whatever the shares."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_short_run_accounts_for_its_whole_time(tmp_path):
    script, out = Path(__file__).parents[2] / "benchmarks/run_overhead.py", tmp_path / "overhead.json"
    command = [
        sys.executable,
        "-W",
        "error",
        str(script),
        "--minutes",
        "0.05",
        "--utterances",
        "6",
        "--json",
        str(out),
        "model.max_parameters=100000",
        "batch_size=256",
        "tracking.log_every=2",
        "device=cpu",
    ]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert told.returncode == 0, told.stderr
    written = json.loads(out.read_text())
    parts = [value for name, value in written.items() if name.endswith("_s") and name != "wall_s"]
    assert abs(sum(parts) - written["wall_s"]) < 1e-6
    assert written["train_batches_s"] > 0 and written["checkpoints"] > 0 and 0 <= written["overhead_share"] <= 1
