"""A local folder behaves like an object store: whole objects, typed errors, nothing outside the root."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.storage import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "root"))


def write(store, *keys):
    for key in keys:
        store.put(key, key.encode())


def test_listing_is_in_byte_order_of_keys_and_recursive(store):
    keys = ["a.png", "a/z.png", "a0", "b c.png", "b/1/2/x.png", "ü.png", "Z.png"]
    write(store, *reversed(keys))
    assert [info.key for info in store.list()] == sorted(keys, key=str.encode)


def test_listing_says_what_is_there(store):
    store.put("a/b.png", b"12345")
    os.utime(Path(store.url, "a/b.png"), ns=(0, 1_700_000_000_000_001_000))
    (info,) = store.list()
    assert info.key == "a/b.png"
    assert info.uri == f"{store.url}/a/b.png"
    assert info.size_bytes == 5
    assert info.last_modified == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert info.etag == f"{1_700_000_000_000_001_000:x}-5"


@pytest.mark.parametrize(
    ("prefix", "expected"), [("a", ["a/1", "a/2", "ab"]), ("a/", ["a/1", "a/2"]), ("a/2", ["a/2"])]
)
def test_listing_with_prefix(store, prefix, expected):
    write(store, "a/1", "a/2", "ab", "b/1")
    assert [info.key for info in store.list(prefix)] == expected


def test_links_out_of_the_root_and_to_folders_are_not_listed(store, tmp_path):
    write(store, "folder/x.png")
    (tmp_path / "secret").write_bytes(b"secret")
    Path(store.url, "out.png").symlink_to(tmp_path / "secret")
    Path(store.url, "loop").symlink_to(store.url)
    Path(store.url, "in.png").symlink_to(Path(store.url, "folder/x.png"))
    assert [info.key for info in store.list()] == ["folder/x.png", "in.png"]
    with pytest.raises(StorageError, match="leads out") as caught:
        store.get("out.png", max_bytes=100)
    assert caught.value.code == ErrorCode.FORBIDDEN


def test_special_files_and_left_over_temporary_files_are_not_listed(store):
    write(store, "x")
    os.mkfifo(Path(store.url, "pipe"))
    Path(store.url, ".zsad-tmp-1").write_bytes(b"torn")
    assert [info.key for info in store.list()] == ["x"]


def test_a_name_that_is_not_utf8_is_listed_and_missing(store):
    write(store, "x")
    Path(store.url, os.fsdecode(b"\xff.png")).write_bytes(b"1")
    odd, _ = store.list()
    assert odd.key == r"\xff.png"
    with pytest.raises(StorageError) as caught:
        store.get(odd.key, max_bytes=10)
    assert caught.value.code == ErrorCode.MISSING


def test_a_folder_that_is_not_utf8_is_listed_and_its_files_are_missing(store):
    write(store, "a/x", "ü/x")
    folder = Path(store.url, os.fsdecode(b"b\xff"), "ü")
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"1")
    (folder / os.fsdecode(b"2\xfe.png")).write_bytes(b"22")
    keys = [r"a/x", r"b\xff/ü/1.png", r"b\xff/ü/2\xfe.png", r"ü/x"]
    listed = list(store.list())
    assert [info.key for info in listed] == keys
    assert [info.uri for info in listed] == [store.uri(key) for key in keys]
    assert [info.size_bytes for info in listed] == [3, 1, 2, 4]
    for number, key in enumerate(keys):
        assert [info.key for info in store.list(after=key)] == keys[number + 1 :]
    assert [info.key for info in store.list("b\\xff/")] == keys[1:3]
    with pytest.raises(StorageError) as caught:
        store.get(keys[1], max_bytes=10)
    assert caught.value.code == ErrorCode.MISSING


@pytest.mark.parametrize(
    ("year_s", "expected"),
    [
        (253_402_300_800, datetime.max.replace(tzinfo=UTC)),  # 10000-01-01
        (2**62, datetime.max.replace(tzinfo=UTC)),
        (-62_135_596_801, datetime.min.replace(tzinfo=UTC)),  # a second before year 1
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_beyond_the_calendar_are_listed_as_its_ends(store, monkeypatch, year_s, expected):
    """Not every file system keeps such a time, so the status is made up."""
    write(store, "x.png")
    status = SimpleNamespace(st_mode=stat.S_IFREG, st_size=5, st_mtime_ns=year_s * 10**9)
    monkeypatch.setattr(os, "lstat", lambda path: status)
    (info,) = store.list()
    assert info.last_modified == expected
    assert info.etag == f"{year_s * 10**9:x}-5"


def test_a_listing_can_begin_behind_any_key(store):
    keys = ["a.png", "a/1", "a/b.png", "a/b/2", "b/1", "größe/x", "z"]  # in byte order
    for key in keys:
        write(store, key)
    for after in ("", "a", "a/", "a/b", "a/b/2", "a/b/9", "b", "größe/", "zz", *keys):
        assert [info.key for info in store.list(after=after)] == [key for key in keys if key > after]
        assert [info.key for info in store.list("a/", after)] == [
            key for key in keys if key > after and key.startswith("a/")
        ]


def test_missing_root_is_missing(store):
    with pytest.raises(StorageError, match="no folder") as caught:
        store.list()
    assert caught.value.code == ErrorCode.MISSING
    assert not caught.value.retryable
    assert list(store.list_folders()) == []


def test_list_folders(store):
    write(store, "runs/b/1", "runs/a/2/3", "runs/file")
    assert list(store.list_folders("runs/")) == ["a", "b"]


def test_get_returns_what_put_wrote(store):
    store.put("deep/er/x", b"one")
    store.put("deep/er/x", b"two")
    assert store.get("deep/er/x", max_bytes=3) == b"two"


def test_get_refuses_more_than_max_bytes(store):
    store.put("x", b"1234")
    with pytest.raises(ImageError, match=r"4 bytes; the limit is 3") as caught:
        store.get("x", max_bytes=3)
    assert caught.value.code == ErrorCode.TOO_MANY_BYTES


def test_get_notices_that_the_object_changed_since_it_was_listed(store):
    store.put("x", b"1234")
    (listed,) = store.list()
    assert store.get("x", max_bytes=10, etag=listed.etag) == b"1234"
    store.put("x", b"12345")
    with pytest.raises(ImageError) as caught:
        store.get("x", max_bytes=10, etag=listed.etag)
    assert caught.value.code == ErrorCode.CHANGED


@pytest.mark.parametrize("key", ["nothing", "x/y", "folder"])
def test_missing_objects(store, key):
    write(store, "x", "folder/z")
    with pytest.raises(StorageError, match=key) as caught:
        store.get(key, max_bytes=10)
    assert caught.value.code == ErrorCode.MISSING


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x", "", "a\0b", "./x"])
def test_keys_that_lead_elsewhere_are_refused(store, key):
    write(store, "x")
    for call in (lambda: store.get(key, max_bytes=10), lambda: store.put(key, b""), lambda: store.delete(key)):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.code == ErrorCode.FORBIDDEN


def test_put_if_absent_has_one_winner_among_many_threads(store):
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda number: store.put_if_absent("lock", b"%d" % number), range(40)))
    assert results.count(True) == 1
    assert store.get("lock", max_bytes=10) == b"%d" % results.index(True)
    assert os.listdir(store.url) == ["lock"]  # noqa: PTH208


def test_exists_and_delete(store):
    write(store, "x")
    assert store.exists("x")
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, ErrorCode.READ_ERROR, "disk is full"),
        (errno.EROFS, ErrorCode.FORBIDDEN, "check the permissions"),
        (errno.EACCES, ErrorCode.FORBIDDEN, "check the permissions"),
        (errno.ETIMEDOUT, ErrorCode.READ_TIMEOUT, "timed out"),
    ],
)
def test_a_failed_write_is_typed_names_the_path_and_keeps_the_old_object(store, monkeypatch, number, code, words):
    store.put("x", b"old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"{store.url}/x.*{words}") as caught:
        store.put("x", b"new")
    monkeypatch.undo()
    assert caught.value.code == code
    assert caught.value.exit_code == 4
    assert store.get("x", max_bytes=10) == b"old"
    assert [info.key for info in store.list()] == ["x"]


def test_arrow_filesystem_reads_the_store(store):
    store.put("x", b"abc")
    filesystem, root = store.arrow_filesystem()
    assert filesystem.open_input_file(f"{root}/x").read() == b"abc"
