"""Rows of the report: every listed object fits, scored or not."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO

import pyarrow.parquet as pq
import pytest

from zsad.errors import ConfigError, ErrorCode
from zsad.report.schema import (
    RunStamp,
    check_schema_version,
    error_row,
    ok_row,
    report_schema,
    rows_to_table,
    table_to_parquet,
)
from zsad.storage import ObjectInfo

STAMP = RunStamp(run_id="run-1", config_hash="abc")
COLUMNS = [
    "run_id",
    "uri",
    "etag",
    "size_bytes",
    "last_modified",
    "width",
    "height",
    "status",
    "error_code",
    "error_message",
    "score",
    "raw_score",
    "threshold",
    "is_anomaly",
    "defect_type",
    "defect_scores",
    "regions",
    "explanation",
    "map_uri",
    "detector",
    "config_hash",
]


@dataclass
class Region:
    """A region as a detector gives it."""

    x: int = 1
    y: int = 2
    width: int = 3
    height: int = 4
    area_px: int = 10
    score: float = 0.75
    defect_type: str | None = "scratch"
    rle: str = "abc"


@dataclass
class Finding:
    """A finding of a normal image."""

    score: float = 0.1
    raw_score: float = -3.5
    threshold: float = 0.5
    is_anomaly: bool = False
    defect_type: str | None = None
    defect_scores: dict = field(default_factory=lambda: {"scratch": 0.25})
    regions: list = field(default_factory=lambda: [Region()])
    explanation: list = field(default_factory=lambda: [("a photo", "normal", 0.3)])


def listed(key):
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    return ObjectInfo(key=key, uri=f"s3://b/{key}", size_bytes=7, etag="e", last_modified=moment)


def test_columns_are_those_of_the_architecture_and_the_partition_behind_them():
    assert report_schema(["line", "camera"]).names == [*COLUMNS, "line", "camera"]


def test_a_partition_field_can_not_hide_a_column():
    with pytest.raises(ConfigError, match="'score'"):
        report_schema(["line", "score"])


def test_rows_come_back_from_parquet_in_key_order():
    rows = [
        ok_row(STAMP, listed("b"), Finding(), size=(640, 480), detector="nano", partition={"line": "1"}, map_uri="m"),
        error_row(STAMP, listed("a"), ErrorCode.TRUNCATED, "it ends early", partition={"line": None}),
    ]
    found = pq.read_table(BytesIO(table_to_parquet(rows_to_table(rows, ["line"]))))
    assert found.schema.metadata[b"zsad.schema_version"] == b"1"
    first, second = found.to_pylist()
    assert (first["uri"], first["status"], first["error_code"], first["score"]) == (
        "s3://b/a",
        "error",
        "truncated",
        None,
    )
    assert (second["width"], second["height"], second["score"], second["is_anomaly"]) == (640, 480, 0.1, False)
    assert second["regions"] == [vars(Region())]
    assert second["defect_scores"] == [{"name": "scratch", "score": 0.25}]
    assert second["explanation"] == [{"prompt": "a photo", "side": "normal", "similarity": 0.3}]
    assert (second["line"], first["line"], second["map_uri"]) == ("1", None, "m")


def test_equal_rows_in_another_order_give_equal_bytes():
    rows = [error_row(STAMP, listed(key), ErrorCode.EMPTY, "") for key in "abc"]
    assert table_to_parquet(rows_to_table(rows)) == table_to_parquet(rows_to_table(reversed(rows)))


def test_messages_are_cut_and_always_utf8():
    row = error_row(STAMP, listed("a"), ErrorCode.DECODE, "\udcff" + "x" * 1000)
    assert len(row["error_message"]) == 500
    assert row["error_message"].startswith("\\udcffxx")


def test_duplicate_rows_and_unknown_columns_are_programming_errors():
    row = error_row(STAMP, listed("a"), ErrorCode.EMPTY, "")
    with pytest.raises(ValueError, match="two rows"):
        rows_to_table([row, row])
    with pytest.raises(ValueError, match="line"):
        rows_to_table([row | {"line": "1"}])


def test_another_schema_version_is_refused_by_name():
    with pytest.raises(ConfigError, match="version 2; this zsad reads version 1"):
        check_schema_version("2", "run x")
