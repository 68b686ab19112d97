"""Files of a list, row by row: what is read, and what is refused with the place of the mistake."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zsad.errors import ConfigError, ErrorCode, StorageError
from zsad.report.list_files import read_list

INVENTORY = {
    "sourceBucket": "photos",
    "destinationBucket": "arn:aws:s3:::elsewhere",
    "fileFormat": "CSV",
    "fileSchema": "Bucket, Key, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag",
}


def values_of(path):
    return [row.values for row in read_list(str(path))]


def write_inventory(folder, keys, **changes):
    """A manifest.json in its dated folder."""
    (folder / "config/2026-03-01T01-00Z").mkdir(parents=True)
    (folder / "config/data").mkdir()
    path = folder / "config/2026-03-01T01-00Z/manifest.json"
    files = [{"key": key, "size": 1, "MD5checksum": "0"} for key in keys]
    path.write_text(json.dumps({**INVENTORY, "files": files, **changes}))
    return path


def test_csv_columns_are_known_by_several_names(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('\ufeffURL,Size_Bytes,ETag,Last_Modified,note\r\n"s3://b/x, y.png",12,e1,2026-03-01,hello\r\n\r\n')
    assert values_of(path) == [{"uri": "s3://b/x, y.png", "size": "12", "etag": "e1", "last_modified": "2026-03-01"}]


def test_packed_csv_and_empty_fields(tmp_path):
    path = tmp_path / "list.csv.gz"
    path.write_bytes(gzip.compress(b"key,etag\na.png,\n"))
    (row,) = read_list(str(path))
    assert row.values == {"key": "a.png"}
    assert row.where == f"line 2 of {path}"


def test_parquet_columns_keep_their_types(tmp_path):
    path = tmp_path / "list.parquet"
    table = {"key": ["a", "b"], "size": [3, None], "e_tag": ["x", None], "colour": ["red", "red"]}
    pq.write_table(pa.table(table), path)
    rows = list(read_list(str(path)))
    assert [row.values for row in rows] == [{"key": "a", "size": 3, "etag": "x"}, {"key": "b"}]
    assert rows[1].where == f"row 2 of {path}"


def test_an_inventory_of_csv_files_has_encoded_keys_and_no_header(tmp_path):
    path = write_inventory(tmp_path, ["some/prefix/photos/config/data/one.csv.gz"])
    line = '"photos","a%20b+c%2Bd.jpg","true","false","12","2026-03-01T22:00:00.000Z","e1"\n'
    (tmp_path / "config/data/one.csv.gz").write_bytes(gzip.compress(line.encode()))
    (values,) = values_of(path)
    assert values == {
        "bucket": "photos",
        "key": "a b c+d.jpg",
        "is_latest": "true",
        "is_delete_marker": "false",
        "size": "12",
        "last_modified": "2026-03-01T22:00:00.000Z",
        "etag": "e1",
    }


def test_an_inventory_of_parquet_files_has_plain_keys(tmp_path):
    path = write_inventory(tmp_path, ["x/config/data/one.parquet"], fileFormat="Parquet", fileSchema="message s3 {}")
    pq.write_table(
        pa.table({"bucket": ["photos"], "key": ["a%20b.jpg"], "size": [1]}), tmp_path / "config/data/one.parquet"
    )
    assert values_of(path) == [{"bucket": "photos", "key": "a%20b.jpg", "size": 1}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "ORC"}, r"no S3 Inventory in CSV or Parquet \(fileFormat 'ORC'\)"),
        ({"files": None}, "no S3 Inventory"),
        ({"files": [{"key": "../../secret.csv"}]}, r"names the file '../../secret.csv'"),
        ({"files": [{"key": "x/data/.."}]}, "names the file"),
        ({"files": ["data/x.csv"]}, "names the file ''"),
    ],
)
def test_inventories_that_make_no_sense_or_point_elsewhere_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        values_of(write_inventory(tmp_path, [], **changes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"name,size\nx,1\n", "neither a column 'uri' nor 'key'; its columns are name, size"),
        ("list.csv", b"", "neither a column 'uri' nor 'key'; its columns are none"),
        ("list.csv", b"key,size,size_bytes\nx,1,1\n", "more than one column for 'size'"),
        ("list.csv", b"key,size\nx\n", r"line 2 of .*list.csv has 1 fields, but there are 2 columns"),
        ("list.csv", b"key\n\xff\xfe\n", "list.csv is broken"),
        ("list.csv", b"key\n" + b"x" * 200_000 + b"\n", "list.csv is broken"),
        ("list.parquet", b"PAR1 no", "list.parquet is broken"),
        ("list.txt", b"x\n", "give a .parquet, .csv or .csv.gz file"),
    ],
)
def test_broken_lists_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        values_of(tmp_path / name)


def test_a_list_that_is_not_there_is_missing(tmp_path):
    for name in ("list.csv", "manifest.json"):
        with pytest.raises(StorageError, match="check --manifest") as caught:
            values_of(tmp_path / name)
        assert caught.value.code == ErrorCode.MISSING
