"""A listing becomes shards: filtered, in order, each object once, in bounded memory."""

import io
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from zsad.errors import CommitConflict, ConfigError, StorageError
from zsad.report.manifest import (
    SHARDS_PER_FILE,
    ListingOptions,
    iter_listing,
    load_manifest_summary,
    objects_to_table,
    read_manifest_shard,
    summarise_listing,
    write_manifest,
)
from zsad.storage import ObjectInfo, open_store


class ListedStore:
    """A source that lists the given keys without storing anything."""

    url = "s3://listed"

    def __init__(self, keys):
        self.keys = keys

    def list(self, _prefix="", after="") -> Iterator[ObjectInfo]:
        """Yield the keys in their order."""
        moment = datetime(2026, 3, 1, tzinfo=UTC)
        for key in self.keys:
            if key <= after:
                continue
            yield ObjectInfo(key=key, uri=f"{self.url}/{key}", size_bytes=2, etag="e", last_modified=moment)

    def contains(self, _other):
        """No output lies inside."""
        return False


def test_manifest_holds_what_was_listed(source, output):
    summary = write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
    assert (summary.num_shards, summary.num_objects) == (3, 5)
    assert summary.num_bytes == sum(info.size_bytes for info in source.list())
    assert load_manifest_summary(output, "r") == summary
    found = [info for shard in range(3) for info in read_manifest_shard(output, "r", shard)]
    assert found == list(source.list())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ("*.png",)}, ["a/1.png", "a/2-bad.png", "b/1.png", "b/2.png"]),
        ({"include": ("a/*", "c*")}, ["a/1.png", "a/2-bad.png", "c.txt"]),
        ({"include": ("*.png",), "exclude": ("*bad*", "b/1*")}, ["a/1.png", "b/2.png"]),
        ({"exclude": ("*.PNG",), "limit": 2}, ["a/1.png", "a/2-bad.png"]),
        ({"include": ("nothing",)}, []),
    ],
)
def test_globs_and_limit_choose_objects(source, options, expected):
    assert [info.key for info in iter_listing(source, ListingOptions(**options))] == expected


def test_a_dry_run_counts_the_same_and_writes_nothing(source, output):
    options = ListingOptions(rows_per_shard=2, limit=3)
    found = summarise_listing(source, options)
    assert not output.exists("runs/r/manifest/_DONE.json")
    assert write_manifest(source, output, "r", options) == found


def test_an_empty_listing_is_a_finished_manifest(source, output):
    summary = write_manifest(source, output, "r", ListingOptions(include=("nothing",)))
    assert (summary.num_shards, summary.num_objects) == (0, 0)
    assert load_manifest_summary(output, "r") == summary


def test_an_unfinished_manifest_has_no_summary(source, output):
    calls = []

    def guard():
        calls.append(1)
        if len(calls) == 2:
            raise StorageError("lease lost")

    with pytest.raises(StorageError, match="lease lost"):
        write_manifest(source, output, "r", ListingOptions(rows_per_shard=2), guard=guard)
    assert load_manifest_summary(output, "r") is None
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
    assert load_manifest_summary(output, "r").num_objects == 5


def test_repeated_keys_count_once_and_a_listing_backwards_is_refused():
    keys = ["a", "a", "b"]
    assert [info.key for info in iter_listing(ListedStore(keys), ListingOptions())] == ["a", "b"]
    with pytest.raises(StorageError, match="backwards at s3://listed/a"):
        list(iter_listing(ListedStore(["b", "a"]), ListingOptions()))


def listed_rows(output, run_id="r"):
    summary = load_manifest_summary(output, run_id)
    return [info for shard in range(summary.num_shards) for info in read_manifest_shard(output, run_id, shard)]


def manifest_bytes(output, run_id="r"):
    prefix = f"runs/{run_id}/manifest/"
    return {info.key.removeprefix(prefix): output.get(info.key, max_bytes=10**6) for info in output.list(prefix)}


class BreakingStore(ListedStore):
    """Breaks at a key, once; remembers where listings began."""

    def __init__(self, keys, broken):
        super().__init__(keys)
        self.broken = broken
        self.starts = []

    def list(self, _prefix="", after=""):
        """Yield the keys up to the broken one."""
        self.starts.append(after)
        for info in super().list(after=after):
            if info.key == self.broken:
                self.broken = None
                raise StorageError("the connection broke")
            yield info


KEYS = [f"{number:04d}" for number in range(3 * SHARDS_PER_FILE + 5)]


@pytest.mark.parametrize("place", [0, 5, SHARDS_PER_FILE - 1, SHARDS_PER_FILE, 3 * SHARDS_PER_FILE, len(KEYS) - 1])
@pytest.mark.parametrize("later", [1, 2])
def test_a_second_start_goes_on_and_ends_with_the_same_manifest(tmp_path, place, later):
    options = ListingOptions(rows_per_shard=1, later_rows_per_shard=later)
    whole, resumed = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "resumed"))
    write_manifest(ListedStore(KEYS), whole, "r", options)
    source = BreakingStore(KEYS, KEYS[place])
    with pytest.raises(StorageError, match="the connection broke"):
        write_manifest(source, resumed, "r", options)
    write_manifest(source, resumed, "r", ListingOptions(rows_per_shard=7))  # an interrupted manifest keeps its shards
    ends = [0, SHARDS_PER_FILE, *range((1 + later) * SHARDS_PER_FILE, len(KEYS), later * SHARDS_PER_FILE)]
    num_kept = max(end for end in ends if end <= place)
    assert source.starts == ["", KEYS[num_kept - 1] if num_kept else ""]
    if num_kept:
        assert manifest_bytes(resumed) == manifest_bytes(whole)
    assert [info.key for info in listed_rows(resumed)] == KEYS


