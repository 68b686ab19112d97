"""The examples of docs/report.md are executed as they stand, on a small report."""

import re
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from report_helpers import HASH, score_row

from zsad.errors import ErrorCode
from zsad.report.delta import append_runs
from zsad.report.ledger import RunState, commit_shard, write_run_state, write_shard_data
from zsad.report.publish import publish_run
from zsad.report.schema import rows_to_table
from zsad.storage import ObjectInfo, open_store

DOC = Path(__file__).resolve().parents[3] / "docs" / "report.md"
BLOCKS = re.findall(r"```(python|sql)\n(.*?)```", DOC.read_text(), re.DOTALL)
NUM_ROWS = 30


@pytest.fixture
def report(tmp_path):
    """A published report with the partition field `line`, and its Delta table."""
    output = open_store(str(tmp_path / "report"))
    state = RunState(run_id="r1", started_at="", input_url="s3://in", config={}, config_hash=HASH)
    write_run_state(output, state)
    rows = []
    for number in range(NUM_ROWS):
        key = f"l{number % 3}/{'bad' if number % 5 == 0 else 'good'}{number}.png"
        now = datetime(2026, 3, 1, tzinfo=UTC)
        info = ObjectInfo(key=key, uri=f"s3://in/{key}", size_bytes=1, etag="e", last_modified=now)
        row = score_row("r1", info, ErrorCode.EMPTY if number == 7 else None)
        rows.append(row | {"line": key.split("/", maxsplit=1)[0]})
    record = write_shard_data(output, "r1", 0, rows_to_table(rows, ("line",)), hash_=HASH, fence=1)
    commit_shard(output, "r1", record)
    publish_run(output, "r1", num_shards=1, config_hash=HASH, partition_fields=("line",))
    append_runs(output, str(tmp_path / "table"))
    return tmp_path


def filled(text, root):
    return text.replace("OUTPUT", f"{root}/report").replace("/RUN/", "/r1/").replace("TABLE", f"{root}/table")


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_examples_print_what_they_promise(report, code, capsys):
    exec(compile(filled(code, report), "docs/report.md", "exec"), {})  # noqa: S102 - our own document
    said = capsys.readouterr().out
    assert "r1" in said if "DeltaTable" in code else "bad" in said


def test_duckdb_alone_reads_a_local_report(report):
    (code,) = (code for language, code in BLOCKS if language == "sql")
    with duckdb.connect() as connection:
        found = connection.execute(filled(code, report)).fetchall()
    assert found == [("ok", None, NUM_ROWS - 1), ("error", "empty", 1)]


def test_there_are_examples():
    assert [language for language, _ in BLOCKS] == ["python", "python", "sql", "python"]
