"""The limit halves when the server says so, grows back slowly, and is kept."""

import threading
import time

import pytest

from zsad.storage.concurrency import HOLD_S, AdaptiveLimit


class Clock:
    """A clock that only the test moves."""

    now_s = 100.0

    def __call__(self):
        """Return the time in seconds."""
        return self.now_s


def test_requests_that_failed_together_halve_the_limit_once():
    clock = Clock()
    limit = AdaptiveLimit(32, clock)
    for _ in range(8):
        limit.throttled()
    assert limit.limit == 16
    clock.now_s += HOLD_S
    limit.throttled()
    assert limit.limit == 8


def test_the_limit_never_falls_below_one_request():
    clock = Clock()
    limit = AdaptiveLimit(2, clock)
    for _ in range(5):
        limit.throttled()
        clock.now_s += HOLD_S
    assert limit.limit == 1
    with limit.slot():
        pass


def test_successes_raise_it_slowly_and_never_above_the_most():
    limit = AdaptiveLimit(3, Clock())
    limit.limit = 1.0
    limit.succeeded()
    assert limit.limit == 2
    limit.succeeded()
    limit.succeeded()
    assert limit.limit == pytest.approx(2.5 + 1 / 2.5)
    for _ in range(10):
        limit.succeeded()
    assert limit.limit == 3


def test_no_more_requests_than_the_limit_are_under_way():
    limit, seen, lock = AdaptiveLimit(2), [0, 0], threading.Lock()

    def request():
        with limit.slot():
            with lock:
                seen[0] += 1
                seen[1] = max(seen)
            time.sleep(0.01)
            with lock:
                seen[0] -= 1

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [0, 2]


def test_a_request_that_raises_frees_its_place():
    limit = AdaptiveLimit(1)
    with pytest.raises(ValueError, match="broken"), limit.slot():
        raise ValueError("broken")
    with limit.slot():
        pass
