"""Both command lines behave alike: prefix and exit code of a refusal, `--json` wherever a result is printed."""

import pytest
from cyclopts import App

from phonedata.cli import app as phonedata_app
from phonedata.cli import main as phonedata_main
from phonetrain.cli.commands import app as phonetrain_app
from phonetrain.cli.main import main as phonetrain_main

MAINS = {"phonedata": phonedata_main, "phonetrain": phonetrain_main}
APPS = {"phonedata": phonedata_app, "phonetrain": phonetrain_app}


def leaves(app: App) -> list[App]:
    """The commands of `app` and of its sub-commands, help and version left out."""
    found = []
    for name in app:
        if not name.startswith("-"):
            below = leaves(app[name])
            found += below or [app[name]]
    return found


@pytest.mark.parametrize(
    ("program", "words", "code"),
    [
        ("phonedata", "pck raw packed", 2),
        ("phonedata", "pack raw packed --workers x", 2),
        ("phonedata", "verify nowhere", 1),
        ("phonetrain", "ftt", 2),
        ("phonetrain", "fit epochs=1.5", 2),
        ("phonetrain", "evaluate nowhere", 1),
    ],
)
def test_a_refusal_is_one_line_that_names_the_program(program, words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        MAINS[program](words.split())
    out, err = capsys.readouterr()
    assert caught.value.code == code and out == ""
    assert err.startswith(f"{program}: ") and err.count("\n") == 1


@pytest.mark.parametrize("program", APPS)
def test_every_command_takes_json(program):
    without = [
        command.name[0]
        for command in leaves(APPS[program])
        if "--json" not in {name for argument in command.assemble_argument_collection() for name in argument.names}
    ]
    assert without == []
