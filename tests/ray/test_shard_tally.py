"""What the sinks report is added up once for each shard, and watched for too many errors; a run that stands still."""

import logging
import re
import time

import pytest
import ray

from zsad.distributed import progress, stages
from zsad.distributed.progress import CHECK_EVERY_ROWS, Counts, ShardTally
from zsad.distributed.store_watch import StoreWatch
from zsad.errors import ModelError


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


@pytest.mark.ray
def test_a_run_that_does_not_get_on_says_what_the_cluster_has_free(local_ray, monkeypatch, caplog):
    monkeypatch.setattr(progress, "QUIET_S", 1.5)
    tally = progress.Tally.remote(Counts(), 1.0)
    with (
        caplog.at_level(logging.WARNING, progress.log.name),
        progress.ProgressReporter(tally, Counts(), lambda: 10, lambda: None, StoreWatch()),
    ):
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.1)
    assert re.search(r"no image was finished for 1.5 s \([0-9.]+ of [0-9]+ CPUs free", caplog.text)


@ray.remote(num_cpus=0)
class Scorer:
    """Any actor."""

    def ping(self):
        """Whether it lives."""
        return True


def ping_for_a_minute(scorer):
    """Ray kills soon, not at once."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ray.get(scorer.ping.remote())


@pytest.mark.ray
def test_the_scorers_of_a_pool_are_ended_once_though_somebody_still_refers_to_them(local_ray):
    tally = progress.Tally.remote(Counts(), 1.0)
    scorers = [Scorer.remote(), Scorer.remote()]
    for number, scorer in enumerate((*scorers, scorers[0])):  # one that was restarted comes again
        assert ray.get(scorer.ping.remote())
        starts = ray.get(tally.add_scorer.remote(f"name {number % 2}", scorer))
        assert starts == 1 + number // 2
    assert ray.get(tally.end_scorers.remote()) == 2
    for scorer in scorers:
        with pytest.raises(ray.exceptions.RayActorError):
            ping_for_a_minute(scorer)
    assert ray.get(tally.end_scorers.remote()) == 0


@ray.remote(num_cpus=0)
class Joining:
    """Joins a pool as scorers do whenever they are started."""

    def join(self, tally, times):
        """Again and again."""
        for _ in range(times):
            stages._join(tally)


@pytest.mark.ray
def test_a_scorer_that_dies_again_and_again_ends_the_run_with_a_model_error(local_ray):
    tally, scorer = progress.Tally.remote(Counts(), 1.0), Joining.remote()
    ray.get(scorer.join.remote(tally, stages.MOST_STARTS))
    with pytest.raises(ModelError, match="a scorer died 16 times in this run"):
        ray.get(scorer.join.remote(tally, 1))
