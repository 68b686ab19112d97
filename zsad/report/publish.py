"""The last steps of a run: all shards recorded -> `_MANIFEST.json` -> the pointer that readers follow.

Both are put-if-absent and made only of what is stored, so that a driver that died between them is finished by the next
one with the same bytes, and of two drivers one publishes and the other finds it done.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from zsad import failpoints
from zsad.errors import CommitConflict, StorageError, ZsadError
from zsad.report.ledger import ShardRecord, canonical_json, load_shard_records, read_json
from zsad.report.paths import pointer_key, run_key
from zsad.report.schema import SCHEMA_VERSION, check_schema_version
from zsad.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One Parquet file of a published run: its key in the output store (of this or an older run) and its rows."""

    file: str
    rows: int
    anomalies: int
    error_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """Everything a published run consists of; `totals` has `rows`, `ok`, `errors` and `anomalies`."""

    run_id: str
    config_hash: str
    schema_version: int
    partition_fields: list[str]
    files: list[DataFile]
    totals: dict[str, int]
    error_counts: dict[str, int]


def build_manifest(
    run_id: str,
    records: Sequence[ShardRecord],
    *,
    num_shards: int,
    config_hash: str,
    partition_fields: Sequence[str] = (),
    carried: Iterable[DataFile] = (),
    parts: Sequence[DataFile] | None = None,
) -> RunManifest:
    """Check the records of a run and put its manifest together.

    Args:
        run_id: of the run.
        records: of all its shards, in any order.
        num_shards: how many the manifest has.
        config_hash: of the run.
        partition_fields: columns behind those of the report.
        carried: files of rows that stay valid from older runs.
        parts: larger files with the rows of all shards; None: the shards' own files.

    Raises:
        StorageError: a shard has no record; the message names the first.
        CommitConflict: a record was made with another configuration.
        ZsadError: the parts do not hold what the shards do.
    """
    by_shard = {record.shard: record for record in records}
    missing = [shard for shard in range(num_shards) if shard not in by_shard]
    if missing:
        raise StorageError(f"run {run_id} has no record of {len(missing)} shards, first {missing[0]}; run again")
    for record in records:
        if record.config_hash != config_hash:
            raise CommitConflict(f"shard {record.shard} of run {run_id} was scored with another configuration")
    scored = [
        DataFile(file=one.file, rows=one.rows, anomalies=one.anomalies, error_counts=one.error_counts)
        for one in (by_shard[shard] for shard in range(num_shards))
    ]
    if parts is not None and _counted(parts) != _counted(scored):
        raise ZsadError(f"the files of run {run_id} hold {_counted(parts)}, its shards {_counted(scored)}")
    files = [file for file in [*(scored if parts is None else parts), *carried] if file.rows]
    rows, _, errors = _counted(files)
    return RunManifest(
        run_id=run_id,
        config_hash=config_hash,
        schema_version=SCHEMA_VERSION,
        partition_fields=list(partition_fields),
        files=files,
        totals={
            "rows": rows,
            "ok": rows - errors.total(),
            "errors": errors.total(),
            "anomalies": sum(file.anomalies for file in files),
        },
        error_counts=dict(errors),
    )


def _counted(files: Iterable[DataFile]) -> tuple[int, int, Counter[str]]:
    """Rows, anomalies and errors by code of some files."""
    rows, anomalies, errors = 0, 0, Counter[str]()
    for file in files:
        rows, anomalies = rows + file.rows, anomalies + file.anomalies
        errors.update(file.error_counts)
    return rows, anomalies, errors


def check_counts(records: Sequence[ShardRecord], carried: Sequence[DataFile], *, scored: int, unchanged: int) -> None:
    """Make sure that a run that is about to be published has a row for every listed object.

    Args:
        records: of all its shards.
        carried: files of rows from older runs.
        scored: objects in the manifest's shards.
        unchanged: objects that were listed but keep their older row.

    Raises:
        ZsadError: if the numbers differ.
    """
    rows, kept = sum(record.rows for record in records), sum(file.rows for file in carried)
    if (rows, kept) != (scored, unchanged):
        raise ZsadError(
            f"{scored:,} objects were to be scored and {unchanged:,} were unchanged, but there are {rows:,} and "
            f"{kept:,} rows; nothing was published: run again with --restart"
        )


def publish_run(
    output: Store,
    run_id: str,
    *,
    num_shards: int,
    config_hash: str,
    partition_fields: Sequence[str] = (),
    carried: Iterable[DataFile] = (),
    parts: Sequence[DataFile] | None = None,
) -> RunManifest:
    """Make a fully committed run visible to readers; calling again changes nothing.

    Raises:
        StorageError: a shard is not committed, or the store fails.
        CommitConflict: a shard has another configuration, or another manifest of this run is there.
    """
    records = load_shard_records(output, run_id)
    manifest = build_manifest(
        run_id,
        records,
        num_shards=num_shards,
        config_hash=config_hash,
        partition_fields=partition_fields,
        carried=carried,
        parts=parts,
    )
    write_run_manifest(output, manifest)
    write_pointer(output, run_id)
    return manifest


def write_run_manifest(output: Store, manifest: RunManifest) -> None:
    """Write `_MANIFEST.json` unless it is there with the same content.

    Raises:
        CommitConflict: it is there with other content.
    """
    key = run_key(manifest.run_id, "_MANIFEST.json")
    text = canonical_json(asdict(manifest))
    with failpoints.around("manifest"):
        is_first = output.put_if_absent(key, text)
    if not is_first and read_json(output, key) != json.loads(text):
        raise CommitConflict(f"{output.uri(key)} is there with other content; start a new run with --restart")


def write_pointer(output: Store, run_id: str) -> bool:
    """Write `published/<run_id>.json`; False when it was there already."""
    pointer = {"run_id": run_id, "manifest": run_key(run_id, "_MANIFEST.json")}
    with failpoints.around("pointer"):
        return output.put_if_absent(pointer_key(run_id), canonical_json(pointer))


def load_run_manifest(output: Store, run_id: str) -> RunManifest | None:
    """Manifest of a run whose commit reached that step, or None.

    Raises:
        ConfigError: it has another schema version.
    """
    found = read_json(output, run_key(run_id, "_MANIFEST.json"))
    if found is None:
        return None
    check_schema_version(found.get("schema_version"), f"run {run_id} in {output.url}")
    files = [DataFile(**file) for file in found["files"]]
    return RunManifest(**found | {"files": files})


def write_partial(output: Store, run_id: str, records: Iterable[ShardRecord], reason: str) -> dict[str, Any]:
    """Write `partial.json` for a run that is given up: counts and example URIs by error code.

    Args:
        output: the report's store.
        run_id: of the run.
        records: of the shards committed so far.
        reason: what the job will say.

    Returns:
        What was written.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    rows = 0
    for record in records:
        rows += record.rows
        counts.update(record.error_counts)
        for code, uris in record.error_examples.items():
            examples[code] = (examples.get(code, []) + uris)[:10]
    content = {
        "run_id": run_id,
        "reason": reason,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "errors": counts.total(),
        "error_counts": dict(counts),
        "error_examples": examples,
    }
    output.put(run_key(run_id, "partial.json"), canonical_json(content))
    return content


def error_share(error_counts: Mapping[str, int], rows: int) -> float:
    """Share of rows without a score, in [0, 1]; 0 for no rows."""
    return sum(error_counts.values()) / rows if rows else 0.0
