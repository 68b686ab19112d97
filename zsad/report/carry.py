"""Rows of the last published run that stay valid in the next: same uri, same etag, no passing error.

A file of which every row stays is named again (by reference); what stays of other files, and files that are much
smaller than a shard, is copied together into new files, so that years of small nights do not become thousands of
files. No model work is repeated. Carried rows keep the `run_id` of the run that scored them.

The listing comes in key order and each file covers a span of uris, so the two are merged: a file is opened when the
listing reaches its span and closed behind it.

Memory: 26 bytes for each row of the files open at one time, which are few when files cover disjoint spans; for the
whole run one bit a row and the two ends of each file's span. An object is recognised by 64-bit hashes of its uri and
of uri and etag: with 10^7 old rows and 10^7 objects the chance of one wrong match is below 5e-6.
"""

import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zsad.errors import ErrorCode, StorageError
from zsad.report.ledger import canonical_json, count_anomalies, count_errors, read_json
from zsad.report.paths import run_key
from zsad.report.publish import DataFile, RunManifest
from zsad.report.schema import table_to_parquet
from zsad.storage import ObjectInfo, Store

_NUM_READERS = 8
_ROWS_AT_ONCE = 16_384
# These may have passed by the next run, so their objects are tried again.
PASSING = frozenset(
    {
        ErrorCode.FORBIDDEN,
        ErrorCode.MISSING,
        ErrorCode.CHANGED,
        ErrorCode.READ_TIMEOUT,
        ErrorCode.READ_ERROR,
        ErrorCode.DECODE_TIMEOUT,
        ErrorCode.MODEL,
        ErrorCode.NO_DETECTOR,
    }
)


class Found(Enum):
    """What the last run says of a listed object: its row stays, has a passing error, or is of older content."""

    VALID = "valid"
    AGAIN = "again"
    CHANGED = "changed"


class Carrier:
    """Remembers which rows of the last run are seen again while the next run lists its input in key order.

    Args:
        output: the store of both runs.
        last: manifest of the last published run.
        rows_per_file: smallest size of a copied file but the last, and twice the smallest size of a named one.
    """

    def __init__(self, output: Store, last: RunManifest, *, rows_per_file: int = 1000) -> None:
        self._output = output
        self._rows_per_file = rows_per_file
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            spans = list(readers.map(lambda file: _span(output, file), last.files))
        ordered = sorted(zip(spans, last.files, strict=True), key=lambda pair: pair[0])
        self._spans = [span for span, _ in ordered]
        self._files = [file for _, file in ordered]
        self._index = {file.file: index for index, file in enumerate(self._files)}
        self._marks: dict[int, bytes] = {}  # packed bits of the rows seen, of files not open
        self._open: dict[int, _OpenFile] = {}
        self._next = 0
        self._touched: set[int] = set()

    def find(self, listed: ObjectInfo) -> Found | None:
        """What the last run says of this object, None if nothing; remembers that a valid row is needed.

        Objects must come in the order of their uris.
        """
        self._advance(listed.uri)
        for index, file in self._open.items():
            found = file.find(listed)
            if found is Found.VALID:
                self._touched.add(index)
            if found is not None:
                return found
        return None

    def _advance(self, uri: str) -> None:
        for index in [index for index in self._open if self._spans[index][1] < uri]:
            self._marks[index] = self._open.pop(index).marks()
        while self._next < len(self._files) and self._spans[self._next][0] <= uri:
            if uri <= self._spans[self._next][1]:
                marks = self._marks.get(self._next)
                self._open[self._next] = _OpenFile(self._output, self._files[self._next], marks)
            self._next += 1

    def progress(self) -> dict[str, str]:
        """What was seen since the last call, by file; `restore` takes it back after an interruption."""
        found = {self._files[index].file: _as_text(self._marks_of(index)) for index in sorted(self._touched)}
        self._touched.clear()
        return found

    def restore(self, progress: Mapping[str, str]) -> None:
        """Remember what an interrupted listing had seen; earlier parts first, before any `find`."""
        for name, text in progress.items():
            self._marks[self._index[name]] = zlib.decompress(b64decode(text))

    def _marks_of(self, index: int) -> bytes:
        return self._open[index].marks() if index in self._open else self._marks.get(index, b"")

    def save(self, output: Store, run_id: str) -> list[DataFile]:
        """Write the copies and `carried.json`; a later call replaces it."""
        named, copied = [], []
        for index, file in enumerate(self._files):
            is_seen = _unpacked(self._marks_of(index), file.rows)
            if is_seen.all() and 2 * file.rows >= self._rows_per_file:
                named.append(file)
            elif is_seen.any():
                copied.append((file, is_seen))
        written = [_write_copy(output, run_id, table) for table in self._merged(output, copied)]
        content = {"files": [asdict(file) for file in named + written]}
        output.put(run_key(run_id, "carried.json"), canonical_json(content))
        return named + written

    def _merged(self, output: Store, parts: list[tuple[DataFile, npt.NDArray[np.bool_]]]) -> Iterator[pa.Table]:
        """Yield tables of the seen rows sorted by uri, each of at least `rows_per_file` rows but the last."""
        waiting: list[pa.Table] = []
        for file, is_seen in parts:
            for table in _seen_rows(output, file, is_seen):
                waiting.append(table)
                if sum(table.num_rows for table in waiting) >= self._rows_per_file:
                    yield pa.concat_tables(waiting).sort_by("uri")
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting).sort_by("uri")


