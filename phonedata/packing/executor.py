"""Tasks on any `concurrent.futures.Executor`: one job that each process reads once, results in the order of the tasks,
and no write by a worker whose result nobody waits for any more.

A worker that is thought dead may only be slow, stopped or cut off, and what it has open it can write to however late,
after a rename too. So a worker of another process opens its file, makes one of its own in the folder of attempts, and
writes only then; who takes the result removes that one. `Staging.end_attempts` removes the folder, which the system
does in one step and only if it is empty.
"""

import functools
import os
import pickle
import platform
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from phonedata import __version__

from ..errors import MissingReader, PhonedataError, SpecError, WorkerError
from ..files import write_file
from ..format.zarr_files import digest
from ..raw.base import RawPartition
from ..system import available_cores

AHEAD = 512
"""Tasks that a foreign executor has at a time: work for as many workers, and 40 MB of memory with 28 coefficients."""


MakeTool = Callable[..., Any]
"""Makes the tool that each thread of a worker works with; picklable. Called with `elsewhere`: whether that is in
another process than that of the call."""


class Attempt:
    """One try at one task by one worker. `path`, in the folder of attempts, begins names that nobody else uses.

    must_sync: the worker is on another machine than the caller, who can sync only what his own has in memory.
    """

    def __init__(self, folder: str, elsewhere: bool, must_sync: bool):
        self.path, self.claimed = os.path.join(folder, uuid.uuid4().hex), False
        self._elsewhere, self.must_sync = elsewhere, must_sync

    def claim(self) -> None:
        """To be called between opening a file and the first write. Raises OSError when the time for it is over.

        Threads of the calling process need none: it waits for them, and they end with it.
        """
        if self._elsewhere:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            self.claimed = True


class _Tools:
    """The tools of one process, each used by one thread at a time."""

    def __init__(self, make_tool: MakeTool, elsewhere: bool):
        self.make_tool, self.elsewhere = make_tool, elsewhere
        self._idle: deque[Any] = deque()

    @contextmanager
    def lent(self) -> Iterator[Any]:
        # There are never more tools than threads: one is taken only while its holder runs.
        try:
            tool = self._idle.pop()
        except IndexError:
            tool = self.make_tool(elsewhere=self.elsewhere)
        try:
            yield tool
        finally:
            self._idle.append(tool)


class Job:
    """What the tasks of a call share. In this process they get this very object; pickled for another it is the name and
    digest of a file in `folder`: the lists of a large corpus are long, and its tasks many."""

    def __init__(self, folder: Path, make_tool: MakeTool):
        self._folder, self._tools, self._lock = folder, _Tools(make_tool, elsewhere=False), threading.Lock()
        self._copy: _JobFile | None = None

    def tools(self) -> _Tools:
        return self._tools

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process has it."""
        return self._copy is not None

    def __reduce__(self) -> tuple[type["_JobFile"], tuple[str, ...]]:
        with self._lock:
            if self._copy is None:
                content = pickle.dumps(self._tools.make_tool)
                path = self._folder / f"job-{digest(content)}"
                write_file(path, content)
                self._copy = _JobFile(str(path), digest(content), __version__, _machine())
        return _JobFile, (self._copy.path, self._copy.digest, self._copy.version, self._copy.machine)


class _JobFile:
    """A job in another process, read when its first task comes. Only what the caller wrote is unpickled."""

    _read: dict[str, _Tools] = {}
    _lock = threading.Lock()

    def __init__(self, path: str, digest: str, version: str, machine: str):
        self.path, self.digest, self.version, self.machine = path, digest, version, machine

    def tools(self) -> _Tools:
        with self._lock:
            if self.digest not in self._read:
                tools = _Tools(self._load(), elsewhere=True)
                self._read.clear()  # the one before is done
                self._read[self.digest] = tools
            return self._read[self.digest]

    def _load(self) -> Any:
        here = f"the worker on {platform.node()}"
        if self.version != __version__:
            raise WorkerError(f"{here} has phonedata {__version__}, the caller {self.version}; install one on both")
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise WorkerError(
                f"{here} cannot read {self.path} ({error.strerror}); let all workers see the folder of the packed "
                "corpus under the same path"
            ) from None
        if digest(content) != self.digest:
            raise WorkerError(f"{self.path}: {here} sees other bytes than the caller wrote; mend the shared folder")
        try:
            return pickle.loads(content)
        except (ImportError, AttributeError) as error:
            raise WorkerError(f"{here} cannot open the raw folder ({error}); install the same packages there") from None


@functools.cache
def _machine() -> str:
    """Equal for all processes of one running kernel, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return platform.node()


