"""All errors that phonetrain raises on purpose; each is also the builtin exception that a caller would expect."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from phonedata import PhonedataError


class PhonetrainError(Exception):
    """Base of all errors that phonetrain raises on purpose; its message is one line that says what to do."""


class ConfigError(PhonetrainError, ValueError):
    """A setting has an unknown name, a wrong type or an impossible value."""


class RunExists(PhonetrainError, FileExistsError):
    """The run directory already holds a run; `resume` continues it."""


class RunNotFound(PhonetrainError, FileNotFoundError):
    """No run directory where one was expected."""


class CheckpointError(PhonetrainError, ValueError):
    """A checkpoint is damaged, incomplete, or belongs to another corpus, window or phoneme set."""


class RunDamaged(PhonetrainError, ValueError):
    """A file of a run's directory holds what phonetrain never writes there."""


class CodeNotTrusted(PhonetrainError, PermissionError):
    """A run wants code that this user has not trusted on this machine."""


class TrainingStopped(PhonetrainError):
    """Training ended before its time on purpose: numbers went bad, a disk is full, a second process holds the run."""


@contextlib.contextmanager
def writing(path: Path, instead: str) -> Iterator[None]:
    """Raise PhonetrainError, one sentence that says what to do `instead`, where the block cannot write `path`."""
    with _refused(path, PhonetrainError, lambda _: instead):
        yield


@contextlib.contextmanager
def writing_run(path: Path, goes_on: Callable[[], str]) -> Iterator[None]:
    """`writing` for a file of a run, as TrainingStopped. goes_on: asked then, says how the run goes on."""

    def advice(error: OSError) -> str:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            way = "write where you may: another --run or --out, or a copy of the run in a folder of your own"
        else:
            way = f"make room or mend the disk, then {goes_on()}"
        return f"what was there before is unchanged: {way}"

    with _refused(path, TrainingStopped, advice):
        yield


@contextlib.contextmanager
def _refused(path: Path, kind: type[PhonetrainError], advice: Callable[[OSError], str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, (PhonetrainError, PhonedataError)):
            raise
        raise kind(f"{path}: could not be written ({error.strerror or error}); {advice(error)}") from error
