"""Files are whole or absent, also several at a time, folders change places, and locks hold one process off."""

import os
import subprocess
import sys

import pytest

from phonedata import files


def test_several_files_are_written_all_or_none(tmp_path):
    old, new = tmp_path / "old", tmp_path / "made/for/it/new"
    old.write_bytes(b"before")
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(OSError):
        files.write_files({old: b"after", new: b"x", tmp_path / "blocked/file": b"y"})
    assert old.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocked", "old"]
    files.write_files({old: b"after", new: b"x"})
    assert (old.read_bytes(), new.read_bytes()) == (b"after", b"x")
    assert [path.name for path in new.parent.iterdir()] == ["new"]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_disk_that_fills_up_at_the_second_file_leaves_the_first_as_it_was(tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    code = f"""
import resource
from pathlib import Path
from phonedata import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = Path({str(tmp_path)!r})
try:
    files.write_files({{root / "a": b"x", root / "b": b"x" * 5000}})
except OSError as error:
    print(files.is_disk_full(error))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n" and (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_line_after_half_a_line_is_a_line_of_its_own(tmp_path):
    (tmp_path / "log").write_bytes(b"whole\nhal")
    files.append_line(tmp_path / "log", b"next", sync=True)
    files.append_line(tmp_path / "log", b"last")
    assert (tmp_path / "log").read_bytes() == b"whole\nhal\nnext\nlast\n"


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_folder_gets_its_name_and_the_old_one_is_returned(tmp_path, monkeypatch, exchanges, there):
    if not exchanges:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    for name in ["finished", *(["target"] if there else [])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    old = files.replace_folder(tmp_path / "finished", tmp_path / "target", tmp_path / "aside")
    assert os.listdir(tmp_path / "target") == ["finished"]
    assert (old is not None) == there
    assert old is None or os.listdir(old) == ["target"]


def test_second_rename_that_fails_gives_the_old_folder_its_name_back(tmp_path, monkeypatch):
    for name in ("finished", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    real = os.rename

    def rename(old, new):
        if str(old).endswith("finished"):
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(files, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        files.replace_folder(tmp_path / "finished", tmp_path / "target", tmp_path / "aside")
    assert os.listdir(tmp_path / "target") == ["target"] and os.listdir(tmp_path / "finished") == ["finished"]


def test_folder_that_is_not_finished_leaves_the_old_one_and_none_that_was_made_for_it(tmp_path):
    target, inside = tmp_path / "a" / "b" / "folder", {}
    for place in (target, tmp_path / "other"):
        with pytest.raises(KeyError), files.write_folder(place) as folder:
            (folder / "file").write_text("half")
            raise KeyError
    assert list(tmp_path.iterdir()) == []
    for words in ("old", "new"):
        with files.write_folder(target) as folder:
            inside[words] = list(folder.iterdir())
            (folder / words).write_text(words)
    assert inside == {"old": [], "new": []} and [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(OSError), files.write_folder(target) as folder:
        (folder / "third").write_text("")
        raise OSError(28, "no space")
    assert [path.name for path in target.parent.rglob("*")] == ["folder", "new"]


def test_folder_begins_empty_though_a_killed_process_of_the_same_number_left_one(tmp_path):
    killed = tmp_path / f".folder.{os.getpid()}.partial"
    killed.mkdir()
    (killed / "half").touch()
    with files.write_folder(tmp_path / "folder") as folder:
        (folder / "whole").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/whole"]


def test_disk_that_fails_is_not_taken_for_a_file_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    asked = (files.exists, files.is_file, files.is_folder)
    assert [ask(tmp_path / "folder") for ask in asked] == [True, False, True]
    assert [ask(tmp_path / "folder/file") for ask in asked] == [True, True, False]
    for absent in (tmp_path / "absent", tmp_path / "folder/file/absent", "a\0b", "a" * 5000):
        assert [ask(absent) for ask in asked] == [False] * 3
    assert files.named(tmp_path / "folder", "f*") == list(files.files_below(tmp_path)) == [tmp_path / "folder/file"]
    assert files.named(tmp_path / "absent", "*") == list(files.walk(tmp_path / "absent")) == []

    def fail(path, *more, **options):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        for call in ("stat", "listdir", "scandir"):
            patched.setattr(os, call, fail)
        for ask in (*asked, lambda path: files.named(path, "*"), lambda path: list(files.walk(path)), files.sync_tree):
            with pytest.raises(OSError, match="Input/output"):
                ask(tmp_path / "folder")


def test_folder_that_may_not_be_looked_into_is_told_or_raises(tmp_path, monkeypatch):
    def fail(path, *more):
        raise PermissionError(13, "Permission denied", path)

    told = []
    monkeypatch.setattr(os, "scandir", fail)
    assert list(files.walk(tmp_path, closed=told.append)) == [] and told == [str(tmp_path)]
    with pytest.raises(PermissionError):
        list(files.walk(tmp_path))


def test_what_cannot_be_removed_ends_nothing(tmp_path, monkeypatch):
    def fail(fd):
        real(fd)
        raise OSError(5, "Input/output error")

    (tmp_path / "folder/below").mkdir(parents=True)
    real = os.close
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fail)
        files.remove_tree(tmp_path / "folder")
    files.remove_tree(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_lock_holds_others_off_until_it_is_given_back(tmp_path):
    with open(tmp_path / "lock", "a+b") as first, open(tmp_path / "lock", "a+b") as second:
        assert files.try_lock(first.fileno()) and not files.try_lock(second.fileno())
        files.unlock(first.fileno())
        assert files.try_lock(second.fileno())
