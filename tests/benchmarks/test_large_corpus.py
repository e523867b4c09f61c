"""The benchmark of large corpora makes, packs, verifies and loads one, whatever the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux's /proc")
def test_small_corpus_goes_through_every_part(tmp_path):
    script, out = Path(__file__).parents[2] / "benchmarks/large_corpus.py", tmp_path / "large.json"
    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "it"), "--hours", "0.05", "--seconds", "0.2",
               "--json", str(out)]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    written = json.loads(out.read_text())
    assert written["utterances"] == 14 and written["pack"]["peak_mb"] > 10
    assert list(written["orders"]) == ["global", "slab", "sequential"]
    assert all(found["windows_per_s"] > 0 for found in written["orders"].values())
