"""The target is the old corpus or the new one, whole, whenever and however a pack is stopped."""

import errno
import gc
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from phonedata import CorpusNotFound, PackedCorpus, PhonedataError, files, pack
from phonedata.files import put_in_place, replaced_path, staging_path
from phonedata.packing.journal import Staging
from phonedata.packing.plan import PartitionPlan
from tests.conftest import tree_bytes, write_hw1p2


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four chunks in three narrow partitions: enough to be stopped in the middle."""
    root = tmp_path_factory.mktemp("safety") / "raw"
    random = np.random.default_rng(0)
    for name, count in (("dev", 3), ("test", 2), ("train", 8)):
        utterances = {
            f"{name}-{i}-0": (random.normal(size=(9000, 1)).astype(np.float32), random.integers(0, 40, 9000))
            for i in range(count)
        }
        write_hw1p2(root, name, utterances, labelled=name != "test")
    return root


@pytest.fixture(scope="module")
def whole(raw):
    """The files of an undisturbed pack."""
    pack(raw, raw.parent / "whole")
    return tree_bytes(raw.parent / "whole")


# A process that packs and dies by SIGKILL at its k-th file operation, for many k: audit events stand before every
# open, rename, mkdir, remove, truncate. Forking from one warm process makes a kill cost milliseconds.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import phonedata
from phonedata.packing.pack import pack
from phonedata.format.corpus import PackedCorpus

raw, folder, replace = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[5] == "replace"
step, first = int(sys.argv[3]), int(sys.argv[4])
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "ctypes.dlsym"}

os.fsync = lambda fd: None  # a killed process takes no written byte with it

def die_at(k):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == k:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

pack(raw, folder / "warm", workers=1)
k = first
while True:
    target = folder / f"packed{k}"
    if replace:
        pack(raw, target, workers=1, context=3)
    child = os.fork()
    if child == 0:
        die_at(k)
        pack(raw, target, workers=1, replace=replace)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    staging = target.with_name(target.name + ".packing")
    if sys.argv[6:] and (staging / "corpus").exists():
        # As if a worker of another process had begun to write, and nobody knew what became of it.
        (staging / "attempts-1").mkdir()
        (staging / "attempts-1/claimed").touch()
        child = os.fork()
        if child == 0:
            die_at(k // 2)  # the next call may be killed too, while it copies what was left behind
            pack(raw, target, workers=1, replace=replace)
            os._exit(0)
        os.waitpid(child, 0)
        if target.exists() and not replace:
            shutil.rmtree(target)
    state = "absent"
    try:
        corpus = PackedCorpus(target)
        corpus.verify()
        state = "new" if corpus.context == 50 else "old"
    except phonedata.CorpusNotFound:
        pass
    again = pack(raw, target, workers=1, replace=state != "absent")
    PackedCorpus(target).verify()
    same = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        str(p.relative_to(folder / "warm")): p.read_bytes() for p in (folder / "warm").rglob("*") if p.is_file()
    }
    left = sorted(p.name for p in folder.iterdir() if p.name.startswith(target.name + "."))
    print(k, "killed" if os.WIFSIGNALED(status) else "finished", state, same, again.chunks_reused, left, flush=True)
    shutil.rmtree(target)
    if not os.WIFSIGNALED(status):
        break
    k += step
"""


def kill_everywhere(raw, folder, step, first, replace, abandoned=False):
    command = [sys.executable, "-W", "error", "-c", KILLER, raw, folder, step, first, "replace" if replace else "new"]
    command += ["abandoned"] * abandoned
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=5) for line in done.stdout.splitlines()]


def check_kills(lines, replace):
    assert lines[-1][1] == "finished"
    assert len(lines) > 3
    for k, _, state, same, _, left in lines:
        assert state in (("old", "new") if replace else ("absent", "new")), f"killed at {k}: {state}"
        assert same == "True" and left == "[]", f"killed at {k}"


@pytest.mark.skipif(os.name == "nt", reason="no fork")
@pytest.mark.parametrize("replace", [False, True], ids=["fresh", "replacing"])
def test_kill_at_any_file_operation_leaves_old_or_new(raw, tmp_path, replace):
    lines = kill_everywhere(raw, tmp_path, 53, 40, replace)
    check_kills(lines, replace)
    assert any(int(reused) > 0 for *_, reused, _ in lines)


@pytest.mark.skipif(os.name == "nt", reason="no fork")
@pytest.mark.parametrize("step", [67, pytest.param(2, marks=pytest.mark.long)])
def test_files_that_a_lost_worker_may_have_open_are_copied_whenever_a_call_is_killed(raw, tmp_path, step):
    lines = kill_everywhere(raw, tmp_path, step, 40, True, abandoned=True)
    check_kills(lines, True)
    assert any(int(reused) > 0 for *_, reused, _ in lines)


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="no fork")
@pytest.mark.parametrize("replace", [False, True], ids=["fresh", "replacing"])
def test_kill_at_every_file_operation_leaves_old_or_new(raw, tmp_path, replace):
    lines = kill_everywhere(raw, tmp_path, 1, 1, replace)
    check_kills(lines, replace)
    assert len(lines) > 50


