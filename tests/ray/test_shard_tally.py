"""What the sinks report is added up once for each shard, and watched for too many errors; no running Ray."""

from zsad.distributed.progress import CHECK_EVERY_ROWS, Counts, ShardTally


def test_a_shard_reported_twice_counts_once():
    tally = ShardTally(Counts(rows=10, errors=1, anomalies=2), 1.0)
    for shard in (0, 7, 8, 7, 1000, 0, 1000):
        assert tally.add(shard, 5, 1, 2) == ""
    assert tally.read() == (Counts(rows=30, errors=5, anomalies=10), "")


def test_the_error_budget_is_looked_at_every_thousand_rows():
    tally = ShardTally(Counts(), 0.05)
    assert tally.add(0, CHECK_EVERY_ROWS - 1, CHECK_EVERY_ROWS - 1, 0) == ""
    reason = tally.add(1, 1, 0, 0)
    assert "999 of 1,000 images can't be scored; the limit is 5.0%" in reason
    assert tally.add(1, 1, 0, 0) == reason


def test_a_run_that_must_stop_is_told_so_at_the_next_report():
    tally = ShardTally(Counts(), 1.0)
    tally.stop("the lease is lost")
    assert tally.add(3, 1, 0, 0) == "the lease is lost"
