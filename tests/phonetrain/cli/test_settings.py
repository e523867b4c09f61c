"""Settings are shown from the sections that define them: on the command line and in docs/SETTINGS.md."""

import json
from pathlib import Path

import pytest

from phonetrain.cli.main import exit_code
from phonetrain.cli.settings import settings, settings_page
from phonetrain.config.run_config import RunConfig
from phonetrain.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs/SETTINGS.md"


def test_the_page_of_settings_is_what_the_sections_say():
    assert PAGE.read_text(encoding="utf-8") == settings_page(settings()), "run: python tools/settings_page.py"


def test_every_setting_has_a_sentence_and_its_default_is_the_config_s():
    config = RunConfig()
    for row in settings():
        assert row["sentence"], row["key"]
        if row["default"] not in (None, ()) and not row["key"].startswith("model."):
            assert config.setting(row["key"]) == row["default"], row["key"]


def test_a_section_or_one_setting_is_printed(capsys):
    assert exit_code(["settings", "optimizer.lr"]) == 0
    assert capsys.readouterr().out.startswith("optimizer.lr = 0.001\n    a number, above 0\n    Base learning rate")
    assert exit_code(["settings", "stop", "--json"]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)] == [
        "stop.patience",
        "stop.max_time",
        "stop.stop_at",
    ]
    assert {row["key"] for row in settings("run")} >= {"epochs", "batch_size", "seed"}


def test_an_unknown_section_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean optimizer?"):
        settings("optimzer")
