"""Several processes train as one: the same losses, one writer, and after a kill on from the checkpoint."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from phonedata import PackedCorpus
from phonetrain import distributed
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.distributed import ProcessGroup, current, init, reduce_norms
from phonetrain.errors import ConfigError
from phonetrain.runs.directory import Run
from phonetrain.training.fit import begun_before, fit, launch_id
from tests.forked import call_ranks
from tests.training import TINY

ROOT = Path(__file__).parents[2]
PLAIN = (*TINY, "model.dropout=0.0", "augment.time_mask=0", "augment.freq_mask=0", "epochs=1", "precision=fp32")


def last_of_each(settings) -> list[str]:
    """The command line refuses a key that is given twice."""
    return [f"{key}={value}" for key, value in dict(setting.split("=", 1) for setting in settings).items()]


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics("train")] + [line["dev_loss"] for line in run.metrics("epoch")]


WAYS = {
    "batch norm": ("model.norm=batch",),
    "layer norm, clipped": ("model.norm=layer", "optimizer.clip_norm=0.5"),
    "no norm, odd slices": ("model.norm=none", "batch_size=255"),
    "rms norm, in parts": ("model.norm=rms", "optimizer.accumulation=2"),
    # Not batch norm in parts: a part's frames, which it is normalised by, are others when two processes cut.
    "batch norm, residual, smoothed": ("model.norm=batch", "model.residual=true", "loss.label_smoothing=0.1"),
}


def fit_plainly(name: str, corpus: Path, run: Path) -> Run:
    config = load_recipe("default").override(last_of_each(PLAIN + WAYS[name]))
    return fit(config=config, corpus=corpus, run=run, console=Console())


def fit_in_all_ways(corpus: Path, folder: Path) -> None:
    with init("cpu"):
        for name in WAYS:
            fit_plainly(name, corpus, folder / name)


@pytest.fixture(scope="module")
def runs_of_two(learnable_corpus, tmp_path_factory) -> Path:
    """A folder of runs that two processes trained, one for each of WAYS."""
    folder = tmp_path_factory.mktemp("two")
    told = call_ranks(2, fit_in_all_ways, learnable_corpus.path, folder, output=folder / "told.txt")
    # Of several processes one talks: each of the runs warns once of its long warm-up.
    assert told.count("warm-up (") == len(WAYS)
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_have_the_losses_of_one(name, runs_of_two, learnable_corpus, tmp_path):
    one, two = fit_plainly(name, learnable_corpus.path, tmp_path / "one"), Run(runs_of_two / name)
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    assert [line["accuracy"] for line in two.metrics("train")] == pytest.approx(
        [line["accuracy"] for line in one.metrics("train")], abs=3e-3
    )
    assert two.metrics("epoch")[0]["frames"] == one.metrics("epoch")[0]["frames"]
    # One writer: every event and every line of a step stands once.
    steps = [line["step"] for line in two.all_metrics("train")]
    assert len(steps) == len(set(steps)) > 3
    assert [event["event"] for event in two.events()].count("run_started") == 1
    assert two.status == "finished"


def test_devices_2_gives_what_two_processes_started_from_outside_give(runs_of_two, learnable_corpus, tmp_path):
    name = "batch norm"
    config = load_recipe("default").override([*last_of_each(PLAIN + WAYS[name]), "devices=2"])
    run = fit(config=config, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    assert losses(run) == losses(Run(runs_of_two / name)) and run.status == "finished"
    assert run.read_json(run.built_path)["machine"]["ranks"] == 2


def fit_poisoned(corpus: Path, run: Path) -> None:
    settings = last_of_each((*PLAIN, "model.norm=layer", "guard.policy=skip", "window.left=0", "window.right=0"))
    config = load_recipe("default").override(settings)
    with init("cpu"):
        fit(config=config, corpus=corpus, run=run, console=Console())


def test_evidence_is_of_the_rank_whose_slice_went_bad(learnable_corpus, tmp_path):
    """Several frames are infinite, so that each rank has some; every finding names windows and its own frames."""
    shutil.copytree(learnable_corpus.path, tmp_path / "packed")
    partition = PackedCorpus(tmp_path / "packed")["train-clean"]
    rows = partition.utterance_start_row + 3
    poisoned = np.memmap(partition.features.filename, partition.features.dtype, "r+", shape=partition.features.shape)
    poisoned[rows[:6], 1] = np.inf
    run = Run(tmp_path / "run")
    told = call_ranks(2, fit_poisoned, tmp_path / "packed", run.path, output=tmp_path / "told.txt")
    found = run.events("nonfinite")
    assert len(found) > 2
    assert {event["where"] for event in found} == {"windows"}
    assert told.count("not finite at step") == len(found)
    bad = {partition.utterance_ids[place] for place in range(6)}
    for event in found:
        finding = json.loads((run.evidence / event["evidence"] / "nonfinite.json").read_text())
        assert finding["bad_utterances"] and set(finding["bad_utterances"]) <= bad


RESTARTED = """
import os, pathlib, sys, time
from phonetrain.cli.main import exit_code
if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" and os.environ["RANK"] == "0":
    time.sleep(3)  # the other looks for this one's address before it is written
