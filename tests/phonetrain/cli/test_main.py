"""The command line: settings are no recipe names, our errors are one line, other errors keep their traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from phonetrain.cli.main import cut_overrides, exit_code
from phonetrain.runs.directory import Run
from tests.training import TINY

REST = tuple(setting for setting in TINY if not setting.startswith(("epochs", "tracking.log_every")))
HEAVY = ("torch", "numba", "zarr", "wandb", "matplotlib")


@pytest.fixture
def there(tmp_path, monkeypatch, learnable_corpus):
    """A working directory in which packed/ is the learnable corpus."""
    monkeypatch.chdir(tmp_path)
    os.symlink(learnable_corpus.path, tmp_path / "packed")
    return tmp_path


def refused(capsys, *tokens) -> str:
    """The one line that a refused command prints; nothing goes to stdout."""
    code = exit_code(tokens)
    out, err = capsys.readouterr()
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and err.startswith("phonetrain: "), (code, out, err)
    return err


@pytest.mark.parametrize(
    ("tokens", "rest", "overrides"),
    [
        ("fit optimizer.lr=1e-4", ["fit"], ("optimizer.lr=1e-4",)),
        ("fit diamond epochs=2 --run runs/a=b model.widths=[8,8]", ["fit", "diamond", "--run", "runs/a=b"],
         ("epochs=2", "model.widths=[8,8]")),
        ("fit --corpus=packed --dry-run epochs=1", ["fit", "--corpus=packed", "--dry-run"], ("epochs=1",)),
        ("fit dir=a/recipe.toml", ["fit"], ("dir=a/recipe.toml",)),
        ("fit my/dir=a/recipe.toml", ["fit", "my/dir=a/recipe.toml"], ()),
        ("predict --header Id=x", ["predict", "--header", "Id=x"], ()),
    ],
)  # fmt: skip
def test_settings_are_cut_out_first(tokens, rest, overrides):
    assert cut_overrides(tokens.split()) == (rest, overrides)


@pytest.mark.parametrize("tokens", [["--help"], ["fit", "--help"], ["recipes", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(tokens):
    code = (
        "import sys; from phonetrain.cli.main import exit_code; assert exit_code(sys.argv[2:]) == 0\n"
        "print([name for name in sys.argv[1].split(',') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, ",".join(HEAVY), *tokens], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_command_tells_its_options(capsys):
    assert exit_code(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in ("fit", "resume", "evaluate", "predict", "report", "explain", "doctor", "export", "recipes"):
        assert name in overview
        assert exit_code([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"phonetrain {name}" in out and len(out.splitlines()) > 5


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("ftt", 'Did you mean "fit"?'),
        ("fit --corpsu x", "Did you mean --corpus?"),
        ("fit --lr 1e-4", "settings are said as key=value"),
        ("fit diamond hourglass", "hourglass"),
        ("fit defalt", "did you mean default?"),
        ("fit nothing.toml", "no such recipe file"),
        ("fit epochs=1.5", "epochs = 1.5: wanted a whole number"),
        ("fit default epochs 5", "epochs 5: not understood; a setting is said as key=value, as epochs=5"),
        ("fit epochs= 5", "epochs= has nothing after it; a setting has no spaces around its =, as epochs=3"),
        ("fit --max-time 5", 'stop.max_time = "5": wanted a duration such as 2h, 90m or 1h30m'),
        ("evaluate one two", "two: not understood; see `phonetrain evaluate --help`"),
        ("fit epochs = 3", "a setting has no spaces around its =, as epochs=3"),
        ("fit optimzer.lr=1", "did you mean optimizer.lr?"),
        ("fit model.activation=sillu", 'did you mean "silu"?'),
        ("fit --max-time soon", "stop.max_time"),
        ("evaluate optimizer.lr=1", "evaluate takes no settings"),
        ("resume", "no run under runs"),
        ("evaluate nowhere", "no run at nowhere"),
        ("fit --corpus nowhere", "phonedata pack"),
        ("recipes copy defalt", "did you mean default?"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(there, capsys, tokens, words):
    assert words in refused(capsys, *tokens.split())
    assert not (there / "runs").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [("packed", "holds nothing else"), ("packed/run", "holds nothing else"), ("", "one of the words is empty")],
)
def test_a_run_is_not_put_into_the_corpus_nor_nowhere(learnable_corpus, tmp_path, monkeypatch, capsys, where, words):
    shutil.copytree(learnable_corpus.path, tmp_path / "packed")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "fit", "--run", where)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_read_is_one_line(there, capsys, monkeypatch):
    def locked(path, *options, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("phonetrain.runs.directory.Run.holds_run", property(lambda run: locked(run.config_path)))
    told = refused(capsys, "evaluate", "some")
    assert told.startswith("phonetrain: some/config.toml: cannot be used (Permission denied); mend its permissions")


def test_fit_without_a_corpus_names_the_pack_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "phonedata pack raw/ packed/" in refused(capsys, "fit")


def test_errors_that_are_not_ours_keep_their_traceback(monkeypatch):
    def opened(run):
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "open", opened)
    with pytest.raises(ZeroDivisionError):
        exit_code(["explain"])


def test_ctrl_c_outside_training_is_no_traceback(monkeypatch, capsys):
    def opened(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", opened)
    assert exit_code(["explain"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_dry_run_shows_every_stage_and_the_memory_of_the_one_that_needs_most(there, capsys):
    stages = "stage=[{epochs=1, subset=0.5}, {epochs=2, batch_size=512, subset=1.0}]"
    assert exit_code(["fit", *TINY, stages, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["stages"]
    assert (first["batch_size"], second["batch_size"]) == (256, 512) and first["frames"] < second["frames"]
    assert told["memory"] == second["memory"] and second["memory"]["total"] > first["memory"]["total"]
    assert exit_code(["fit", *TINY, stages, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"epochs 2 to 3: train-clean: {second['frames']:,} frames, {second['batches_per_epoch']} batches" in shown


def test_dry_run_shows_the_plan_and_writes_nothing(there, capsys):
    assert exit_code(["fit", *TINY, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "hidden = 32" in out and "batches of 256" in out and "loader     host" in out and "memory     about" in out
    assert exit_code(["fit", *TINY, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loader"]["batch_size"] == 256
    assert sorted(entry.name for entry in there.iterdir()) == ["packed"]


def test_recipes_are_listed_shown_and_copied_but_not_over_a_file(there, capsys):
    assert exit_code(["recipes", "list"]) == 0
    assert "default" in capsys.readouterr().out
    assert exit_code(["recipes", "show", "default", "model.depth=3"]) == 0
    out = capsys.readouterr().out
    assert "hidden 3" in out and "hidden 4" not in out and "parameters" in out
    assert exit_code(["recipes", "copy", "default"]) == 0
    assert exit_code(["fit", "default.toml", *TINY, "--dry-run"]) == 0
    capsys.readouterr()
    assert "is there already" in refused(capsys, "recipes", "copy", "default")


def test_the_whole_job_from_fit_to_report(there, capsys):
    def run(*tokens):
        assert exit_code(tokens) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert json.loads(run("fit", *REST, "epochs=2", "--json", "--quiet"))["status"] == "finished"
    assert json.loads(run("evaluate", "--json"))["frames"] > 0
    assert "frame error rate" in run("evaluate")
    assert run("predict").strip() == os.path.join("runs", "default-1", "predictions", "test-clean.csv")
    assert "epochs=12" in refused(capsys, "resume")
    assert "finished" in run("resume", "epochs=3", "schedule.on_extend=stretch", "--quiet")
    assert "2 epochs are scored" not in run("explain")
    assert run("report").strip() == os.path.join("runs", "default-1", "report.html")
    assert "already holds a run" in refused(capsys, "fit", *TINY, "--run", "runs/default-1")


def test_the_face_keeps_functions_where_rooms_have_their_names():
    import phonetrain.results.predict

    assert all(callable(getattr(phonetrain, name)) for name in phonetrain.__all__)


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_in_training_saves_says_how_to_go_on_and_exits_130(there):
    command = [sys.executable, "-m", "phonetrain", "fit", *REST, "epochs=2000", "tracking.log_every=1"]
    single = os.environ | {"OMP_NUM_THREADS": "1"}  # threads of so small a net only wait for each other
    with subprocess.Popen(command, env=single, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = there / "runs" / "default-1" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size > 1000):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.count("phonetrain resume runs/default-1") == 1 and out == "runs/default-1: SIGINT\n"


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_that_a_library_turns_into_another_error_is_no_traceback_either():
    code = (
        "import os, signal\n"
        "from phonetrain.runs.directory import Run\n"
        "def opened(run):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise RecursionError\n"
        "Run.open = opened\n"
        "from phonetrain.cli.main import main; main(['explain'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--max-time", "5m"), "--max-time"),
        (("--run", "here"), "--run"),
        (("--dry-run", "--stop-at", "23:30"), "--stop-at and --dry-run"),
    ],
)
def test_options_that_mean_nothing_beside_a_range_test_are_refused(there, capsys, options, named):
    assert f"--find-lr trains no run, so it does not take {named}; leave that out" in refused(
        capsys, "fit", "--find-lr", *options
    )
    assert sorted(path.name for path in there.iterdir()) == ["packed"]
