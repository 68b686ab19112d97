"""Retries with exponential backoff, full jitter and one budget for the whole process.

After attempt n (from 0) a caller waits a uniformly random time in [0, min(cap_s, base_s * 2**n)] (full jitter: callers
that failed together do not come back together). On top, all retries of a process share one budget: each success pays
for `RETRIES_PER_SUCCESS` of a retry, and what nobody paid for waits for a pace of `MAX_RETRIES_PER_S`. So a server that
fails one request in five is asked again at once, and an outage meets a few requests a second however many threads wait.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from zsad.errors import StorageError
from zsad.storage import counters

MAX_RETRIES_PER_S = 5.0
RETRIES_PER_SUCCESS = 0.5
MAX_SAVED_RETRIES = 10.0
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class UnreachableError(StorageError):
    """No connection at all: a wrong address is likelier than an outage, so patience is shorter."""


class ThrottledError(StorageError):
    """The server answers, and asks for fewer requests."""


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


class RetryBudget:
    """When the next retry of a process may start; thread-safe.

    Args:
        per_s: retries a second that are always allowed.
        clock: seconds, monotonic.
    """

    def __init__(self, per_s: float = MAX_RETRIES_PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = 1.0 / per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._saved = 0.0

    def succeeded(self) -> None:
        """Note a request that needs no retry."""
        with self._lock:
            self._saved = min(MAX_SAVED_RETRIES, self._saved + RETRIES_PER_SUCCESS)

    def reserve_s(self) -> float:
        """Take one retry out of the budget and return the seconds until it may start; 0 when successes paid for it."""
        with self._lock:
            if self._saved >= 1.0:
                self._saved -= 1.0
                return 0.0
            now_s = self._clock()
            slot_s = max(now_s, self._next_s)
            self._next_s = slot_s + self._gap_s
            return slot_s - now_s


_BUDGET = RetryBudget()


def call_with_retries(
    attempt: Callable[[int], T],
    policy: RetryPolicy,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
    budget: RetryBudget = _BUDGET,
) -> T:
    """Call `attempt(n)` for n = 0, 1, ... until it returns, fails for good, or the time of `policy` is used up.

    Raises:
        StorageError: the attempt's own, at once when it is not retryable.
    """
    started_s = clock()
    number = 0
    while True:
        try:
            result = attempt(number)
        except StorageError as error:
            patience_s = (
                policy.give_up_unreachable_after_s if isinstance(error, UnreachableError) else policy.give_up_after_s
            )
            counters.count(throttles=isinstance(error, ThrottledError))
            wait_s = policy.backoff_s(number, draw())
            if not error.retryable or clock() + wait_s - started_s > patience_s:
                raise
            _LOG.info("retry %d: %s", number + 1, error)
            sleep(max(wait_s, budget.reserve_s()))
            counters.count(retries=1)
            number += 1
        else:
            budget.succeeded()
            return result
