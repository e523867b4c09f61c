"""audit: a part of a run that is trained again has the same bits, and one flipped bit anywhere is found."""

import io
import json
import random
import shutil

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from phonetrain import audit
from phonetrain.checkpoints import checkpoint, series
from phonetrain.cli.main import exit_code
from phonetrain.errors import CheckpointError, CodeNotTrusted, ConfigError
from phonetrain.runs.directory import Run
from tests.training import StopAt, change_state, fit_tiny, resume_tiny

KEEP = ("checkpoint.keep=50", "checkpoint.every_minutes=1e-9", "schedule.on_extend=stretch")


@pytest.fixture(scope="module")
def kept(learnable_corpus, tmp_path_factory):
    """A run of two epochs with many checkpoints, some inside epochs, one where it was stopped and resumed."""
    path = tmp_path_factory.mktemp("audit") / "run"
    stopped = series.saved_steps(fit_tiny(learnable_corpus, path, *KEEP, "epochs=2", console=StopAt(30)))[-1]
    run = resume_tiny(Run(path), "optimizer.lr=5e-4", "averaging.decay=0.8")
    last = series.saved_steps(run)[-1]
    for step in range(1, last):  # one after every step is more than anybody looks at
        if step % 7 and step not in (stopped, last // 2):
            shutil.rmtree(run.checkpoint_dir(step))
    assert run.status == "finished" and len(series.saved_steps(run)) > 6
    return run


@pytest.fixture
def run(kept, tmp_path):
    shutil.copytree(kept.path, tmp_path / "run")
    return Run(tmp_path / "run")


def tree(run: Run) -> dict:
    return {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def flip(run: Run, step: int, file: str, bit: int = 0) -> None:
    """Flip a bit, by default the lowest, of one value of a checkpoint, and make the digests anew, as memory would."""
    path, dice = run.checkpoint_dir(step) / file, random.Random(file)
    if file == "training.pt":
        content = torch.load(path)
        state = content["optimizer"]["state"]
        tensor = state[dice.choice(list(state))]["exp_avg"]
    else:
        content = load_file(path)
        tensor = content[dice.choice([name for name, values in content.items() if values.ndim == 2])]
    values = tensor.view(torch.int32).flatten()
    values[dice.randrange(len(values))] ^= 1 << bit
    if file == "training.pt":
        torch.save(content, written := io.BytesIO())
        path.write_bytes(written.getvalue())
    else:
        save_file(content, path)
    digest = xxhash.xxh3_128_hexdigest(path.read_bytes())
    change_state(path.parent, lambda state: state["digests"].update({file: digest}))


def test_every_part_of_a_run_is_the_same_when_trained_again(run):
    before, steps = tree(run), series.saved_steps(run)
    for first, last in zip(steps, steps[1:]):
        told = audit(run, last)
        assert told["differences"] == [] and told["equal"] and (told["from"], told["to"]) == (first, last)
        assert told["tensors"] > 20
    assert sum(audit(run, last)["lines"] for last in steps[1:]) == len(run.metrics("train")) + 2
    assert tree(run) == before
    assert audit(run)["to"] == steps[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer.name=muon",),
        ("optimizer.name=rmsprop", "averaging.decay=none"),
        ("stage=[{epochs=1}, {epochs=1, optimizer.lr=1e-4, batch_size=128}]", "precision=bf16"),
    ],
    ids=["muon", "rmsprop", "stages"],
)
def test_other_optimizers_and_stages_are_equal_too(learnable_corpus, tmp_path, words):
    run = fit_tiny(learnable_corpus, tmp_path / "run", *KEEP, "epochs=2", *words)
    for last in series.saved_steps(run)[1:]:
        assert audit(run, last)["differences"] == []


@pytest.mark.parametrize("file", ["model.safetensors", "averaged.safetensors", "training.pt"])
def test_one_bit_that_changed_without_a_word_is_found_from_both_sides(run, file):
    steps = series.saved_steps(run)
    broken = steps[2]
    flip(run, broken, file)
    checkpoint.read(run.checkpoint_dir(broken))  # its digests say that all is well
    (told,) = audit(run, broken)["differences"]
    assert ": 1 of" in told and "differ" in told
    flip(run, broken, file, bit=20)  # the lowest may be rounded away on the way to the next checkpoint
    assert len(audit(run, steps[3])["differences"]) > 0
    assert audit(run, steps[1])["equal"] and audit(run, steps[4])["equal"]


def test_a_logged_loss_and_a_line_that_is_gone_are_found(run):
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"train"' in line)
    line = json.loads(lines[number])
    run.metrics_path.write_text(
        "".join([*lines[:number], json.dumps(line | {"loss": 1.25}) + "\n", *lines[number + 1 :]])
    )
    (told,) = audit(run, line["step"])["differences"]
    assert told.startswith(f"step {line['step']}, train in the log: loss was 1.25, is ")
    run.metrics_path.write_text("".join([*lines[:number], *lines[number + 1 :]]))
    (told,) = audit(run, line["step"])["differences"]
    assert "absent" in told


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 3), ("ranks", 2), ("cpu_capability", "AVX9"), ("torch", "1.0")]
)
def test_another_machine_number_of_threads_or_of_processes_is_refused(run, name, value):
    for step in series.saved_steps(run):
        change_state(run.checkpoint_dir(step), lambda state: state["identity"]["machine"].update({name: value}))
    with pytest.raises(ConfigError, match=f"another machine \\({name} {value} -> "):
        audit(run)