@pytest.mark.parametrize("cmvn", ["utterance", "speaker"])
@pytest.mark.parametrize("workers", [1, 3])
def test_interrupted_pack_continues_to_the_same_bytes(raw, tmp_path, cmvn, workers):
    pack(raw, tmp_path / "undisturbed", cmvn=cmvn)

    def interrupt(stage, done, total, unit="frames"):
        if stage == "packing" and done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", cmvn=cmvn, workers=workers, progress=interrupt)
    assert not (tmp_path / "packed").exists()
    with pytest.raises(CorpusNotFound):
        PackedCorpus(tmp_path / "packed")
    report = pack(raw, tmp_path / "packed", cmvn=cmvn, workers=workers)
    assert report.chunks_reused >= 2
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "undisturbed")
    assert not staging_path(tmp_path / "packed").exists()


def test_finished_chunks_are_not_read_again(raw, tmp_path, monkeypatch):
    """The second call does not open the raw files of chunks that the first one finished."""
    opened = []

    def interrupt(stage, done, total, unit="frames"):
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", workers=1, progress=interrupt)
    from phonedata.raw.npy import NpyReader

    load = NpyReader.load
    monkeypatch.setattr(NpyReader, "load", lambda self, path: opened.append(path) or load(self, path))
    lines = (staging_path(tmp_path / "packed") / "journal").read_text().splitlines()
    records = [json.loads(line.partition(" ")[2]) for line in lines]
    finished = {(r["partition"], r["chunk"]) for r in records if "chunk" in r}
    wanted = []
    for name, count in (("dev", 3), ("test", 2), ("train", 8)):
        plan = PartitionPlan(name, 50, np.full(count, 9000), np.arange(count), "")
        for task in (plan.task(c) for c in range(plan.chunks) if (name, c) not in finished):
            kinds = ("mfcc", "transcript") if name != "test" else ("mfcc",)
            wanted += [f"{raw}/{name}/{kind}/{name}-{i}-0.npy" for i in task.index for kind in kinds]
    pack(raw, tmp_path / "packed", workers=1)
    assert finished == {("dev", 0), ("test", 0), ("train", 0)} and opened[-len(wanted) :] == wanted
    # D is found by looking at a few utterances of the largest partition, whatever was done before, and whether labels
    # are numbers by looking at one transcript of each labelled partition.
    before = opened[: -len(wanted)]
    assert {path.split("/")[-3] for path in before if "/mfcc/" in path} == {"train"}
    assert sum("/dev/transcript/" in path for path in before) == 1


def test_changed_options_or_files_start_anew(raw, whole, tmp_path):
    def interrupt(stage, done, total, unit="frames"):
        if done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", dtype="float32", progress=interrupt)
    assert pack(raw, tmp_path / "packed").chunks_reused == 0
    assert tree_bytes(tmp_path / "packed") == whole


def test_changed_speakers_or_version_start_anew(tmp_path, monkeypatch):
    """Kaldi's utt2spk decides what cmvn=speaker divides by, and another version may write other bytes."""
    kaldiio = pytest.importorskip("kaldiio")

    def interrupt(stage, done, total, unit="frames"):
        if stage == "packing" and done > 0.5 * total:
            raise KeyboardInterrupt

    folder = tmp_path / "raw/train"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    told = {f"u{i:02d}": random.normal(size=(9000, 2)).astype("f4") for i in range(16)}
    kaldiio.save_ark(str(folder / "feats.ark"), told, scp=str(folder / "feats.scp"))
    for group in (8, 4):
        (folder / "utt2spk").write_text("".join(f"{u} s{i // group}\n" for i, u in enumerate(told)))
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "raw", tmp_path / "packed", cmvn="speaker", workers=1, progress=interrupt)
    (folder / "utt2spk").write_text("".join(f"{u} s{i // 2}\n" for i, u in enumerate(told)))
    assert pack(tmp_path / "raw", tmp_path / "packed", cmvn="speaker", workers=1).chunks_reused == 0
    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "raw", tmp_path / "other", workers=1, progress=interrupt)
    monkeypatch.setattr("phonedata.packing.plan.__version__", "another")
    assert pack(tmp_path / "raw", tmp_path / "other", workers=1).chunks_reused == 0


