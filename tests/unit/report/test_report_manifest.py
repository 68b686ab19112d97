"""A listing becomes shards: filtered, in order, each object once, in bounded memory."""

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from zsad.errors import ConfigError, StorageError
from zsad.report.manifest import (
    ListingOptions,
    iter_listing,
    load_manifest_summary,
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


def test_an_output_inside_the_input_is_refused(source):
    with pytest.raises(ConfigError, match="inside the input"):
        write_manifest(source, source.sub("report"), "r", ListingOptions())


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"rows_per_shard": 0}])
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
