"""resume: equal to a run that never stopped, or a sentence that says why not."""

import os
import random
import shlex
import shutil

import pytest

from phonedata import PackedCorpus
from phonetrain.checkpoints import checkpoint
from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import RunConfig
from phonetrain.errors import CheckpointError, CodeNotTrusted, ConfigError, RunExists, TrainingStopped
from phonetrain.results.predict import predict
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.training import session
from tests.forked import call
from tests.training import StopAt, change_state, fit_tiny, killed_and_resumed, numbers, resume_tiny, weights

CONSTANT = ("schedule.name=constant", "schedule.warmup_steps=none")


@pytest.fixture(scope="module")
def whole(learnable_corpus, tmp_path_factory) -> Run:
    """Three epochs that nothing interrupted."""
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("whole") / "run")


def interrupted(corpus, path, *overrides, step=30) -> Run:
    run = fit_tiny(corpus, path, *overrides, console=StopAt(step))
    assert run.status == "SIGTERM"
    return run


@pytest.mark.parametrize("steps", [(8,), (24,), (12, 28, 52), (44, 60)])
def test_interrupted_run_equals_uninterrupted_one_bit_for_bit(learnable_corpus, whole, tmp_path, steps):
    run = interrupted(learnable_corpus, tmp_path / "run", step=steps[0])
    for step in steps[1:]:
        resume_tiny(run, console=StopAt(step))
    resume_tiny(run)
    assert run.status == "finished"
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")
    assert numbers(run) == numbers(whole)


@pytest.mark.parametrize(
    "options",
    [
        ("schedule.name=plateau", "schedule.patience=0", "schedule.factor=0.5"),
        ("schedule.name=onecycle",),
        ("optimizer.name=muon",),
        ("optimizer.name=sgd",),
        ("augment.noise=0.2", "precision=fp16"),
    ],
)
def test_equality_holds_for_every_kind_of_state(learnable_corpus, tmp_path, options):
    options = (*options, "schedule.warmup_steps=none")
    uninterrupted = fit_tiny(learnable_corpus, tmp_path / "whole", *options)
    run = interrupted(learnable_corpus, tmp_path / "run", *options, step=28)
    resume_tiny(run)
    assert weights(run) == weights(uninterrupted)
    assert numbers(run) == numbers(uninterrupted)


def test_change_said_on_resume_is_recorded_with_old_and_new(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT)
    resume_tiny(run, "optimizer.lr=1e-4")
    event = next(event for event in run.events("config_changed"))
    assert (event["key"], event["old"], event["new"]) == ("optimizer.lr", 1e-3, 1e-4)
    rates = {line["segment"]: line["lr"] for line in run.metrics("train")}
    assert rates == {0: 1e-3, 1: 1e-4}


def test_plain_resume_keeps_the_rate_that_was_set_by_hand(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT, step=8)
    resume_tiny(run, "optimizer.lr=1e-4", console=StopAt(28))
    resume_tiny(run)
    assert {line["lr"] for line in run.metrics("train") if line["segment"] == 2} == {1e-4}


@pytest.mark.parametrize("change", ["subset=0.5", "batch_size=128", "optimizer.accumulation=2"])
def test_change_of_the_order_inside_an_epoch_is_refused_with_the_way_out(learnable_corpus, tmp_path, change):
    run = interrupted(learnable_corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="--from step-"):
        resume_tiny(run, change)
    boundary = max(event["step"] for event in run.events("checkpoint_saved") if event["batch"] == 0)
    resume_tiny(run, change, from_checkpoint=f"step-{boundary}")
    assert run.status == "finished"