code = exit_code(sys.argv[2:])
names = [task.read_text().strip() for task in pathlib.Path("/proc/self/task").glob("*/comm")]  # where it is Linux
pathlib.Path(sys.argv[1], "threads-" + os.environ["RANK"]).write_text(" ".join(names))
sys.exit(code)
"""


def test_killed_process_is_started_again_and_goes_on_from_the_checkpoint(learnable_corpus, tmp_path):
    """Those started again do not look for the dead, and at the end leave no thread of their group: one that was left
    aborted the interpreter's exit now and then, `terminate called without an active exception`."""
    run = Run(tmp_path / "run")
    settings = last_of_each((*PLAIN, "epochs=60", "checkpoint.every_minutes=0.002"))
    arguments = ["fit", "default", *settings, "--corpus", str(learnable_corpus.path), "--run", str(run.path)]
    (tmp_path / "again.py").write_text(RESTARTED)
    # Without `--` the argparse of Python 3.11 takes our --run for an abbreviation of torchrun's own --run-path.
    script = ["--", str(tmp_path / "again.py"), str(tmp_path)]
    command = [*LAUNCH, "--nproc-per-node", "2", "--max-restarts", "1", *script, *arguments]
    words = tmp_path / "words.txt"
    with open(words, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
    try:
        wait_for(lambda: len(run.events("checkpoint_saved")) > 4, process, words)
        holder = int(run.lock_path.read_text())
        os.kill(holder, signal.SIGKILL)
        wait_for(lambda: len(run.events("segment_started")) > 1, process, words)
        second = run.events("segment_started")[-1]
        assert second["step"] > 0 and second["checkpoint"].startswith("step-")
        wait_for(lambda: run.events("checkpoint_saved")[-1]["segment"] == second["segment"], process, words)
        # A signal to torchrun reaches every rank; they agree on the step after which they stop.
        process.terminate()
        process.wait(timeout=60)
        wait_for(lambda: run.status == "SIGTERM", None, words)
        saved = run.events("checkpoint_saved")[-1]
        assert run.read_pointer("last") == saved["step"]
        threads = [(tmp_path / f"threads-{rank}").read_text() for rank in range(2)]
        assert "gloo" not in "".join(threads), threads
    finally:
        process.terminate()  # torchrun ends its workers; killed itself it would leave them behind
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        process.kill()


def wait_for(condition, process, said: Path, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, said.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize("launch", ["aaa", "none"])
def test_started_again_is_only_what_this_launch_began(tmp_path, monkeypatch, launch):
    """With --run the launch was not compared: a restart went on with whatever run was there."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    run = Run.create(tmp_path / "runs" / "old")
    run.config_path.write_text("epochs = 1\n")
    for of_another in ({}, {"launch": None}, {"launch": "none"}, {"launch": "bbb"}):
        run.append_event("run_started", **of_another)
    monkeypatch.chdir(tmp_path)
    assert begun_before(run.path) is None and begun_before(None) is None
    run.append_event("run_started", launch=launch_id())
    assert begun_before(run.path) == run.path and begun_before(None).name == "old"


def test_sums_over_ranks_keep_whole_numbers_whole_and_fractions_fractions(monkeypatch):
    """The first dtype won: a float64 behind an int64 lost its fraction, an int64 behind a float64 its last digits."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(2))  # the other rank gives the same
    large = 2**53 + 1  # no float64
    whole, fraction, short, number = (
        torch.tensor([large, -3]),
        torch.tensor(0.25, dtype=torch.float64),
        torch.tensor([[1.5, 2.5]]),
        torch.tensor(5, dtype=torch.int32),
    )
    ProcessGroup(world_size=2).sum_(whole, fraction, short, number)
    assert whole.tolist() == [2 * large, -6] and number.item() == 10
    assert fraction.item() == 0.5 and short.tolist() == [[3.0, 5.0]]


def test_one_process_alone_reduces_and_waits_for_nothing():
    ranks = ProcessGroup()
    tensor = torch.ones(3)
    ranks.sum_(tensor)
    assert torch.equal(tensor, torch.ones(3))
    assert (ranks.total(5), ranks.agree("deadline"), ranks.share("x")) == (5, "deadline", "x")
    assert ranks.device("auto") == "auto"
    with init() as found:
        assert found is current() and found.world_size == 1
    model = nn.Sequential(nn.BatchNorm1d(4))
    assert type(reduce_norms(model)[0]) is nn.BatchNorm1d


def check_norm() -> None:
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    with init("cpu") as ranks:
        torch.manual_seed(0)
        whole, weights = torch.randn(37, 6) * 3 + 5, torch.randn(37, 6)
        true = nn.BatchNorm1d(6)
        nn.init.normal_(true.weight)
        ours = reduce_norms(nn.Sequential(nn.BatchNorm1d(6)))
        ours[0].load_state_dict(true.state_dict())
        rows = slice(0, 11) if ranks.is_main else slice(11, 37)
        one, other = whole.clone().requires_grad_(), whole[rows].clone().requires_grad_()
        wanted, found = true(one), ours(other)
        (wanted * weights).sum().backward()
        (found * weights[rows]).sum().backward()
        ranks.sum_(ours[0].weight.grad, ours[0].bias.grad)
        close(found, wanted[rows])
        close(other.grad, one.grad[rows])
        close(ours[0].weight.grad, true.weight.grad)
        close(ours[0].bias.grad, true.bias.grad)
        close(ours[0].running_mean, true.running_mean)
        close(ours[0].running_var, true.running_var)
        ours.train()
        true.train()
        long = torch.randn(37, 6, 5)
        close(ours(long[rows]), true(long)[rows])
        close(ours[0].running_mean, true.running_mean)
        close(ours[0].running_var, true.running_var)
        assert ranks.agree("SIGTERM" if ranks.rank else None) == "SIGTERM"
        assert ranks.total(3 + ranks.rank) == 7
        assert ranks.share("a" if ranks.is_main else "b") == "a"
        with ranks.local_only():
            assert ranks.total(3) == 3
        ours.eval()
        true.eval()
        close(ours(whole), true(whole))


@pytest.mark.parametrize("norm", [
    nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4, track_running_stats=False),
    nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.InstanceNorm1d(4, track_running_stats=True),
])  # fmt: skip
def test_norm_that_cannot_be_summed_over_ranks_is_refused_by_name(monkeypatch, norm):
    model = nn.ModuleDict({"fine": nn.LayerNorm(4), "also": nn.InstanceNorm1d(4), "odd": norm})
    assert reduce_norms(model) is model
    monkeypatch.setattr("phonetrain.distributed._current", ProcessGroup(world_size=2))
    with pytest.raises(ConfigError, match="model: odd is .*Norm.*cannot be summed over 2 processes; wanted"):
        reduce_norms(model)


def test_norm_over_ranks_equals_torch_on_the_whole_batch(tmp_path):
    call_ranks(2, check_norm, output=tmp_path / "told.txt")


def test_process_that_waits_long_for_the_others_says_where(monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with distributed.told_if_waiting(0, 2):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(distributed, "LONG_WAIT_S", 0.0)
    with distributed.told_if_waiting(0, 2):
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join()
    assert (
        capsys.readouterr().err
        == "RANK 0 of WORLD_SIZE 2: waiting for another process at node1:29500, up to 30 minutes\n"
    )


def test_more_processes_than_gpus_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    launched = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    wanted = "process number 2 was started on a machine with 1 GPU; start at most 1 .*, or use device=cpu"
    with pytest.raises(ConfigError, match=wanted), init("auto"):
        pass
