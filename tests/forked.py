"""Processes that are forked from one that has imported both packages, so that a start costs milliseconds.

For what processes do, and what is done to them. How they are started (`python -m`, torchrun, `devices=2`) is another
subject: its tests start interpreters.
"""

import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")


@functools.cache
def start_server() -> None:
    """Start the process that others are forked from; it ends with this one."""
    if os.name != "nt":
        from multiprocessing import forkserver

        CONTEXT.set_forkserver_preload(["tests.warm"])
        with contextlib.chdir(ROOT):  # where it finds `tests`
            forkserver.ensure_running()


class Forked(CONTEXT.Process):
    """A process that calls `function(*arguments)`, begun at once; its stdout and stderr are added to `output`."""

    def __init__(self, function: Callable, *arguments, output: Path, **environment: str):
        super().__init__(target=function, args=arguments)
        self.output, self.folder, self.environment = output, Path.cwd(), {**os.environ, **environment}
        start_server()
        self.start()

    def run(self) -> None:
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        # What the tests' own process may have been told to ignore.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        super().run()

    def poll(self) -> int | None:
        """The exit status, as subprocess.Popen gives it; None while it runs."""
        return self.exitcode

    def wait(self, timeout: float = 300.0) -> int:
        self.join(timeout)
        assert self.exitcode is not None, self.output.read_text()
        return self.exitcode


def call(function: Callable, *arguments, output: Path) -> str:
    """Call `function` in a process of its own, which must not fail; returns what it wrote."""
    return finished([Forked(function, *arguments, output=output)])


def run_benchmark(name: str, *words: object, output: Path) -> str:
    """Run a program of benchmarks/ as typed, warnings being errors; it must not fail. Returns what it wrote."""
    return call(_run_program, ROOT / "benchmarks" / name, [str(word) for word in words], output=output)


def _run_program(path: Path, words: list[str]) -> None:
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    warnings.simplefilter("error")
    runpy.run_path(str(path), run_name="__main__")


def call_ranks(world_size: int, function: Callable, *arguments, output: Path) -> str:
    """Call `function` in processes that train as one; returns what they wrote."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    ranks = range(world_size)
    return finished(
        [Forked(function, *arguments, output=output, RANK=str(rank), LOCAL_RANK=str(rank), **joined) for rank in ranks]
    )


def finished(processes: list[Forked]) -> str:
    """Wait for processes of one output, none of which may fail; returns what they wrote."""
    try:
        ends = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    told = processes[0].output.read_text()
    assert not any(ends), (ends, told[:3000])
    return told