def test_going_back_offers_no_boundary_that_lies_ahead(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", step=52)
    resume_tiny(run, from_checkpoint=23, console=StopAt(30))
    assert run.checkpoint_dir(46).is_dir()
    with pytest.raises(ConfigError, match="--from step-23$"):
        resume_tiny(run, "batch_size=128")


def test_going_back_takes_the_settings_of_then(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT)
    resume_tiny(run, "optimizer.lr=1e-4", "optimizer.weight_decay=0.3", console=StopAt(40))
    resume_tiny(run, "optimizer.weight_decay=0.2", from_checkpoint=23)
    assert {line["lr"] for line in run.metrics("train")} == {1e-3}
    changed = [(event["segment"], event["key"], event["new"]) for event in run.events("config_changed")]
    decay = "optimizer.weight_decay"
    assert changed == [(1, "optimizer.lr", 1e-4), (1, decay, 0.3), (2, decay, 0.2)]
    assert RunConfig.from_toml(run.config_path).optimizer.lr == 1e-3


@pytest.mark.parametrize("change", ["window.left=4", "model.hidden=40", "seed=5", "optimizer.name=sgd"])
def test_change_that_makes_another_experiment_is_refused(learnable_corpus, tmp_path, change):
    run = interrupted(learnable_corpus, tmp_path / "run")
    before = run.config_path.read_bytes()
    with pytest.raises(ConfigError, match="another experiment"):
        resume_tiny(run, change)
    assert run.config_path.read_bytes() == before


FACTORY = """
from torch import nn

def build(feature_dim, window_width, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(feature_dim * window_width, num_classes))
"""


def test_precision_measured_for_a_model_of_ones_own_is_recorded_and_kept(learnable_corpus, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FACTORY)
    for answer in ("bf16", "fp32"):
        run = tmp_path / answer
        monkeypatch.setattr(session, "faster_precision", lambda *sizes, answer=answer: (answer, "measured"))
        run = interrupted(learnable_corpus, run, f"model.factory={tmp_path}/mine.py:build", "device=cpu", step=8)
        assert run.read_json(run.built_path)["precision"] == answer
        assert run.read_json(run.environment_path)["device"] == "cpu; measured"
        monkeypatch.setattr(session, "faster_precision", None)  # a stopwatch is not asked twice
        resume_tiny(run)
        assert run.read_json(run.built_path)["precision"] == answer and not run.events("warning")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["schedule.name=constant"], "learning rate: 0.0005 from here on; the last logged was"),
        (["schedule.name=cosine"], " at the next step, then as schedule.name=cosine moves it; "),
        (["schedule.name=constant", "schedule.warmup_steps=90"], "at the next step, then up to its full height; "),
    ],
)
def test_a_rate_is_said_to_stay_only_where_it_stays(learnable_corpus, tmp_path, settings, told):
    said = []
    console = StopAt(24)
    console.say = said.append
    run = interrupted(learnable_corpus, tmp_path / "run", step=8)
    resume_tiny(run, "optimizer.lr=5e-4", *settings, console=console)
    assert told in "\n".join(said)


def test_model_of_ones_own_is_found_from_elsewhere_and_an_edited_one_is_said(learnable_corpus, tmp_path, monkeypatch):
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path / "here")
    run = interrupted(learnable_corpus, tmp_path / "run", "model.factory=mine.py:build", step=8)
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume_tiny(run, console=StopAt(16))
    assert not run.events("warning")
    (tmp_path / "here" / "mine.py").rename(tmp_path / "elsewhere" / "moved.py")
    resume_tiny(run, "model.factory=moved.py:build", console=StopAt(24))
    assert not run.events("warning")
    (tmp_path / "elsewhere" / "moved.py").write_text(FACTORY + "# edited")
    with pytest.raises(CodeNotTrusted, match="--trust-code"):
        resume_tiny(run)
    resume_tiny(run, trust_code=True)
    assert [event["message"] for event in run.events("warning")] == [
        f"{tmp_path}/elsewhere/moved.py:build: its code is not the one that the run was trained with so far"
    ]
    assert run.read_json(run.built_path)["model"]["factory_digest"]


STAGED = "stage=[{epochs=1}, {epochs=2, optimizer.lr=1e-4}, {epochs=1, optimizer.lr=1e-5}]"


def test_rate_changed_by_hand_in_a_stage_that_sets_it_is_trained_with(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT, STAGED)
    resume_tiny(run, "optimizer.lr=5e-5")
    rates = {line["epoch"]: line["lr"] for line in run.metrics("train")}
    assert rates == {0: 1e-3, 1: 5e-5, 2: 5e-5, 3: 5e-5}
    told = [(event["key"], event["old"], event["new"]) for event in run.events("config_changed")]
    assert told == [("optimizer.lr", 1e-3, 1e-4), ("stage.2.optimizer.lr", 1e-5, 5e-5), ("optimizer.lr", 1e-4, 5e-5)]


@pytest.mark.parametrize("by_hand", ["optimizer.lr=5e-5", "stage.1.optimizer.lr=5e-5"])
def test_rate_changed_by_hand_where_a_stage_begins_holds_in_it(learnable_corpus, tmp_path, by_hand):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT, STAGED)
    end = min(event["step"] for event in run.events("checkpoint_saved") if event["step"] and event["batch"] == 0)
    resume_tiny(run, by_hand, from_checkpoint=end)
    assert {line["lr"] for line in run.metrics("train") if line["epoch"] == 1} == {5e-5}


CARRYING = "stage=[{epochs=1}, {epochs=2, optimizer.lr='previous', schedule.name='plateau', schedule.patience=2}]"


