"""The benchmark of large corpora makes, packs, verifies and loads one, whatever the numbers."""

import json
from pathlib import Path

import pytest

from tests.forked import run_benchmark


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux's /proc")
def test_small_corpus_goes_through_every_part(tmp_path):
    out = tmp_path / "large.json"
    words = (tmp_path / "it", "--hours", "0.05", "--seconds", "0.2", "--json", out)
    run_benchmark("large_corpus.py", *words, output=tmp_path / "told.txt")
    written = json.loads(out.read_text())
    assert written["utterances"] == 14 and written["pack"]["peak_mb"] > 10
    assert list(written["orders"]) == ["global", "slab", "sequential"]
    assert all(found["windows_per_s"] > 0 for found in written["orders"].values())
