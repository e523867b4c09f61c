"""Where a process finds itself: no place for compiled kernels, no compiler, a current directory that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phonedata import PhonedataError, system

ROOT = Path(__file__).parents[2]
# Another user's container: neither the package's folder nor HOME can be written to.
CONTAINER = (
    "import os, sys, tempfile; os.access = lambda *words, **more: False; tempfile.tempdir = sys.argv[1]; "
    "import phonedata; from phonedata.cli import main; main(['pack', sys.argv[2], sys.argv[3]])"
)


def run(*words, cwd: Path = ROOT, **environment) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    inherited |= {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, env=inherited, timeout=300)


@pytest.mark.skipif(os.name == "nt", reason="numba finds a place of its own on Windows")
def test_kernels_are_kept_in_a_temporary_folder_of_ones_own_where_nothing_else_can_be_written(tiny_raw, tmp_path):
    # How well they are compiled is all the same to where they are kept, and takes half the time.
    told = run(sys.executable, "-c", CONTAINER, tmp_path, tiny_raw, tmp_path / "packed", NUMBA_OPT="0")
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("note: compiled kernels are kept in") == 1
    (folder,) = tmp_path.glob("phonedata-kernels-*")
    assert folder.stat().st_mode & 0o077 == 0 and list(folder.rglob("*.nbi"))


@pytest.mark.skipif(os.name == "nt", reason="numba finds a place of its own on Windows")
def test_a_temporary_folder_that_others_may_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *words, **more: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = tmp_path / f"phonedata-kernels-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    system.find_place_for_kernels()
    assert os.environ["NUMBA_CACHE_DIR"] != str(planted)
    assert os.environ["NUMBA_CACHE_DIR"].startswith(f"{planted}-")


def test_numba_without_its_compiler_is_one_sentence(tiny_raw, tmp_path, monkeypatch):
    told = run(sys.executable, "-m", "phonedata", "pack", tiny_raw, tmp_path / "packed", NUMBA_DISABLE_JIT="1")
    assert (told.returncode, told.stderr.count("\n")) == (1, 1) and "unset NUMBA_DISABLE_JIT" in told.stderr
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(PhonedataError, match="NUMBA_DISABLE_JIT is set"):
        system.check_compiler()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep a directory that somebody is in")
@pytest.mark.parametrize("program", ["phonedata", "phonetrain"])
def test_a_current_directory_that_is_gone_is_one_sentence(tmp_path, program):
    gone = tmp_path / "gone"
    gone.mkdir()
    words = "fit" if program == "phonetrain" else "pack raw packed"
    told = run("sh", "-c", f"cd {gone} && rmdir {gone} && exec {sys.executable} -m {program} {words}")
    lines = [line for line in told.stderr.splitlines() if line.startswith(program)]
    assert told.returncode == 1 and len(lines) == 1, told.stderr
    assert "the current directory is gone" in lines[0] and "Traceback" not in told.stderr


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_minds_every_control_group_above_this_process(version, tmp_path, monkeypatch):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    prefix = "total_" if version == 1 else ""
    own, above = tmp_path / "a/b", tmp_path / "a"
    own.mkdir(parents=True)
    for group, limit in ((own, 1 << 62 if version == 1 else "max"), (above, 30_000)):
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text("25000\n")
        (group / "memory.stat").write_text(f"anon 9\n{prefix}inactive_file 4000\n{prefix}active_file 1000\n")
        (group / "memory.swap.max").write_text("0\n")
        (group / "memory.swap.current").write_text("0\n")
    everywhere = [(group, version == 1) for group in (own, above, tmp_path, tmp_path / "not-there")]
    monkeypatch.setattr(system, "_control_groups", lambda: everywhere)
    assert system.available_memory() == system.available_memory(swap=True) == 10_000
    (above / names[1]).write_text("90000\n")  # over its limit, as after one that was lowered
    assert system.available_memory() == 0


def test_control_groups_are_this_process_s_own_and_those_above():
    groups = [group for group, _ in system._control_groups()]
    if not groups:
        pytest.skip("this system has no control groups")
    assert all(str(group).startswith("/sys/fs/cgroup") for group in groups)
