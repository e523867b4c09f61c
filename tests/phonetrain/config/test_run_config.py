"""Settings: one strict validator, nothing rounded or guessed, exact TOML and back, one line for every refusal."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phonetrain.config.changes import diff, stage_diff
from phonetrain.config.resolve import resolve
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.config.sections import ModelConfig, OptimizerConfig
from phonetrain.config.stages import Stage
from phonetrain.config.toml import toml_value
from phonetrain.config.validation import hints, is_section, known_keys, parse_override, sentences
from phonetrain.errors import ConfigError

DEFAULT = load_recipe("default")
CARRYING = 'stage=[{epochs=3}, {epochs=7, optimizer.lr="previous", schedule.name="plateau"}, {epochs=2, subset=0.5}]'
STAGES = 'stage=[{epochs=2, subset=0.5}, {epochs=3, subset=1.0}, {epochs=4, optimizer.lr=1e-4, averaging.decay="none"}]'


def read_back(config: RunConfig) -> RunConfig:
    return RunConfig.from_dict(tomllib.loads(config.to_toml()))


REFUSED = {
    "epochs=1.5": "epochs = 1.5: wanted a whole number, at least 1 and at most 1,000,000",
    "epochs=10.0": "epochs = 10.0: wanted a whole number",
    "epochs=true": "epochs = true: wanted a whole number",
    'epochs="3"': 'epochs = "3": wanted a whole number, at least 1 and at most 1,000,000; in TOML it is written 3',
    "epochs=0": "epochs = 0: wanted a whole number, at least 1",
    "batch_size=1": "batch_size = 1: wanted a whole number, at least 2",
    "subset=0": "subset = 0: wanted a number, above 0 and at most 1",
    "subset=1.1": "subset = 1.1: wanted",
    "seed=-1": "seed = -1: wanted",
    "optimizer.lr=nan": "optimizer.lr = nan: wanted a number, above 0",
    "optimizer.lr=inf": "optimizer.lr = inf: wanted",
    "optimizer.lr=fast": 'optimizer.lr = "fast": wanted a number, above 0',
    "model.dropout=.3": 'model.dropout = ".3": wanted a number, at least 0 and below 1; in TOML it is written 0.3',
    "model.residual=True": 'model.residual = "True": wanted true or false; in TOML it is written true',
    "model.residual=1": "model.residual = 1: wanted true or false",
    "compile=true": 'compile = true: wanted one of "on", "off"',
    "device=gpu": 'device = "gpu": wanted auto, cpu, cuda, cuda:N or mps',
    "model.archetype=diamnd": 'did you mean "diamond"?',
    "optimizer.name=adamW": 'did you mean "adamw"?',
    "optimizer.betas=[0.9]": "optimizer.betas = [0.9]: wanted a list of 2, each a number, at least 0 and below 1",
    "optimizer.betas=[0.9, 1]": "optimizer.betas.1 = 1: wanted a number, at least 0 and below 1",
    "model.widths=[]": "model.widths = []: wanted at least one hidden layer",
    "model.widths=[512, 2.5]": "model.widths.1 = 2.5: wanted a whole number",
    "model.depth=41": "model.depth = 41: wanted a whole number, at least 1 and at most 40",
    "model.depth=none": "model.depth is missing",
    "model.hidden=none": "model.hidden and model.max_parameters: neither is given, wanted one",
    "optimizer=3": "optimizer = 3: optimizer is a section; set one of its keys, as optimizer.name",
    "lr=1e-3": "lr: unknown setting; did you mean optimizer.lr?",
    "learning_rate=1e-3": "learning_rate: unknown setting; did you mean optimizer.lr?",
    "optimiser.lr=1e-3": "optimiser.lr: unknown setting; did you mean optimizer.lr?",
    "optimizer.weight_deacy=0": "optimizer.weight_deacy: unknown setting; did you mean optimizer.weight_decay?",
    "scheduler.name=cosine": "scheduler.name: unknown setting; did you mean schedule.name?",
    "optim.name=sgd": "optim.name: unknown setting; did you mean optimizer.name?",
    "decay=0.01": "decay: unknown setting; did you mean optimizer.weight_decay?",
    "ema.decay=0.9": "ema.decay: unknown setting; did you mean averaging.decay?",
    "optimizer.dropout=0.1": "optimizer.dropout: unknown setting; did you mean model.dropout?",
    "modle=1": "modle: unknown setting; did you mean model?",
    "bogus=1": "bogus: unknown setting; known here: version, epochs, batch_size, seed, subset, device, devices, ",
    "batch_size=1e3": "batch_size = 1000.0: wanted a whole number, at least 2 and at most 1,048,576; that is 1_000",
    "epochs.x=1": "epochs.x: unknown setting; did you mean epochs?",
    "zzz.yyy=1": "zzz.yyy: unknown setting; known here: version, epochs",
    "schedule.gamma=0.5": "schedule.gamma = 0.5: schedule.name = cosine does not read it; step and exponential do",
    "optimizer.momentum=0.5": "optimizer.momentum = 0.5: optimizer.name = adamw does not read it",
    "schedule.name=step": "schedule.step_size is missing: schedule.name = step needs it",
    "schedule.min_lr=0.1": "schedule.min_lr = 0.1: above optimizer.lr = 0.001",
    "optimizer.lr=previous": 'optimizer.lr = "previous": wanted a number, above 0',
    "stage=[{epochs=2, optimizer.lr='previous'}]": 'stage.0.optimizer.lr = "previous": the first stage has none before',
    "stage=[{epochs=1}, {epochs=2, optimizer.lr='next'}]": 'stage.1: optimizer.lr = "next": wanted a number, above 0',
    "optimizer.accumulation=3": "optimizer.accumulation = 3: does not divide batch_size = 2048; wanted a divisor",
    "optimizer.accumulation=2048": "cuts batch_size = 2048 into single windows; wanted at least 2 in a piece",
    "augment.time_mask=42": "augment.time_mask = 42: the window has 41 frames",
    "stop.max_time=2x": 'stop.max_time = "2x": wanted a duration such as 2h, 90m or 1h30m',
    "stop.max_time=0h": "wanted a duration",
    "stop.stop_at=23:30:00": 'stop.stop_at = "23:30:00": wanted a time of day such as 23:30',
    "stop.stop_at=24:30": 'stop.stop_at = "24:30": wanted a time of day such as 23:30',
    "data.train=2020": 'data.train = 2020: wanted "auto", or partition names joined by +',
    'data.train=" "': 'data.train = " ": wanted "auto"',
    "version=2": "version = 2: this phonetrain reads recipes of version 1; upgrade phonetrain",
    'version="1"': 'version = "1": wanted 1',
    "version=0": "version = 0: wanted 1",
    "version=true": "version = true: wanted 1",
    "optimizer.lr=1" + 400 * "0": "optimizer.lr = 1000",
    "optimizer.lr=1" + 5000 * "0": 'optimizer.lr = "1000',
    "epochs=1" + 5000 * "0": 'epochs = "1000',
    "stage=3": "stage = 3: wanted a list, each a table",
    "stage=[{subset=0.5}]": "stage.0.epochs is missing: wanted a whole number, at least 1",
    "stage=[{epochs=1.5}]": "stage.0.epochs = 1.5: wanted a whole number",
    "stage=[{epochs=2, model.depth=3}]": "stage.0.model.depth: belongs to the whole run; a stage may change subset",
    "stage=[{epochs=2, stop.max_time='1h'}]": "stage.0.stop.max_time: belongs to the whole run; a stage may change",
    "stage=[{epochs=2, optimizer.lrr=3}]": "stage.0: optimizer.lrr: unknown setting; did you mean optimizer.lr?",
    "stage=[{epochs=2}, {epochs=1, subset=2}]": "stage.1: subset = 2: wanted a number",
    "model.factory=": 'model.factory = "": wanted file.py:function or package.module:function',
    "justtext": '"justtext": wanted key=value, as optimizer.lr=1e-4',
    "a b=3": '"a b=3": wanted key=value',
}


@pytest.mark.parametrize("override", REFUSED)
def test_wrong_settings_are_refused_in_one_line(override):
    with pytest.raises(ConfigError) as error:
        DEFAULT.override([override])
    assert REFUSED[override] in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 320


def test_number_of_too_many_digits_in_a_recipe_is_refused_with_the_file(tmp_path):
    (tmp_path / "long.toml").write_text("epochs = 1" + 5000 * "0")
    with pytest.raises(ConfigError, match="long.toml: not TOML: .*digits"):
        load_recipe(tmp_path / "long.toml")


def test_rivals_said_together_are_refused():
    both = "schedule.warmup_steps and schedule.warmup_epochs: both are given, wanted one"
    with pytest.raises(ConfigError, match=both):
        DEFAULT.override(["schedule.warmup_steps=20", "schedule.warmup_epochs=2"])
    with pytest.raises(ConfigError, match="model.depth = 3: model.widths says it all"):
        DEFAULT.override(["model.widths=[512]", "model.depth=3"])
    with pytest.raises(ConfigError, match="optimizer.lr: said twice, as 0.1 and as 0.2"):
        DEFAULT.override(["optimizer.lr=0.1", "optimizer.lr=0.2"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["optimizer.name=sgd", "optimizer.momentum=0.8"], "momentum"),
        (["optimizer.betas=[0.8, 0.99]"], "betas.0"),
    ],
)
def test_momentum_that_onecycle_moves_is_not_said_elsewhere(settings, key):
    with pytest.raises(ConfigError, match=f"optimizer.{key} = 0.8: onecycle moves it"):
        DEFAULT.override(["schedule.name=onecycle", *settings])
    DEFAULT.override(["schedule.name=onecycle", "schedule.cycle_momentum=false", *settings])
    DEFAULT.override(["schedule.name=onecycle", "optimizer.betas=[0.9, 0.99]"])


def test_cap_stays_where_a_width_is_said():
    assert load_recipe("hourglass").override(["model.hidden=512"]).model.max_parameters == 20_000_000


def test_a_setting_said_later_takes_the_place_of_its_rival():
    assert DEFAULT.override(["model.max_parameters=2_000_000"]).model.hidden is None
    widths = DEFAULT.override(["model.widths=[512, 256]"]).model
    assert (widths.widths, widths.archetype, widths.depth, widths.hidden) == ((512, 256), None, None, None)
    assert DEFAULT.override(["schedule.warmup_epochs=1"]).schedule.warmup_steps is None
    diamond = DEFAULT.override(["model.archetype=diamond", "model.narrowest=0.5"])
    assert diamond.override(["model.archetype=cylinder"]).model.narrowest == 0.25
    sgd = DEFAULT.override(["optimizer.betas=[0.8, 0.9]"]).override(["optimizer.name=sgd", "optimizer.momentum=0.8"])
    assert sgd.optimizer.betas == OptimizerConfig().betas


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["averaging.decay=none"],
        [CARRYING],
        [STAGES],
        ["model.widths=[64]", "precision=bf16"],
        ["optimizer.name=muon", "optimizer.lr=3"],
        ['data.corpus=C:\\new\\table "x"'],
        ["stop.stop_at=23:30", "stop.max_time=1h30m"],
        ["optimizer.eps=1e-300", "optimizer.lr=0.1000000000000000055"],
    ],
)
def test_toml_reads_back_exactly(overrides):
    config = DEFAULT.override(overrides)
    assert read_back(config) == config
    assert hash(read_back(config)) == hash(config)
    assert read_back(config).to_toml() == config.to_toml()


@given(st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans())
def test_every_value_survives_toml(value):
    found = tomllib.loads(f"value = {toml_value(value)}")["value"]
    assert (found, type(found)) == (value, type(value))


@given(st.text(min_size=1))
def test_an_override_is_one_value_whatever_it_holds(text):
    key, value = parse_override(f"data.corpus={text}")
    assert key == "data.corpus"
    assert isinstance(value, (bool, int, float, str, list, dict))


def test_overrides_are_toml_and_text_where_they_are_not():
    assert parse_override("optimizer.lr=1e-4") == ("optimizer.lr", 1e-4)
    assert parse_override("data.train=train-a + train-b") == ("data.train", "train-a + train-b")
    assert parse_override("data.corpus = 1\nseed = 5") == ("data.corpus", "1\nseed = 5")
    assert parse_override("stop.stop_at=23:30:00") == ("stop.stop_at", "23:30:00")


def test_whole_numbers_are_taken_for_floats_and_nothing_else_is_cast():
    assert DEFAULT.override(["optimizer.lr=1"]).optimizer.lr == 1.0
    assert type(DEFAULT.override(["optimizer.lr=1"]).optimizer.lr) is float
    with pytest.raises(ConfigError, match=r"model.hidden = 512.0"):
        ModelConfig(archetype="cylinder", depth=2, hidden=512.0)
    with pytest.raises(ConfigError, match="epochs"):
        dataclasses.replace(DEFAULT, epochs=1.5)


def test_none_takes_a_setting_away_only_where_there_may_be_none():
    assert DEFAULT.override(["averaging.decay=none"]).averaging.decay is None
    assert DEFAULT.override(["model.norm=none"]).model.norm == "none"
    with pytest.raises(ConfigError, match='optimizer.lr = "none"'):
        DEFAULT.override(["optimizer.lr=none"])


def sections_of(section: type) -> list[type]:
    return [section, *(each for hint in hints(section).values() if is_section(hint) for each in sections_of(hint))]


def test_every_setting_has_its_sentence():
    for section in sections_of(RunConfig):
        said = sentences(section)
        for name, hint in hints(section).items():
            assert is_section(hint) or said.get(name, "").endswith((".", "]")), f"{section.__name__}.{name}"


def test_settings_that_admit_none_are_none_by_default():
    for key, section, name in known_keys(RunConfig):
        if type(None) in getattr(hints(section)[name], "__args__", ()):
            assert section.__dataclass_fields__[name].default is None, key


def test_keywords_are_settings_as_values_and_sections_as_dicts(tmp_path):
    config = resolve(None, ["seed=3"], settings={"epochs": 2, "optimizer": {"lr": 5e-4, "betas": (0.8, 0.9)},
                                                 "model.widths": [8, 8], "data": {"corpus": tmp_path}})  # fmt: skip
    assert (config.seed, config.epochs, config.optimizer.lr, config.optimizer.betas) == (3, 2, 5e-4, (0.8, 0.9))
    assert config.model.widths == (8, 8) and config.data.corpus == str(tmp_path)
    assert resolve(None, settings={"averaging": {"decay": None}}).averaging.decay is None
    for settings, wanted in (
        ({"seed": 4}, "seed: said twice, as 3 and as 4"),
        ({"optimizer": {"rate": 1}}, "optimizer.rate: unknown setting; did you mean optimizer.lr"),
        ({"epochs": "2"}, 'epochs = "2": wanted a whole number'),
        ({"max_time": "2h"}, "max_time: unknown setting; did you mean stop.max_time"),
    ):
        with pytest.raises(ConfigError, match=re.escape(wanted)):
            resolve(None, ["seed=3"], settings=settings)


def test_a_recipes_time_mask_keeps_its_share_of_a_window_that_is_made_smaller():
    config = load_recipe("default")
    assert (config.window.width, config.augment.time_mask) == (41, 8)
    masks = {
        ("window.left=5", "window.right=5"): 2,
        ("window.left=0", "window.right=0"): 0,
        ("window.left=15",): 7,
        ("window.left=40",): 8,
        ("window.left=10", "augment.time_mask=20"): 20,
        ("epochs=3",): 8,
    }
    assert {said: config.override(said).augment.time_mask for said in masks} == masks
    with pytest.raises(ConfigError, match="the window has 3 frames"):
        config.override(["window.left=1", "window.right=1", "augment.time_mask=4"])


def test_configs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.model.hidden = 3


def test_diff_names_old_and_new():
    changed = DEFAULT.override(["optimizer.lr=1e-4", "epochs=3", "averaging.decay=none"])
    assert diff(DEFAULT, changed) == [
        ("epochs", DEFAULT.epochs, 3),
        ("optimizer.lr", DEFAULT.optimizer.lr, 1e-4),
        ("averaging.decay", DEFAULT.averaging.decay, None),
    ]
    assert diff(DEFAULT, DEFAULT) == []


def test_stages_apply_one_after_the_other():
    config = DEFAULT.override([STAGES])
    assert config.epochs == 9
    plans = config.plans
    assert [(plan.start, plan.stop, plan.schedule_start, plan.schedule_stop) for plan in plans] == [
        (0, 2, 0, 5),
        (2, 5, 0, 5),
        (5, 9, 5, 9),
    ]
    assert [plan.config.subset for plan in plans] == [0.5, 1.0, 1.0]
    assert plans[2].config.averaging.decay is None
    assert plans[2].config.epochs == 4
    assert [plan.starts_schedule for plan in plans] == [True, False, True]


def test_each_stage_may_have_a_schedule_of_another_name():
    first = "{epochs=2, schedule.name='plateau', schedule.patience=2}"
    second = "{epochs=2, schedule.name='step', schedule.step_size=1, schedule.gamma=0.5}"
    config = DEFAULT.override([f"stage=[{first}, {second}, {{epochs=2, schedule.name='constant'}}]"])
    assert [plan.config.schedule.name for plan in config.plans] == ["plateau", "step", "constant"]
    assert config.plans[1].config.schedule.patience == 10


def test_a_run_without_stages_is_one_stage():
    (plan,) = DEFAULT.plans
    assert plan.config == DEFAULT
    assert (plan.start, plan.stop) == (0, DEFAULT.epochs)


def test_epochs_of_a_staged_run_cut_it_or_lengthen_its_last_stage():
    config = DEFAULT.override([STAGES])
    assert [stage.epochs for stage in config.override(["epochs=4"]).stage] == [2, 2]
    assert [stage.epochs for stage in config.override(["epochs=12"]).stage] == [2, 3, 7]
    longer = config.override(["stage.0.epochs=5", "stage.2.optimizer.lr=3e-5"])
    assert longer.epochs == 12
    assert longer.plans[2].config.optimizer.lr == 3e-5
    with pytest.raises(ConfigError, match="epochs = 4: the stages take 2 epochs"):
        RunConfig(epochs=4, stage=(Stage(2),))


def test_stage_may_carry_the_rate_of_the_one_before():
    config = DEFAULT.override([CARRYING])
    assert [plan.lr for plan in config.plans] == [DEFAULT.optimizer.lr, "previous", "previous"]
    assert [plan.carries_rate and plan.starts_schedule for plan in config.plans] == [False, True, False]
    assert all(plan.config.optimizer.lr == DEFAULT.optimizer.lr for plan in config.plans)
    first, carrying, _ = config.plans
    assert ("optimizer.lr", DEFAULT.optimizer.lr, "previous") in stage_diff(first, carrying)


def test_rate_changed_by_hand_leaves_it_to_later_stages_to_carry_theirs():
    config = DEFAULT.override([CARRYING])
    assert [plan.lr for plan in config.override(["optimizer.lr=0.5"], 1).plans] == [0.5, "previous", "previous"]
    assert [plan.lr for plan in config.override(["optimizer.lr=0.5"], 4).plans] == [DEFAULT.optimizer.lr, 0.5, 0.5]


@pytest.mark.parametrize("key", ["optimizer.lr", "stage.1.optimizer.lr"])
def test_rate_cannot_be_carried_into_a_stage_that_has_begun(key):
    with pytest.raises(ConfigError, match=f'{key} = "previous": the stage has begun, and its rate goes on by itself'):
        DEFAULT.override([CARRYING]).override([f"{key}=previous"], 3)


def test_places_in_a_list_of_stages_are_counted_from_0():
    with pytest.raises(ConfigError, match=r"stage.5.epochs: 5 is no place in a list of 3"):
        DEFAULT.override([STAGES]).override(["stage.5.epochs=1"])


def test_config_is_read_without_torch():
    code = "import sys, phonetrain.config.run_config as c; c.load_recipe('default'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_list_of_settings_in_place_of_texts_is_refused_with_a_sentence():
    with pytest.raises(ConfigError, match='wanted every setting as a text of its own, as "epochs=5"'):
        DEFAULT.override([["epochs=5"]])


def test_changed_by_hand_is_set_where_the_present_value_is_said_and_in_later_stages():
    config = DEFAULT.override(
        [
            "optimizer.lr=1e-2",
            "stage=[{epochs=2}, {epochs=2, optimizer.lr=1e-3, subset=0.5}, {epochs=2}, {epochs=2, optimizer.lr=1e-4}]",
        ]
    )

    def rates(changes, epoch):
        changed = config.override(changes, epoch)
        assert [plan.start for plan in changed.plans] == [0, 2, 4, 6]
        return [plan.config.optimizer.lr for plan in changed.plans]

    assert rates(["optimizer.lr=5e-5"], 0) == [5e-5, 5e-5, 5e-5, 5e-5]
    assert rates(["optimizer.lr=5e-5"], 4) == [1e-2, 5e-5, 5e-5, 5e-5]
    assert rates(["optimizer.lr=5e-5"], 6) == [1e-2, 1e-3, 1e-3, 5e-5]
    assert rates(["stage.3.optimizer.lr=5e-5"], 2) == [1e-2, 1e-3, 1e-3, 5e-5]
    assert [plan.config.subset for plan in config.override(["subset=0.7"], 4).plans] == [1.0, 0.7, 0.7, 0.7]


def test_stages_settings_give_way_to_what_is_changed_by_hand():
    plateau = "{epochs=2, schedule.name='plateau', schedule.patience=2}"
    config = DEFAULT.override([f"stage=[{{epochs=2}}, {plateau}, {{epochs=2, schedule.patience=3}}]"])
    changed = config.override(["schedule.name=constant"], 2)
    assert [plan.config.schedule.name for plan in changed.plans] == ["cosine", "constant", "constant"]


def test_longer_last_stage_is_the_change_of_epochs_said_once():
    staged = DEFAULT.override(["stage=[{epochs = 2}, {epochs = 3, subset = 0.5}]"])
    assert diff(staged, staged.override(["epochs=9"])) == [("epochs", 5, 9)]
    assert [key for key, *_ in diff(staged, staged.override(["epochs=4"]))] == ["epochs", "stage.1.epochs"]


def test_a_run_has_one_config_of_recipe_overrides_corpus_and_the_whole_path_of_its_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = resolve("default", ["epochs=3", "model.factory=net.py:build"], Path("packed"))
    assert (config.epochs, config.data.corpus) == (3, "packed")
    assert config.model.factory == f"{tmp_path.resolve() / 'net.py'}:build"
    assert resolve(config) == config == resolve(config, corpus="packed")
    assert resolve() == load_recipe("default")
    assert resolve("default", ["data.corpus=elsewhere"], "packed").data.corpus == "packed"
    assert resolve("default", ["model.factory=package.net:build"]).model.factory == "package.net:build"


def test_stages_are_resolved_once(monkeypatch):
    config = load_recipe("long")
    monkeypatch.setattr(RunConfig, "replaced", lambda *_: pytest.fail("resolved again"))
    assert config.plans is config.plans


@pytest.mark.parametrize("depth", [20, 3000])
def test_values_nested_deeper_than_any_setting_are_refused(tmp_path, depth):
    deep = "[" * depth + "]" * depth
    with pytest.raises(ConfigError, match=r"^stage: its value is nested deeper than any setting is"):
        load_recipe("default").override([f"stage={deep}"])
    (tmp_path / "deep.toml").write_text(f"stage = {deep}\n")
    with pytest.raises(ConfigError, match="deep.toml: nested deeper than any setting is"):
        RunConfig.from_toml(tmp_path / "deep.toml")


@pytest.mark.parametrize("value", ["2", "true", '"x"', "1.5", "[2]", "{epochs=1}"])
def test_stages_that_are_no_tables_are_refused_beside_epochs(value):
    with pytest.raises(ConfigError, match="stage"):
        load_recipe("default").override(["epochs=1", f"stage={value}"])


@pytest.mark.parametrize("text", ["x" * 5000, "x/" * 3000, "y" * 5000 + ".toml", "a=" * 3000])
def test_text_too_long_for_a_recipe_is_refused_shortly(text):
    with pytest.raises(ConfigError, match="too long for a recipe's name or path") as caught:
        load_recipe(text)
    assert len(str(caught.value)) < 200
