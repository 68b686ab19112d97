"""The table on the terminal after a run."""

import pytest

from zsad.report.selection import Counts
from zsad.report.summary import RunSummary

COUNTS = Counts(
    listed=1234, ok=1200, anomalous=30, errors=34, by_error_code={"empty": 34}, by_defect_type={"dent": 20, "hole": 10}
)


def summary(**changes):
    facts = {
        "run_id": "r1",
        "input_url": "s3://in",
        "output_url": "s3://out",
        "detector": "nano",
        "started_at": "2026-03-01T00:00:00+00:00",
        "finished_at": "2026-03-01T00:01:40+00:00",
        "scoring_seconds": 60.0,
        "total_seconds": 100.0,
        "num_scored": 600,
        "num_carried": 0,
        "totals": {},
    }
    return RunSummary(**(facts | changes))


def test_the_whole_table():
    assert summary().table(COUNTS, "s3://out/gallery.html").splitlines() == [
        "run        r1",
        "input      s3://in",
        "detector   nano",
        "listed     1,234 = 1,200 ok + 34 errors",
        "anomalies  30 (2.5% of ok)",
        "defects    dent 20, hole 10",
        "errors     empty 34",
        "time       100 s, of them 60 s scoring (10.0 images/s with start-up)",
        "report     s3://out",
        "gallery    s3://out/gallery.html",
    ]


def test_empty_lines_are_left_out():
    counts = Counts(listed=0, ok=0, anomalous=0, errors=0, by_error_code={}, by_defect_type={})
    table = summary(num_scored=0).table(counts, "")
    assert "anomalies  0 (none of ok)" in table
    assert table.endswith("time       100 s, of them 60 s scoring\nreport     s3://out")
    assert not any(line.startswith(("errors", "defects", "gallery")) for line in table.splitlines())


def test_rows_taken_over_are_counted():
    lines = summary(num_carried=1000).table(COUNTS, "").splitlines()
    assert lines[4] == "unchanged  1,000 rows taken over from the last run"


@pytest.mark.parametrize(("scored", "seconds", "rate"), [(600, 60.0, 10.0), (0, 60.0, None), (600, 0.0, None)])
def test_the_rate_of_this_call(scored, seconds, rate):
    assert summary(num_scored=scored, scoring_seconds=seconds).images_per_s == rate
