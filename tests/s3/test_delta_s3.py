"""The Delta table of runs on a real S3 server."""

import pytest
from deltalake import DeltaTable
from unit.report.report_helpers import whole_run

from zsad.report.delta import append_runs, storage_options
from zsad.storage import open_store

pytestmark = pytest.mark.s3


def test_runs_are_appended_once_to_a_table_on_s3(s3):
    source, output = open_store(s3.new_bucket()), open_store(s3.new_bucket())
    for name in "abc":
        source.put(f"{name}.png", name.encode())
    table_url = s3.new_bucket() + "/lake/inspections"
    whole_run(source, output, "r1")
    assert append_runs(output, table_url) == ["r1"]
    assert append_runs(output, table_url) == []
    whole_run(source, output, "r2")
    assert append_runs(output, table_url) == ["r2"]
    rows = DeltaTable(table_url, storage_options=storage_options(table_url)).to_pyarrow_table()
    assert sorted(rows["run_id"].to_pylist()) == ["r1"] * 3 + ["r2"] * 3
    assert set(rows["uri"].to_pylist()) == {source.uri(f"{name}.png") for name in "abc"}
