"""The overhead benchmark makes a whole run and accounts for all of its time, whatever the shares."""

import json

from tests.forked import run_benchmark


def test_short_run_accounts_for_its_whole_time(tmp_path):
    out = tmp_path / "overhead.json"
    settings = ("model.max_parameters=100000", "batch_size=256", "tracking.log_every=2", "device=cpu")
    words = ("--minutes", "0.02", "--utterances", "6", "--json", out, *settings)
    run_benchmark("run_overhead.py", *words, output=tmp_path / "told.txt")
    written = json.loads(out.read_text())
    parts = [value for name, value in written.items() if name.endswith("_s") and name != "wall_s"]
    assert abs(sum(parts) - written["wall_s"]) < 1e-6
    assert written["train_batches_s"] > 0 and written["checkpoints"] > 0 and 0 <= written["overhead_share"] <= 1
