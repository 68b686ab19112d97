"""Retries stop for good errors, wait longer and longer, and share one pace."""

import pytest

from zsad.errors import StorageError
from zsad.storage.retry import RetryBudget, RetryPolicy, UnreachableError, call_with_retries


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now_s = 100.0
        self.sleeps = []

    def __call__(self):
        """Return the time in seconds."""
        return self.now_s

    def sleep(self, seconds):
        """Move the clock."""
        self.sleeps.append(seconds)
        self.now_s += seconds


def run(attempt, *, draw=1.0, per_s=1e9, policy=None):
    clock = Clock()
    calls = []

    def counted(number):
        calls.append(number)
        return attempt(number, clock)

    try:
        result = call_with_retries(
            counted,
            policy or RetryPolicy(),
            sleep=clock.sleep,
            clock=clock,
            draw=lambda: draw,
            budget=RetryBudget(per_s, clock),
        )
    except StorageError as error:
        result = error
    return result, calls, clock


def failing_until(time_s, error=StorageError):
    def attempt(_number, clock):
        if clock() < time_s:
            raise error("503", retryable=True)
        return "ok"

    return attempt


def test_a_final_error_is_tried_once():
    def attempt(_number, _clock):
        raise StorageError("403")

    result, calls, clock = run(attempt)
    assert str(result) == "403"
    assert calls == [0]
    assert clock.sleeps == []


def test_waits_double_up_to_the_cap():
    result, _, clock = run(failing_until(119.0))
    assert result == "ok"
    assert clock.sleeps == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0])


def test_jitter_scales_the_whole_wait():
    policy = RetryPolicy()
    assert policy.backoff_s(3, 0.0) == 0
    assert policy.backoff_s(3, 0.5) == pytest.approx(0.8)


@pytest.mark.parametrize("draw", [0.001, 0.5, 1.0])
def test_an_outage_of_30_s_is_survived_with_few_requests(draw):
    result, calls, _ = run(failing_until(130.0), draw=draw, per_s=5)
    assert result == "ok"
    assert len(calls) <= 30 * 5 + 2


def test_gives_up_after_its_time():
    result, _, clock = run(failing_until(1e9))
    assert isinstance(result, StorageError)
    assert 40 < clock() - 100 <= 60


def test_is_less_patient_when_nothing_answers_at_all():
    result, _, clock = run(failing_until(1e9, UnreachableError))
    assert isinstance(result, UnreachableError)
    assert clock() - 100 <= 15


def test_retries_that_nothing_paid_for_are_spaced():
    clock = Clock()
    budget = RetryBudget(5, clock)
    assert [budget.reserve_s() for _ in range(4)] == pytest.approx([0, 0.2, 0.4, 0.6])
    clock.sleep(10)
    assert budget.reserve_s() == 0


def test_two_successes_pay_for_one_retry_and_ten_retries_can_be_saved():
    budget = RetryBudget(5, Clock())
    budget.reserve_s()
    for _ in range(4):
        budget.succeeded()
    assert [budget.reserve_s() for _ in range(3)] == pytest.approx([0, 0, 0.2])
    for _ in range(100):
        budget.succeeded()
    waits = [budget.reserve_s() for _ in range(12)]
    assert waits[:10] == [0] * 10
    assert waits[10:] == pytest.approx([0.4, 0.6])
