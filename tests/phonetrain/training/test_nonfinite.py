"""Numbers that go bad: found, named, kept as evidence, then left out, rolled back or stopped for; and warnings."""

import json
import math
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from phonedata import PackedCorpus, WindowBatch, pack
from phonetrain.checkpoints import checkpoint, series
from phonetrain.checkpoints.state import Progress
from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.console.base import Console
from phonetrain.errors import TrainingStopped
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.training import nonfinite
from phonetrain.training.fit import fit
from phonetrain.training.nonfinite import ENDLESS_OVERFLOWS, ODD_OVERFLOWS
from phonetrain.training.recovery import CONSECUTIVE_SKIPS, KEPT_EVIDENCE, Evidence, Recovery, SkipBatch, Stop
from phonetrain.training.session import prepare
from phonetrain.training.trainer import Trainer
from tests import reference
from tests.conftest import write_hw1p2
from tests.phonetrain.step.test_cuda_graph import loader_of, make_step
from tests.training import TINY, StopAt, change_state, fit_tiny, numbers, resume_tiny

POISONED = "t3-13-0000"
ONE_FRAME = (
    "window.left=0",
    "window.right=0",
    "augment.time_mask=0",
    "augment.freq_mask=0",
    "averaging.decay=none",
    "batch_size=128",
    "epochs=2",
)
PLAIN_RATE = ("optimizer.lr=1e-3", "schedule.name=constant", "schedule.warmup_steps=none")
# 20 layers of nan20 as small as they still overflow; what they do on this data is checked below without the guard.
NAN20 = (
    "model.max_parameters=100000",
    "batch_size=128",
    "window.left=5",
    "window.right=5",
    "optimizer.lr=0.2",
    "subset=1.0",
    "epochs=2",
    "tracking.wandb=off",
    "tracking.log_every=4",
    "device=cpu",
)


@pytest.fixture(scope="module")
def poisoned_corpus(tmp_path_factory) -> PackedCorpus:
    """1,600 training frames, D = 5, without CMVN; one value was made infinite on disk after packing."""
    root = tmp_path_factory.mktemp("poisoned")
    random = np.random.default_rng(3)
    for partition, count in (("train-clean", 16), ("dev-clean", 2)):
        utterances = {}
        for u in range(count):
            classes = random.integers(0, 40, 100)
            features = (random.normal(size=(100, 5)) + classes[:, None] / 20).astype(np.float32)
            utterances[f"{partition[0]}{u // 4}-{u}-0000"] = features, classes
        write_hw1p2(root / "raw", partition, utterances)
    pack(root / "raw", root / "packed", cmvn="none", dtype="float32")
    partition = PackedCorpus(root / "packed")["train-clean"]
    row = partition.utterance_start_row[partition.utterance_ids.index(POISONED)] + 42
    np.memmap(partition.features.filename, "<f4", "r+", shape=partition.features.shape)[row, 3] = np.inf
    return PackedCorpus(root / "packed")


def tiny_config(*overrides: str) -> RunConfig:
    return load_recipe("default").override(TINY).override(overrides)


# A bad frame: the data's fault


@pytest.fixture(scope="module")
def skipping(poisoned_corpus, tmp_path_factory) -> Run:
    return fit_tiny(poisoned_corpus, tmp_path_factory.mktemp("skip") / "run", *ONE_FRAME, "guard.policy=skip")


def test_skip_trains_through_a_bad_frame_and_says_which_utterance(skipping):
    assert skipping.status == "finished"
    found = skipping.events("nonfinite")
    assert [event["where"] for event in found] == ["windows", "windows"]  # once an epoch
    assert all(POISONED in event["message"] for event in found)
    assert [event["by"] for event in skipping.events("recovered")] == ["skip", "skip"]
    lines = skipping.metrics("epoch")
    assert [line["frames"] for line in lines] == [11 * 128] * 2  # of 12 batches
    assert all(math.isfinite(line[name]) for line in lines for name in ("train_loss", "dev_loss"))


