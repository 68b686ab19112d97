"""What a shard cost, and how the costs of many add up."""

from dataclasses import asdict

import numpy as np

from zsad.report.stats import Stats, heap_bytes, peak_bytes, total
from zsad.storage.counters import Counters


def test_seconds_and_traffic_add_up_and_of_memory_the_largest_counts():
    one = Stats(decode_s=1.5, retries=2, bytes_read=10, decode_peak_bytes=100, score_heap_bytes=7)
    other = Stats(decode_s=0.5, retries=1, score_s=3.0, decode_peak_bytes=50, score_heap_bytes=9)
    expected = Stats(decode_s=2.0, score_s=3.0, retries=3, bytes_read=10, decode_peak_bytes=100, score_heap_bytes=9)
    assert one + other == expected
    assert total([asdict(one), {}, asdict(other)]) == expected


def test_traffic_is_added_by_name():
    traffic = Counters(requests=4, retries=3, throttles=2, bytes_read=1, bytes_written=5)
    found = Stats(requests=1).with_traffic(traffic)
    assert (found.requests, found.retries, found.throttles, found.bytes_read, found.bytes_written) == (5, 3, 2, 1, 5)


def test_memory_of_this_process_is_seen_to_grow():
    before = heap_bytes()
    held = np.ones(50_000_000, np.uint8)
    assert heap_bytes() - before > 40_000_000
    assert peak_bytes() >= held.nbytes
