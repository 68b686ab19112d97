"""What scoring a shard cost: seconds by stage, traffic, peak memory; kept in its record, so a restart loses none of it.

Seconds and traffic add up over shards; of memory the largest counts. Work of an attempt that lost, or was killed, is
in no record and so not counted.
"""

import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

from zsad.storage.counters import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Costs of one shard or of many together.

    Attributes:
        decode_s: fetching and decoding, in its task.
        score_s: the model and building rows, in the scorer.
        write_s: writing maps and rows, in the sink.
        requests, retries, throttles, bytes_read, bytes_written: as in `zsad.storage.counters`.
        decode_peak_bytes, score_peak_bytes: largest resident memory of a worker of that kind so far, mapped pages of
            the object store included.
        decode_heap_bytes, score_heap_bytes: the same at the end of a shard, without them; 0 where unknown.
    """

    decode_s: float = 0.0
    score_s: float = 0.0
    write_s: float = 0.0
    requests: int = 0
    retries: int = 0
    throttles: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    decode_peak_bytes: int = 0
    decode_heap_bytes: int = 0
    score_peak_bytes: int = 0
    score_heap_bytes: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        pairs = {one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        return Stats(**{name: (max if name in _LARGEST else sum)(pair) for name, pair in pairs.items()})

    def with_traffic(self, traffic: Counters) -> "Stats":
        """These costs and some requests."""
        names = ("requests", "retries", "throttles", "bytes_read", "bytes_written")
        return self + Stats(**{name: getattr(traffic, name) for name in names})


_LARGEST = frozenset(one.name for one in fields(Stats) if one.name.endswith(("peak_bytes", "heap_bytes")))


def total(parts: Iterable[Mapping[str, Any]]) -> Stats:
    """Costs of many shards from what their records hold; records without any count nothing."""
    return reduce(Stats.__add__, (Stats(**part) for part in parts), Stats())


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def heap_bytes() -> int:
    """Memory of this process now that is its own and no file's or shared page; 0 where Linux's /proc is not there."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) * 1024
