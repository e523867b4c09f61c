"""The benchmark of trained nets predicts, finds paths and transcribes, whatever the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("soundfile", reason="the extra [audio] is not installed")
pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux's /proc")
@pytest.mark.long
def test_every_number_is_measured(tmp_path):
    script, out = Path(__file__).parents[2] / "benchmarks/inference.py", tmp_path / "inference.json"
    command = [sys.executable, "-W", "error", str(script), "--frames", "8000", "--parameters", "100000",
               "--minutes", "0.1", "--json", str(out)]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    written = json.loads(out.read_text())
    assert written["frames"] == 8000 and 50_000 < written["parameters"] <= 100_000
    numbers = ("predict_s", "predict_viterbi_s", "peak_mb", "path_frames_per_s", "times_real_time")
    assert all(written[name] > 0 for name in numbers)