def test_what_is_not_kept_cannot_be_audited(run):
    first, *_, last = series.saved_steps(run)
    for step, side in ((first, "before"), (last + 1, "after"), (-1, "before")):
        with pytest.raises(CheckpointError, match=f"no checkpoint {side} step {step} is kept"):
            audit(run, step)


def test_parts_that_were_led_by_hand_or_met_bad_numbers_are_refused(run):
    last = series.saved_steps(run)[-1]
    segment = run.events("segment_started")[-1]["segment"]
    run.append_event("recovered", by="skip", segment=segment, epoch=1, step=last - 1)
    with pytest.raises(ConfigError, match="bad numbers were met"):
        audit(run, last)
    stop = next(event["step"] for event in run.events("segment_started") if event["step"])
    shutil.rmtree(run.checkpoint_dir(stop))  # pruned: the change of the rate lies inside now
    with pytest.raises(ConfigError, match=f"at step {stop}, optimizer.lr was changed by hand"):
        audit(run, stop)


def test_weights_that_blow_up_when_trained_again_are_a_difference(run):
    steps = series.saved_steps(run)
    path = run.checkpoint_dir(steps[1]) / "model.safetensors"
    content = load_file(path)
    next(values for values in content.values() if values.ndim == 2).fill_(3e38)
    save_file(content, path)
    digest = xxhash.xxh3_128_hexdigest(path.read_bytes())
    change_state(path.parent, lambda state: state["digests"].update({path.name: digest}))
    told = audit(run, steps[2])
    assert not told["equal"] and told["differences"][0].startswith("training again stopped:")


def test_code_that_is_not_trusted_or_not_the_same_is_refused(learnable_corpus, tmp_path, monkeypatch):
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\ndef build(feature_dim, window_width, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(feature_dim * window_width, num_classes))\n"
    )
    words = [f"model.factory={source}:build", "model.hidden=none", "model.depth=none", "precision=fp32"]
    run = fit_tiny(learnable_corpus, tmp_path / "run", *KEEP, "epochs=1", *words)
    assert audit(run)["equal"]
    source.write_text(source.read_text() + "# edited\n")
    with pytest.raises(CodeNotTrusted):
        audit(run)
    with pytest.raises(ConfigError, match="not the code that the run was trained with"):
        audit(run, trust_code=True)


def test_the_command_says_what_was_compared_and_its_exit_code_whether_it_is_equal(run, capsys):
    steps = series.saved_steps(run)
    assert exit_code(["audit", str(run.path), "--step", str(steps[1]), "--quiet"]) == 0
    assert capsys.readouterr().out.strip().endswith("all bits are equal")
    flip(run, steps[1], "model.safetensors")
    assert exit_code(["audit", str(run.path), "--step", str(steps[1]), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == steps[1] and not told["equal"] and "differ" in told["differences"][0]
    assert exit_code(["audit", str(run.path), "--step", "0"]) == 1
    assert capsys.readouterr().err.startswith("phonetrain: ")
