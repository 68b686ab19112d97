"""Fixtures of the fault tests: the table of results, and a faulty way to the real S3 server."""

from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy
from fault_table import IS_REPORTED, REPORT, Table

_TABLE = Table()


@pytest.fixture
def table():
    """Where a test says what it measured."""
    return _TABLE


@pytest.fixture(scope="session")
def s3_proxy(s3):
    """A fault proxy in front of the S3 server."""
    with FaultProxy(urlsplit(s3.env["AWS_ENDPOINT_URL"]).port) as proxy:
        yield proxy


@pytest.fixture
def faulty_s3(s3_proxy, monkeypatch):
    """The proxy, through which this process now reaches S3; it starts without faults."""
    s3_proxy.restart()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    return s3_proxy


def pytest_terminal_summary(terminalreporter):
    """Print the table of `make faults` and keep it."""
    if IS_REPORTED and _TABLE.lines:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(_TABLE.markdown() + "\n")
        terminalreporter.section("faults")
        terminalreporter.write_line(_TABLE.markdown())
