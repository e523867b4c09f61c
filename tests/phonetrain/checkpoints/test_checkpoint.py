"""Checkpoints: whole or absent, every byte checked, the right ones kept, the right parts restored."""

import copy
import dataclasses
import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from phonetrain.checkpoints import checkpoint, series
from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.console.base import Console
from phonetrain.device import choose_device
from phonetrain.errors import CheckpointError, TrainingStopped
from phonetrain.runs.directory import Run
from phonetrain.training.build import assemble
from phonetrain.training.data import choose_roles
from phonetrain.training.fit import fit
from tests.training import TINY, StopAt, change_state, fit_tiny, numbers, resume_tiny, weights


@pytest.fixture(scope="module")
def finished(learnable_corpus, tmp_path_factory) -> Run:
    return fit_tiny(learnable_corpus, tmp_path_factory.mktemp("kept") / "run")


@pytest.fixture
def run(finished, tmp_path) -> Run:
    """A copy to be damaged."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run(tmp_path / "run")


def last(run: Run):
    return run.checkpoint_dir(run.read_pointer("last"))


def test_checkpoint_reads_back_with_its_size_recorded(run):
    saved = checkpoint.read(last(run))
    assert saved.progress.step == run.read_pointer("last") == 69
    assert saved.progress.finished
    event = run.events("checkpoint_saved")[-1]
    assert event["bytes"] == sum(path.stat().st_size for path in last(run).iterdir())
    assert saved.scored_weights is saved.averaged


@pytest.mark.parametrize("name", ["model.safetensors", "averaged.safetensors", "training.pt"])
@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_is_refused_with_the_files_name(run, name, seed):
    path, chance = last(run) / name, random.Random(seed)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: digest .* the file is damaged"):
        checkpoint.read(last(run))


def test_bytes_that_are_loaded_are_the_bytes_that_were_checked(run, monkeypatch):
    """A file that changes between two reads would be loaded unchecked."""
    real, wanted = checkpoint.read_file, checkpoint.read(last(run)).training["metrics"]

    def read_once(path):
        content = real(path)
        path.write_bytes(b"changed after it was read")
        return content

    monkeypatch.setattr(checkpoint, "read_file", read_once)
    assert checkpoint.read(last(run)).training["metrics"] == wanted


def test_any_changed_value_of_the_state_is_refused(run):
    path = last(run) / "state.json"
    text = path.read_text()
    for name, value, other in (("rate_scale", "1.0", "1.5"), ("epoch", "3", "2"), ("seed", "0", "4")):
        old, new = f'"{name}": {value}', f'"{name}": {other}'
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=r"state\.json: digest .* the file is damaged"):
            checkpoint.read(last(run))


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_cut_state_is_refused(run, size):
    path = last(run) / "state.json"
    path.write_bytes(path.read_bytes()[: size if size >= 0 else -5])
    with pytest.raises(CheckpointError, match="damaged or is none"):
        checkpoint.read(last(run))


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "state.json"])
def test_missing_file_is_named(run, name):
    (last(run) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing: the checkpoint is not whole"):
        checkpoint.read(last(run))


def test_other_format_is_refused_and_both_are_named(run):
    change_state(last(run), lambda state: state.update(format=99))
    with pytest.raises(CheckpointError, match="format 99, this phonetrain reads 2"):
        checkpoint.read(last(run))


def test_newest_whole_one_is_found_and_each_newer_one_is_told_of(run):
    (run.checkpoint_dir(69) / "model.safetensors").write_bytes(b"torn")
    (run.checkpoint_dir(46) / "state.json").unlink()
    saved, problems = series.read_newest(run)
    assert saved.progress.step == 23
    assert ["step-69" in problems[0], "step-46" in problems[1]] == [True, True]
    run.write_pointer("last", 23)
    shutil.rmtree(run.checkpoint_dir(23))
    with pytest.raises(CheckpointError, match="step-69.*step-46.*starts a new run"):
        series.read_newest(run)


def test_half_made_checkpoint_counts_for_nothing_and_goes_with_the_next_save(run):
    half = run.checkpoints / ".step-80.partial"
    shutil.copytree(last(run), half)
    saved, problems = series.read_newest(run)
    assert (saved.path, problems) == (last(run), [])
    series.prune(run, keep=2)
    assert not half.exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of descriptors are Linux's")
def test_numbers_are_on_disk_before_the_checkpoint_that_goes_on_from_them(learnable_corpus, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}"))))
    fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1")
    names = [path.parent.name if "checkpoints" in path.parts else path.name for path in synced]
    assert names.index("metrics.jsonl") < names.index(".step-23.partial")


@pytest.mark.parametrize("exchanges", [True, False])
def test_checkpoint_of_the_same_step_is_there_at_every_moment_of_its_replacement(run, monkeypatch, exchanges):
    target, partial = last(run), run.checkpoints / ".step-69.partial"
    if not exchanges:
        monkeypatch.setattr("phonedata.files.exchange", lambda a, b: False)
    real, seen = os.rename, []

    def rename(source, destination):
        if source == partial:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        seen.append(target.exists())
        real(source, destination)

    shutil.copytree(target, partial)
    (partial / "new").touch()
    monkeypatch.setattr(os, "rename", rename)
    if exchanges:
        checkpoint.replace_folder(partial, target, target.with_name(".step-69.old"))
    else:
        with pytest.raises(OSError, match="Input/output"):
            checkpoint.replace_folder(partial, target, target.with_name(".step-69.old"))
    assert (target / "new").exists() == exchanges and (not seen) == exchanges
    checkpoint.read(target)
    assert not list(run.checkpoints.glob(".step-69.old"))


def test_checkpoint_whose_replacement_was_killed_gets_its_name_back(run):
    hidden = run.checkpoints / ".step-69.old"
    last(run).rename(hidden)
    series.prune(run, keep=2)
    assert series.read_newest(run)[0].progress.step == 69
    last(run).rename(hidden)
    with run.lock():
        assert series.read_newest(run)[0].progress.step == 69
    assert not hidden.exists()


@pytest.mark.parametrize(("keep", "left"), [(1, [20, 60]), (2, [20, 50, 60]), (4, [20, 30, 40, 50, 60])])
def test_newest_k_are_kept_and_the_best_is_never_pruned(tmp_path, keep, left):
    run = Run(tmp_path)
    for step in (10, 20, 30, 40, 50, 60):
        run.checkpoint_dir(step).mkdir(parents=True)
    run.write_pointer("best", 20)
    run.write_pointer("last", 60)
    series.prune(run, keep)
    assert series.saved_steps(run) == left


def test_checkpoints_that_a_branch_left_aside_are_pruned_first(tmp_path):
    run = Run(tmp_path)
    for step in (10, 20, 30, 40, 50, 60):
        run.checkpoint_dir(step).mkdir(parents=True)
    run.write_pointer("last", 30)
    run.write_pointer("best-before-segment-1", 60)
    series.prune(run, keep=2)
    assert series.saved_steps(run) == [20, 30, 60]


def test_going_back_takes_the_newest_of_before_and_then_older_ones(run):
    def before(step, tried, stage=0):
        found = series.read_before(run, step, tried, stage)[0]
        return None if found is None else found.progress.step

    assert series.saved_steps(run) == [23, 46, 69]
    assert [before(70, None), before(69, None), before(60, 46), before(46, 46)] == [69, 46, 23, 23]
    assert [before(40, 23), before(23, None)] == [23, None]
    assert [before(60, 46, stage=1), before(60, None, stage=1)] == [46, 46]  # not into the stage before
    run.append_event("segment_started", segment=1, parent=0, step=23)  # what came after was left aside
    assert before(69, None) == 23


def test_branch_keeps_the_best_that_it_leaves_and_has_a_best_of_its_own(learnable_corpus, run):
    assert run.read_pointer("best") == 69
    resume_tiny(run, from_checkpoint=46, console=StopAt(48))
    assert run.read_pointer("best") == 46
    assert run.read_pointer("best-before-segment-1") == 69
    assert run.read_pointer("last") == 48
    resume_tiny(run)
    assert run.read_pointer("best") == 69


def test_branch_that_is_killed_at_once_is_still_a_branch(learnable_corpus, run):
    class Killed(Console):
        def on_start(self, facts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_tiny(run, "optimizer.weight_decay=0.3", from_checkpoint=46, console=Killed())
    resume_tiny(run, "optimizer.weight_decay=0.3", from_checkpoint=46, console=StopAt(48))
    assert series.read_newest(run)[0].progress.step == 48


def test_best_pointer_that_a_kill_left_behind_is_mended(finished, run):
    run.write_pointer("best", 46)
    progress = checkpoint.read(last(run)).progress
    series.mend_best(run, progress)
    assert run.read_pointer("best") == finished.read_pointer("best") == 69


@pytest.mark.parametrize("content", [b"", b"step-\xff", None])
def test_damaged_pointers_are_told_of_gone_without_and_written_anew(learnable_corpus, finished, tmp_path, content):
    """None: `last` names a checkpoint that is gone."""
    run = fit_tiny(learnable_corpus, tmp_path / "run", console=StopAt(28))
    best = run.read_pointer("best")
    if content is None:
        run.write_pointer("last", 40)
    else:
        for name in ("last", "best"):
            (run.checkpoints / name).write_bytes(content)
    series.prune(run, 1, best)
    assert 28 in series.saved_steps(run)
    resume_tiny(run, console=StopAt(32))
    assert (run.read_pointer("last"), run.read_pointer("best")) == (32, best)
    told = " ".join(event["message"] for event in run.events("warning"))
    wanted = ["step-40, the newest checkpoint, is missing"] if content is None else ["last: got", "best: got"]
    assert all(words in told for words in wanted)
    resume_tiny(run)
    assert weights(run) == weights(finished)


def test_best_that_was_pruned_is_forgotten(run):
    progress = checkpoint.read(last(run)).progress
    progress.best_step = 7
    (told,) = series.mend_best(run, progress)
    assert "step-7 of epoch 3" in told and "is not there any more" in told
    assert progress.best_score is None
    assert run.read_pointer("best") is None


def staged() -> RunConfig:
    config = load_recipe("default").override(TINY)
    return RunConfig.from_dict(
        config.to_dict()
        | {
            "stage": [
                {"epochs": 1, "subset": 0.5},
                {
                    "epochs": 2,
                    "subset": 1.0,
                    "optimizer.lr": 3e-4,
                    "optimizer.weight_decay": 0.3,
                    "averaging.decay": 0.8,
                },
            ]
        }
    )


@pytest.mark.parametrize("name", ["just_saved", "inside"])
def test_run_with_stages_interrupted_at_their_edge_equals_the_uninterrupted_one(learnable_corpus, tmp_path, name):
    whole = fit(config=staged(), corpus=learnable_corpus.path, run=tmp_path / "whole", console=Console())
    edge = whole.metrics("epoch")[0]["step"]

    class StopAtTheEdge(StopAt):
        def seen(self) -> int:
            return self.epoch * edge + self.step_in_epoch

        def epoch_row(self, line):
            if name == "just_saved" and line["epoch"] == 0:
                self.step = 0
                self.on_progress()

    run = fit(
        config=staged(),
        corpus=learnable_corpus.path,
        run=tmp_path / "run",
        console=StopAtTheEdge(10**9 if name == "just_saved" else edge + 4),
    )
    assert run.status == "SIGTERM"
    resume_tiny(run)
    assert weights(run) == weights(whole)
    assert numbers(run) == numbers(whole)


@pytest.mark.parametrize(("key", "other"), [("torch", "1.13.1"), ("machine", "vax"), ("numba", "0.1"), ("ranks", 2)])
def test_other_machine_or_version_is_said_and_equality_not_promised(learnable_corpus, tmp_path, key, other):
    run = fit_tiny(learnable_corpus, tmp_path / "run", console=StopAt(28))
    change_state(last(run), lambda state: state["identity"]["machine"].update({key: other}))
    resume_tiny(run)
    (told,) = [event["message"] for event in run.events("warning") if "machine" in event["message"]]
    assert f"{key} {other} ->" in told
    assert "equality with an uninterrupted run is not promised" in told
    assert ("their dropout stay, sums are rounded otherwise" in told) == (key == "ranks")


def test_checkpoints_where_a_file_is_in_the_way_stop_with_a_sentence(learnable_corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file")
    with pytest.raises(TrainingStopped, match="could not be written"):
        fit_tiny(learnable_corpus, tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["state.json", "training.pt", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(run, name):
    (last(run) / name).unlink()
    os.mkfifo(last(run) / name)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(no regular file\)"):
        checkpoint.read(last(run))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.toml", "built.json", "environment.json", "events.jsonl", "metrics.jsonl"])
def test_a_pipe_in_place_of_any_file_of_a_run_is_refused_and_not_waited_for(run, name, capsys):
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    for command in ("explain", "report"):
        code, told = exit_code([command, str(run.path)]), capsys.readouterr().err.splitlines()[-1:]
        assert code in (1, 2) or (command == "explain" and name == "config.toml")  # which it does not read here
        assert not code or (f"{name}: " in told[0] and "no regular file" in told[0]), told


# Tensors


@pytest.mark.parametrize("name", ["training.pt", "model.safetensors", "averaged.safetensors"])
def test_a_state_without_a_digest_of_a_file_is_refused(run, name):
    change_state(last(run), lambda state: state["digests"].pop(name))
    with pytest.raises(CheckpointError, match=f"has no digest of {name}"):
        checkpoint.read(last(run))


def test_a_state_that_names_other_files_is_refused(run):
    change_state(last(run), lambda state: state["digests"].update({"../config.toml": "0"}))
    with pytest.raises(CheckpointError, match=r"has a digest of \.\./config\.toml"):
        checkpoint.read(last(run))


CHANGES = {
    "shorter": lambda tensor: tensor[:-1] if tensor.ndim else tensor.view(1),
    "empty": lambda tensor: torch.zeros(0, dtype=tensor.dtype),
    "an axis more": lambda tensor: tensor.unsqueeze(0),
    "turned": lambda tensor: tensor.reshape(*tensor.shape[::-1], 1),
    "float64 or float16": lambda tensor: tensor.to(torch.float16 if tensor.dtype == torch.float64 else torch.float64),
    "whole numbers": lambda tensor: tensor.to(torch.int16),
    "one value for all": lambda tensor: torch.zeros(1, dtype=tensor.dtype).expand(2, *tensor.shape),
    "sparse": lambda tensor: tensor.view(-1).to_sparse(),
    "text": lambda tensor: "x",
    "none": lambda tensor: None,
    "a list": lambda tensor: [1.0],
}


def tensors_in(value, place=()):
    """Where the tensors of a state are."""
    if isinstance(value, torch.Tensor):
        yield place
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from tensors_in(inner, (*place, name))


def put(value, place, new):
    return new if not place else value | {place[0]: put(value.get(place[0]), place[1:], new)}


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw", "muon"])
def test_every_tensor_is_checked_before_any_is_loaded(learnable_corpus, tmp_path, optimizer):
    """torch's fused kernels trust shapes: moments of another one corrupt the heap."""
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1", f"optimizer.name={optimizer}")
    saved, config = checkpoint.read(last(run)), RunConfig.from_toml(run.config_path)
    roles = choose_roles(learnable_corpus, config.data)
    setup = assemble(config, config.plans[0], learnable_corpus, roles, choose_device("cpu", "fp32"))
    parts = {name: getattr(saved, name) for name in ("model", "averaged", "training")}
    before = checkpoint.apart_on_cpu(setup.state.model.state_dict())
    tried = 0
    for name, part in parts.items():
        for place in tensors_in(part):
            for change in (*CHANGES, "left out", "of another name"):
                tensor = part
                for key in place:
                    tensor = tensor[key]
                if change in CHANGES:
                    other = put(part, place, CHANGES[change](tensor))
                else:
                    other = copy.deepcopy(part)
                    holder = other
                    for key in place[:-1]:
                        holder = holder[key]
                    del holder[place[-1]]
                    if change == "of another name":
                        holder["another"] = tensor
                    elif place[-1] == "momentum_buffer":
                        continue  # which may not have begun
                with pytest.raises(CheckpointError) as caught:
                    checkpoint.restore(setup.state, dataclasses.replace(saved, **{name: other}))
                assert "\n" not in str(caught.value) and "step-" in str(caught.value)
                tried += 1
    assert tried > 150
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.state.model.state_dict().items())
    checkpoint.restore(setup.state, saved)
    setup.close()


@pytest.mark.parametrize(("place", "value"), [
    (("schedule", "length"), "x"),
    (("schedule", "config"), {}),
    (("schedule", "plateau"), {"best": [], "bad": 0, "cooldown": 0, "cuts": 0}),
    (("schedule",), None),
    (("optimizer", "state"), []),
    (("optimizer", "state"), {0: 3}),
    (("optimizer", "state"), {99: {}}),
    (("optimizer", "param_groups"), []),
    (("optimizer", "param_groups"), [{"params": [torch.zeros(2)]}]),
    (("metrics",), {}),
])  # fmt: skip
def test_other_values_of_the_training_state_are_refused(learnable_corpus, finished, place, value):
    saved, config = checkpoint.read(last(finished)), RunConfig.from_toml(finished.config_path)
    roles = choose_roles(learnable_corpus, config.data)
    setup = assemble(config, config.plans[0], learnable_corpus, roles, choose_device("cpu", "fp32"))
    with pytest.raises(CheckpointError, match=r"step-69: (training\.pt|optimizer)"):
        checkpoint.restore(setup.state, dataclasses.replace(saved, training=put(saved.training, place, value)))
    setup.close()
