"""The S3 store against a real server: conditions, paging, refusals."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.storage import open_store
from zsad.storage import s3 as s3_module

pytestmark = pytest.mark.s3


@pytest.fixture
def store(s3):
    return open_store(f"{s3.new_bucket()}/some/prefix")


def test_whole_objects_come_back_as_listed(store):
    keys = ["a b.png", "a/z.png", "a0.png", "Ü/ü.png", "odd+&%20?.png"]
    for key in keys:
        store.put(key, key.encode())
    listed = list(store.list())
    assert [info.key for info in listed] == sorted(keys, key=str.encode)
    for info in listed:
        assert store.get(info.key, max_bytes=100, etag=info.etag) == info.key.encode()
        assert info.uri == store.uri(info.key)


def test_listing_is_complete_over_many_pages(store, monkeypatch):
    keys = [f"{number % 3}/{number:03d}" for number in range(25)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: store.put(key, b"1"), keys))
    monkeypatch.setattr(s3_module, "KEYS_PER_PAGE", 4)
    assert [info.key for info in store.list()] == sorted(keys)
    assert list(store.list_folders()) == ["0", "1", "2"]
    assert [info.key for info in store.list("1/")] == sorted(key for key in keys if key.startswith("1/"))


def test_put_if_absent_is_enforced(store):
    store.check_writable()
    assert store.put_if_absent("lock", b"first")
    assert not store.put_if_absent("lock", b"second")
    assert store.get("lock", max_bytes=10) == b"first"


def test_an_overwritten_object_is_changed(store):
    store.put("x", b"old")
    (listed,) = store.list()
    store.put("x", b"new!")
    with pytest.raises(ImageError) as caught:
        store.get("x", max_bytes=10, etag=listed.etag)
    assert caught.value.code == ErrorCode.CHANGED


def test_too_large_objects_are_refused_and_the_connection_stays_usable(store):
    store.put("x", bytes(3_000_000))
    for _ in range(3):
        with pytest.raises(ImageError, match="3,000,000 bytes"):
            store.get("x", max_bytes=1000)
    assert len(store.get("x", max_bytes=3_000_000)) == 3_000_000


def test_missing_key_and_missing_bucket(store):
    with pytest.raises(StorageError) as caught:
        store.get("nothing", max_bytes=10)
    assert caught.value.code == ErrorCode.MISSING
    with pytest.raises(StorageError, match="bucket") as caught:
        list(open_store("s3://no-such-bucket-here").list())
    assert caught.value.code == ErrorCode.MISSING
    assert not store.exists("nothing")
    store.delete("nothing")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_forbidden(store, monkeypatch, variable):
    store.put("x", b"1")
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as caught:
        store.get("x", max_bytes=10)
    assert caught.value.code == ErrorCode.FORBIDDEN


def test_arrow_reads_through_the_store(store):
    store.put("data/x.bin", b"abc")
    filesystem, root = store.arrow_filesystem()
    assert filesystem.open_input_file(f"{root}/data/x.bin").read() == b"abc"


def test_arrows_view_travels_to_other_processes_without_keys(store):
    store.put("data/x.bin", b"abc")
    filesystem, root = store.arrow_filesystem()
    sent = pickle.dumps(filesystem)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    arrived = pickle.loads(sent)  # noqa: S301 - our own bytes
    assert arrived.open_input_file(f"{root}/data/x.bin").read() == b"abc"
