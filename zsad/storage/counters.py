"""What this process asked of storage: requests, retries, refusals to hurry, bytes; for run summaries and tests.

Counts go up only and belong to one process, so a caller takes a `snapshot` before and after and subtracts. They are
counted where the work is done: one request is one HTTP request to S3 or one file opened, whatever became of it.
"""

import threading
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Numbers of this process so far, or a difference or sum of such numbers.

    Attributes:
        requests: HTTP requests to S3, repeated ones included, or local files read, written, looked up or deleted.
        retries: requests that repeated a failed one.
        throttles: answers that asked for fewer requests (SlowDown, 429, 503), inside a success too.
        bytes_read: content of whole objects that arrived, in bytes.
        bytes_written: content of whole objects that was stored, in bytes.
    """

    requests: int = 0
    retries: int = 0
    throttles: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in NAMES})

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(**{name: getattr(self, name) - getattr(other, name) for name in NAMES})


NAMES = tuple(field.name for field in fields(Counters))
_LOCK = threading.Lock()
_current = Counters()


def snapshot() -> Counters:
    """The numbers of this process now; thread-safe."""
    return _current


def count(**more: int) -> None:
    """Add to the numbers of this process; thread-safe.

    Args:
        more: by name of the attributes of `Counters`.
    """
    global _current  # noqa: PLW0603 - one total per process is the point
    with _LOCK:
        _current = replace(_current, **{name: getattr(_current, name) + number for name, number in more.items()})
