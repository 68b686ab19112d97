"""Published runs as one Delta table, for readers that know lakehouses and not our pointers.

Each run adds the rows that it scored itself (`run_id` is its own), as one commit; rows that it took over are in the
table already. The commit carries the run as an application transaction, which Delta Lake made for this: a run is in the
table once, whatever is repeated, and a run that was published but not added, because the job died there, is added by
the next one. Outputs may share a table and use the same run ids: the transaction's name also holds a hash of the run's
registration. Object storage needs the usual AWS variables, as everything here does.

Memory: a few record batches, and what the writer of `deltalake` buffers for one file.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from zsad.errors import StorageError
from zsad.report.ledger import canonical_json, load_run_state, published_runs
from zsad.report.read import read_report
from zsad.storage import Store, open_store

if TYPE_CHECKING:
    from deltalake import DeltaTable

BATCH_ROWS = 16_384


def append_runs(output: Store, table_url: str) -> list[str]:
    """Add every published run that the table lacks, oldest first; returns their ids.

    Raises:
        StorageError: if the table can't be read or written.
    """
    from deltalake.exceptions import DeltaError

    url, options = open_store(table_url).url, storage_options(table_url)
    try:
        known = _table(url, options)
        names = {run_id: _transaction(output, run_id) for run_id in published_runs(output)}
        missing = [run_id for run_id, name in names.items() if not _holds(known, name)]
        for run_id in missing:
            _append(output, run_id, names[run_id], url, options)
    except (DeltaError, OSError) as error:
        raise StorageError(f"can't append to the Delta table {url}: {error}; the report itself is published") from error
    return missing


def _table(url: str, options: dict[str, str]) -> "DeltaTable | None":
    from deltalake import DeltaTable

    return DeltaTable(url, storage_options=options) if DeltaTable.is_deltatable(url, options) else None


def _transaction(output: Store, run_id: str) -> str:
    """Name of a run's transaction; the same whatever address its output is reached by."""
    state = load_run_state(output, run_id)
    registered = sha256(canonical_json(asdict(state) if state else {})).hexdigest()[:16]
    return f"zsad/{run_id}/{registered}"


def _holds(table: "DeltaTable | None", name: str) -> bool:
    return table is not None and table.transaction_version(name) is not None


def _append(output: Store, run_id: str, name: str, url: str, options: dict[str, str]) -> None:
    from deltalake import CommitProperties, Transaction, write_deltalake

    report = read_report(output.url, run_id)
    mark = CommitProperties(app_transactions=[Transaction(name, 1)])
    rows = pa.RecordBatchReader.from_batches(report.schema.remove_metadata(), _own_rows(report, run_id))
    write_deltalake(url, rows, mode="append", schema_mode="merge", storage_options=options, commit_properties=mark)


def _own_rows(report: ds.Dataset, run_id: str) -> Iterator[pa.RecordBatch]:
    schema = report.schema.remove_metadata()
    for batch in report.to_batches(filter=ds.field("run_id") == run_id, batch_size=BATCH_ROWS):
        if batch.num_rows:
            yield batch.cast(schema)


def storage_options(url: str) -> dict[str, str]:
    """What `deltalake` needs besides the AWS variables to reach `url`: leave for plain HTTP where there is no TLS."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if not url.startswith("s3://") or not endpoint:
        return {}
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
