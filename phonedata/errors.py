"""All errors that phonedata raises on purpose; each is also the builtin exception that a caller would expect."""


class PhonedataError(Exception):
    """Base of all errors that phonedata raises on purpose; its message is one line that says what to do."""


class CorpusNotFound(PhonedataError, FileNotFoundError):
    """No raw folder or packed corpus where one was expected."""


class CorpusExists(PhonedataError, FileExistsError):
    """A packed corpus is already there and `replace` was not asked for."""


class FormatError(PhonedataError, ValueError):
    """A packed corpus is of another format version, truncated, or differs from its digests."""


class RawDataError(PhonedataError, ValueError):
    """A foreign file is not what its layout promises."""


class StrayLabel(RawDataError):
    """A label that is no class of its corpus; packing then counts all such labels."""


class SpecError(PhonedataError, ValueError):
    """Something impossible was asked for: more context than was packed, an unknown partition, a bad option."""


class NoSpace(PhonedataError, OSError):
    """The packed corpus does not fit on the disk."""


class MissingReader(PhonedataError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class WorkerError(PhonedataError, RuntimeError):
    """A worker of an executor ended, or sees other files than the caller; the same call goes on where it stopped."""
