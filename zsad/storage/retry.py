"""Retries with exponential backoff, full jitter and one budget for the whole process.

After attempt n (from 0) a caller waits a uniformly random time in [0, min(cap_s, base_s * 2**n)] (full jitter: callers
that failed together do not come back together). On top, all retries of a process share one pace of
`MAX_RETRIES_PER_S`, so that an outage meets a few requests a second however many threads wait for it.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from zsad.errors import StorageError

MAX_RETRIES_PER_S = 5.0
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class UnreachableError(StorageError):
    """No connection at all: a wrong address is likelier than an outage, so patience is shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long one call is retried, in seconds; the defaults outlive a 30 s outage."""

    base_s: float = 0.2
    cap_s: float = 8.0
    give_up_after_s: float = 60.0
    give_up_unreachable_after_s: float = 15.0

    def backoff_s(self, attempt: int, fraction: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 0); `fraction` in [0, 1) is the random draw."""
        return fraction * min(self.cap_s, self.base_s * 2.0 ** min(attempt, 30))


class Pacer:
    """Hands out start times at most `per_s` a second; thread-safe. Also counts them."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = 1.0 / per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next_s = 0.0
        self.num_reserved = 0

    def reserve_s(self) -> float:
        """Take the next free slot and return the seconds until it."""
        with self._lock:
            now_s = self._clock()
            slot_s = max(now_s, self._next_s)
            self._next_s = slot_s + self._gap_s
            self.num_reserved += 1
            return slot_s - now_s


_PACER = Pacer(MAX_RETRIES_PER_S)


def num_retries() -> int:
    """Retries made by this process so far."""
    return _PACER.num_reserved


def call_with_retries(
    attempt: Callable[[int], T],
    policy: RetryPolicy,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
    pacer: Pacer = _PACER,
) -> T:
    """Call `attempt(n)` for n = 0, 1, ... until it returns, fails for good, or the time of `policy` is used up.

    Raises:
        StorageError: the attempt's own, at once when it is not retryable.
    """
    started_s = clock()
    number = 0
    while True:
        try:
            return attempt(number)
        except StorageError as error:
            patience_s = (
                policy.give_up_unreachable_after_s if isinstance(error, UnreachableError) else policy.give_up_after_s
            )
            wait_s = policy.backoff_s(number, draw())
            if not error.retryable or clock() + wait_s - started_s > patience_s:
                raise
            _LOG.info("retry %d: %s", number + 1, error)
            sleep(max(wait_s, pacer.reserve_s()))
            number += 1
