"""URLs become stores, and what can't be one is refused with what is supported."""

import pickle
from pathlib import Path

import pytest

from zsad.errors import ConfigError
from zsad.storage import open_store


def test_relative_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("images/../images").url == str(tmp_path.resolve() / "images")


def test_file_url_is_unquoted():
    assert open_store("file:///data/a%20b/").url == "/data/a b"


@pytest.mark.parametrize(
    ("url", "expected"),
    [("s3://bucket", "s3://bucket"), ("s3://bucket/", "s3://bucket"), ("s3://bucket/a/b/", "s3://bucket/a/b")],
)
def test_s3_url_loses_its_trailing_slash(url, expected):
    store = open_store(url)
    assert store.url == expected
    assert store.uri("x.png") == expected + "/x.png"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host/x",
        "gs://bucket",
        "s3://",
        "s3:///key",
        "s3://b/../c",
        "s3://b/a//c",
        "s3://b//c",
        "file://x/y",
        "s3://key:secret@bucket/x",
        "a\0b",
    ],
)
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError):
        open_store(url)


def test_unknown_scheme_names_what_is_supported():
    with pytest.raises(ConfigError, match=r"unknown scheme 'http'; supported are .*s3://"):
        open_store("http://host/x")


@pytest.mark.parametrize("url", ["/data", "s3://bucket/prefix"])
def test_a_pickled_store_is_its_url(url):
    store = open_store(url)
    data = pickle.dumps(store)
    assert pickle.loads(data) == store  # noqa: S301
    assert len(data) < 200


@pytest.mark.parametrize("name", ["..", "a/../b", "", "/a", "a//b", "."])
def test_sub_refuses_names_that_lead_elsewhere(name):
    with pytest.raises(ConfigError):
        open_store("s3://bucket/prefix").sub(name)


def test_sub_and_contains(tmp_path):
    store = open_store(str(tmp_path))
    inner = store.sub("a/b")
    assert Path(inner.url) == tmp_path.resolve() / "a/b"
    assert store.contains(inner)
    assert store.contains(store)
    assert not inner.contains(store)
    assert not open_store("s3://bucket/a").contains(open_store("s3://bucket/ab"))
