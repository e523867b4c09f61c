"""Everything that phonetrain refuses or stops for, each error also the builtin that a caller would expect."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


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


class TrainingStopped(PhonetrainError):
    """Training ended before its time on purpose: numbers went bad, a disk is full, a second process holds the run."""


@contextlib.contextmanager
def writing(path: Path, instead: str | None = None) -> Iterator[None]:
    """Say in one sentence that `path` could not be written, where the block raises OSError.

    It is TrainingStopped for the files of a run, since `resume` continues once there is room. For the result of another
    command, whose words on what to do are `instead`, it is PhonetrainError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, PhonetrainError):
            raise
        reason = f"{path}: could not be written ({error.strerror or error})"
        if instead is not None:
            raise PhonetrainError(f"{reason}; {instead}") from error
        advice = "make room or mend the disk, then `phonetrain resume` continues from the last checkpoint"
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            advice = "write where you may: another --run or --out, or a copy of the run in a folder of your own"
        raise TrainingStopped(f"{reason}; what was there before is unchanged: {advice}") from error
