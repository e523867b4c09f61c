"""Everything that phonetrain refuses or stops for, each error also the builtin that a caller would expect."""


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
