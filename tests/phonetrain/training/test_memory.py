"""What training needs is calculated from shapes alone, near what it then takes; what does not fit is refused before."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from phonedata import PackedCorpus, pack_utterances
from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import load_recipe
from phonetrain.errors import ConfigError
from phonetrain.model.classifier import build_model, planned_model
from phonetrain.planning.dry_run import dry_run, show
from phonetrain.training import memory
from phonetrain.training.session import prepare
from tests.phonetrain.step.test_warp import slow_and_fast
from tests.training import TINY, fit_tiny, resume_tiny

HUGE = ("model.hidden=65536", "model.depth=40")  # 670 GB of weights alone: who tries is killed
FACTORIES = """
import torch
from torch import nn

def plain(feature_dim, window_width, num_classes, hidden=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(window_width * feature_dim, hidden), nn.ReLU(),
                         nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

def huge(**sizes):
    return plain(**sizes, hidden=300_000)

def reading(**sizes):
    model = plain(**sizes)
    float(model[1].weight.sum())  # needs a value, which a model without values has not
    return model

def broken(**sizes):
    raise ValueError("no such file")
"""


@pytest.fixture
def factories(tmp_path):
    (tmp_path / "nets.py").write_text(FACTORIES)
    return f"{tmp_path}/nets.py"


def settings(*words: str, without: str = "none such") -> list[str]:
    """Those of TINY, changed by `words`, without those that begin with `without`."""
    kept = [word for word in TINY if not word.startswith(without)]
    return list({word.partition("=")[0]: word for word in (*kept, *words)}.values())


def shapes(model: torch.nn.Module) -> dict:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("net", ["", "model.norm=layer", "model.archetype=diamond", "model.residual=true", "plain"])
def test_a_planned_model_is_the_model_without_its_values(net, factories):
    words = [f"model.factory={factories}:plain"] if net == "plain" else [net] if net else []
    config = load_recipe("default").override(settings(*words, without="model." if net == "plain" else "none such"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    planned = planned_model(config, feature_dim=12, num_classes=40)
    assert torch.equal(before, torch.get_rng_state()) and planned.training
    assert all(tensor.is_meta for tensor in planned.state_dict().values())
    assert shapes(planned) == shapes(build_model(config, feature_dim=12, num_classes=40))


def test_a_factory_that_needs_values_gets_them_and_one_that_fails_says_why(factories):
    config = load_recipe("default").override([f"model.factory={factories}:reading"])
    planned = planned_model(config, feature_dim=12, num_classes=40)
    assert not any(tensor.is_meta for tensor in planned.state_dict().values())
    with pytest.raises(ConfigError, match="no such file"):
        planned_model(config.override([f"model.factory={factories}:broken"]), feature_dim=12, num_classes=40)


@pytest.mark.parametrize("which", ["classifier", "factory"])
def test_a_model_too_large_for_memory_is_shown_and_not_trained(which, learnable_corpus, factories, tmp_path, capsys):
    words = list(HUGE) if which == "classifier" else [f"model.factory={factories}:huge"]
    words = ["default", *settings(*words, without="model.")]
    place = ["--corpus", str(learnable_corpus.path)]
    assert show(*words, corpus=learnable_corpus.path)["parameters"] > 9e10
    assert exit_code(["fit", *words, *place, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["total"] > 1e12 and "training needs about" in told["warnings"][-1]
    assert exit_code(["fit", *words, *place, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("phonetrain: training needs about")
    assert "of memory are free" in said and "optimizer.accumulation" in said and "batch_size" in said
    assert not (tmp_path / "run").exists()


def test_what_no_machine_can_address_is_one_sentence(learnable_corpus):
    with pytest.raises(ConfigError, match="cannot be laid out"):
        dry_run("default", "model.hidden=none", f"model.max_parameters={10**30}", corpus=learnable_corpus.path)


def test_every_stage_and_a_resumed_run_must_fit_too(learnable_corpus, tmp_path, monkeypatch):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1", "schedule.on_extend=stretch")
    config = load_recipe("default").override(TINY)
    model = planned_model(config, feature_dim=12, num_classes=40)
    fits = memory.needed(config, model, 12, "fp32", 7500)["total"]
    monkeypatch.setattr(memory, "available_memory", lambda swap: fits)
    fit_tiny(learnable_corpus, tmp_path / "fits")
    with pytest.raises(ConfigError, match="training needs about"):
        fit_tiny(learnable_corpus, tmp_path / "no", "stage=[{epochs=1}, {epochs=2, batch_size=4096}]")
    with pytest.raises(ConfigError, match="training needs about"):
        resume_tiny(run, "epochs=2", "batch_size=4096")
    resume_tiny(run, "epochs=2")


def test_more_accumulation_needs_less_and_each_process_computes_its_share():
    def total(*words):
        config = load_recipe("default").override(settings(*words))
        return memory.needed(config, planned_model(config, feature_dim=12, num_classes=40), 12, "fp32", 7500)

    whole, halves, two = total(), total("optimizer.accumulation=2"), total("devices=2")
    assert whole["activations"] == 2 * halves["activations"] == 2 * two["activations"]
    assert whole["weights"] == halves["weights"] and whole["total"] > halves["total"]
    assert total("averaging.decay=none")["averaged"] == 0
    assert total("optimizer.name=sgd")["optimizer"] == whole["optimizer"] / 2


@pytest.fixture(scope="module")
def cepstra(tmp_path_factory):
    """train (4,800 frames) and dev (1,200), D = 14, that warps apply to."""
    rows = slow_and_fast(6000, 14, last=True).astype(np.float32)
    path = tmp_path_factory.mktemp("cepstra") / "packed"
    pack_utterances(
        (
            ("train" if start < 4800 else "dev", f"u-{start}", rows[start : start + 300], np.arange(300) % 4, None)
            for start in range(0, 6000, 300)
        ),
        path,
        symbols=["SIL", "A", "B", "C"],
    )
    return PackedCorpus(path)


def most_at_once(work: Callable[[], None]) -> int:
    """The most bytes of tensors made by `work` that are there at one time."""
    # acc_events: torch 2.11 warns that it might drop events without it.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as done:
        work()
    events = (event for event in done.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "words", [(), ("model.neighbours=20",), ("model.hidden=16", "model.depth=1", "augment.warp=0.1")], ids=str
)
def test_a_step_takes_what_was_calculated_of_windows_activations_and_gradients(cepstra, words, precision):
    words = settings("batch_size=2048", f"precision={precision}", *words)
    config = load_recipe("default").override(words)
    setup = prepare(config, cepstra).setup
    try:
        batch = setup.train.batch(0, 0)
        needs = dry_run("default", *words, corpus=cepstra.path)["memory"]

        def step(number: int) -> None:
            setup.step(*batch, epoch=0, step=number, rate=1e-3)

        step(0)  # makes the moments
        calculated = needs["windows"] - batch.windows.nbytes + needs["activations"] + needs["gradients"]
        assert 0.75 < most_at_once(lambda: step(1)) / calculated < 1.2
        tables = [(one.before, one.after, one.table) for one in (setup.step.neighbours, setup.dev_neighbours) if one]
        assert sum(table.nbytes for three in tables for table in three) == needs["neighbours"]
        assert (setup.step.augment.warps.nbytes if "augment.warp=0.1" in words else 0) == needs["warps"]
    finally:
        setup.close()


def test_a_dry_run_tells_of_the_parts_that_training_builds(learnable_corpus, tmp_path):
    told = dry_run("default", *TINY, corpus=learnable_corpus.path)
    built = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=3").read_json(tmp_path / "run" / "built.json")
    assert all(told[name] == built[name] for name in ("optimizer", "schedule", "loader", "scoring", "precision"))
    assert (told["parameters"], told["layers"]) == (built["model"]["parameters"], built["model"]["layers"])


PEAK = """
import sys
from phonetrain import fit
from phonetrain.planning.dry_run import dry_run

def lines():
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/self/status") if "kB" in line}

corpus, run, *words = sys.argv[1:]
needs = dry_run("default", *words, corpus=corpus)["memory"]["total"]
before = lines()["VmRSS"]
fit("default", *words, corpus=corpus, run=run)
print((lines()["VmHWM"] - before) / needs)
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("size", [("model.hidden=2500", "subset=0.4"), ("model.depth=20", "batch_size=4096")], ids=str)
def test_training_takes_about_what_was_calculated(size, learnable_corpus, tmp_path):
    words = settings("epochs=1", "model.hidden=256", *size, without="model.")
    told = subprocess.run(
        [sys.executable, "-c", PEAK, learnable_corpus.path, tmp_path / "run", *words], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert 0.75 < float(told.stdout.splitlines()[-1]) < 1.3
