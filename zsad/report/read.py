"""From an output URL to the rows of a published run, never half of one."""

from typing import TYPE_CHECKING

from zsad.errors import ConfigError, StorageError
from zsad.report.ledger import is_published, latest_published
from zsad.report.paths import check_run_id
from zsad.report.publish import RunManifest, load_run_manifest
from zsad.report.schema import report_schema
from zsad.storage import Store, open_store

if TYPE_CHECKING:
    import pyarrow.dataset as ds


def read_report(output_url: str, run_id: str | None = None) -> "ds.Dataset":
    """Open one published run as an Arrow data set, one row per listed object.

    Rows are in no promised order. Files of older runs whose rows stay valid are part of it.

    Args:
        output_url: what the job got as `--output`.
        run_id: which run; None for the latest published one.

    Returns:
        A `pyarrow.dataset.Dataset` with the columns of `zsad.report.schema.report_schema`.

    Raises:
        ConfigError: nothing is published there, or not this run, or it has another schema version.
        StorageError: the output can't be read.
    """
    import pyarrow.dataset as ds

    output = open_store(output_url)
    manifest = open_manifest(output, run_id)
    schema = report_schema(manifest.partition_fields)
    if not manifest.files:
        return ds.dataset(schema.empty_table())
    filesystem, root = output.arrow_filesystem()
    paths = [f"{root}/{file.file}" for file in manifest.files]
    return ds.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)


def open_manifest(output: Store, run_id: str | None = None) -> RunManifest:
    """Manifest of a published run, checked for its schema version.

    Raises:
        ConfigError: as for `read_report`.
        StorageError: the output can't be read, or a pointer leads nowhere.
    """
    wanted = latest_published(output) if run_id is None else check_run_id(run_id)
    if wanted is None:
        raise ConfigError(f"nothing is published in {output.url}; run jobs/score_bucket.py with this --output first")
    if run_id is not None and not is_published(output, run_id):
        latest = latest_published(output)
        raise ConfigError(f"run {run_id} is not published in {output.url}; the latest published run is {latest}")
    manifest = load_run_manifest(output, wanted)
    if manifest is None:
        raise StorageError(f"run {wanted} is published in {output.url}, but its _MANIFEST.json is gone")
    return manifest
