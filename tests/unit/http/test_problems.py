import pickle

import pytest

from zsad.errors import ErrorCode
from zsad.http.problems import STATUS_OF_IMAGE, Problem, of_status


def test_every_code_of_an_image_has_a_status():
    assert set(STATUS_OF_IMAGE) == set(ErrorCode)


def test_a_problem_crosses_process_borders():
    problem = pickle.loads(pickle.dumps(Problem("busy", "wait", retry_after_s=2.5)))  # noqa: S301 - as Ray does
    assert (problem.code, problem.detail, problem.status, problem.retry_after_s) == ("busy", "wait", 429, 2.5)
    assert problem.headers() == {"Retry-After": "3"}


@pytest.mark.parametrize("code", ["busy", "rate_limited", "unavailable"])
def test_whoever_is_sent_away_is_told_when_to_come_back(code):
    assert int(Problem(code, "x").headers()["Retry-After"]) >= 1


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (418, "bad_request")])
def test_the_frameworks_statuses_have_codes(status, code):
    assert of_status(status, "x").code == code