def test_evidence_holds_the_batch_its_utterances_and_the_weights(skipping, poisoned_corpus):
    kept = skipping.evidence / skipping.events("nonfinite")[0]["evidence"]
    told = json.loads((kept / "nonfinite.json").read_text())
    batch, model = load_file(kept / "batch.safetensors"), load_file(kept / "model.safetensors")
    bad = ~torch.isfinite(batch["windows"].flatten(1)).all(1)
    assert batch["frames"][bad].tolist() == told["bad_frames"]
    assert told["bad_utterances"] == [POISONED]
    assert POISONED in told["utterances"]
    assert len(told["utterances"]) > 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.values())


def weights_of(run: Run) -> bytes:
    return (run.checkpoint_dir(run.read_pointer("last")) / "model.safetensors").read_bytes()


def test_stopped_for_a_bad_frame_and_resumed_with_skip_equals_skipping_at_once(poisoned_corpus, skipping, tmp_path):
    with pytest.raises(TrainingStopped, match="guard.policy=skip` leaves such batches out") as stopped:
        fit_tiny(poisoned_corpus, tmp_path / "run", *ONE_FRAME)
    assert POISONED in str(stopped.value)
    assert "\n" not in str(stopped.value)
    run = Run.open(tmp_path / "run")
    assert str(stopped.value) in " ".join(explain(run))
    assert "guard.policy=skip` leaves" in explain(run)[-1] and "optimizer.lr" not in explain(run)[-1]
    resume_tiny(run, "guard.policy=skip")
    assert numbers(run) == numbers(skipping)
    assert weights_of(run) == weights_of(skipping)


def test_step_that_went_bad_unseen_is_found_before_a_checkpoint_hides_it(
    poisoned_corpus, skipping, tmp_path, monkeypatch
):
    """As on CUDA, where the host looks at its log interval: here a signal comes between the bad step and that."""
    monkeypatch.setattr(Trainer, "sees_every_step", False)
    bad = skipping.events("nonfinite")[0]["step"]
    monkeypatch.setattr(Trainer, "own_reason", lambda trainer: "SIGTERM" if trainer.progress.step == bad + 2 else None)
    run = fit_tiny(poisoned_corpus, tmp_path / "run", *ONE_FRAME, "guard.policy=skip", "tracking.log_every=1000")
    assert [event["step"] for event in run.events("nonfinite")] == [bad]
    monkeypatch.undo()
    resume_tiny(run)
    assert [line["frames"] for line in run.metrics("epoch")] == [11 * 128] * 2
    assert weights_of(run) == weights_of(skipping)


def test_replay_is_the_step_that_went_bad_in_its_parts(learnable_corpus):
    for accumulation in (1, 4):
        with loader_of(learnable_corpus) as loader:
            step, batch = make_step(learnable_corpus, accumulation=accumulation), loader.batch(0, 0)
            step(*batch, epoch=0, step=7, rate=0.0)
            loss = step.metrics.result()["loss"]
            assert nonfinite.replay(step, batch, epoch=0, number=7).loss == pytest.approx(loss, rel=1e-6)


