"""The command line: what a person types, what a program parses, what is one line and what is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from phonedata import PackedCorpus
from phonedata.cli import app, main
from tests.conftest import write_hw1p2


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "phonedata", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from phonedata.cli import app\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    try: app(['--help'])\n"
        "    except SystemExit: pass\n"
        "assert 'extract' in out.getvalue()\n"
        "print([m for m in ('torch', 'numba', 'zarr', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_import_of_the_face_costs_nothing():
    code = "import phonedata, sys; print([m for m in ('torch', 'numba', 'zarr', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["inspect", "packed"], ["inspect", "packed", "--json"]])
def test_what_a_corpus_says_of_itself_cannot_steer_the_terminal(tiny_raw, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    steering = "\x1b]0;owned\x07 \x9b2J \u202e"
    (raw / "frontend.toml").write_text(f"library = {json.dumps(steering)}\n", encoding="utf-8")
    app(["pack", "raw", "packed"], result_action="return_value")
    capsys.readouterr()
    app(words, result_action="return_value")
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable() and r"\u001b]0;owned\u0007 \u009b2J \u202e" in out
    if "--json" in words:
        assert json.loads(out)["frontend"]["library"] == steering


def test_pack_inspect_verify_as_typed(tiny_raw, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_raw, tmp_path / "raw")
    for arguments, wanted in (
        (["pack", "raw", "packed", "--context", "9"], "layout hw1p2"),
        (["inspect", "packed"], "context 9"),
        (["inspect", "packed", "--plot", "u.svg", "--partition", "dev-clean"], "cmvn utterance"),
        (["verify", "packed"], "packed: intact"),
        (["pack", "raw", "packed", "--replace", "--cmvn", "none", "--dtype", "float32"], "layout hw1p2"),
    ):
        app(arguments, result_action="return_value")
        assert wanted in capsys.readouterr().out
    assert (tmp_path / "u.svg").stat().st_size > 1000
    assert PackedCorpus(tmp_path / "packed").dtype == np.float32


def test_json_is_for_programs(tiny_raw, tmp_path, capsys):
    packed = str(tmp_path / "packed")
    results = []
    for arguments in (["pack", str(tiny_raw), packed], ["inspect", packed], ["verify", packed]):
        app([*arguments, "--json"], result_action="return_value")
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["digest"] == results[1]["digest"] == results[2]["digest"]
    assert results[1]["partitions"][0]["label_histogram"]["AA"] >= 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["verify", "nowhere"], "does not exist; make one with: phonedata pack RAW nowhere"),
        (["inspect", "."], "no packed corpus (no zarr.json in it)"),
        (["pack", "nowhere", "packed"], "nowhere: does not exist"),
    ],
)
def test_our_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("phonedata: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pack"], "parameter RAW requires an argument. see `phonedata pack --help`"),
        (["pck", "a", "b"], 'Did you mean "pack"?'),
        (["pack", "a", "b", "--worker", "2"], "Did you mean --workers?"),
        (["pack", "a", "b", "--workers", "x"], 'unable to convert "x" into int'),
        (["pack", ".", "packed", "--dask", "local:x"], "wanted the address of a scheduler"),
        (["pack", ".", "packed", "--context", "-1"], "wanted a whole number of rows"),
    ],
)
def test_a_slip_in_the_command_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("phonedata: ") and err.count("\n") == 1 and message in err


def test_a_raw_folder_in_the_place_of_a_corpus_is_not_to_be_packed_into_itself(tiny_raw, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", str(tiny_raw)])
    assert f"if it is a raw folder, pack it into a new one: phonedata pack {tiny_raw} PACKED" in capsys.readouterr().err


def test_a_place_where_nothing_can_be_made_is_one_line(tiny_raw, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    places = [(f"{tmp_path}/file/packed", "is a file; choose another")]
    places.append((f"{tmp_path}/{'n' * 300}", "File name too long"))
    if os.path.isdir("/proc/self"):
        places.append(("/proc/packed", "choose another place"))
    for place, message in places:
        with pytest.raises(SystemExit) as caught:
            main(["pack", str(tiny_raw), place])
        out, err = capsys.readouterr()
        assert caught.value.code == 1 and err.startswith("phonedata: ") and err.count("\n") == 1 and message in err


def test_other_errors_keep_their_traceback(tiny_corpus, monkeypatch):
    monkeypatch.setattr("phonedata.format.describe.inspect", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(tiny_corpus.path)])


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_interrupt_is_one_line_and_the_same_command_goes_on(tmp_path, capsys):
    random = np.random.default_rng(0)
    utterances = {f"{i}": (random.normal(size=(60_000, 8)), random.integers(0, 40, 60_000)) for i in range(12)}
    write_hw1p2(tmp_path / "raw", "train", utterances)
    command = [sys.executable, "-m", "phonedata", "pack", "raw", "packed", "--workers", "1"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "packed.packing/journal"
    while child.poll() is None and not (journal.is_file() and b'"chunk"' in journal.read_bytes()):
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    if child.returncode == 0:
        pytest.skip("packed before the signal came")
    assert child.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command continues where it stopped"  # progress may precede it
    assert not (tmp_path / "packed").exists()
    main(["pack", str(tmp_path / "raw"), str(tmp_path / "packed")])
    assert "chunks kept from an interrupted call" in capsys.readouterr().out


def test_only_commands_that_continue_say_so_when_interrupted(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for module, name, arguments, continues in (
        ("packing.pack", "pack", ["a", "b"], True),
        ("packing.extract", "extract", ["a", "b"], True),
        ("format.describe", "inspect", ["b"], False),
    ):
        monkeypatch.setattr(f"phonedata.{module}.{name}", interrupt)
        with pytest.raises(SystemExit) as caught:
            main([name, *arguments])
        assert caught.value.code == 130
        onward = "; the same command continues where it stopped" if continues else ""
        assert capsys.readouterr().err == f"interrupted{onward}\n"


def test_closed_pipe_is_no_traceback(tiny_corpus):
    command = f"{sys.executable} -m phonedata inspect {tiny_corpus.path} --json | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("module", ["phonedata", "phonetrain"])
def test_a_full_disk_behind_the_output_is_one_line(tiny_corpus, module):
    words = ["inspect", str(tiny_corpus.path)] if module == "phonedata" else ["recipes", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", module, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "the output could not be written (No space left on device)" in done.stderr


def test_errors_name_the_keyword_in_python_and_the_flag_on_the_command_line(tiny_raw, tmp_path, capsys):
    from phonedata import pack
    from phonedata.cli import as_flags
    from phonedata.errors import CorpusExists, SpecError

    pack(tiny_raw, tmp_path / "packed")
    with pytest.raises(CorpusExists, match="replace it with replace=True"):
        pack(tiny_raw, tmp_path / "packed")
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tiny_raw), str(tmp_path / "packed")])
    assert ended.value.code == 1 and "replace it with --replace" in capsys.readouterr().err
    with pytest.raises(SpecError, match="train_partition='train-clean'") as refused:
        pack(tiny_raw, tmp_path / "other", cmvn="train")
    assert "--train-partition train-clean" in as_flags(str(refused.value))
    assert as_flags("use skip_bad=True, cmvn='train' of a=True") == "use --skip-bad, --cmvn train of a=True"
