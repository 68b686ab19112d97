"""Files that list objects, row by row: Parquet, CSV, and S3 Inventory (its `manifest.json` names such files).

Rows come as they are written, under one set of column names; `zsad.report.object_list` judges them.

| column | also called | meaning |
|---|---|---|
| `uri` | `url` | absolute address |
| `key` | | relative to the input; to the bucket where there is a column `bucket`, as in inventories |
| `bucket` | | must be the input's |
| `etag` | `e_tag`, `ETag` | optional |
| `size` | `size_bytes` | bytes, optional |
| `last_modified` | `LastModifiedDate`, `last_modified_date` | ISO 8601, UTC unless it says otherwise, optional |
| `is_latest`, `is_delete_marker` | | older versions and delete marks are left out |

Source: the Amazon S3 user guide, "Amazon S3 Inventory", for manifest.json, column names and URL-encoded keys in CSV.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from zsad.errors import ConfigError, ErrorCode, StorageError
from zsad.report.ledger import read_json
from zsad.storage import Store, open_store

_ROWS_AT_ONCE = 4096
_NAMES = {
    "uri": "uri",
    "url": "uri",
    "key": "key",
    "bucket": "bucket",
    "etag": "etag",
    "size": "size",
    "sizebytes": "size",
    "lastmodified": "last_modified",
    "lastmodifieddate": "last_modified",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
}


@dataclass(frozen=True, slots=True)
class ListRow:
    """One row as written: `where` it is, for messages, and its values by column; empty ones are left out."""

    where: str
    values: dict[str, Any]


def read_list(url: str) -> Iterator[ListRow]:
    """Yield the rows of the list at `url`.

    Raises:
        ConfigError: the file is of no known kind, is broken, or has neither a column `uri` nor `key`.
        StorageError: it can't be read.
    """
    folder, _, name = url.rpartition("/")
    store = open_store(folder or ("/" if url.startswith("/") else "."))
    if name == "manifest.json":
        yield from _read_inventory(store, url)
    else:
        yield from _read_file(store, name, url, None)


def _read_inventory(dated: Store, url: str) -> Iterator[ListRow]:
    """Rows of the files that an inventory's manifest.json names."""
    found = read_json(dated, "manifest.json")
    if found is None:
        raise StorageError(f"no object {url}; check --manifest", code=ErrorCode.MISSING)
    kind, files = found.get("fileFormat"), found.get("files")
    if kind not in ("CSV", "Parquet") or not isinstance(files, list):
        raise ConfigError(
            f"{url} is no S3 Inventory in CSV or Parquet (fileFormat {kind!r}); configure the inventory as one of them"
        )
    columns = [part.strip() for part in str(found.get("fileSchema")).split(",")] if kind == "CSV" else None
    above = dated.url.rpartition("/")[0]
    store = open_store(above or "/")
    for file in files:
        key = str(file.get("key")) if isinstance(file, dict) else ""
        name = PurePosixPath(key).name
        if not key.endswith(f"data/{name}") or name in {"", ".."}:
            raise ConfigError(f"{url} names the file {key!r}; inventories keep theirs in data/ beside the dated folder")
        for row in _read_file(store, f"data/{name}", store.uri(f"data/{name}"), columns):
            yield ListRow(row.where, {"bucket": found.get("sourceBucket"), **row.values})


def _read_file(store: Store, key: str, url: str, columns: Sequence[str] | None) -> Iterator[ListRow]:
    """Rows of one file; `columns` are those of an inventory's CSV, which has no header and URL-encoded keys."""
    if not store.exists(key):
        raise StorageError(f"no object {url}; check --manifest", code=ErrorCode.MISSING)
    filesystem, root = store.arrow_filesystem()
    path = f"{root}/{key}"
    with _clear_errors(url):
        if key.endswith(".parquet"):
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                yield from _parquet_rows(file, url)
        elif key.removesuffix(".gz").endswith(".csv"):
            # Arrow unpacks what ends in .gz by itself.
            with (
                filesystem.open_input_stream(path) as stream,
                io.TextIOWrapper(stream, "utf-8-sig", newline="") as text,
            ):
                yield from _csv_rows(csv.reader(text), url, columns)
        else:
            raise ConfigError(
                f"--manifest {url}: give a .parquet, .csv or .csv.gz file, or an inventory's manifest.json"
            )


def _parquet_rows(file: pq.ParquetFile, url: str) -> Iterator[ListRow]:
    names = _known_columns(file.schema_arrow.names, url)
    number = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(names)):
        for row in batch.to_pylist():
            number += 1
            values = {names[column]: value for column, value in row.items() if value not in (None, "")}
            yield ListRow(f"row {number:,} of {url}", values)


def _csv_rows(reader: Any, url: str, columns: Sequence[str] | None) -> Iterator[ListRow]:
    header = list(columns or next(reader, ()))
    names = _known_columns(header, url)
    for row in reader:
        where = f"line {reader.line_num:,} of {url}"
        if not row:
            continue
        if len(row) != len(header):
            raise ConfigError(f"{where} has {len(row)} fields, but there are {len(header)} columns; nothing was scored")
        values = {names[column]: text for column, text in zip(header, row, strict=True) if column in names and text}
        if columns and "key" in values:
            values["key"] = unquote_plus(values["key"], errors="strict")
        yield ListRow(where, values)


def _known_columns(names: Sequence[str], url: str) -> dict[str, str]:
    """Columns of a file that mean something here, by their own names.

    Raises:
        ConfigError: none of them says which object a row is, or two mean the same.
    """
    found = {name: _NAMES[plain] for name in names if (plain := name.strip().lower().replace("_", "")) in _NAMES}
    meant = list(found.values())
    if "uri" not in meant and "key" not in meant:
        raise ConfigError(
            f"{url} has neither a column 'uri' nor 'key'; its columns are {', '.join(names)[:200] or 'none'}"
        )
    if twice := sorted({name for name in meant if meant.count(name) > 1}):
        raise ConfigError(f"{url} has more than one column for {twice[0]!r}; leave one")
    return found


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Say which file it is that can't be read or makes no sense."""
    try:
        yield
    except (csv.Error, UnicodeError, pa.ArrowInvalid) as error:
        raise ConfigError(f"--manifest {url} is broken: {error}; nothing was scored") from error
    except OSError as error:
        raise StorageError(f"can't read {url}: {error}") from error
