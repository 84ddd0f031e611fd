"""Typed errors and the exit codes they become on the command line.

Each message names the operation, what was expected, what came, and what to do about it. A program ends with 0 when it did
what was asked, with 75 (EX_TEMPFAIL) when running it again may succeed, and with any other code when it will not.
"""

import errno


class NsrError(Exception):
    """Base of every error that nsr raises for its user; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(NsrError):
    """The command line itself is wrong: an unknown option, a value out of range."""

    exit_code = 2


class DataError(NsrError):
    """A scene, an image, a mask, a camera file or a mesh cannot be used."""

    exit_code = 3


class ConfigError(NsrError):
    """A configuration file or override has an unknown key, a wrong type or an impossible value."""

    exit_code = 4


class CheckpointError(NsrError):
    """A checkpoint is truncated, of a foreign format, or does not fit the model."""

    exit_code = 5


class ExtensionError(NsrError):
    """Native code or an optional package is missing or could not be loaded."""

    exit_code = 6


class TrainingError(NsrError):
    """Training diverged and could not be recovered."""

    exit_code = 7


class RetriableError(NsrError):
    """Running the same command again may succeed: out of memory, a full disk, interrupted by a signal. State was saved."""

    exit_code = 75


# What file systems say that are full, or not well for a while. All that is wrong with a path or with rights is left out: it
# will be wrong the next time too.
_TRANSIENT = (
    *("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EREMOTEIO", "EAGAIN", "EINTR", "EBUSY", "ENOLCK", "ENOMEM", "ENFILE", "EMFILE"),
    *("ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)
_TRANSIENT_NUMBERS = frozenset(getattr(errno, name) for name in _TRANSIENT if hasattr(errno, name))
_SHARING_VIOLATIONS = (32, 33)  # of Windows: another program, a virus scanner say, has the file open


def is_transient(error: BaseException) -> bool:
    """Whether an error of the machine may be gone at another time: no memory, a full disk, a network disk that is away."""
    if not isinstance(error, OSError):
        return isinstance(error, MemoryError)
    return error.errno in _TRANSIENT_NUMBERS or getattr(error, "winerror", None) in _SHARING_VIOLATIONS
