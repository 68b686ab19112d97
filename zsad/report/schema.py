"""The report's columns, and rows of it: one per listed object, scored or not.

Scores are float64 so that a float32 score is kept exactly and thresholds compare as they were set.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from zsad.errors import ConfigError, ErrorCode
from zsad.storage import ObjectInfo

SCHEMA_VERSION = 1
VERSION_KEY = b"zsad.schema_version"
PARTITION_KEY = b"zsad.partition_fields"
MAX_MESSAGE_CHARS = 500

_REGION = pa.struct(
    [(name, pa.int32()) for name in ("x", "y", "width", "height", "area_px")]
    + [("score", pa.float64()), ("defect_type", pa.string()), ("rle", pa.string())]
)
_DEFECT_SCORE = pa.struct([("name", pa.string()), ("score", pa.float64())])
_EXPLANATION = pa.struct([("prompt", pa.string()), ("side", pa.string()), ("similarity", pa.float64())])
_COLUMNS = [
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("last_modified", pa.timestamp("us", tz="UTC")),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("score", pa.float64()),
    pa.field("raw_score", pa.float64()),
    pa.field("threshold", pa.float64()),
    pa.field("is_anomaly", pa.bool_()),
    pa.field("defect_type", pa.string()),
    pa.field("defect_scores", pa.list_(_DEFECT_SCORE)),
    pa.field("regions", pa.list_(_REGION)),
    pa.field("explanation", pa.list_(_EXPLANATION)),
    pa.field("map_uri", pa.string()),
    pa.field("detector", pa.string()),
    pa.field("config_hash", pa.string(), nullable=False),
]
Row = dict[str, Any]


class RegionLike(Protocol):
    """One defect region in pixels of the input image; `zsad.regions.Region` fits."""

    @property
    def x(self) -> int: ...  # noqa: D102
    @property
    def y(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def area_px(self) -> int: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def defect_type(self) -> str | None: ...  # noqa: D102
    @property
    def rle(self) -> str: ...  # noqa: D102


class FindingLike(Protocol):
    """What a detector says of one image; `zsad.Finding` fits."""

    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def raw_score(self) -> float: ...  # noqa: D102
    @property
    def threshold(self) -> float: ...  # noqa: D102
    @property
    def is_anomaly(self) -> bool: ...  # noqa: D102
    @property
    def defect_type(self) -> str | None: ...  # noqa: D102
    @property
    def defect_scores(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def regions(self) -> Sequence[RegionLike]: ...  # noqa: D102
    @property
    def explanation(self) -> Sequence[tuple[str, str, float]]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStamp:
    """What all rows of a run share."""

    run_id: str
    config_hash: str


def report_schema(partition_fields: Sequence[str] = ()) -> pa.Schema:
    """Columns of a report with the given partition fields behind them, as nullable strings.

    Raises:
        ConfigError: a partition field has the name of a report column.
    """
    taken = {column.name for column in _COLUMNS}
    for name in partition_fields:
        if name in taken:
            raise ConfigError(f"the partition field {name!r} is a report column already; choose another name")
    metadata = {VERSION_KEY: str(SCHEMA_VERSION).encode(), PARTITION_KEY: ",".join(partition_fields).encode()}
    return pa.schema([*_COLUMNS, *(pa.field(name, pa.string()) for name in partition_fields)], metadata)


def check_schema_version(version: object, where: str) -> None:
    """Refuse a report of another schema version.

    Raises:
        ConfigError: `version` is not the one this code reads.
    """
    if str(version) != str(SCHEMA_VERSION):
        raise ConfigError(
            f"{where} has report schema version {version}; this zsad reads version {SCHEMA_VERSION}: "
            "use the zsad that wrote it, or run again with --restart"
        )


def ok_row(
    stamp: RunStamp,
    listed: ObjectInfo,
    finding: FindingLike,
    *,
    size: tuple[int, int],
    detector: str,
    map_uri: str | None = None,
    partition: Mapping[str, str | None] | None = None,
) -> Row:
    """Row of a scored image.

    Args:
        stamp: of the run.
        listed: the object as it was listed.
        finding: the detector's answer.
        size: (width, height) in px of the upright input image.
        detector: the REF that scored it.
        map_uri: where the anomaly map was written, if it was.
        partition: fields of the key.
    """
    row = _identity(stamp, listed, detector, partition)
    names = ("x", "y", "width", "height", "area_px", "score", "defect_type", "rle")
    return row | {
        "status": "ok",
        "width": size[0],
        "height": size[1],
        "score": float(finding.score),
        "raw_score": float(finding.raw_score),
        "threshold": float(finding.threshold),
        "is_anomaly": bool(finding.is_anomaly),
        "defect_type": finding.defect_type,
        "defect_scores": [{"name": name, "score": float(score)} for name, score in finding.defect_scores.items()],
        "regions": [{name: getattr(region, name) for name in names} for region in finding.regions],
        "explanation": [
            {"prompt": prompt, "side": side, "similarity": float(similarity)}
            for prompt, side, similarity in finding.explanation
        ],
        "map_uri": map_uri,
    }


def error_row(
    stamp: RunStamp,
    listed: ObjectInfo,
    code: ErrorCode,
    message: str,
    *,
    detector: str | None = None,
    partition: Mapping[str, str | None] | None = None,
) -> Row:
    """Row of an image without a score; `message` is cut to 500 characters."""
    text = message.encode("utf-8", "backslashreplace").decode()[:MAX_MESSAGE_CHARS]
    row = _identity(stamp, listed, detector, partition)
    return row | {"status": "error", "error_code": code.value, "error_message": text}


def _identity(
    stamp: RunStamp, listed: ObjectInfo, detector: str | None, partition: Mapping[str, str | None] | None
) -> Row:
    return dict(partition or {}) | {
        "run_id": stamp.run_id,
        "uri": listed.uri,
        "etag": listed.etag,
        "size_bytes": listed.size_bytes,
        "last_modified": listed.last_modified,
        "detector": detector,
        "config_hash": stamp.config_hash,
    }


def rows_to_table(rows: Iterable[Row], partition_fields: Sequence[str] = ()) -> pa.Table:
    """Report table of `rows`, sorted by uri (UTF-8 byte order) so that equal rows give equal files.

    Raises:
        ValueError: a row has a key that is no column, or two rows have the same uri.
    """
    schema = report_schema(partition_fields)
    ordered = sorted(rows, key=lambda row: str(row["uri"]).encode())
    for row in ordered:
        if unknown := row.keys() - set(schema.names):
            raise ValueError(f"the row of {row['uri']} has unknown columns {sorted(unknown)}")
    for before, row in pairwise(ordered):
        if before["uri"] == row["uri"]:
            raise ValueError(f"two rows of one shard have the uri {row['uri']}")
    return pa.Table.from_pylist(ordered, schema=schema)


def table_to_parquet(table: pa.Table) -> bytes:
    """Serialise a table as one Parquet file; equal tables give equal bytes."""
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
