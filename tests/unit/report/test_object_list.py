"""Rows of a customer's list become objects under the input, in key order, or a message that says where it is wrong."""

from datetime import UTC, datetime

import pytest

from zsad.errors import ConfigError
from zsad.report import object_list
from zsad.report.list_files import ListRow
from zsad.report.object_list import ObjectList, to_object
from zsad.storage import open_store

INPUT = open_store("s3://photos/night")


def judged(source=INPUT, **values):
    return to_object(ListRow("row 7 of list", values), source)


def listed(tmp_path, text, **options):
    (tmp_path / "list.csv").write_text(text)
    return list(ObjectList(str(tmp_path / "list.csv"), INPUT).list(**options))


def test_a_full_row():
    info = judged(uri="s3://photos/night/a b.png", size="12", etag='"e1"', last_modified="2026-03-01T22:00:00+01:00")
    assert (info.key, info.uri, info.size_bytes, info.etag) == ("a b.png", "s3://photos/night/a b.png", 12, "e1")
    assert info.last_modified == datetime(2026, 3, 1, 21, tzinfo=UTC)


def test_what_a_row_does_not_tell_is_unknown():
    info = judged(key="x/../y")
    assert (info.key, info.uri) == ("x/../y", "s3://photos/night/x/../y")
    assert (info.size_bytes, info.etag, info.last_modified) == (None, "", None)


def test_keys_of_a_bucket_are_taken_where_they_lie_under_the_input():
    assert judged(bucket="photos", key="night/x.png").key == "x.png"
    assert judged(bucket="photos", key="day/x.png") is None
    assert judged(open_store("s3://photos"), bucket="photos", key="day/x.png").key == "day/x.png"


@pytest.mark.parametrize(
    "values", [{"is_latest": "false"}, {"is_latest": False}, {"is_delete_marker": True}, {"key": "folder/", "size": 0}]
)
def test_what_a_listing_would_not_have_is_left_out(values):
    assert judged(**{"key": "x.png", **values}) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bucket": "other", "key": "x"}, "bucket 'other' is not that of the input s3://photos/night"),
        ({"uri": "s3://other/night/x"}, "does not lie under the input"),
        ({"uri": "s3://photos/nightly/x"}, "does not lie under the input"),
        ({"uri": "http://169.254.169.254/x"}, "does not lie under the input"),
        ({"size": "3"}, "names no object"),
        ({"uri": "s3://photos/night/"}, "empty or longer than 1,024 bytes"),
        ({"key": "é" * 513}, "empty or longer than 1,024 bytes"),
        ({"key": "x", "size": "1e3"}, "the size '1e3' is no whole number of bytes"),
        ({"key": "x", "size": -1}, "the size -1"),
        ({"key": "x", "size": 2.5}, "the size 2.5"),
        ({"key": "x", "last_modified": "yesterday"}, "the time 'yesterday' is not ISO 8601"),
        ({"key": "x", "last_modified": 20260301}, "the time 20260301"),
    ],
)
def test_mistakes_are_named_with_their_place(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        judged(**values)
    assert str(caught.value).startswith("row 7 of list: ")


def test_a_bucket_column_needs_a_bucket_as_input(tmp_path):
    with pytest.raises(ConfigError, match="is not that of the input"):
        judged(open_store(str(tmp_path)), bucket="photos", key="x")


def test_rows_are_sorted_once_each_however_many_runs_they_take(tmp_path, monkeypatch):
    monkeypatch.setattr(object_list, "ROWS_PER_RUN", 3)
    keys = ["z", "a/b", "größe", "a", "z", "🔩", "a/b", "m"]
    text = "key,size\n" + "".join(f"{key},1\n" for key in keys)
    expected = sorted(set(keys), key=str.encode)
    assert [info.key for info in listed(tmp_path, text)] == expected
    assert [info.key for info in listed(tmp_path, text, after="a/b")] == expected[2:]
    assert [info.key for info in listed(tmp_path, text, prefix="a")] == ["a", "a/b"]


def test_a_list_can_be_gone_through_again(tmp_path):
    (tmp_path / "list.csv").write_text("key\nb\na\n")
    found = ObjectList(str(tmp_path / "list.csv"), INPUT)
    assert next(found.list()).key == "a"
    (tmp_path / "list.csv").unlink()  # what was checked is what is scored
    assert [info.key for info in found.list()] == ["a", "b"]


def test_contradicting_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="lists s3://photos/night/a more than once, with different etags"):
        listed(tmp_path, "key,etag\na,1\na,2\n")


def test_a_mistake_in_the_last_row_comes_before_the_first_object(tmp_path):
    (tmp_path / "list.csv").write_text("key,size\na,1\nb,?\n")
    with pytest.raises(ConfigError, match=r"line 3 of .*list.csv: the size '\?'"):
        next(ObjectList(str(tmp_path / "list.csv"), INPUT).list())