def test_carried_rate_survives_a_resume_and_gives_way_to_one_set_by_hand(learnable_corpus, tmp_path):
    halving = ["schedule.name=exponential", "schedule.gamma=0.5", "schedule.every=step"]
    run = fit_tiny(learnable_corpus, tmp_path / "run", *halving, CARRYING, console=StopAt(30))
    carried = [line["lr"] for line in run.metrics("epoch")]
    resume_tiny(run, "schedule.patience=5", console=StopAt(35))
    assert run.read_json(run.built_path)["schedule"]["patience"] == 5
    assert {line["lr"] for line in run.metrics("train") if line["epoch"] == 1} == {*carried}
    resume_tiny(run, "optimizer.lr=1e-3")
    assert run.metrics("epoch")[-1]["lr"] == 1e-3


def test_stage_that_is_over_cannot_be_changed_any_more(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", *CONSTANT, STAGED)
    with pytest.raises(ConfigError, match="stage.0.optimizer.lr: None -> 0.01 would be another experiment"):
        resume_tiny(run, "stage.0.optimizer.lr=1e-2")


def test_more_epochs_under_a_cosine_are_refused_until_it_is_said_how(learnable_corpus, whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    with pytest.raises(ConfigError, match="on_extend"):
        resume_tiny(run, "epochs=5")
    resume_tiny(run, "epochs=5", "schedule.on_extend=hold")
    assert [line["epoch"] for line in run.metrics("epoch")] == list(range(5))


def test_finished_run_says_how_to_train_longer(whole):
    with pytest.raises(ConfigError, match=r"epochs="):
        resume_tiny(whole)


def test_branch_leaves_abandoned_lines_in_the_file_and_out_of_the_lineage(learnable_corpus, whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    first = min(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))
    resume_tiny(run, "augment.time_mask=3", from_checkpoint=first)
    assert len(run.all_metrics("epoch")) > len(run.metrics("epoch")) == 3


def test_damaged_last_checkpoint_falls_back_to_the_newest_whole_one_and_says_so(learnable_corpus, whole, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", step=52)
    last = run.checkpoint_dir(run.read_pointer("last"))
    content = bytearray((last / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (last / "model.safetensors").write_bytes(content)
    resume_tiny(run)
    assert any("damaged" in event["message"] for event in run.events("warning"))
    assert weights(run) == weights(whole)


def test_pickle_bomb_in_a_checkpoint_is_refused(learnable_corpus, tmp_path):
    import pickle

    import xxhash

    run = interrupted(learnable_corpus, tmp_path / "run", step=8)
    last = run.checkpoint_dir(run.read_pointer("last"))
    marker = tmp_path / "exploded"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    content = pickle.dumps(Bomb())
    refused = tmp_path / "refused"
    (last / "training.pt").write_bytes(content)
    change_state(last, lambda state: state["digests"].update({"training.pt": xxhash.xxh3_128_hexdigest(content)}))
    shutil.copytree(last, refused)
    resume_tiny(run)
    assert not marker.exists()
    assert any("cannot be read" in event["message"] for event in run.events("warning"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(refused)


def test_moved_corpus_is_recognised_and_another_one_refused_with_both_digests(learnable_corpus, tiny_corpus, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(learnable_corpus.path, moved)
    run = interrupted(learnable_corpus, tmp_path / "run", step=8)
    with pytest.raises(CheckpointError) as refused:
        resume_tiny(run, corpus=tiny_corpus.path)
    assert learnable_corpus.digest in str(refused.value)
    assert tiny_corpus.digest in str(refused.value)
    resume_tiny(run, corpus=moved)
    assert run.status == "finished"


def test_corpus_given_from_one_place_is_found_from_another(learnable_corpus, tmp_path, monkeypatch):
    shutil.copytree(learnable_corpus.path, tmp_path / "before")
    run = interrupted(PackedCorpus(tmp_path / "before"), tmp_path / "run", step=8)
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    resume_tiny(run, corpus="after", console=StopAt(12))
    (tmp_path / "other" / "after").mkdir(parents=True)  # of that name, and no corpus
    monkeypatch.chdir(tmp_path / "other")
    resume_tiny(run)
    assert run.status == "finished"


def test_run_killed_before_its_end_was_recorded_is_finished_by_resume(learnable_corpus, whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    lines = run.events_path.read_text().splitlines(keepends=True)
    assert '"run_finished"' in lines[-1]
    run.events_path.write_text("".join(lines[:-1]))
    assert run.status == "running"
    resume_tiny(run)
    assert run.status == "finished"
    assert weights(run) == weights(whole)
    assert numbers(run) == numbers(whole)
    with pytest.raises(ConfigError, match="3 epochs of 3 wanted are done"):
        resume_tiny(run)


def test_run_killed_before_its_first_checkpoint_starts_again_as_told(learnable_corpus, whole, tmp_path, capsys):
    run = Run.create(tmp_path / "a run")
    shutil.copy(whole.config_path, run.config_path)
    run.append_event("run_started", segment=0, epoch=0, step=0, recipe="default")
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    run.append_event("warning", segment=0, message="of the run before")
    with pytest.raises(CheckpointError, match="before the first one was saved") as refused:
        resume_tiny(run)
    command = str(refused.value).split("`")[1]
    assert command in explain(run)[-1]
    with run.lock():
        assert exit_code(shlex.split(command)[1:]) == 1
    assert "being trained by" in capsys.readouterr().err and len(run.events()) == 3
    assert exit_code(shlex.split(command)[1:]) == 0
    assert "events.before-1.jsonl" in capsys.readouterr().err
    assert weights(run) == weights(whole) and numbers(run) == numbers(whole)
    assert not [event for event in run.events("warning") if event["message"] == "of the run before"]


def test_run_whose_checkpoints_are_gone_keeps_its_directory(learnable_corpus, whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    before = run.events()
    with pytest.raises(CheckpointError, match="they are gone; `phonetrain fit` starts a new run"):
        resume_tiny(run)
    with pytest.raises(RunExists):
        fit_tiny(learnable_corpus, run.path)
    assert run.events() == before


def test_run_without_its_events_goes_on_and_says_so(learnable_corpus, whole, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run")
    run.events_path.unlink()
    resume_tiny(run)
    assert weights(run) == weights(whole)
    assert any("events.jsonl is missing" in event["message"] for event in run.events("warning"))
    assert run.events("segment_started")[0]["segment"] == 1


def test_copied_run_directory_resumes_elsewhere(learnable_corpus, whole, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run")
    shutil.move(run.path, tmp_path / "drive")
    copy = Run.open(tmp_path / "drive")
    resume_tiny(copy)
    assert weights(copy) == weights(whole)


def test_other_thread_count_is_restored(learnable_corpus, whole, tmp_path):
    import torch

    run = interrupted(learnable_corpus, tmp_path / "run")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        resume_tiny(run)
        assert torch.get_num_threads() == threads
        assert weights(run) == weights(whole)
    finally:
        torch.set_num_threads(threads)


def test_more_threads_than_cores_are_not_restored(learnable_corpus, tmp_path):
    import torch

    run = interrupted(learnable_corpus, tmp_path / "run", step=8)
    last = run.checkpoint_dir(run.read_pointer("last"))
    change_state(last, lambda state: state["identity"]["machine"].update(threads=4096))
    threads = torch.get_num_threads()
    resume_tiny(run)
    assert torch.get_num_threads() == threads
    assert any("threads 4096 ->" in event["message"] for event in run.events("warning"))


def test_run_goes_on_in_fp16_where_it_was_fp32(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", "precision=fp32", step=8)
    resume_tiny(run, "precision=fp16")
    assert run.status == "finished"
    assert run.metrics("train")[-1]["loss_scale"] > 0


def test_second_process_on_a_run_directory_is_refused(learnable_corpus, tmp_path):
    run = interrupted(learnable_corpus, tmp_path / "run", step=8)
    with run.lock(), pytest.raises(TrainingStopped, match="being trained by"):
        resume_tiny(run)


def places_to_kill_at(seed: int) -> list[str]:
    """Ten: at moments, inside a step, in the scoring and while a checkpoint is written; early enough to be reached."""
    chance = random.Random(seed)
    places = ["step", "step", "step", "score", "write", "write", "write", "write"]
    chance.shuffle(places)
    most = {"step": 5, "score": 1, "write": 25}
    return [
        *(f"moment-{chance.randrange(80)}" for _ in range(2)),
        *(f"{kind}-{chance.randint(1, most[kind])}" for kind in places),
    ]


def check_killed_run(corpus, whole, path, seed):
    places = places_to_kill_at(seed)
    told = call(killed_and_resumed, path, corpus.path, places, output=path.with_suffix(".txt"))
    ends = [line for line in told.splitlines() if line.endswith(" was killed") or " ended with " in line]
    assert ends == [*(f"{place} was killed" for place in places), " ended with 0"], told
    run = Run(path)
    assert run.status == "finished" and len(run.events("segment_ended")) == 0
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")
    assert numbers(run) == numbers(whole)
    assert predict(run, out=path / "said.csv").read_bytes() == predict(whole, out=path / "wanted.csv").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_ten_kills_in_steps_scoring_checkpoints_and_at_random_leave_the_same_run(learnable_corpus, whole, tmp_path):
    check_killed_run(learnable_corpus, whole, tmp_path / "run", seed=1)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_kills_leave_the_same_run(learnable_corpus, whole, tmp_path, seed):
    check_killed_run(learnable_corpus, whole, tmp_path / "run", seed=100 + seed)