def test_damaged_staging_is_not_trusted(raw, whole, tmp_path):
    """A torn journal line and a chunk that differs from its digest are made again."""

    def interrupt(stage, done, total, unit="frames"):
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", workers=1, progress=interrupt)
    staging = staging_path(tmp_path / "packed")
    with open(staging / "journal", "ab") as journal:
        journal.write(b'12345678 {"partition": "tr')
    with open(staging / "corpus/dev/features/c/0/0", "r+b") as file:
        file.seek(300)
        file.write(b"xx")
    pack(raw, tmp_path / "packed", workers=1)
    assert tree_bytes(tmp_path / "packed") == whole


def test_leftovers_in_staging_do_not_travel(raw, whole, tmp_path):
    """A kill right after the exchange leaves the old corpus where the next one is built."""

    def interrupt(stage, done, total, unit="frames"):
        if done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", progress=interrupt)
    old = staging_path(tmp_path / "packed") / "corpus/retired-partition/features/c/0"
    old.mkdir(parents=True)
    (old / "0").write_bytes(b"old rows")
    pack(raw, tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == whole
    PackedCorpus(tmp_path / "packed").verify()


def test_second_packer_on_one_target_is_refused(raw, whole, tmp_path):
    refused = []

    def try_another(stage, done, total, unit="frames"):
        if not refused:
            with pytest.raises(PhonedataError, match="another process is writing to it") as caught:
                pack(raw, tmp_path / "packed")
            refused.append(caught)

    pack(raw, tmp_path / "packed", workers=1, progress=try_another)
    assert refused
    assert tree_bytes(tmp_path / "packed") == whole


def test_foreign_folder_in_the_staging_place_is_left_alone(raw, tmp_path):
    staging = staging_path(tmp_path / "packed")
    staging.mkdir()
    (staging / "mine.txt").write_text("mine")
    with pytest.raises(PhonedataError, match="is in the way"):
        pack(raw, tmp_path / "packed")
    assert (staging / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EIO, errno.ENOSYS, errno.ENOTSUP])