def _run(job: Job | _JobFile, function: Callable, task: Any, folder: str) -> tuple[str | None, Any, Exception | None]:
    """In a worker: (the attempt to be forgotten, result, error).

    An error is a result too: what the future raises of itself is then the executor's failure, and nothing else is.
    """
    elsewhere = isinstance(job, _JobFile)
    attempt = Attempt(folder, elsewhere, isinstance(job, _JobFile) and job.machine != _machine())
    result, error = None, None
    try:
        with job.tools().lent() as tool:
            result = function(tool, task, attempt)
    except Exception as caught:
        error = caught
        if elsewhere and not isinstance(error, PhonedataError):
            error.add_note(f"In the worker on {platform.node()}:\n{traceback.format_exc()}")
    return attempt.path if attempt.claimed else None, result, error


def in_order(
    executor: Executor, ahead: int, job: Job, function: Callable, tasks: Iterable, attempts: Path
) -> Iterator[tuple[Any, Any]]:
    """(task, `function(tool, task, attempt)`) in the order of `tasks`, of which `ahead` are given away at a time.

    The first error, in that order, is raised. On the way out no further task begins; those that run in this process
    are waited for. Raises WorkerError where the executor itself fails.
    """
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for task in tasks:
            with _executor_errors(executor):
                waiting.append((task, executor.submit(_run, job, function, task, str(attempts))))
            if len(waiting) > ahead:
                yield _take(executor, *waiting.popleft())
        while waiting:
            yield _take(executor, *waiting.popleft())
    finally:
        # Backwards: the executor begins with the foremost.
        running = [future for _, future in reversed(waiting) if not future.cancel()]
        if not job.is_elsewhere:
            wait(running)


@contextmanager
def _executor_errors(executor: Executor) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise WorkerError(
            f"{type(executor).__name__} lost a worker or failed ({told:.200}); the same call goes on where this one "
            'ended, with fewer workers if memory ran out; a script must make it under `if __name__ == "__main__":`'
        ) from None


def _take(executor: Executor, task: Any, future: Future) -> tuple[Any, Any]:
    with _executor_errors(executor):
        attempt, result, error = future.result()
    if attempt is not None:
        with suppress(FileNotFoundError):
            os.unlink(attempt)
    if error is not None:
        raise error
    return task, result


@contextmanager
def threads_or(executor: Executor | None, workers: int | None) -> Iterator[tuple[Executor, int]]:
    """(`executor`, how many tasks it gets at a time); without one, a pool of `workers` threads.

    Threads suffice here: reading files, the kernels, digests and writing all release the interpreter's lock.
    """
    if executor is not None:
        yield executor, AHEAD
        return
    workers = workers or available_cores()
    with ThreadPoolExecutor(workers) as threads:
        yield threads, 2 * workers


def check_workers(executor: Executor | None, workers: int | None) -> None:
    """Refuse an impossible number or executor, or both at once. Raises SpecError."""
    if workers is not None and workers < 1:
        raise SpecError(f"workers {workers}, wanted at least 1")
    if executor is not None and workers is not None:
        raise SpecError(f"workers {workers} and an executor, which has workers of its own; give one of the two")
    if executor is not None and not isinstance(executor, Executor):
        kind = type(executor).__name__
        raise SpecError(f"executor {kind}, wanted a concurrent.futures.Executor; dask's is client.get_executor()")


def check_files(partition: RawPartition, index: int) -> None:
    """For workers elsewhere: refuse files of an utterance that are not those which the caller has listed.

    Raises WorkerError.
    """
    for path, *listed in partition.files_of(index):
        try:
            status = os.stat(path)
        except OSError as error:
            found = str(error.strerror)
        else:
            if [status.st_size, status.st_mtime_ns] == listed:
                continue
            found = f"{status.st_size} bytes written at {status.st_mtime_ns} ns"
        raise WorkerError(
            f"{path}: the worker on {platform.node()} sees another file ({found}) than the caller ({listed[0]} bytes "
            f"written at {listed[1]} ns); let all see one raw folder under one path, and repeat the call"
        )


@contextmanager
def dask_executor(address: str | None) -> Iterator[Executor | None]:
    """The executor of a dask scheduler at `address`, or of N workers on this machine for "local:N"; None for None.

    Raises MissingReader without dask.distributed, SpecError, WorkerError where nobody answers.
    """
    if address is None:
        yield None
        return
    local = address.partition(":")[2] if address.startswith("local") else ""
    if address.startswith("local") and not (local.isascii() and local.isdecimal() and int(local)):
        raise SpecError(f"dask {address!r}, wanted the address of a scheduler, as tcp://host:8786, or local:N")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingReader("dask needs distributed, which is not installed; pip install 'phonedata[dask]'") from None
    with ExitStack() as stack:
        try:
            cluster: Any = address
            if local:
                # A thread each: what holds the interpreter's lock, as a layout of another package may, stops no other.
                cluster = LocalCluster(n_workers=int(local), threads_per_worker=1, dashboard_address=":0")
                stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        except (OSError, ValueError) as error:
            raise WorkerError(f"dask {address!r}: no scheduler answers there ({error}); mend the address") from None
        yield client.get_executor(pure=False)
