"""How many requests to S3 may be under way at once: fewer while the server asks for it, slowly more afterwards.

Additive increase, multiplicative decrease, as TCP does: a throttled answer halves the limit, at most once in `HOLD_S`
because requests that were under way together fail together; each success adds 1/limit, so that about `limit` successes
raise it by one. Every process finds the share of the server's capacity that is left for it, without talking to others.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_REQUESTS = 32
HOLD_S = 1.0


class AdaptiveLimit:
    """A gate for requests; thread-safe. `limit` lies in [1, most]."""

    def __init__(self, most: int = MAX_REQUESTS, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = float(most)
        self._most = most
        self._clock = clock
        self._num_under_way = 0
        self._held_until_s = -1.0
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until one more request is allowed, and hold its place."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_under_way < max(1, int(self.limit)))
            self._num_under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_under_way -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Note an answer: the server can take a little more."""
        with self._changed:
            self.limit = min(self._most, self.limit + 1 / self.limit)

    def throttled(self) -> None:
        """Note an answer that asked for fewer requests."""
        with self._changed:
            now_s = self._clock()
            if now_s >= self._held_until_s:
                self.limit = max(1.0, self.limit / 2)
                self._held_until_s = now_s + HOLD_S
