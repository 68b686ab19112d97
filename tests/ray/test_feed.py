"""The listing thread hands out each shard once, in waves, and its failure is the job's."""

import threading
import time

import pytest

from zsad.distributed import feed
from zsad.distributed.feed import ManifestFeed
from zsad.errors import StorageError, ZsadError
from zsad.report.manifest import ManifestSummary


def summary(num_shards):
    return ManifestSummary(num_shards=num_shards, num_objects=10 * num_shards, num_bytes=0)


def test_the_first_wave_is_soon_and_the_others_wait_for_more(monkeypatch):
    monkeypatch.setattr(feed, "FIRST_PATIENCE_S", 0.01)
    go_on = threading.Event()

    def write(announce):
        announce(0, 0)
        announce(3, 30)
        assert go_on.wait(30)
        announce(5, 50)
        return summary(7)

    with ManifestFeed(write) as found:
        assert found.take() == range(3)
        assert found.num_listed_rows() == 30
        with pytest.raises(ZsadError, match="not finished"):
            found.summary()
        go_on.set()
        assert found.take() == range(3, 7)  # 5 are less than 100,000 rows, so it waits until the end
        assert not found.take()
        assert (found.summary(), found.num_listed_rows()) == (summary(7), 70)


def test_a_short_listing_is_one_wave():
    def write(announce):
        announce(3, 30)
        time.sleep(0.3)
        return summary(7)

    with ManifestFeed(write) as found:
        assert [found.take(), found.take()] == [range(7), range(7, 7)]


def test_a_wave_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(feed, "FIRST_PATIENCE_S", 0.01)
    monkeypatch.setattr(feed, "PATIENCE_S", 0.01)
    end = threading.Event()

    def write(announce):
        announce(1, 10)
        announce(2, 20)
        assert end.wait(30)
        return summary(2)

    with ManifestFeed(write) as found:
        taken = [*found.take()]
        while len(taken) < 2:
            taken += found.take()
        end.set()
        assert (taken, [*found.take()]) == ([0, 1], [])


def test_a_wave_is_bounded(monkeypatch):
    monkeypatch.setattr(feed, "MOST_SHARDS", 4)
    with ManifestFeed(lambda _announce: summary(10)) as found:
        assert [found.take() for _ in range(4)] == [range(4), range(4, 8), range(8, 10), range(10, 10)]


def test_an_empty_listing_has_no_wave():
    with ManifestFeed(lambda _announce: summary(0)) as found:
        assert not found.take()


def test_a_failed_listing_is_raised_even_with_shards_left():
    def write(announce):
        announce(2, 20)
        raise StorageError("the bucket is gone")

    with ManifestFeed(write) as found:
        found._thread.join(30)
        with pytest.raises(StorageError, match="the bucket is gone"):
            found.take()
        with pytest.raises(StorageError, match="the bucket is gone"):
            found.check()


def test_a_run_that_ends_early_stops_its_listing():
    started, ended = threading.Event(), threading.Event()

    def write(announce):
        announce(1, 10)
        started.set()
        try:
            while True:
                announce(1, 10)
        finally:
            ended.set()

    with ManifestFeed(write):
        assert started.wait(30)
    assert ended.wait(30)
