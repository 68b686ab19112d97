"""`--manifest URL`: the customer's own list of objects instead of a listing of the input.

Every row is checked before the first object is scored, and every object must lie under the input: a list can't make
the job fetch from anywhere else. Of an inventory of a whole bucket, the part under the input is taken. Which files
and columns are read: `zsad.report.list_files`.

Lists come in any order, and zsad goes through objects in key order. So rows are sorted on disk: `ROWS_PER_RUN` at a
time in memory, each run written to a temporary file, then all merged. Repeated rows count once.

Memory: one run of rows, about 50 MB. Cost: one pass to check and sort, which the first score waits for.
"""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from zsad.errors import ConfigError, StorageError
from zsad.report.list_files import ListRow, read_list
from zsad.report.manifest import objects_to_table
from zsad.storage import ObjectInfo, Store

ROWS_PER_RUN = 100_000
MAX_KEY_BYTES = 1024  # S3's own limit
_ROWS_AT_ONCE = 256


class ObjectList:
    """The objects that the list at `url` names, all of them under `source`; a `zsad.report.manifest.Lister`.

    The list is read once, at the first use; temporary files go with the object.
    """

    def __init__(self, url: str, source: Store) -> None:
        self.url = url
        self._source = source

    def contains(self, other: Store) -> bool:
        """Whether `other` lies inside the input; see `Store.contains`."""
        return self._source.contains(other)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects in key order, each once; see `Store.list`.

        Raises:
            ConfigError: a row makes no sense, lies outside the input, or contradicts another; the message says where.
            StorageError: the list can't be read, or there is no room to sort it.
        """
        runs = [_read_run(path) for path in Path(self._sorted_runs.name).iterdir()]
        for key, rows in groupby(heapq.merge(*runs, key=attrgetter("key")), key=attrgetter("key")):
            first, *others = rows
            if any(other.etag != first.etag for other in others):
                raise ConfigError(f"{self.url} lists {first.uri} more than once, with different etags; leave one")
            if key > after and key.startswith(prefix):
                yield first

    @cached_property
    def _sorted_runs(self) -> "tempfile.TemporaryDirectory[str]":
        """A folder of files of rows, each sorted by key."""
        folder = tempfile.TemporaryDirectory(prefix="zsad-list-")
        rows = (info for row in read_list(self.url) if (info := to_object(row, self._source)) is not None)
        number = 0
        while run := sorted(islice(rows, ROWS_PER_RUN), key=attrgetter("key")):
            _write_run(Path(folder.name, f"{number}.parquet"), run)
            number += 1
        return folder


def _write_run(path: Path, run: Iterable[ObjectInfo]) -> None:
    try:
        pq.write_table(objects_to_table(run), path, row_group_size=8192)
    except OSError as error:
        raise StorageError(
            f"can't sort the list in {path.parent}: {error}; set TMPDIR to a folder with room"
        ) from error


def _read_run(path: Path) -> Iterator[ObjectInfo]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from (ObjectInfo(**row) for row in batch.to_pylist())


def to_object(row: ListRow, source: Store) -> ObjectInfo | None:
    """The object that a row names.

    Returns:
        None for what a listing of the input would not have: old versions, delete marks, folder marks, and keys of the
        input's bucket outside the input.

    Raises:
        ConfigError: a value is missing or makes no sense, or the object lies outside the input.
    """
    values = row.values
    if _is_false(values.get("is_latest")) or _is_true(values.get("is_delete_marker")):
        return None
    key = _key(row, source)
    size = _size(row)
    if key is None or (key.endswith("/") and size == 0):
        return None
    if not key or (len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES and source.url.startswith("s3://")):
        raise _error(row, f"the key {key[:60]!r} is empty or longer than {MAX_KEY_BYTES:,} bytes")
    etag = str(values.get("etag", "")).strip('"')
    uri = f"{source.url.rstrip('/')}/{key}"
    return ObjectInfo(key=key, uri=uri, size_bytes=size, etag=etag, last_modified=_modified(row))


def _key(row: ListRow, source: Store) -> str | None:
    """The key relative to the input; None for another part of the input's bucket."""
    root = source.url.rstrip("/") + "/"
    if "uri" in row.values:
        uri = str(row.values["uri"])
        if not uri.startswith(root):
            raise _error(row, f"{uri!r} does not lie under the input {source.url}")
        return uri.removeprefix(root)
    if "key" not in row.values:
        raise _error(row, "it names no object: 'key' or 'uri' is empty")
    key = str(row.values["key"])
    if "bucket" not in row.values:
        return key
    bucket, _, prefix = source.url.removeprefix("s3://").partition("/")
    if not source.url.startswith("s3://") or row.values["bucket"] != bucket:
        raise _error(row, f"bucket {row.values['bucket']!r} is not that of the input {source.url}")
    prefix = prefix and prefix + "/"
    return key.removeprefix(prefix) if key.startswith(prefix) else None


def _size(row: ListRow) -> int | None:
    value = row.values.get("size")
    if value is None:
        return None
    if isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdecimal()):
        size = int(value)
        if 0 <= size < 2**63:
            return size
    raise _error(row, f"the size {value!r} is no whole number of bytes")


def _modified(row: ListRow) -> datetime | None:
    value = row.values.get("last_modified")
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        raise _error(row, f"the time {value!r} is not ISO 8601, as in 2026-03-01T22:00:00Z") from None


def _is_true(value: Any) -> bool:
    return str(value).lower() == "true"


def _is_false(value: Any) -> bool:
    return str(value).lower() == "false"


def _error(row: ListRow, reason: str) -> ConfigError:
    return ConfigError(f"{row.where}: {reason}; nothing was scored, correct the list and run again")
