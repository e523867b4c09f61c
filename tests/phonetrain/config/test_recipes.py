"""Recipes: each is whole, says where its values come from, and can be shortened; files that are none are refused."""

import re

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.config import toml as recipe
from phonetrain.config.run_config import RunConfig, load_recipe
from phonetrain.config.toml import recipe_names
from phonetrain.errors import ConfigError
from phonetrain.model.classifier import build_model, num_parameters
from phonetrain.optim.schedule import Schedule

LOG = ("start", "diamond", "plateau", "onecycle", "chain", "hourglass", "long", "nan20")
SHORT = {
    "chain": ["epochs=2", "stage.0.epochs=1"],
    "long": ["stage.0.epochs=1", "stage.1.epochs=1", "stage.2.epochs=1", "stage.3.epochs=1"],
}


def test_the_list_begins_with_the_recipe_to_start_with_and_says_what_the_log_is(capsys):
    assert exit_code(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("default ")
    assert [line.split()[0] for line in lines[1 : lines.index("")]] == sorted(set(recipe_names()) - {"default"})
    assert 'Start with default. The experiments and "the log": ' in "\n".join(lines)


def test_the_experiments_of_the_log_are_all_there():
    assert {*LOG, "default", "cylinder5", "hourglass17"} <= set(recipe_names())


@pytest.mark.parametrize("name", LOG)
def test_every_value_of_the_log_says_told_or_assumed(name):
    for line in recipe.read_text(recipe.locate(name)).splitlines():
        if "=" in line and not line.startswith(("#", "version")):
            assert re.search(r"  # (told|assumed)\b", line), line


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_says_in_a_line_what_it_is(name):
    assert 20 < len(recipe.summary(name)) < 120


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_builds_under_its_cap_and_has_a_rate_for_every_epoch(name):
    config = load_recipe(name)
    model = build_model(config.override(["model.max_parameters=2_000_000"]), feature_dim=28, num_classes=40)
    assert num_parameters(model) <= 2_000_000
    for plan in config.plans:
        schedule = Schedule(plan.config, 7, first_epoch=plan.schedule_start)
        for epoch in (plan.start, plan.stop - 1):
            rates = schedule.rates(epoch, 7)
            assert rates.shape == (7,)
            assert (rates > 0).all()


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_can_be_shortened(name):
    short = load_recipe(name).override(SHORT.get(name, ["epochs=2"]))
    assert short.epochs <= 4
    assert RunConfig.from_dict(short.to_dict()) == short


def test_long_is_a_sequence_of_stages():
    plans = load_recipe("long").plans
    assert plans[-1].stop == 210
    assert [plan.config.subset for plan in plans] == [0.75, 1.0, 1.0, 1.0]
    assert [plan.config.optimizer.lr for plan in plans] == [1e-3, 1e-3, 1e-4, 1.2e-6]


def test_recipes_by_path_and_by_name_are_the_same(tmp_path):
    copy = tmp_path / "mine.toml"
    copy.write_bytes(recipe.locate("hourglass").read_bytes())
    assert load_recipe(copy) == load_recipe("hourglass")
    copy.write_bytes(b"\xef\xbb\xbf" + recipe.locate("hourglass").read_bytes())
    assert load_recipe(str(copy)) == load_recipe("hourglass")


def refusal(source) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_that_are_no_recipe_are_refused_with_the_nearest():
    assert refusal("diamnd") == "diamnd: no such recipe; did you mean diamond?"
    assert "there are default, chain, cylinder5, demo" in refusal("qqq")
    assert "an override, not a recipe" in refusal("optimizer.lr=1e-4")


def test_files_that_are_no_recipe_are_refused(tmp_path):
    file = tmp_path / "mine.toml"
    assert refusal(file) == f"{file}: no such recipe file; `phonetrain recipes list` shows those that exist"
    file.write_text("epochs = = 3\n")
    assert refusal(file).startswith(f"{file}: not TOML: Invalid value (at line 1, column 10)")
    file.write_bytes(b"epochs = 3 # \xff\xfe")
    assert "byte 13 is not UTF-8 text, wanted TOML" in refusal(file)
    file.write_text("version = 7\nnew_section = {}\n")
    assert refusal(file) == f"{file}: version = 7: this phonetrain reads recipes of version 1; upgrade phonetrain"
    file.write_text("[optimizer]\ndropout = 0.3\n")
    assert refusal(file) == f"{file}: optimizer.dropout: unknown setting; did you mean model.dropout?"
    file.write_text("[model]\narchetype = 'cylinder'\ndepth = 2\nhidden = 4.5\n")
    assert refusal(file) == f"{file}: model.hidden = 4.5: wanted a whole number, at least 1 and at most 65,536"
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.toml")
