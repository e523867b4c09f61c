"""Workers of any executor, in threads, processes or a dask cluster: the same bytes, whoever dies or comes back."""

import gzip
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from phonedata import PackedCorpus, RawDataError, SpecError, WorkerError, extract, pack
from phonedata.cli import main
from phonedata.packing import executor as executor_module
from phonedata.packing.executor import Attempt, Job, dask_executor, in_order

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and stops processes")
ROOT = Path(__file__).parents[3]
OPTIONS = {
    "utterance": {},
    "none": {"cmvn": "none", "context": 0},
    "speaker": {"cmvn": "speaker"},
    "train": {"cmvn": "train", "train_partition": "train", "dtype": "float32"},
}


def tree_bytes(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Six chunks in three partitions; speakers whose utterances lie in different chunks."""
    from tests.conftest import write_hw1p2  # and torch, which no worker that imports this file needs

    root = tmp_path_factory.mktemp("executor") / "raw"
    random = np.random.default_rng(0)
    for name, count in (("dev", 2), ("test", 3), ("train", 12)):
        utterances = {
            f"{'ab'[i % 2]}-{i}-{name}": (random.normal(size=(20_000 + i, 1)) + i, random.integers(0, 40, 20_000 + i))
            for i in range(count)
        }
        write_hw1p2(root, name, utterances, labelled=name != "test")
    return root


@pytest.fixture(scope="module")
def whole(raw):
    """The files of a pack by one thread, for each of OPTIONS."""
    for name, options in OPTIONS.items():
        pack(raw, raw.parent / name, workers=1, **options)
    return {name: tree_bytes(raw.parent / name) for name in OPTIONS}


def new_processes(count=1, begin=None, *arguments):
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), begin, arguments)


@pytest.fixture(scope="module")
def processes():
    with new_processes(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    import dask

    # Its profiler would look at every worker's threads a hundred times a second.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
        with cluster, distributed.Client(cluster) as client:
            yield client


@pytest.fixture(params=["threads", "processes", "dask"])
def executor(request):
    if request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    elif request.param == "processes":
        yield request.getfixturevalue("processes")
    else:
        yield request.getfixturevalue("client").get_executor()


@pytest.mark.parametrize("name", OPTIONS)
def test_any_executor_packs_the_bytes_of_one_thread(raw, whole, tmp_path, monkeypatch, executor, name):
    """From a path that is relative to a folder in which no worker stands."""
    monkeypatch.chdir(raw.parent)
    report = pack("raw", tmp_path / "packed", executor=executor, **OPTIONS[name])
    assert tree_bytes(tmp_path / "packed") == whole[name] and report.chunks_reused == 0
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_an_interrupted_call_goes_on_by_the_same_executor(raw, whole, tmp_path, executor):
    def interrupt(stage, done, total, unit="frames"):
        if stage == "packing" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(raw, tmp_path / "packed", executor=executor, progress=interrupt, cmvn="speaker")
    assert pack(raw, tmp_path / "packed", executor=executor, cmvn="speaker").chunks_reused >= 1
    assert tree_bytes(tmp_path / "packed") == whole["speaker"]


def test_what_reading_shows_is_the_same_wherever_it_is_read(raw, tmp_path, processes):
    """Lengths that were guessed wrong, utterances that cannot be packed, and the first of several refusals."""
    spoiled = shutil.copytree(raw, tmp_path / "raw")
    features = sorted((spoiled / "train/mfcc").iterdir())
    np.save(features[1], np.load(features[1]).astype(np.float32))
    for number in (3, 7):
        features[number].write_bytes(features[number].read_bytes()[:-1])
    test = next((spoiled / "test/mfcc").iterdir())
    test.write_bytes(test.read_bytes()[:-1])
    for how in ({"workers": 1}, {"executor": processes}):
        with pytest.raises(RawDataError, match="test/mfcc/.*: cut short"):
            pack(spoiled, tmp_path / "packed", **how)
        report = pack(spoiled, tmp_path / f"packed-{len(how)}-{'workers' in how}", skip_bad=True, **how)
        assert len(report.left_out) == 3
    one, other = (tree_bytes(tmp_path / f"packed-1-{threads}") for threads in (True, False))
    assert one == other


# What a worker does when it dies, or stops and comes back


def first_of_all(marker):
    """Whether this process is the first to ask; its number then stands in the file `marker`."""
    try:
        with open(marker, "x") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        return False


FULL = 65536 * 2
"""Bytes of features in a chunk of `raw` that is full, as only those of train are."""


def die_in_second_chunk(marker):
    """The first process to get so far dies by SIGKILL when half of its second full chunk is written."""
    write, seen = os.write, []

    def die(descriptor, data):
        seen.extend([1] * (len(data) == FULL))
        if len(seen) == 2 and first_of_all(marker):
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = die


def write_slowly(marker):
    """As long as the file `marker` is there."""
    write = os.write

    def slow(descriptor, data):
        time.sleep(0.3 * (len(data) == FULL and os.path.exists(marker)))
        return write(descriptor, data)

    os.write = slow


def stop_and_write_nonsense(where, marker):
    """The first process that is about to claim a chunk, or to write it, stops; whatever it writes is nonsense."""
    open_, write = os.open, os.write

    def stop_before_claim(path, *more, **others):
        if where == "claim" and "attempts-" in str(path) and first_of_all(marker):
            os.kill(os.getpid(), signal.SIGSTOP)
        return open_(path, *more, **others)

    def write_nonsense(descriptor, data):
        if len(data) < 1000:
            return write(descriptor, data)
        if where == "write" and first_of_all(marker):
            os.kill(os.getpid(), signal.SIGSTOP)
        return write(descriptor, b"\xff" * len(data))

    os.open, os.write = stop_before_claim, write_nonsense


class Impatient(Executor):
    """Gives tasks to one worker until that stops (the file `stopped` appears), and what it owes then to another."""

    def __init__(self, first, second, stopped):
        self.first, self.second, self.stopped, self.given = first, second, stopped, []

    def submit(self, function, /, *arguments):
        given, result = self.first.submit(function, *arguments), Future()
        result.set_running_or_notify_cancel()
        self.given.append(given)

        def wait():
            while not given.done() and not self.stopped.exists():
                time.sleep(0.01)
            last = given if given.done() else self.second.submit(function, *arguments)
            result.set_result(last.result())

        threading.Thread(target=wait).start()
        return result


def test_a_killed_process_ends_the_call_in_one_sentence_and_the_next_goes_on(raw, whole, tmp_path):
    with (
        new_processes(1, die_in_second_chunk, str(tmp_path / "died")) as pool,
        pytest.raises(WorkerError, match="ProcessPoolExecutor lost a worker.*the same call goes on where") as caught,
    ):
        pack(raw, tmp_path / "packed", executor=pool)
    assert "\n" not in str(caught.value) and (tmp_path / "died").exists() and not (tmp_path / "packed").exists()
    assert pack(raw, tmp_path / "packed").chunks_reused == 3
    assert tree_bytes(tmp_path / "packed") == whole["utterance"]


def test_dask_does_the_chunk_of_a_killed_worker_again(raw, whole, tmp_path, client):
    client.run(die_in_second_chunk, str(tmp_path / "died"))
    report = pack(raw, tmp_path / "packed", executor=client.get_executor())
    assert (tmp_path / "died").exists() and report.chunks_reused == 0
    assert tree_bytes(tmp_path / "packed") == whole["utterance"]


def test_a_killed_caller_loses_no_chunk_although_its_workers_live_on(raw, whole, tmp_path, client):
    (tmp_path / "slow").touch()
    client.run(write_slowly, str(tmp_path / "slow"))
    command = [sys.executable, "-m", "phonedata", "pack", raw, "packed", "--dask", client.scheduler.address]
    caller = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = tmp_path / "packed.packing/journal"
    while caller.poll() is None and not (journal.is_file() and b'"chunk"' in journal.read_bytes()):
        time.sleep(0.01)
    assert caller.poll() is None
    caller.kill()
    caller.wait()
    (tmp_path / "slow").unlink()
    assert pack(raw, tmp_path / "packed", executor=client.get_executor()).chunks_reused >= 1
    assert tree_bytes(tmp_path / "packed") == whole["utterance"]


@pytest.mark.parametrize("where", ["claim", "write"])
@pytest.mark.parametrize("end", ["same call", "next call"])
def test_a_worker_that_comes_back_never_reaches_the_finished_folder(raw, whole, tmp_path, processes, where, end):
    stopped, packed = tmp_path / "stopped", tmp_path / "packed"

    def interrupt(stage, done, total, unit="frames"):
        if end == "next call" and stage == "packing" and done:
            raise KeyboardInterrupt

    with new_processes(1, stop_and_write_nonsense, where, str(stopped)) as pool:
        impatient = Impatient(pool, processes, stopped)
        try:
            pack(raw, packed, executor=impatient, progress=interrupt)
        except KeyboardInterrupt:
            assert pack(raw, packed, workers=2).chunks_reused >= 1
        assert tree_bytes(packed) == whole["utterance"]
        os.kill(int(stopped.read_text()), signal.SIGCONT)
        outcomes = [future.result() for future in impatient.given]
    # What it had open it did write, and nothing else: all other chunks were refused to it.
    assert [error for _, _, error in outcomes].count(None) == (where == "write")
    assert {type(error) for _, _, error in outcomes} <= {type(None), FileNotFoundError}
    assert tree_bytes(packed) == whole["utterance"] and PackedCorpus(packed).verify() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "stopped"]


# Workers that see something else


class Acting(Executor):
    """Does something before the first task is given away."""

    def __init__(self, executor, act):
        self.executor, self.act = executor, act

    def submit(self, function, /, *arguments):
        self.act()
        self.act = lambda: None
        return self.executor.submit(function, *arguments)


@pytest.mark.parametrize("change", ["written", "grown", "gone"])
def test_a_worker_that_sees_another_file_is_refused(raw, tmp_path, processes, change):
    spoiled = shutil.copytree(raw, tmp_path / "raw")
    file = sorted((spoiled / "train/transcript").iterdir())[5]

    def act():
        if change == "written":
            os.utime(file, (1, 1))
        elif change == "grown":
            file.write_bytes(file.read_bytes() * 2)
        else:
            file.unlink()

    with pytest.raises(WorkerError, match=f"^{re.escape(str(file))}: the worker on .* sees another file") as refused:
        pack(spoiled, tmp_path / "packed", executor=Acting(processes, act), skip_bad=True)
    assert {"written": "written at 1000000000 ns", "grown": "bytes written", "gone": "No such"}[change] in str(
        refused.value
    )
    report = pack(spoiled, tmp_path / "packed", executor=processes, skip_bad=True)
    assert len(report.left_out) == (change != "written")


def have_another_version():
    executor_module.__version__ = "0.0.7"


def see_nothing(folder):
    import phonedata.packing.chunk_writer  # noqa: F401

    os.chroot(folder)


@pytest.mark.parametrize("case", ["version", "folder"])
def test_a_worker_with_another_version_or_without_the_folder_is_refused(raw, tmp_path, case):
    if case == "folder" and os.geteuid() != 0:
        pytest.skip("only root can give a process another root folder")
    (tmp_path / "empty").mkdir()
    begin = (have_another_version,) if case == "version" else (see_nothing, str(tmp_path / "empty"))
    wanted = "has phonedata 0.0.7, the caller" if case == "version" else "cannot read .*packed.packing/job-"
    with new_processes(1, *begin) as pool, pytest.raises(WorkerError, match=f"the worker on .* {wanted}"):
        pack(raw, tmp_path / "packed", executor=pool)


def test_gzipped_labels_are_unpacked_where_they_are_read(tmp_path, monkeypatch, processes):
    from tests.phonedata.raw.test_layouts import utterances, write_kaldi

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    write_kaldi(tmp_path / "raw/train", utterances(), alignment="ali.1.txt")
    text = tmp_path / "raw/train/ali.1.txt"
    with gzip.open(f"{text}.gz", "wb") as file:
        file.write(text.read_bytes())
    text.unlink()
    pack(tmp_path / "raw", tmp_path / "usual")
    here = Acting(processes, lambda: [file.unlink() for file in temporary.iterdir()])  # as on another machine
    pack(tmp_path / "raw", tmp_path / "packed", executor=here)
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "usual")


def test_libriphone_and_views_of_it_are_read_anywhere(tmp_path, processes):
    from tests.phonedata.raw.test_layouts import utterances, write_libriphone

    names = sorted(utterances())
    write_libriphone(tmp_path / "raw", utterances(), test=names[-1:])
    (tmp_path / "skip").write_text(f"train/{names[0]}\n")
    for name, options in (("whole", {}), ("split", {"split": "dev=0.4"}), ("less", {"skip": tmp_path / "skip"})):
        pack(tmp_path / "raw", tmp_path / f"usual-{name}", **options)
        pack(tmp_path / "raw", tmp_path / name, executor=processes, **options)
        assert tree_bytes(tmp_path / name) == tree_bytes(tmp_path / f"usual-{name}")


# Extract


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
    from tests.phonedata.packing.test_extract import write_audio

    root = tmp_path_factory.mktemp("audio") / "audio"
    for number in range(45):  # three tasks of train
        write_audio(root, ".phn", name=f"train/s/u{number}.wav", seconds=0.9 + number / 1000)
    write_audio(root, "", name="test/s/t.wav")
    extract(root, root.parent / "raw", workers=1)
    return root


def test_any_executor_extracts_and_packs_the_same_files(audio, tmp_path, monkeypatch, executor):
    monkeypatch.chdir(audio.parent)
    extract("audio", tmp_path / "raw", executor=executor)
    assert tree_bytes(tmp_path / "raw") == tree_bytes(audio.parent / "raw")
    pack("audio", tmp_path / "packed", executor=executor)
    pack("audio", tmp_path / "usual", workers=1)
    assert tree_bytes(tmp_path / "packed") == tree_bytes(tmp_path / "usual")


def die_in_thirtieth_file(marker):
    write, seen = Path.write_bytes, []

    def die(path, data):
        seen.append(path)
        if len(seen) == 30 and first_of_all(marker):
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    Path.write_bytes = die


def stop_and_write_nonsense_files(marker):
    def stop(path, data):
        with open(path, "wb") as file:
            if first_of_all(marker):
                os.kill(os.getpid(), signal.SIGSTOP)
            return file.write(b"nonsense" * 100)

    Path.write_bytes = stop


def test_a_killed_extractor_ends_the_call_in_one_sentence_and_the_next_goes_on(audio, tmp_path):
    with (
        new_processes(1, die_in_thirtieth_file, str(tmp_path / "died")) as pool,
        pytest.raises(WorkerError, match="ProcessPoolExecutor lost a worker"),
    ):
        extract(audio, tmp_path / "raw", executor=pool)
    assert "utterances kept from an interrupted call" in str(extract(audio, tmp_path / "raw", workers=1))
    assert tree_bytes(tmp_path / "raw") == tree_bytes(audio.parent / "raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died", "raw"]


def test_an_extractor_that_comes_back_never_reaches_the_finished_folder(audio, tmp_path, processes):
    stopped = tmp_path / "stopped"
    with new_processes(1, stop_and_write_nonsense_files, str(stopped)) as pool:
        impatient = Impatient(pool, processes, stopped)
        extract(audio, tmp_path / "raw", executor=impatient)
        os.kill(int(stopped.read_text()), signal.SIGCONT)
        assert {type(future.result()[2]) for future in impatient.given} == {FileNotFoundError}
    assert tree_bytes(tmp_path / "raw") == tree_bytes(audio.parent / "raw")


# As typed, and the mechanism by itself


def test_local_workers_of_dask_as_typed(raw, whole, audio, tmp_path, monkeypatch, capfd):
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    monkeypatch.chdir(tmp_path)
    for words in (["pack", raw, "packed"], ["extract", audio, "raw"]):
        main([*map(str, words), "--dask", "local:1"])
    assert capfd.readouterr().err == ""
    assert tree_bytes(tmp_path / "packed") == whole["utterance"]
    assert tree_bytes(tmp_path / "raw") == tree_bytes(audio.parent / "raw")


def test_a_scheduler_that_does_not_answer_is_named():
    dask = pytest.importorskip("dask", reason="the extra [dask] is not installed")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),  # half a minute by itself
        pytest.raises(WorkerError, match="'tcp://127.0.0.1:9': no scheduler answers there"),
        dask_executor("tcp://127.0.0.1:9"),
    ):
        pass


def test_an_executor_that_takes_nothing_more_is_named(raw, tmp_path):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(WorkerError, match="ThreadPoolExecutor lost a worker or failed .*cannot schedule new futures"):
        pack(raw, tmp_path / "packed", executor=pool)
    assert not list(tmp_path.iterdir())


class Doubler:
    """A tool that knows who made it."""

    def __init__(self, elsewhere):
        self.elsewhere, self.used_by = elsewhere, set()

    def double(self, task, attempt: Attempt):
        self.used_by.add(threading.get_ident())
        if task % 7 == 3:
            raise SpecError(f"task {task}")
        return 2 * task, self.elsewhere, len(self.used_by)


def test_results_come_in_order_and_a_tool_serves_one_thread_at_a_time(tmp_path):
    made = []

    def make(elsewhere):
        made.append(Doubler(elsewhere))
        return made[-1]

    with ThreadPoolExecutor(3) as pool:
        tasks = [number for number in range(50) if number % 7 != 3]
        got = list(in_order(pool, 6, Job(tmp_path, make), Doubler.double, tasks, tmp_path))
    assert [(task, result[0]) for task, result in got] == [(number, 2 * number) for number in tasks]
    assert 1 <= len(made) <= 3 and not any(tool.elsewhere for tool in made) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_the_first_error_in_order_is_raised(tmp_path, processes, kind):
    with ThreadPoolExecutor(4) as threads:
        pool, taken = threads if kind == "threads" else processes, []
        with pytest.raises(SpecError, match="task 3"):
            for task, result in in_order(pool, 8, Job(tmp_path, Doubler), Doubler.double, range(40), tmp_path):
                taken.append(task)
                assert result[1] == (kind == "processes")
    assert taken == [0, 1, 2]
    assert len(list(tmp_path.glob("job-*"))) == (kind == "processes")


def test_an_error_of_no_kind_of_ours_keeps_the_traceback_of_its_worker(tmp_path, processes):
    with pytest.raises(TypeError) as caught:
        list(in_order(processes, 8, Job(tmp_path, Doubler), Doubler.double, ["no number"], tmp_path))
    assert "In the worker on" in caught.value.__notes__[0] and "in double" in caught.value.__notes__[0]
