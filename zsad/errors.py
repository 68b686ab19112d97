"""What can go wrong, as types: one exception tree for a run, one code for a bad image.

A problem of the run (a wrong argument, unreachable storage, a broken model) is an exception that carries the exit code
of the job. A problem of one image is never an exception above `zsad.images` and `zsad.storage`: it is a report row with
an `ErrorCode`, so that one bad file costs one row. Every message says what is wrong, with which object, the limit where
there is one, and what to do about it.
"""

from collections.abc import Iterator
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why one image has no score; the value of the report's `error_code` column."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    UNKNOWN_FORMAT = "unknown_format"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    FORBIDDEN = "forbidden"
    MISSING = "missing"
    CHANGED = "changed"
    READ_TIMEOUT = "read_timeout"
    READ_ERROR = "read_error"
    DECODE = "decode"
    DECODE_TIMEOUT = "decode_timeout"
    MODEL = "model"
    NO_DETECTOR = "no_detector"


class ZsadError(Exception):
    """Base of every error that zsad raises on purpose; `exit_code` is what the job ends with."""

    exit_code = 1


class ConfigError(ZsadError):
    """An argument, a configuration value or their combination can't be used."""

    exit_code = 2


class CommitConflict(ZsadError):
    """Another live run holds this output."""

    exit_code = 3


class StorageError(ZsadError):
    """Storage refused, failed or timed out; `retryable` says whether the same call may succeed later."""

    exit_code = 4

    def __init__(self, message: str, *, retryable: bool = False, code: ErrorCode = ErrorCode.READ_ERROR) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.code = code


class ModelError(ZsadError):
    """A detector, backbone or bundle can't be loaded or does not fit."""

    exit_code = 5


class TooManyBadImages(ZsadError):
    """The share of images that could not be scored is above the limit; nothing is published."""

    exit_code = 6


class ImageError(ZsadError):
    """One image can't be used; becomes a row with `code`, never ends a run."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that led to it, each once; `cause` is where Ray keeps what happened in a task."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [getattr(current, "cause", None), current.__cause__, current.__context__]
