"""What `--since` means, and what it can't."""

from datetime import UTC, datetime

import pytest
from report_helpers import start_run

from zsad.errors import ConfigError
from zsad.report.since import parse_since, since_moment


def test_times_are_utc_unless_they_say_otherwise():
    assert parse_since("2026-03-01T22:00:00") == datetime(2026, 3, 1, 22, tzinfo=UTC)
    assert parse_since("2026-03-01T22:00:00Z") == datetime(2026, 3, 1, 22, tzinfo=UTC)
    assert parse_since("2026-03-01T22:00:00+02:00") == datetime(2026, 3, 1, 20, tzinfo=UTC)
    assert parse_since("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_since("") is None


def test_last_is_when_the_last_run_began(source, output):
    start_run(output, "run-1", source)
    assert since_moment("last", output, "run-1") == datetime(2026, 3, 1, tzinfo=UTC)
    assert since_moment("2026-02-01", output, "run-1") == datetime(2026, 2, 1, tzinfo=UTC)
    with pytest.raises(ConfigError, match="--since last: no run is published"):
        since_moment("last", output, None)


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="--since 'yesterday': give a time"):
        parse_since("yesterday")
