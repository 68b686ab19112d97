"""What a run is and how far it came: its state, its config hash, and one record for each committed shard.

A shard is committed by a record written with put-if-absent that names the data file; the file exists before its record
does. Whoever comes second, whether a retried task or a driver that was thought dead, finds the record and changes
nothing: its file stays behind unnamed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from zsad import failpoints
from zsad.errors import ErrorCode, StorageError
from zsad.report.paths import PUBLISHED, RUNS, data_key, pointer_key, record_key, run_key
from zsad.report.schema import table_to_parquet
from zsad.report.stats import Stats
from zsad.storage import Store

MAX_JSON_BYTES = 64 * 2**20
EXAMPLES_PER_CODE = 3
_NUM_READERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run was started with; `config` holds only fields that change results, `started_at` is UTC ISO 8601."""

    run_id: str
    started_at: str
    input_url: str
    config: dict[str, Any]
    config_hash: str
    code_version: str = ""
    previous_run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One committed shard; `file` is the data file's key in the output store, `sha256` that of its bytes.

    `error_counts` maps error codes to numbers of rows, `error_examples` to at most three URIs each; `fence` is the
    lease number of the driver it was scored under, `stats` what it cost (`zsad.report.stats`).
    """

    shard: int
    file: str
    rows: int
    anomalies: int
    sha256: str
    config_hash: str
    fence: int
    error_counts: dict[str, int] = field(default_factory=dict)
    error_examples: dict[str, list[str]] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of rows without a score."""
        return sum(self.error_counts.values())

    @property
    def ok(self) -> int:
        """Number of rows with a score."""
        return self.rows - self.errors


def canonical_json(values: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value is no JSON value.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON of `config`."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two configurations differ, sorted, nested ones with dots (`decode.max_pixels`)."""
    names: set[str] = set()
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names.update(f"{name}.{inner}" for inner in diff_fields(before, after))
        elif before != after or (name in old) != (name in new):
            names.add(name)
    return sorted(names)


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """The JSON object at `key`, or None when there is no such key.

    Raises:
        StorageError: it can't be read or is no JSON object.
    """
    try:
        data = store.get(key, max_bytes=MAX_JSON_BYTES)
    except StorageError as error:
        if error.code == ErrorCode.MISSING:
            return None
        raise
    try:
        values = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{store.uri(key)} is not valid JSON ({error}); it was not written by zsad") from error
    if not isinstance(values, dict):
        raise StorageError(f"{store.uri(key)} is no JSON object; it was not written by zsad")
    return values


def write_run_state(output: Store, state: RunState) -> RunState:
    """Register a run; returns the state that is stored, which is the older one if the run existed."""
    if output.put_if_absent(run_key(state.run_id, "run.json"), canonical_json(asdict(state))):
        return state
    return load_run_state(output, state.run_id) or state


def load_run_state(output: Store, run_id: str) -> RunState | None:
    """State of a run, or None when it never started."""
    found = read_json(output, run_key(run_id, "run.json"))
    return None if found is None else RunState(**found)


def find_unfinished_run(output: Store) -> str | None:
    """Latest run to resume: started, neither published nor given up (`partial.json`), and later than any published."""
    published = latest_published(output) or ""
    newer = [name for name in output.list_folders(RUNS) if name > published]
    for run_id in sorted(newer, reverse=True):
        is_started = output.exists(run_key(run_id, "run.json"))
        if is_started and not output.exists(run_key(run_id, "partial.json")):
            return run_id
    return None


def latest_published(output: Store) -> str | None:
    """Greatest run id that has a pointer, or None; a missing output has none."""
    return max(published_runs(output), default=None)


def published_runs(output: Store) -> list[str]:
    """Ids of all runs that readers can see, oldest first; a missing output has none."""
    names = (info.key.removeprefix(PUBLISHED) for info in _list_if_there(output, PUBLISHED))
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and "/" not in name)


def is_published(output: Store, run_id: str) -> bool:
    """Whether readers can see the run."""
    return output.exists(pointer_key(run_id))


def write_shard_data(output: Store, run_id: str, shard: int, table: pa.Table, *, hash_: str, fence: int) -> ShardRecord:
    """Write the rows of one shard under a name of this attempt's own; nothing is committed yet.

    Args:
        output: the report's store.
        run_id: of the run.
        shard: number of the manifest shard.
        table: one row for each object of the manifest shard, from `rows_to_table`.
        hash_: config hash of the run.
        fence: the lease's number.

    Returns:
        The record that `commit_shard` may write.
    """
    data = table_to_parquet(table)
    key = data_key(run_id, shard, f"{fence}-{uuid4().hex[:8]}")
    with failpoints.around("data"):
        output.put(key, data)
    counts, examples = count_errors(table)
    return ShardRecord(
        shard=shard,
        file=key,
        rows=table.num_rows,
        anomalies=count_anomalies(table),
        sha256=hashlib.sha256(data).hexdigest(),
        config_hash=hash_,
        fence=fence,
        error_counts=counts,
        error_examples=examples,
    )


def with_stats(record: ShardRecord, stats: Stats) -> ShardRecord:
    """The record with what the shard cost."""
    return replace(record, stats=asdict(stats))


def commit_shard(output: Store, run_id: str, record: ShardRecord) -> ShardRecord:
    """Commit a written shard; returns the record that counts, which is another's when this one came second.

    Raises:
        StorageError: the store fails, or the record that was there disappeared.
    """
    key = record_key(run_id, record.shard)
    with failpoints.around("record"):
        is_first = output.put_if_absent(key, canonical_json(asdict(record)))
    if is_first:
        return record
    found = read_json(output, key)
    if found is None:
        raise StorageError(f"{output.uri(key)} was there and is gone; is another program deleting files?")
    return ShardRecord(**found)


def committed_shards(output: Store, run_id: str) -> set[int]:
    """Numbers of the committed shards, from one listing."""
    prefix = run_key(run_id, "shards/")
    names = (info.key.removeprefix(prefix).removesuffix(".json") for info in _list_if_there(output, prefix))
    return {int(name) for name in names if name.isdecimal()}


def load_shard_records(output: Store, run_id: str) -> list[ShardRecord]:
    """All records of a run in shard order, read by 16 threads."""
    shards = sorted(committed_shards(output, run_id))
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        found = list(readers.map(lambda shard: read_json(output, record_key(run_id, shard)), shards))
    return [ShardRecord(**values) for values in found if values is not None]


def _list_if_there(store: Store, prefix: str) -> Iterator[Any]:
    try:
        yield from store.list(prefix)
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise


def count_anomalies(table: pa.Table) -> int:
    """Number of rows whose `is_anomaly` is true."""
    return int(table["is_anomaly"].to_pylist().count(True))


def count_errors(table: pa.Table) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Number and first URIs of the error rows, by code."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for code, uri in zip(table["error_code"].to_pylist(), table["uri"].to_pylist(), strict=True):
        if code is not None:
            counts[code] += 1
            if counts[code] <= EXAMPLES_PER_CODE:
                examples.setdefault(code, []).append(uri)
    return dict(counts), examples
