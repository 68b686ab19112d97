"""Requests made from our own description, good and bad: none may end in a server error. tests/api runs it for real."""

import pytest
import schemathesis
from fake_engine import FakeEngine, FakeObserver
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from zsad.http.app import make_app
from zsad.serve_config import ServeConfig

APP = make_app(
    ServeConfig(detectors=("nano",), buckets=("line1=/nowhere/images",)),
    FakeEngine(),
    tokens={},
    observer=FakeObserver(),
    page={},
)
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@schema.parametrize()
@settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_no_request_ends_in_a_server_error(case):
    response = case.call()
    assert response.status_code < 500, response.text
    case.validate_response(
        response, checks=CHECKS.get_by_names(["response_schema_conformance", "content_type_conformance"])
    )
