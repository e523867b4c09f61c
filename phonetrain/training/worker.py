"""One of the processes that `launch.together` starts, each as `python -m phonetrain.training.worker FOLDER`."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..config.run_config import RunConfig
from ..console.base import Console, SilentConsole, own_memory
from ..distributed import init
from .data import open_corpus
from .fit import fit_here
from .launch import ERROR, TASK
from .resume import resume_here
from .session import prepare

PACE_SECONDS = 5.0


class RemoteConsole(Console):
    """Hands everything that it is to show to the console of the process that started this one."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__()
        self.pipe = pipe

    def send(self, kind: str, *content: Any) -> None:
        """Send one message. A closed pipe is no error here: SIGHUP ends the run."""
        with contextlib.suppress(OSError, ValueError):
            self.pipe.write(pickle.dumps((kind, *content)))
            self.pipe.flush()

    def start(self, facts: dict[str, Any]) -> None:
        self.send("start", facts)

    def progress(self, **numbers: Any) -> None:
        self.send("progress", {"memory": own_memory()} | numbers)  # this process's, and not that of who shows it

    def count(self, **numbers: Any) -> None:
        self.send("count", numbers)

    @contextlib.contextmanager
    def scoring(self, partition: str) -> Iterator[None]:
        self.send("scoring", partition)
        try:
            yield
        finally:
            self.send("scored")

    def picture(self, draw: Callable[[], bytes]) -> None:
        """Send nothing: the process that shows may draw it."""

    def epoch_row(self, line: dict[str, Any]) -> None:
        self.send("epoch_row", line)

    def say(self, text: str) -> None:
        self.send("say", text)

    def warn(self, text: str) -> None:
        self.send("warn", text)


def pace(config: RunConfig, console: Console) -> float:
    """Frames a second of all processes together, in some seconds of real steps; writes nothing."""
    with init(config.device):
        setup = prepare(config, open_corpus(config)).setup
        try:
            return setup.pace(PACE_SECONDS)
        finally:
            setup.close()


def obey(stream: int) -> None:
    """Raise the signals whose numbers the starting process sends; its end counts as a closed terminal."""
    while number := os.read(stream, 1):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), getattr(signal, "SIGHUP", signal.SIGTERM))


def main() -> None:
    """Do what the folder says."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    # stdout is the pipe: what a model of the user's own prints goes where errors go.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    console = RemoteConsole(pipe) if rank == 0 else SilentConsole()
    if rank == 0:
        threading.Thread(target=obey, args=(os.dup(0),), daemon=True).start()
    else:
        pipe.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    task = pickle.loads((folder / TASK).read_bytes())
    functions: dict[str, Callable[..., Any]] = {"fit_here": fit_here, "resume_here": resume_here, "pace": pace}
    try:
        result = functions[task.function](**task.arguments, console=console)
    except BaseException as error:
        (folder / ERROR.format(rank)).write_bytes(whole_error(error))
        sys.exit(1)
    if isinstance(console, RemoteConsole):
        console.send("result", result)


def whole_error(error: BaseException) -> bytes:
    """(the error, its traceback) as bytes; an error that another process cannot read becomes a RuntimeError."""
    from phonedata import PhonedataError

    from ..errors import PhonetrainError

    ours = isinstance(error, (PhonetrainError, PhonedataError, KeyboardInterrupt))
    text = "" if ours else "".join(traceback.format_exception(error))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        content = pickle.dumps((error, text))
        pickle.loads(content)
    except Exception:  # whatever pickling somebody else's class raises
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
    return content


if __name__ == "__main__":
    main()
