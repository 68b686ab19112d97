"""Rows of the last published run that stay valid in the next: same uri, same etag, no passing error.

A file of which every row stays is named again (by reference); what stays of other files, and files that are much
smaller than a shard, is copied together into new files, so that years of small nights do not become thousands of
files. No model work is repeated. Carried rows keep the `run_id` of the run that scored them.

Memory: 17 bytes for each row of the last run, in arrays. An object is recognised by a 64-bit hash of uri and etag: with
10^7 old rows and 10^7 objects the chance of one wrong match is 5e-6.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zsad.errors import ErrorCode
from zsad.report.ledger import canonical_json, count_anomalies, count_errors, read_json
from zsad.report.paths import run_key
from zsad.report.publish import DataFile, RunManifest
from zsad.report.schema import table_to_parquet
from zsad.storage import ObjectInfo, Store

MAX_FILE_BYTES = 1 << 30
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


class Carrier:
    """Remembers which rows of the last run are seen again while the next run lists its input.

    Args:
        output: the store of both runs.
        last: manifest of the last published run.
        rows_per_file: smallest size of a copied file but the last, and twice the smallest size of a named one.
    """

    def __init__(self, output: Store, last: RunManifest, *, rows_per_file: int = 1000) -> None:
        self._files = last.files
        self._rows_per_file = rows_per_file
        with ThreadPoolExecutor(8) as readers:
            hashes = list(readers.map(lambda file: _row_hashes(output, file), last.files))
        self._starts = np.cumsum([0, *(len(one) for one in hashes)])
        self._hash = np.concatenate([np.empty(0, np.uint64), *hashes])
        self._order = np.argsort(self._hash, kind="stable")
        self._hash = self._hash[self._order]
        self._is_seen = np.zeros(len(self._hash), np.bool_)

    def is_carried(self, listed: ObjectInfo) -> bool:
        """Whether the last run's row of this object stays valid; remembers that it is needed."""
        wanted = _hash(listed.uri, listed.etag)
        place = int(np.searchsorted(self._hash, wanted))
        if place == len(self._hash) or self._hash[place] != wanted:
            return False
        self._is_seen[self._order[place]] = True
        return True

    def save(self, output: Store, run_id: str) -> list[DataFile]:
        """Write the copies and `carried.json`; a later call replaces it."""
        named, copied = [], []
        for index, file in enumerate(self._files):
            is_seen = self._is_seen[self._starts[index] : self._starts[index + 1]]
            if is_seen.all() and 2 * file.rows >= self._rows_per_file:
                named.append(file)
            elif is_seen.any():
                copied.append((file, is_seen))
        written = [_write_copy(output, run_id, table) for table in self._merged(output, copied)]
        content = {"files": [asdict(file) for file in named + written]}
        output.put(run_key(run_id, "carried.json"), canonical_json(content))
        return named + written

    def _merged(self, output: Store, parts: list[tuple[DataFile, npt.NDArray[np.bool_]]]) -> Iterator[pa.Table]:
        """Yield tables of the seen rows, each of at least `rows_per_file` rows but the last."""
        waiting: list[pa.Table] = []
        for file, is_seen in parts:
            waiting.append(_read(output, file).filter(pa.array(is_seen)))
            if sum(table.num_rows for table in waiting) >= self._rows_per_file:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def load_carried(output: Store, run_id: str) -> list[DataFile]:
    """The carried files of a run whose manifest is finished; none when nothing was carried."""
    found = read_json(output, run_key(run_id, "carried.json"))
    return [] if found is None else [DataFile(**file) for file in found["files"]]


def _write_copy(output: Store, run_id: str, table: pa.Table) -> DataFile:
    key = run_key(run_id, f"data/carried-{uuid4().hex[:12]}.parquet")
    output.put(key, table_to_parquet(table))
    counts, _ = count_errors(table)
    return DataFile(file=key, rows=table.num_rows, anomalies=count_anomalies(table), error_counts=counts)


def _read(output: Store, file: DataFile, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(BytesIO(output.get(file.file, max_bytes=MAX_FILE_BYTES)), columns=columns)


def _row_hashes(output: Store, file: DataFile) -> npt.NDArray[np.uint64]:
    """Hash of each row of a file in its order; rows with a passing error get one that no object has."""
    table = _read(output, file, ["uri", "etag", "error_code"])
    columns = (table[name].to_pylist() for name in ("uri", "etag", "error_code"))
    rows = zip(*columns, strict=True)
    hashes = [_hash(uri, "\0again" if code in PASSING else etag) for uri, etag, code in rows]
    return np.array(hashes, np.uint64)


def _hash(uri: str, etag: str | None) -> np.uint64:
    text = f"{uri}\0{etag}".encode("utf-8", "surrogatepass")
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
