"""Few files of the size that was asked for, out of one file for each committed shard.

Shards are small, so that a crash costs little; readers want large files. When all shards are committed their rows are
cut into parts of `rows_per_file`, in shard order, and each part becomes one Parquet file sorted by uri. A part is
committed like a shard, by a put-if-absent record that names its file, so a driver that died here is finished by the
next. The size is fixed by the first driver that gets this far (`parts.json`).

The shards' own files stay behind unnamed; `--sweep` deletes them.

Memory: the rows of one part; 0.4 kB each where a quarter are anomalies, more with explanations (measured: WinCLIP over
nano, local paths).
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zsad.errors import StorageError
from zsad.report.ledger import ShardRecord, canonical_json, count_anomalies, count_errors, read_json
from zsad.report.paths import run_key
from zsad.report.publish import DataFile
from zsad.report.schema import report_schema, table_to_parquet
from zsad.storage import Store

MAX_SHARD_BYTES = 1 << 30
_NUM_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` (not included) of a shard's file, which has `rows` rows and this sha256."""

    file: str
    sha256: str
    rows: int
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the file."""
        return self.start == 0 and self.stop == self.rows


Part = tuple[Piece, ...]


def cut(records: Sequence[ShardRecord], rows_per_file: int) -> Iterator[Part]:
    """Yield the pieces of each part: every row once, `rows_per_file` rows in all parts but the last."""
    pieces: list[Piece] = []
    room = rows_per_file
    for record in records:
        start = 0
        while start < record.rows:
            stop = min(record.rows, start + room)
            pieces.append(Piece(file=record.file, sha256=record.sha256, rows=record.rows, start=start, stop=stop))
            room -= stop - start
            start = stop
            if not room:
                yield tuple(pieces)
                pieces, room = [], rows_per_file
    if pieces:
        yield tuple(pieces)


def settle_rows_per_file(output: Store, run_id: str, wanted: int) -> int:
    """Fix the size of a run's files; returns the size that was fixed first."""
    key = run_key(run_id, "parts.json")
    if output.put_if_absent(key, canonical_json({"rows_per_file": wanted})):
        return wanted
    found = read_json(output, key)
    return wanted if found is None else int(found["rows_per_file"])


def write_part(output: Store, run_id: str, number: int, part: Part, partition_fields: Sequence[str]) -> DataFile:
    """Write and commit one part, unless it is committed already; returns its file.

    Raises:
        StorageError: a shard's file is not the one that was committed, or the store fails.
    """
    key = run_key(run_id, f"parts/{number:06d}.json")
    if (found := read_json(output, key)) is not None:
        return DataFile(**found)
    table = _sorted_rows(output, part, partition_fields)
    name = run_key(run_id, f"data/part-{number:06d}-{uuid4().hex[:8]}.parquet")
    output.put(name, table_to_parquet(table))
    counts, _ = count_errors(table)
    made = DataFile(file=name, rows=table.num_rows, anomalies=count_anomalies(table), error_counts=counts)
    if output.put_if_absent(key, canonical_json(asdict(made))):
        return made
    return DataFile(**(read_json(output, key) or asdict(made)))


def _sorted_rows(output: Store, part: Part, partition_fields: Sequence[str]) -> pa.Table:
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        tables = list(readers.map(lambda piece: _read(output, piece, partition_fields), part))
    table = pa.concat_tables(tables)
    return table.take(pc.sort_indices(table, sort_keys=[("uri", "ascending")])).combine_chunks()


def _read(output: Store, piece: Piece, partition_fields: Sequence[str]) -> pa.Table:
    data = output.get(piece.file, max_bytes=MAX_SHARD_BYTES)
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise StorageError(f"{output.uri(piece.file)} is not the file that was committed; give --restart")
    table = pq.read_table(BytesIO(data), schema=report_schema(partition_fields))
    if table.num_rows != piece.rows:
        raise StorageError(f"{output.uri(piece.file)} has {table.num_rows} rows, its record says {piece.rows}")
    return table.slice(piece.start, piece.stop - piece.start)
