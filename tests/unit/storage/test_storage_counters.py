"""Counters add up over threads, and over what a local store does."""

from concurrent.futures import ThreadPoolExecutor

from zsad.storage import counters, open_store
from zsad.storage.counters import Counters


def test_counting_in_many_threads_loses_nothing():
    before = counters.snapshot()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: counters.count(requests=1, bytes_read=3), range(2000)))
    assert counters.snapshot() - before == Counters(requests=2000, bytes_read=6000)


def test_counters_add_and_subtract_by_name():
    total = Counters(requests=5, retries=2, throttles=1, bytes_read=10, bytes_written=4)
    part = Counters(requests=2, retries=1, bytes_read=4)
    assert total + part == Counters(requests=7, retries=3, throttles=1, bytes_read=14, bytes_written=4)
    assert total - part == Counters(requests=3, retries=1, throttles=1, bytes_read=6, bytes_written=4)


def test_a_local_store_counts_calls_and_bytes(tmp_path):
    store = open_store(str(tmp_path))
    before = counters.snapshot()
    store.put("a", b"12345")
    store.put_if_absent("a", b"refused")
    store.get("a", max_bytes=10)
    store.exists("b")
    assert counters.snapshot() - before == Counters(requests=4, bytes_read=5, bytes_written=5)