def test_file_systems_without_locks_and_folder_syncs_can_be_packed_to(raw, whole, tmp_path, monkeypatch, refusal):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    def only_files(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "fsync", only_files)
    pack(raw, tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == whole


def open_files(folder):
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [path for path in map(os.path.realpath, links) if path.startswith(str(folder))]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
@pytest.mark.parametrize("call", ["ftruncate", "write"])
def test_a_full_disk_leaves_no_file_open(raw, tmp_path, monkeypatch, call):
    """A notebook goes on after the error, and open files would hold the space of the removed ones."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(PhonedataError, match="disk full"):
        pack(raw, tmp_path / "packed")
    gc.collect()
    assert not open_files(tmp_path)


def fill_disk_at(monkeypatch, call, count):
    """From the `count`-th `os.call` on, the disk is full."""
    real, seen = getattr(os, call), []

    def full(*arguments):
        seen.append(1)
        if len(seen) >= count:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, full)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pack_goes_on_where_the_disk_was_full(raw, whole, tmp_path, monkeypatch, workers):
    fill_disk_at(monkeypatch, "write", 6)
    with pytest.raises(PhonedataError, match="disk full.*free some space and pack again"):
        pack(raw, tmp_path / "packed", workers=workers)
    monkeypatch.undo()
    assert not (tmp_path / "packed").exists()
    # Of two workers both may have been in their first chunks when the disk was full.
    assert pack(raw, tmp_path / "packed", workers=workers).chunks_reused >= (2 if workers == 1 else 0)
    assert tree_bytes(tmp_path / "packed") == whole


def test_a_journal_that_cannot_be_written_lets_the_lock_go(raw, whole, tmp_path, monkeypatch):
    """Closing the journal writes again, and fails again; then nobody closed the lock, and a notebook was locked out."""

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    def fill(stage, done, total, unit="frames"):
        if done > 0.5 * total:
            staging = next(o for o in gc.get_objects() if isinstance(o, Staging) and o._journal is not None)
            staging._journal = Full(staging._journal)

    with pytest.raises(PhonedataError, match="disk full"):
        pack(raw, tmp_path / "packed", workers=1, progress=fill)
    assert pack(raw, tmp_path / "packed", workers=1).chunks_reused >= 1
    assert tree_bytes(tmp_path / "packed") == whole


@pytest.mark.parametrize("place", ["_read_journal", "record"])
def test_ctrl_c_while_staging_is_opened_lets_the_lock_go(raw, tmp_path, monkeypatch, place):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed")
    monkeypatch.undo()
    pack(raw, tmp_path / "packed")


def test_an_interrupted_pack_needs_only_the_space_that_is_missing(raw, whole, tmp_path, monkeypatch):
    import shutil

    def interrupt(stage, done, total, unit="frames"):
        if done > 0:
            raise KeyboardInterrupt

    def left(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, size))

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", workers=1, progress=interrupt)
    left(1000)
    with pytest.raises(PhonedataError, match="MB of it are there, but 0.0 MB are free"):
        pack(raw, tmp_path / "packed", workers=1)
    left(4 * 65536 * 3 - 100_000)  # less than all of it
    assert pack(raw, tmp_path / "packed", workers=1).chunks_reused >= 1
    assert tree_bytes(tmp_path / "packed") == whole


def test_everything_is_durable_before_it_gets_its_name(raw, tmp_path, monkeypatch):
    synced, named = set(), []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))

    def put(finished, target):
        missing = [p for p in [finished, *finished.rglob("*")] if p.stat().st_ino not in synced]
        named.append(missing)
        return put_in_place(finished, target)

    monkeypatch.setattr("phonedata.packing.pack.put_in_place", put)
    pack(raw, tmp_path / "packed")
    assert named == [[]]
    assert tmp_path.stat().st_ino in synced


def folder(path, content):
    path.mkdir()
    (path / "zarr.json").write_text(content)
    return path


@pytest.mark.parametrize("one_step", [True, False], ids=["exchange", "two renames"])
def test_put_in_place_replaces_and_removes_the_old(tmp_path, monkeypatch, one_step):
    if not one_step:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    folder(tmp_path / "target", "old")
    staging_path(tmp_path / "target").mkdir()
    put_in_place(folder(staging_path(tmp_path / "target") / "corpus", "new"), tmp_path / "target")
    assert (tmp_path / "target/zarr.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target", "target.packing"]
    assert not list(staging_path(tmp_path / "target").iterdir())


@pytest.mark.parametrize("one_step", [True, False], ids=["exchange", "two renames"])
def test_an_old_corpus_that_cannot_be_removed_is_a_note(raw, whole, tmp_path, monkeypatch, one_step):
    """A file that is open over NFS comes back under another name; the new corpus is in its place all the same."""
    real = os.unlink
    busy = OSError(errno.EBUSY, "Device or resource busy")

    def unlink(path, *args, **more):
        if str(path).endswith("utterance_end/zarr.json") or (more.get("dir_fd") and path == "zarr.json"):
            raise busy
        return real(path, *args, **more)

    pack(raw, tmp_path / "packed", context=5)
    if not one_step:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "unlink", unlink)
    report = pack(raw, tmp_path / "packed", replace=True)
    monkeypatch.undo()
    assert "could not be removed" in report.notes[-1]
    assert tree_bytes(tmp_path / "packed") == whole
    pack(raw, tmp_path / "packed", replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed"]


KILLED_BETWEEN = """
import os, signal, sys
import phonedata
from phonedata import files
files.exchange = lambda a, b: False
real, seen = os.rename, []
def rename(a, b):
    if seen:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(real(a, b))
os.rename = rename
phonedata.pack(sys.argv[1], sys.argv[2], replace=True, workers=1)
"""


@pytest.fixture
def between(raw, tmp_path):
    """A corpus of context 3 whose replacement was killed between the two renames."""
    pack(raw, tmp_path / "packed", context=3)
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(raw), str(tmp_path / "packed")], timeout=120)
    assert not (tmp_path / "packed").exists() and replaced_path(tmp_path / "packed").is_dir()
    return tmp_path / "packed"


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_open_between_two_renames_brings_the_old_corpus_back(between):
    assert PackedCorpus(between).context == 3
    PackedCorpus(between).verify()
    assert not replaced_path(between).exists()


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_failed_pack_after_a_kill_between_two_renames_keeps_the_old_corpus(raw, between, monkeypatch):
    """The old corpus waits in the staging folder, which a failed pack removes."""
    monkeypatch.setattr("phonedata.packing.pack.recover", lambda target: None)

    def fail(*_):
        raise RuntimeError("something of its own")

    with pytest.raises(RuntimeError):
        pack(raw, between, replace=True, progress=fail)
    assert PackedCorpus(between).context == 3
    assert [p.name for p in between.parent.iterdir()] == ["packed"]


@pytest.mark.parametrize("one_step", [True, False], ids=["exchange", "two renames"])
def test_a_folder_of_the_users_own_beside_the_corpus_is_left_alone(raw, tmp_path, monkeypatch, one_step):
    """packed.replaced was renamed to packed, or removed, whoever had made it."""
    if not one_step:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    mine = tmp_path / "packed.replaced/mine.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(CorpusNotFound):
        PackedCorpus(tmp_path / "packed")
    pack(raw, tmp_path / "packed")
    pack(raw, tmp_path / "packed", replace=True, context=3)
    assert PackedCorpus(tmp_path / "packed").context == 3 and mine.read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "packed.replaced"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_place_is_named(raw, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(PhonedataError, match="cannot be written"):
        pack(raw, tmp_path / "locked/packed")
