"""Starts processes that train as one on this machine, and shows what the first of them says.

torch's elastic launcher starts `phonetrain.training.worker` N times. A folder holds what they are to do, and the error
of each that failed. Two pipes join this process and the first of them: its stdout carries what it says and what came of
it, each a pickle; its stdin carries the numbers of signals, a byte each, and ends where this process has ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from phonedata.files import named

from ..config.run_config import RunConfig
from ..console.base import Console
from ..console.open import open_console
from ..distributed import launched_size
from ..errors import ConfigError, TrainingStopped
from ..runs.directory import Run
from ..text import IN_NOTEBOOK, counted, in_notebook, short
from .session import show_curves
from .stopping import StopRequest, noticed_signals

TASK, ERROR = "task.pickle", "error-{}.pickle"


@dataclass(frozen=True)
class Task:
    """The task of every process: a function of worker.py by name, and its keyword arguments."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)


def starts_processes(config: RunConfig) -> bool:
    """Whether this process starts others for `devices`: not where it is one of several that were started already.

    Raises ConfigError where those are another number.
    """
    started = launched_size()
    if started > 1 and config.devices not in (1, started):
        raise ConfigError(
            f"devices = {config.devices}: {started} processes were started from outside (by torchrun, Slurm or "
            "WORLD_SIZE); leave devices out, or start one process"
        )
    return started == 1 and config.devices != 1


def trained(
    config: RunConfig,
    console: Console | None,
    train_here: Callable[..., Run],
    arguments: Callable[[RunConfig, dict[str, float]], dict[str, Any]],
) -> Run:
    """What `train_here` returns: called in this process, or in those that are started for `config.devices`.

    arguments: from the config, with a number for `devices`, and what was measured for it (see `with_number`) to all
    keyword arguments but `console`.
    """
    pace: dict[str, float] = {}
    if starts_processes(config):
        with console or open_console() as shown:
            config, pace = with_number(config, shown)
            if config.devices != 1:
                task = Task(train_here.__name__, arguments(config, pace))
                run: Run = together(task, int(config.devices), shown)
                show_curves(run, shown)
                return run
    return train_here(**arguments(config, pace), console=console)


def with_number(config: RunConfig, console: Console) -> tuple[RunConfig, dict[str, float]]:
    """`config` with a number for `devices`, and what was measured for it: processes -> frames a second.

    Raises ConfigError for more devices than there are GPUs; on a CPU any number of processes share it.
    """
    there = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.devices == "auto":
        if there > 1:
            return faster(config, there, console)
        console.say("devices = auto: takes 1, for there are not several GPUs")
        return config.replaced({"devices": 1}), {}
    if 0 < there < config.devices:
        raise ConfigError(f"devices = {config.devices}: torch sees {counted(there, 'GPU')}; give devices={there}")
    return config, {}


def faster(config: RunConfig, most: int, console: Console) -> tuple[RunConfig, dict[str, float]]:
    """`config` with 1 or `most` devices, whichever trains more frames a second in some seconds of real steps."""
    pace = {}
    for number in (1, most):
        asked = config.replaced({"devices": number})
        pace[number] = together(Task("pace", {"config": asked}), number, console)
    best = max(pace, key=lambda number: pace[number])
    told = ", ".join(f"{number}: {short(rate)} frames/s" for number, rate in pace.items())
    console.say(f"devices = auto: takes {best} ({told})")
    return config.replaced({"devices": best}), {str(number): rate for number, rate in pace.items()}


class ForwardedStop(StopRequest):
    """A request to stop that is passed on to the first process, which agrees on it with the others."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__()
        self.pipe = pipe

    def receive(self, number: int, frame: object) -> None:
        super().receive(number, frame)
        with contextlib.suppress(OSError):
            os.write(self.pipe.fileno(), bytes([number]))


def together(task: Task, processes: int, console: Console) -> Any:
    """Let `processes` processes do `task` as one; returns what came of it in the first.

    Raises what they raised, and TrainingStopped where one was killed.
    """
    with tempfile.TemporaryDirectory(prefix="phonetrain-") as name, contextlib.ExitStack() as held:
        folder = Path(name)
        (folder / TASK).write_bytes(pickle.dumps(task))
        errors = held.enter_context(open(folder / "stderr.txt", "w+b"))
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
            *("--nproc-per-node", str(processes), "-m", "phonetrain.training.worker", name),
        ]
        # Its own session: Ctrl-C in the terminal is for this process, which passes it on once.
        process = subprocess.Popen(
            command,
            env=environment(processes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        held.enter_context(ended(process))
        held.enter_context(noticed_signals(ForwardedStop(process.stdin)))
        results = list(shown(process.stdout, console))
        process.wait()
        if results:
            return results[0]
        raise failure(folder, processes, errors)


def shown(stream: IO[bytes], console: Console) -> Iterator[Any]:
    """Let `console` show what worker.RemoteConsole sends; yields the results that come."""
    with contextlib.ExitStack() as scoring:
        for kind, *content in messages(stream):
            if kind == "result":
                yield content[0]
            elif kind in ("progress", "count"):
                getattr(console, kind)(**content[0])
            elif kind == "scoring":
                scoring.enter_context(console.scoring(content[0]))
            elif kind == "scored":
                scoring.close()
            else:
                getattr(console, kind)(*content)


def environment(processes: int) -> dict[str, str]:
    """Of the processes to start: this one's modules, a share of the cores each, and where their words are shown."""
    path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))} | ({IN_NOTEBOOK: "1"} if in_notebook() else {})
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)), **os.environ, **own}


def messages(stream: IO[bytes]) -> Iterator[Any]:
    """The pickles of a pipe, until the last process that holds it is gone; one that was cut off by that is dropped."""
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            return


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """After the block the launcher and what it started are gone: asked to end, and killed where that does not help."""
    try:
        yield
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if process.poll() is None:
            process.terminate()  # it ends its processes, within 30 seconds
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def failure(folder: Path, processes: int, errors: IO[bytes]) -> BaseException:
    """What the processes raised, the first one's before others'; one that was killed could say nothing.

    Where one is killed the others miss it in whatever they were about to do together: that error says nothing either.
    SIGTERM is what the launcher ends the others with.
    """
    paths = sorted(named(folder, ERROR.format("*")), key=lambda path: (path.stat().st_mtime_ns // 10**9, path.name))
    raised = [pickle.loads(path.read_bytes()) for path in paths]
    errors.seek(0)
    told = errors.read().decode(errors="replace")
    ended_by = [int(code) for code in re.findall(r"exitcode\s*:\s*-(\d+)", told)]
    killed_by = [number for number in ended_by if number != signal.SIGTERM]
    if raised and (not killed_by or not raised[0][1]):
        error, text = raised[0]
        if text:
            error.add_note(text)
        return error
    if not ended_by:
        return RuntimeError(f"devices = {processes}: the processes ended without a result\n{told[-3000:]}")
    number = (killed_by or ended_by)[0]
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = ", as the system does where memory has run out" if name == "SIGKILL" else ""
    return TrainingStopped(
        f"devices = {processes}: one of the processes was ended by {name}{hint}; "
        "`phonetrain resume` goes on from the last checkpoint"
    )