def test_rate_set_by_hand_after_rollbacks_is_the_rate_that_is_trained_with(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", *PLAIN_RATE, console=StopAt(10))
    last = run.checkpoint_dir(run.read_pointer("last"))
    change_state(last, lambda state: state["progress"].update(rate_scale=0.1, rollbacks=2))
    resume_tiny(run, console=StopAt(16))
    assert run.metrics("train")[-1]["lr"] == pytest.approx(1e-4)
    resume_tiny(run, "optimizer.lr=5e-4")
    assert run.metrics("train")[-1]["lr"] == pytest.approx(5e-4)


def test_rate_of_a_stage_is_trained_with_after_rollbacks_and_rolled_back_in_its_turn(learnable_corpus, tmp_path):
    stages = "stage=[{epochs=1}, {epochs=2, optimizer.lr=2e-4}]"
    run = fit_tiny(learnable_corpus, tmp_path / "run", *PLAIN_RATE, stages, "checkpoint.keep=9", console=StopAt(10))
    last = run.checkpoint_dir(run.read_pointer("last"))
    change_state(last, lambda state: state["progress"].update(rate_scale=0.1, rollbacks=2))
    resume_tiny(run)
    rates = {line["epoch"]: line["lr"] for line in run.metrics("train") if line["segment"] == 1}
    assert rates == {0: pytest.approx(1e-4), 1: 2e-4, 2: 2e-4}
    began = next(event["step"] for event in run.events("config_changed"))
    saved = checkpoint.read(run.checkpoint_dir(began))
    assert (saved.identity["stage"], saved.progress.rate_scale, saved.progress.rollbacks) == (1, 1.0, 0)


def test_values_that_float16_cannot_hold_train_in_fp32(tmp_path):
    random = np.random.default_rng(4)
    for partition in ("train-clean", "dev-clean"):
        made = {
            f"{u}-0-0000": ((random.normal(size=(200, 5)) * 1e5).astype(np.float32), random.integers(0, 40, 200))
            for u in range(4)
        }
        write_hw1p2(tmp_path / "raw", partition, made)
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="none", dtype="float32")
    run = fit_tiny(PackedCorpus(tmp_path / "packed"), tmp_path / "run", *ONE_FRAME, "precision=fp32")
    assert run.status == "finished" and not run.events("nonfinite")


def test_decision_moves_nothing(poisoned_corpus, tmp_path):
    """The trainer asks and applies: after 10 batches in a row the eleventh is a reason to stop."""
    config = tiny_config(*ONE_FRAME, f"data.corpus={poisoned_corpus.path}")
    setup, run = prepare(config, poisoned_corpus).setup, Run.create(tmp_path / "run", "run")
    recovery, report = Recovery(run), nonfinite.NonfiniteReport("loss", "cross entropy", "output", None)
    for step in range(CONSECUTIVE_SKIPS + 1):
        setup.state.progress.step = step
        decision = recovery.decide(setup, Evidence(report, None), "skip", since=0)
        assert setup.state.progress == Progress(step=step)
        assert isinstance(decision, SkipBatch if step < CONSECUTIVE_SKIPS else Stop)
    setup.close()
    assert decision.before is None and f"after {CONSECUTIVE_SKIPS} batches in a row" in decision.message
    assert not run.events() and not series.saved_steps(run)


def test_rollback_cannot_mend_data_and_stops_after_its_tries(poisoned_corpus, tmp_path):
    with pytest.raises(TrainingStopped, match="after 2 rollbacks"):
        fit_tiny(poisoned_corpus, tmp_path / "run", *ONE_FRAME, "guard.policy=rollback", "guard.max_rollbacks=2")
    run = Run.open(tmp_path / "run")
    assert [event["rate_scale"] for event in run.events("recovered")] == [0.5, 0.25]


def test_skip_stops_where_every_batch_is_bad(learnable_corpus, tmp_path):
    with pytest.raises(TrainingStopped, match=f"{CONSECUTIVE_SKIPS} batches in a row") as stopped:
        fit_tiny(
            learnable_corpus,
            tmp_path / "run",
            "optimizer.lr=1e30",
            "schedule.warmup_steps=none",
            "averaging.decay=none",
            "model.norm=none",
            "guard.policy=skip",
        )
    run = Run.open(tmp_path / "run")
    assert len(run.events("recovered")) == CONSECUTIVE_SKIPS
    assert len(run.events("nonfinite")) == CONSECUTIVE_SKIPS + 1
    kept = {path.name for path in run.evidence.iterdir()}
    assert kept == {event["evidence"] for event in run.events("nonfinite")[-KEPT_EVIDENCE:]}
    assert set(re.findall(r"\(evidence/(.*?)\)", " ".join(explain(run)))) == kept
    assert f"evidence is in {run.evidence / run.events('nonfinite')[-1]['evidence']}," in str(stopped.value)


