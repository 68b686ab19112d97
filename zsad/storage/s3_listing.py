"""List a large prefix by several threads and still yield its keys in order, each once.

One listing is a chain of requests, about 1,000 keys each, that wait for one another. The first 10,000 keys come from
one chain, so that small inputs cost nothing more. Behind them the key space is cut at folders (common prefixes) into
ranges; a few ranges are listed at a time, and those that are not due yet wait compressed. So the order of keys, which
resuming and carrying over rely on, does not depend on the threads.

Cost: one more request for each range, whose last page reaches over its end, and one for each folder looked into.
Memory: `NUM_THREADS * LOOK_AHEAD_PAGES` pages of about 40 kB. Ranges larger than that are listed at the pace of one
chain once the look-ahead is full: a flat folder of 10^8 keys has nothing to cut it at.
"""

import json
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event

from zsad.errors import StorageError
from zsad.storage.base import ObjectInfo

SEQUENTIAL_PAGES = 10
NUM_THREADS = 8
LOOK_AHEAD_PAGES = 100
ENOUGH_RANGES = 32
MAX_RANGES = 1024
_MAX_LEVEL = 64
_MAX_CHILDREN = 1000
_POLL_S = 0.1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the server: what it listed, and the last key it looked at, which may be of a folder mark."""

    objects: list[ObjectInfo]
    last_key: str


Pages = Callable[[str], Iterator[Page]]
Folders = Callable[[str], Iterable[str]]


def list_in_order(pages: Pages, folders: Folders, prefix: str, after: str) -> Iterator[ObjectInfo]:
    """Yield the objects behind `after`, in key order.

    Args:
        pages: from a key to the pages behind it, whose keys start with `prefix`.
        folders: from a folder ("" or ending in "/") to the names right under it.
        prefix: what all keys start with.
        after: where to begin; "": at the first key.

    Raises:
        StorageError: what `pages` raises.
    """
    for number, page in enumerate(pages(after), start=1):
        yield from page.objects
        after = page.last_key
        if number == SEQUENTIAL_PAGES:
            break
    else:
        return
    try:
        points = split_points(folders, prefix, after)
    except StorageError as error:
        _LOG.warning("listing goes on with one thread, since its folders can't be found: %s", error)
        points = []
    if points:
        yield from _ranges_in_order(pages, [after, *points])
    else:
        for page in pages(after):
            yield from page.objects


def split_points(folders: Folders, prefix: str, after: str) -> list[str]:
    """Keys behind `after` at which the listing may be cut, sorted, at most 1,023: folders, from the top down."""
    level, points = [prefix[: prefix.rfind("/") + 1]], set[str]()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while 0 < len(level) <= _MAX_LEVEL and len(points) < ENOUGH_RANGES:
            found = pool.map(lambda folder: _children(folders, folder), level)
            names = [name for children in found for name in children if name.startswith(prefix)]
            level = [name for name in names if name > after or after.startswith(name)]
            points.update(name for name in level if name > after)
    ordered = sorted(points)
    return ordered[:: -(-len(ordered) // (MAX_RANGES - 1)) or 1]


def _children(folders: Folders, folder: str) -> list[str]:
    return [f"{folder}{name}/" for name in islice(folders(folder), _MAX_CHILDREN)]


def _ranges_in_order(pages: Pages, starts: list[str]) -> Iterator[ObjectInfo]:
    """List each range from a start (exclusive) to the next (inclusive), a few at a time, and yield them in order."""
    stop = Event()
    waiting = deque(zip(starts, [*starts[1:], None], strict=True))
    under_way: deque[Queue[bytes | BaseException | None]] = deque()
    pool = ThreadPoolExecutor(NUM_THREADS, "zsad-list")
    try:
        while waiting or under_way:
            while waiting and len(under_way) < NUM_THREADS:
                under_way.append(Queue(LOOK_AHEAD_PAGES))
                pool.submit(_fill, under_way[-1], pages, *waiting.popleft(), stop)
            yield from _drain(under_way.popleft())
    finally:
        stop.set()
        pool.shutdown()


def _fill(queue: "Queue[bytes | BaseException | None]", pages: Pages, start: str, end: str | None, stop: Event) -> None:
    try:
        for page in pages(start):
            kept = [info for info in page.objects if end is None or info.key <= end]
            _put(queue, _packed(kept), stop)
            if stop.is_set() or (end is not None and page.last_key >= end):
                break
    except BaseException as error:  # noqa: BLE001 - it is raised where the range is read
        _put(queue, error, stop)
    else:
        _put(queue, None, stop)


def _put(queue: "Queue[bytes | BaseException | None]", item: bytes | BaseException | None, stop: Event) -> None:
    while not stop.is_set():
        try:
            queue.put(item, timeout=_POLL_S)
        except Full:
            continue
        return


def _drain(queue: "Queue[bytes | BaseException | None]") -> Iterator[ObjectInfo]:
    while True:
        try:
            item = queue.get(timeout=_POLL_S)
        except Empty:
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield from _unpacked(item)


def _packed(objects: list[ObjectInfo]) -> bytes:
    """About 40 bytes an object instead of 450, so that looking ahead is cheap in memory."""
    rows = [(i.key, i.uri[: -len(i.key)], i.size_bytes, i.etag, str(i.last_modified)) for i in objects]
    return zlib.compress(json.dumps(rows).encode(), 1)


def _unpacked(data: bytes) -> Iterator[ObjectInfo]:
    for key, root, size_bytes, etag, modified in json.loads(zlib.decompress(data)):
        moment = datetime.fromisoformat(modified)
        yield ObjectInfo(key=key, uri=root + key, size_bytes=size_bytes, etag=etag, last_modified=moment)