def test_a_listing_that_had_ended_is_not_gone_on_with(tmp_path):
    output = open_store(str(tmp_path))
    write_manifest(ListedStore(["a", "b"]), output, "r", ListingOptions(rows_per_shard=2))
    output.delete("runs/r/manifest/_DONE.json")  # as after a crash right before it
    summary = write_manifest(ListedStore(["a", "b", "c"]), output, "r", ListingOptions(rows_per_shard=2))
    assert (summary.num_objects, summary.num_shards) == (2, 1)


def test_shards_are_announced_when_they_can_be_read(tmp_path):
    output, told = open_store(str(tmp_path)), []

    def announce(num_shards, num_rows):
        firsts = [read_manifest_shard(output, "r", shard)[0].key for shard in range(num_shards)]
        told.append((num_shards, num_rows, firsts))

    write_manifest(ListedStore(KEYS), output, "r", ListingOptions(rows_per_shard=2), announce=announce)
    assert told == [(0, 0, []), (32, 64, KEYS[0:64:2]), (51, 101, KEYS[0:101:2])]


def test_shards_of_later_files_are_as_large_as_asked(tmp_path):
    """101 keys: 32 shards of one, then 69 in shards of ten, the last with nine."""
    output, options = open_store(str(tmp_path)), ListingOptions(rows_per_shard=1, later_rows_per_shard=10)
    summary = write_manifest(ListedStore(KEYS), output, "r", options)
    assert summary == summarise_listing(ListedStore(KEYS), options)
    sizes = [len(read_manifest_shard(output, "r", shard)) for shard in range(summary.num_shards)]
    assert sizes == [1] * 32 + [10] * 6 + [9]
    assert [info.key for info in listed_rows(output)] == KEYS


def test_progress_that_cannot_be_read_is_not_guessed(tmp_path):
    output = open_store(str(tmp_path))
    table = objects_to_table([]).replace_schema_metadata({b"zsad.listing": b'{"rows_per_shard": 2}'})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    output.put("runs/r/manifest/00000000.parquet", sink.getvalue())
    with pytest.raises(StorageError, match="does not say how far its listing was; give --restart"):
        write_manifest(ListedStore(KEYS), output, "r", ListingOptions())


def test_a_file_that_another_driver_wrote_is_never_replaced(tmp_path):
    output = open_store(str(tmp_path))

    def late():  # another driver took the lease over and listed, between the listing here and its first write
        if not output.exists("runs/r/manifest/00000000.parquet"):
            write_manifest(ListedStore(["a", "b"]), output, "r", ListingOptions())

    with pytest.raises(CommitConflict, match="was written by another driver"):
        write_manifest(ListedStore(["x"]), output, "r", ListingOptions(), guard=late)
    assert [info.key for info in listed_rows(output)] == ["a", "b"]


def test_older_objects_are_left_out_and_do_not_count_for_the_limit():
    options = ListingOptions(newer_than=datetime(2026, 3, 2, tzinfo=UTC), limit=1)
    assert list(iter_listing(ListedStore(["a"]), options)) == []
    at = ListingOptions(newer_than=datetime(2026, 3, 1, tzinfo=UTC), limit=1)
    assert [info.key for info in iter_listing(ListedStore(["a", "b"]), at)] == ["a"]


def test_age_that_is_not_known_is_refused():
    class Ageless(ListedStore):
        """Does not say when."""

        def list(self, _prefix="", after=""):
            """Yield a key without its time."""
            yield ObjectInfo(key="a", uri="s3://listed/a", size_bytes=None, etag="", last_modified=None)

    assert summarise_listing(Ageless([]), ListingOptions()).num_bytes == 0
    with pytest.raises(ConfigError, match="does not say when s3://listed/a was modified, which --since needs"):
        list(iter_listing(Ageless([]), ListingOptions(newer_than=datetime(2026, 3, 1, tzinfo=UTC))))


def test_an_output_inside_the_input_is_refused(source):
    with pytest.raises(ConfigError, match="inside the input"):
        write_manifest(source, source.sub("report"), "r", ListingOptions())


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"rows_per_shard": 0}, {"later_rows_per_shard": 0}])
def test_options_are_checked(wrong):
    with pytest.raises(ConfigError):
        ListingOptions(**wrong)


def test_memory_is_that_of_one_file_of_shards(tmp_path):
    source = ListedStore(f"{number:08d}/{'x' * 100}" for number in range(6000))
    output = open_store(str(tmp_path))
    write_manifest(ListedStore(["warm"]), output, "warm", ListingOptions())
    tracemalloc.start()
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # the whole listing as objects would be above 3 MB
