"""Find and delete what no reader and no writer of an output needs any more.

| kept | deleted |
|---|---|
| of a published run: everything but | rows in `data/` that no published run names (of lost attempts, or put together) |
| the run that the next call would resume | |
| a run whose lease is, or may be, alive | |
| of any other run: `run.json`, `partial.json`, `lease/` | the rest: nobody reads it, and it is never resumed |
| `detectors/`: bundles of the runs kept whole | other bundles |

Whatever is younger than an hour stays, so that a run that begins at this moment is safe too. Only these folders are
looked at; a file that zsad did not write is not touched elsewhere.

Memory: the names of all files of published reports.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from zsad.errors import CommitConflict, ErrorCode, StorageError
from zsad.report.lease import LeaseTimes, refuse_if_held
from zsad.report.ledger import find_unfinished_run, published_runs, read_json
from zsad.report.paths import DETECTORS, DETECTORS_JSON, RUNS, run_key
from zsad.report.publish import DataFile, load_run_manifest
from zsad.storage import ObjectInfo, Store

log = logging.getLogger(__name__)

MIN_AGE_S = 3600.0
_NUM_WRITERS = 16
_KEPT_OF_DEAD_RUNS = ("run.json", "partial.json", "next.json", "lease/")
# A clock may be wrong by minutes; a lease without a heartbeat for an hour is dead.
_PATIENT = LeaseTimes(stale_after_s=3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """One file to delete, and why."""

    key: str
    size_bytes: int
    reason: str


def find_garbage(output: Store, *, min_age_s: float = MIN_AGE_S) -> Iterator[Garbage]:
    """Yield the files that nobody needs, in no promised order; nothing is deleted.

    Args:
        output: the report's store.
        min_age_s: younger files are kept.

    Raises:
        StorageError: the output can't be read.
        ConfigError: a published run is of another schema version, so what it needs is unknown.
    """
    newest = datetime.now(UTC) - timedelta(seconds=min_age_s)
    runs = list(output.list_folders(RUNS))
    published, resumable = set(published_runs(output)), find_unfinished_run(output)
    named = {file.file for run_id in published for file in _files(output, run_id)}
    bundles: set[str] = set()
    for run_id in runs:
        is_busy = run_id == resumable or _is_held(output, run_id)
        if is_busy or run_id in published:
            bundles |= _bundles(output, run_id)
        if is_busy or not output.exists(run_key(run_id, "run.json")):
            continue
        garbage = _of_published(output, run_id, named) if run_id in published else _of_dead(output, run_id, named)
        yield from (one for one, info in garbage if info.last_modified is not None and info.last_modified <= newest)
    for info in _listed(output, DETECTORS):
        if info.key.rpartition("/")[0] not in bundles and info.last_modified and info.last_modified <= newest:
            yield _garbage(info, "a detector that no run refers to")


def sweep(output: Store, *, is_dry: bool, min_age_s: float = MIN_AGE_S) -> str:
    """Delete the garbage, or only list it; returns what to tell the user.

    Raises:
        StorageError, ConfigError: as for `find_garbage`.
    """
    garbage = list(find_garbage(output, min_age_s=min_age_s))
    num_bytes = sum(one.size_bytes for one in garbage)
    if is_dry:
        lines = [f"{one.key}  {one.size_bytes:,} bytes  {one.reason}" for one in sorted(garbage, key=lambda g: g.key)]
        return "\n".join([*lines, f"{len(garbage):,} files, {num_bytes / 1e6:,.1f} MB would be deleted (--dry-run)"])
    with ThreadPoolExecutor(_NUM_WRITERS) as writers:
        list(writers.map(lambda one: output.delete(one.key), garbage))
    return f"{len(garbage):,} files, {num_bytes / 1e6:,.1f} MB deleted from {output.url}"


def _of_published(output: Store, run_id: str, named: set[str]) -> Iterator[tuple[Garbage, ObjectInfo]]:
    """Rows of lost attempts, and those of shards that were put together to larger files."""
    for info in _listed(output, run_key(run_id, "data/")):
        if info.key.endswith(".parquet") and info.key not in named:
            yield _garbage(info, "rows that no published run names"), info


def _of_dead(output: Store, run_id: str, named: set[str]) -> Iterator[tuple[Garbage, ObjectInfo]]:
    prefix = run_key(run_id, "")
    for info in _listed(output, prefix):
        if not info.key.removeprefix(prefix).startswith(_KEPT_OF_DEAD_RUNS) and info.key not in named:
            yield _garbage(info, "of a run that was given up"), info


def _garbage(info: ObjectInfo, reason: str) -> Garbage:
    return Garbage(key=info.key, size_bytes=info.size_bytes or 0, reason=reason)


def _is_held(output: Store, run_id: str) -> bool:
    try:
        refuse_if_held(output, run_id, _PATIENT)
    except CommitConflict as error:
        log.info("left alone: %s", error)
        return True
    return False


def _files(output: Store, run_id: str) -> list[DataFile]:
    manifest = load_run_manifest(output, run_id)
    if manifest is None:
        raise StorageError(
            f"run {run_id} is published in {output.url}, but its _MANIFEST.json is gone: nothing deleted"
        )
    return manifest.files


def _bundles(output: Store, run_id: str) -> set[str]:
    found = read_json(output, run_key(run_id, DETECTORS_JSON))
    return {one["bundle"] for one in found["entries"]} if found else set()


def _listed(output: Store, prefix: str) -> Iterator[ObjectInfo]:
    try:
        yield from output.list(prefix)
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise
