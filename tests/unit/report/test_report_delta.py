"""Published runs as one Delta table: every row once, whatever is repeated."""

import pytest
from deltalake import DeltaTable
from report_helpers import whole_run

from zsad.errors import StorageError
from zsad.report import ledger
from zsad.report.carry import Carrier
from zsad.report.delta import append_runs
from zsad.report.ledger import RunState
from zsad.storage import open_store


@pytest.fixture
def table_url(tmp_path):
    return str(tmp_path / "table")


def rows_of(table_url):
    rows = DeltaTable(table_url).to_pyarrow_table().to_pylist()
    return sorted((row["run_id"], row["uri"], row["score"], row["status"]) for row in rows)


def test_runs_are_rows_of_one_table(source, output, table_url):
    whole_run(source, output, "r1")
    assert append_runs(output, table_url) == ["r1"]
    listed = [info.uri for info in source.list()]
    assert [(run_id, uri) for run_id, uri, *_ in rows_of(table_url)] == [("r1", uri) for uri in listed]
    assert DeltaTable(table_url).version() == 0


def test_a_run_is_added_once_and_one_that_was_missed_later(source, output, table_url):
    whole_run(source, output, "r1")
    append_runs(output, table_url)
    assert append_runs(output, table_url) == []
    whole_run(source, output, "r2")
    whole_run(source, output, "r3")
    assert append_runs(output, table_url) == ["r2", "r3"]
    assert len(rows_of(table_url)) == 15


def test_outputs_that_share_a_table_may_use_the_same_run_id(source, output, tmp_path, table_url):
    other = open_store(str(tmp_path / "other"))
    for number, store in enumerate((output, other)):
        ledger.write_run_state(
            store, RunState(run_id="r1", started_at=f"{number}", input_url="", config={}, config_hash="")
        )
        whole_run(source, store, "r1")
        assert append_runs(store, table_url) == ["r1"]
        assert append_runs(store, table_url) == []
    assert len(rows_of(table_url)) == 10


def test_rows_taken_over_are_not_added_again(source, output, table_url):
    _, first = whole_run(source, output, "r1")
    append_runs(output, table_url)
    source.put("b.txt", b"changed content")
    whole_run(source, output, "r2", carrier=Carrier(output, first, rows_per_file=1))
    append_runs(output, table_url)
    assert [run_id for run_id, *_ in rows_of(table_url)] == ["r1"] * 5 + ["r2"]
    assert rows_of(table_url)[-1][1] == source.uri("b.txt")


def test_a_table_that_can_not_be_written_is_a_storage_error(source, output, tmp_path):
    whole_run(source, output, "r1")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="the report itself is published"):
        append_runs(output, str(tmp_path / "file" / "table"))