class _OpenFile:
    """The rows of one file as hashes, sorted by that of the uri."""

    def __init__(self, output: Store, file: DataFile, marks: bytes | None) -> None:
        with _opened(output, file) as parquet:
            table = parquet.read(columns=["uri", "etag", "error_code"])
        uris, etags, codes = (table[name].to_pylist() for name in ("uri", "etag", "error_code"))
        hashes = np.array([_hash(uri) for uri in uris], np.uint64)
        self._order = np.argsort(hashes, kind="stable")
        self._uri = hashes[self._order]
        content = [_hash(uri, etag) for uri, etag in zip(uris, etags, strict=True)]
        self._content = np.array(content, np.uint64)[self._order]
        self._is_passing = np.array([code in PASSING for code in codes], np.bool_)[self._order]
        self._is_seen = _unpacked(marks or b"", file.rows)

    def find(self, listed: ObjectInfo) -> Found | None:
        wanted = _hash(listed.uri)
        place = int(np.searchsorted(self._uri, wanted))
        if place == len(self._uri) or self._uri[place] != wanted:
            return None
        if not listed.etag or self._content[place] != _hash(listed.uri, listed.etag):
            return Found.CHANGED
        if self._is_passing[place]:
            return Found.AGAIN
        self._is_seen[self._order[place]] = True
        return Found.VALID

    def marks(self) -> bytes:
        return np.packbits(self._is_seen).tobytes()


def load_carried(output: Store, run_id: str) -> list[DataFile]:
    """The carried files of a run whose manifest is finished; none when nothing was carried."""
    found = read_json(output, run_key(run_id, "carried.json"))
    return [] if found is None else [DataFile(**file) for file in found["files"]]


def _write_copy(output: Store, run_id: str, table: pa.Table) -> DataFile:
    key = run_key(run_id, f"data/carried-{uuid4().hex[:12]}.parquet")
    output.put(key, table_to_parquet(table))
    counts, _ = count_errors(table)
    return DataFile(file=key, rows=table.num_rows, anomalies=count_anomalies(table), error_counts=counts)


def _span(output: Store, file: DataFile) -> tuple[str, str]:
    """The first and the last uri of a file, from its footer."""
    with _opened(output, file) as parquet:
        column = parquet.schema_arrow.get_field_index("uri")
        groups = [parquet.metadata.row_group(i).column(column) for i in range(parquet.metadata.num_row_groups)]
        if not all(group.is_stats_set and group.statistics.has_min_max for group in groups):
            uris = parquet.read(columns=["uri"])["uri"].to_pylist()
            return min(uris), max(uris)
        return min(g.statistics.min for g in groups), max(g.statistics.max for g in groups)


def _seen_rows(output: Store, file: DataFile, is_seen: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    start = 0
    with _opened(output, file) as parquet:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE):
            yield pa.Table.from_batches([batch]).filter(pa.array(is_seen[start : start + batch.num_rows]))
            start += batch.num_rows


@contextmanager
def _opened(output: Store, file: DataFile) -> Iterator[pq.ParquetFile]:
    """One data file, of which only what is asked for is read.

    Raises:
        StorageError: it can't be read, or is no Parquet file.
    """
    filesystem, root = output.arrow_filesystem()
    try:
        with pq.ParquetFile(f"{root}/{file.file}", filesystem=filesystem) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"can't read {output.uri(file.file)} of the last run: {error}") from error


def _unpacked(marks: bytes, rows: int) -> npt.NDArray[np.bool_]:
    if not marks:
        return np.zeros(rows, np.bool_)
    return np.unpackbits(np.frombuffer(marks, np.uint8), count=rows).astype(np.bool_)


def _as_text(marks: bytes) -> str:
    return b64encode(zlib.compress(marks)).decode()


def _hash(*parts: str | None) -> np.uint64:
    text = "\0".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