def test_evidence_of_tied_weights_is_kept(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    batch = WindowBatch(torch.zeros(2, 1, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    nonfinite.save_evidence(
        tmp_path / "kept", nonfinite.NonfiniteReport("loss", "cross entropy", "output", None), batch, model
    )
    assert load_file(tmp_path / "kept" / "model.safetensors")["1.weight"].equal(model[0].weight)


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX's")
def test_evidence_that_a_full_disk_refuses_is_not_told_of(poisoned_corpus, tmp_path, monkeypatch):
    import resource

    real, (size, most) = nonfinite.save_evidence, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(*parts):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
        try:
            real(*parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

    monkeypatch.setattr(nonfinite, "save_evidence", on_a_full_disk)
    with pytest.raises(TrainingStopped, match=POISONED) as stopped:
        fit_tiny(poisoned_corpus, tmp_path / "run", *ONE_FRAME)
    run = Run(tmp_path / "run")
    assert "evidence is in" not in str(stopped.value)
    assert run.events("nonfinite")[0]["evidence"] is None and not list(run.evidence.iterdir())


# Rates that are too high


def test_nan20_without_the_guard_is_nan_and_stays_so(learnable_corpus):
    from phonedata import WindowSpec, open_loader
    from phonetrain.model.classifier import build_model

    config = load_recipe("nan20").override(NAN20)
    torch.manual_seed(config.seed)
    model = build_model(config, feature_dim=12, num_classes=40)
    with open_loader(learnable_corpus, "train-clean", window=WindowSpec(5, 5), batch_size=128) as loader:
        made = [(batch.windows.clone(), batch.labels.clone()) for batch in loader.epoch(0)]
    losses = reference.train_plainly_in_fp16(model, made, lr=config.optimizer.lr)
    assert math.isfinite(losses[0])
    assert sum(not math.isfinite(loss) for loss in losses) > len(losses) / 2


@pytest.fixture(scope="module")
def rolled_back(learnable_corpus, tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("nan20") / "run"
    return fit(
        "nan20",
        *NAN20,
        "guard.policy=rollback",
        "guard.rollback_factor=0.1",
        corpus=learnable_corpus.path,
        run=path,
        console=Console(),
    )


def test_nan20_stops_and_says_why(learnable_corpus, tmp_path):
    with pytest.raises(TrainingStopped, match=r"output of hidden\.\d+.* \[\w+\] \(largest value going in") as stopped:
        fit("nan20", *NAN20, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    assert "learning rate 0.2, fp16, loss scale" in str(stopped.value)
    assert "optimizer.lr=0.02" in str(stopped.value)


def test_every_command_that_a_stopped_run_tells_goes_past_the_bad_step(learnable_corpus, tmp_path, capsys):
    """The checkpoint of a stop holds the weights that went bad, whose next step goes bad at any rate."""
    run = Run(tmp_path / "a run")
    with pytest.raises(TrainingStopped) as stopped:
        fit(
            "nan20",
            *(text.replace("epochs=2", "epochs=1").replace("subset=1.0", "subset=0.3") for text in NAN20),
            "checkpoint.keep=1",
            corpus=learnable_corpus.path,
            run=run.path,
            console=Console(),
        )
    bad, told = run.events("nonfinite")[-1]["step"], str(stopped.value).split("`")[1::2]
    assert bad == run.read_pointer("last") and told == explain(run)[-1].split("`")[1::2]
    shutil.copytree(run.path, tmp_path / "kept")
    for command, setting in zip(told, ("--from step-0 optimizer.lr=0.02", "guard.policy=rollback", "precision=fp32")):
        assert command == f"phonetrain resume '{run.path}' {setting}"
        assert exit_code([*shlex.split(command)[1:], "--quiet"]) == 0, capsys.readouterr().err
        assert run.status == "finished" and run.metrics("epoch")[-1]["step"] > bad
        assert run.read_pointer("before_nonfinite") is None
        shutil.rmtree(run.path)
        shutil.copytree(tmp_path / "kept", run.path)
    with pytest.raises(TrainingStopped, match="step-0 optimizer.lr=0.02"):
        resume_tiny(run)
    assert [path.name for path in run.evidence.iterdir()] == [f"segment-0-step-{bad}", f"segment-1-step-{bad}"]


def test_only_the_segment_that_ended_by_bad_numbers_asks_for_a_change(learnable_corpus, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(TrainingStopped):
        fit("nan20", *NAN20, corpus=learnable_corpus.path, run=run.path, console=Console())
    run.append_event("segment_started", segment=1, step=0)
    run.append_event("segment_ended", segment=1, step=0, reason="TrainingStopped", message="the disk is full")
    assert explain(run)[-1] == f"It has not ended: phonetrain resume {run.path} goes on from the last checkpoint."


def test_rollback_without_an_older_checkpoint_stops_and_says_so(learnable_corpus, tmp_path):
    """A checkpoint of every step, of which the newest is kept: it holds the weights that go bad next."""
    with pytest.raises(TrainingStopped, match="no checkpoint of before it is there") as stopped:
        fit(
            "nan20",
            *NAN20,
            "guard.policy=rollback",
            "checkpoint.every_minutes=1e-9",
            "checkpoint.keep=1",
            corpus=learnable_corpus.path,
            run=tmp_path / "run",
            console=Console(),
        )
    run = Run(tmp_path / "run")
    assert not run.events("recovered")
    (command,) = str(stopped.value).split("`")[1::2]
    assert command == f"phonetrain resume {run.path} precision=fp32"


def test_nan20_trains_through_with_rollback(rolled_back):
    assert rolled_back.status == "finished"
    back = rolled_back.events("recovered")
    assert back and all(event["by"] == "rollback" for event in back)
    assert all(math.isfinite(line["train_loss"]) for line in rolled_back.metrics("epoch"))
    scales = {line["lr"] / 0.2 for line in rolled_back.metrics("train")}
    assert back[-1]["rate_scale"] == pytest.approx(min(scales))
    assert any("rolled back" in sentence for sentence in explain(rolled_back))


def test_rolled_back_run_interrupted_equals_the_uninterrupted_one(learnable_corpus, rolled_back, tmp_path):
    path = tmp_path / "run"
    fit(
        "nan20",
        *NAN20,
        "guard.policy=rollback",
        "guard.rollback_factor=0.1",
        corpus=learnable_corpus.path,
        run=path,
        console=StopAt(60),
    )
    run = Run.open(path)
    assert run.status == "SIGTERM"
    resume_tiny(run)
    assert numbers(run) == numbers(rolled_back)


def test_rollback_over_the_edge_of_a_stage_takes_that_stages_parts(learnable_corpus, tmp_path):
    config = tiny_config(
        "averaging.decay=none",
        "model.norm=none",
        "guard.policy=rollback",
        "epochs=2",
        "guard.rollback_factor=1e-6",
        "schedule.warmup_steps=none",
    )
    config = RunConfig.from_dict(
        config.to_dict() | {"stage": [{"epochs": 1}, {"epochs": 1, "optimizer.lr": 1e6, "optimizer.weight_decay": 0.3}]}
    )
    run = fit(config=config, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    assert run.status == "finished"
    assert run.events("recovered")
    assert run.read_json(run.built_path)["optimizer"]["groups"][0]["weight_decay"] == 0.3
    last = run.metrics("train")[-1]
    assert last["lr"] <= 1.0


def test_rollback_over_the_edge_of_a_stage_that_no_rate_mends_stops(learnable_corpus, tmp_path):
    """Every time it comes to the edge, the stage's own rate is set and its rollbacks are counted from 0."""
    config = tiny_config(
        "averaging.decay=none", "model.norm=none", "guard.policy=rollback", "epochs=2", "schedule.warmup_steps=none"
    )
    config = RunConfig.from_dict(
        config.to_dict() | {"stage": [{"epochs": 1}, {"epochs": 1, "optimizer.lr": 5e-4, "augment.noise": 1e38}]}
    )
    with pytest.raises(TrainingStopped, match="stopped after 3 rollbacks"):
        fit(config=config, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    run = Run(tmp_path / "run")
    assert {event["step"] for event in run.events("nonfinite")} == {23}
    assert [event["rate_scale"] for event in run.events("recovered")] == [0.5, 0.25, 0.125]


def test_divergence_is_warned_of_with_the_numbers(learnable_corpus, tmp_path):
    config = tiny_config("schedule.name=constant", "averaging.decay=none")
    config = RunConfig.from_dict(config.to_dict() | {"stage": [{"epochs": 2}, {"epochs": 1, "optimizer.lr": 3.0}]})
    run = fit(config=config, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    told = [event for event in run.events("warning") if "diverging" in event["message"]]
    assert told
    seen = next(line for line in run.metrics("train") if line["step"] == told[0]["step"])
    assert f"{seen['loss']:.4g} at step {seen['step']}" in told[0]["message"]
    assert "--find-lr" in told[0]["message"]


def test_divergence_is_told_once_an_excursion():
    watch = nonfinite.DivergenceWatch(2.0)
    said = [watch.look(loss, step, 1e-3) is not None for step, loss in enumerate([3, 2, 2, 9, 9, 2, 2, 2, 2, 2, 2, 30])]
    assert said == [False, False, False, True, False, False, False, False, False, False, False, True]
    watch.forget()
    assert watch.look(1e9, 0, 1e-3) is None


@pytest.mark.parametrize(
    ("loss", "answered", "said"),
    [
        (math.log(40), 40, "learnt nothing"),
        (3.0, 1, "same phoneme"),
        (3.0, 2, None),
        (3.5, 40, None),
        (math.nan, 1, "same phoneme"),
    ],
)
def test_dead_net_is_told_from_a_slow_one(loss, answered, said):
    message = nonfinite.dead_net(loss, answered, num_classes=40)
    assert (message is None) if said is None else said in message


def test_a_net_that_always_answers_another_than_the_commonest_phoneme_is_named(tmp_path):
    """Its loss is below guessing blindly, its accuracy is no class's that anybody would look for."""
    random = np.random.default_rng(0)
    shares = np.array([0.5, 0.3] + [0.2 / 38] * 38)
    for name, count in (("train", 20), ("dev", 4)):
        drawn = [(random.normal(size=(200, 3)), random.choice(40, 200, p=shares)) for _ in range(count)]
        write_hw1p2(tmp_path / "raw", name, {f"{u}-0-0": one for u, one in enumerate(drawn)})
    pack(tmp_path / "raw", tmp_path / "packed")
    (tmp_path / "one.py").write_text(
        "import torch\n"
        "class Constant(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.logits = torch.nn.Parameter(torch.tensor({np.log(shares).tolist()}))\n"
        "        with torch.no_grad():\n"
        "            self.logits[1] = self.logits[0] + 0.1\n"
        "    def forward(self, windows):\n"
        "        return self.logits.expand(len(windows), -1)\n"
        "def build(**_):\n"
        "    return Constant()\n"
    )
    settings = [each for each in TINY if not each.startswith(("epochs", "model.", "window."))]
    run = fit("default", *settings, f"model.factory={tmp_path}/one.py:build", "optimizer.lr=1e-9", "epochs=1",
              corpus=tmp_path / "packed", run=tmp_path / "run", console=Console())  # fmt: skip
    assert run.metrics("epoch")[0]["dev_loss"] < 0.98 * math.log(40)
    assert [event for event in run.events("warning") if "same phoneme for every frame" in event["message"]]


# Gradients that overflow in fp16


STEEP = """
import torch
from torch import nn

class Steep(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * {factor}

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 16), nn.Linear(16, outputs)

    def forward(self, windows):
        return self.last(Steep.apply(torch.relu(self.first(windows.flatten(1)))))

def build(*, feature_dim, window_width, num_classes):
    return Net(feature_dim * window_width, num_classes)
"""


def fit_steep(corpus, folder, factor: str, *overrides: str) -> Run:
    (folder / "net.py").write_text(STEEP.format(factor=factor))
    table = tiny_config("averaging.decay=none", *overrides).to_dict()
    config = RunConfig.from_dict(table | {"model": {"factory": f"{folder / 'net.py'}:build"}})
    return fit(config=config.override(["precision=fp16"]), corpus=corpus.path, run=folder / "run", console=Console())


def test_gradient_overflow_that_ends_is_a_rate_and_no_alarm(learnable_corpus, tmp_path):
    run = fit_steep(learnable_corpus, tmp_path, "3e5", "epochs=1")
    lines = run.metrics("train")
    left_out = lines[0]["skipped"] * lines[0]["step"]
    assert left_out >= 2
    assert lines[-1]["skipped"] * lines[-1]["step"] < ODD_OVERFLOWS
    assert lines[-1]["loss_scale"] < 65536
    assert run.status == "finished"
    assert not run.events("nonfinite")
    assert not any("overflow" in event["message"] for event in run.events("warning"))


def test_rate_of_overflows_goes_on_after_a_resume(learnable_corpus, tmp_path):
    whole = fit_steep(learnable_corpus, tmp_path, "3e5", "epochs=2")
    (tmp_path / "again").mkdir()
    shorter = fit_steep(learnable_corpus, tmp_path / "again", "3e5", "epochs=1", "schedule.name=constant")
    resume_tiny(shorter, "epochs=2")
    assert [line["skipped"] for line in shorter.metrics("train")] == [
        line["skipped"] for line in whole.metrics("train")
    ]


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_gradient_overflow_without_end_is_warned_of_and_then_stops(learnable_corpus, tmp_path, policy):
    with pytest.raises(TrainingStopped, match=r"gradient of first\.(weight|bias)"):
        fit_steep(
            learnable_corpus,
            tmp_path,
            "float('inf')",
            f"guard.policy={policy}",
            "guard.max_rollbacks=1",
            "batch_size=128",
        )
    run = Run.open(tmp_path / "run")
    assert f"last {ODD_OVERFLOWS} updates" in run.events("warning")[0]["message"]
    assert run.events("nonfinite")[0]["step"] == ENDLESS_OVERFLOWS
    assert run.events("nonfinite")[0]["where"].startswith("first.")


def test_run_whose_endless_overflow_is_mended_learns_again(learnable_corpus, tmp_path):
    """The scale that the row led to would round every gradient away, in silence."""
    with pytest.raises(TrainingStopped):
        fit_steep(learnable_corpus, tmp_path, "float('inf')", "batch_size=128")
    run = Run(tmp_path / "run")
    (tmp_path / "net.py").write_text(STEEP.format(factor="1.0"))
    resume_tiny(run, trust_code=True)
    told = run.metrics("train")
    assert told[-1]["loss_scale"] == 65536 and told[-1]["loss"] < 0.97 * math.log(40)


def test_row_of_overflows_is_warned_of_once():
    watch, scale = nonfinite.OverflowWatch(), torch.tensor(0.5)
    rows = [0, 1, ODD_OVERFLOWS - 1, ODD_OVERFLOWS, ODD_OVERFLOWS + 1, 0, ODD_OVERFLOWS]
    assert [watch.look(row, scale) is not None for row in rows] == [False, False, False, True, False, False, True]


# Replay


class Doubling(nn.Module):
    """Overflows by its own sum and not in a part."""

    def __init__(self):
        super().__init__()
        self.part = nn.Identity()

    def forward(self, values):
        return self.part(values) * 3e38 + values


@pytest.mark.parametrize(
    ("layers", "where", "tensor"),
    [
        ([nn.Flatten(), Doubling(), nn.Linear(4, 3)], "1", "output"),
        ([nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 3)], "1", "weight"),
    ],
)
def test_first_module_in_forward_order_is_named(layers, where, tensor):
    from phonetrain.config.sections import OptimizerConfig
    from phonetrain.device import choose_device
    from phonetrain.optim.optimizers import build_optimizer
    from phonetrain.step.metrics import FrameMetrics
    from phonetrain.step.train_step import TrainStep

    model = nn.Sequential(*layers)
    if tensor == "weight":
        model[1].weight.data[2, 1] = math.nan
    step = TrainStep(
        model, build_optimizer(OptimizerConfig(), model, "cpu"), FrameMetrics(3), choose_device("cpu", "fp32"), seed=0
    )
    batch = WindowBatch(torch.full((8, 2, 2), 4.0), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    found = nonfinite.replay(step, batch, epoch=0, number=5)
    assert (found.where, found.tensor) == (where, tensor)
    assert found.largest_input == 4.0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
