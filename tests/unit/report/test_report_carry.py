"""A second run scores what is new or changed; every listed object still has exactly one row."""

import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from report_helpers import HASH, score_shard, start_run, whole_run

from zsad.errors import ErrorCode, StorageError
from zsad.report import read_report
from zsad.report.carry import Carrier, Found, load_carried
from zsad.report.manifest import ListingOptions, read_manifest_shard, write_manifest
from zsad.report.publish import load_run_manifest, publish_run
from zsad.storage import ObjectInfo


def carrier_of(output):
    return Carrier(output, load_run_manifest(output, "run-1"), rows_per_file=2)


def listed(key, etag):
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    return ObjectInfo(key=key, uri=f"s3://b/{key}", size_bytes=1, etag=etag, last_modified=moment)


class Broken:
    """A source of the given objects that breaks at a key, once."""

    url = "s3://b"

    def __init__(self, objects, broken=None):
        self.objects, self.broken = objects, broken

    def list(self, _prefix="", after=""):
        """Yield the objects behind a key."""
        for info in self.objects:
            if info.key == self.broken:
                self.broken = None
                raise StorageError("the connection broke")
            if info.key > after:
                yield info

    def contains(self, _other):
        """No output lies inside."""
        return False


def publish_rows(output, run_id, objects, *, rows_per_file):
    """Publish a run of these objects."""
    start_run(output, run_id, Broken(objects))
    summary = write_manifest(Broken(objects), output, run_id, ListingOptions(rows_per_shard=rows_per_file))
    for shard in range(summary.num_shards):
        score_shard(output, run_id, shard)
    publish_run(output, run_id, num_shards=summary.num_shards, config_hash=HASH)


def rows(output):
    return {row["uri"]: row for row in read_report(output.url).to_table().to_pylist()}


def second_run(source, output, *, rows_per_file=2, **options):
    carrier = Carrier(output, load_run_manifest(output, "run-1"), rows_per_file=rows_per_file)
    return whole_run(source, output, "run-2", carrier=carrier, **options)


def scored_by(output):
    table = read_report(output.url).to_table(columns=["uri", "run_id"])
    assert max(Counter(table["uri"].to_pylist()).values()) == 1
    return Counter(table["run_id"].to_pylist())


def test_an_unchanged_input_scores_nothing_and_copies_nothing(source, output):
    _, first = whole_run(source, output, "run-1")
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (0, 5)
    assert {file.file for file in manifest.files} == {file.file for file in first.files}
    assert manifest.totals == first.totals
    assert scored_by(output) == {"run-1": 5}


def test_only_new_and_changed_objects_are_scored(source, output):
    whole_run(source, output, "run-1")
    before = rows(output)
    time.sleep(0.01)  # so that the modification time differs
    source.put("b/1.png", b"other content")
    source.put("d.png", b"new")
    source.delete("a/1.png")
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (2, 3)
    assert scored_by(output) == {"run-1": 3, "run-2": 2}
    found = rows(output)
    assert sorted(found) == [info.uri for info in source.list()]
    for key in ("a/2-bad.png", "b/2.png", "c.txt"):
        assert found[source.uri(key)] == before[source.uri(key)]
    assert manifest.totals == {"rows": 5, "ok": 5, "errors": 0, "anomalies": 1}


def test_passing_errors_are_tried_again_and_lasting_ones_are_carried(source, output):
    whole_run(source, output, "run-1", codes={"a/1.png": ErrorCode.READ_TIMEOUT, "c.txt": ErrorCode.UNKNOWN_FORMAT})
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (1, 4)
    assert manifest.error_counts == {"unknown_format": 1}
    assert rows(output)[source.uri("a/1.png")]["status"] == "ok"


def test_small_files_are_merged(source, output):
    whole_run(source, output, "run-1", rows_per_shard=1)
    _, manifest = second_run(source, output, rows_per_file=100)
    assert [file.rows for file in manifest.files] == [5]
    assert manifest.files[0].file.startswith("runs/run-2/data/carried-")
    assert rows(output).keys() == {info.uri for info in source.list()}


def test_carried_files_survive_a_restart(source, output):
    whole_run(source, output, "run-1")
    _, manifest = second_run(source, output)
    assert load_carried(output, "run-2") == manifest.files
    assert load_carried(output, "run-1") == []


def test_a_listing_that_was_interrupted_carries_each_row_once(output):
    """Two hundred old rows of which a third changed; the listing breaks at two places behind its first file."""
    old = [listed(f"{number:03d}", "old") for number in range(200)]
    new = [listed(info.key, "new" if number % 3 == 0 else "old") for number, info in enumerate(old)]
    publish_rows(output, "run-1", old, rows_per_file=30)
    for place in (64, 150):
        run_id = f"run-2-{place}"
        source = Broken(new, new[place].key)
        with pytest.raises(StorageError, match="the connection broke"):
            write_manifest(source, output, run_id, ListingOptions(rows_per_shard=1), carrier=carrier_of(output))
        summary = write_manifest(source, output, run_id, ListingOptions(rows_per_shard=1), carrier=carrier_of(output))
        assert (summary.num_objects, summary.num_carried) == (67, 133)
        for shard in range(summary.num_shards):
            score_shard(output, run_id, shard)
        carried = load_carried(output, run_id)
        publish_run(output, run_id, num_shards=summary.num_shards, config_hash=HASH, carried=carried)
        table = read_report(output.url, run_id).to_table(columns=["uri", "etag"])
        assert sorted(table["uri"].to_pylist()) == [info.uri for info in new]
        assert Counter(table["etag"].to_pylist()) == {"old": 133, "new": 67}


def test_files_are_open_only_while_the_listing_is_in_their_span(output):
    old = [listed(f"{number:03d}", "e") for number in range(100)]
    publish_rows(output, "run-1", old, rows_per_file=10)
    carrier = carrier_of(output)
    most = 0
    for info in old:
        assert carrier.find(info) is Found.VALID
        most = max(most, len(carrier._open))
    assert most == 1


def test_what_the_last_run_says_of_an_object(source, output):
    whole_run(source, output, "run-1", codes={"a/2-bad.png": ErrorCode.READ_TIMEOUT})
    one, two, three, *_ = source.list()
    carrier = carrier_of(output)
    assert carrier.find(one) is Found.VALID
    assert carrier.find(two) is Found.AGAIN
    assert carrier.find(replace(three, etag="other")) is Found.CHANGED
    assert carrier.find(replace(three, uri=three.uri + "x")) is None
    assert carrier_of(output).find(replace(one, etag="")) is Found.CHANGED  # nothing says that it is the same


def test_since_leaves_out_only_what_has_no_row(source, output):
    whole_run(source, output, "run-1", codes={"c.txt": ErrorCode.READ_TIMEOUT})
    source.put("new.png", b"new")
    options = ListingOptions(newer_than=datetime(2100, 1, 1, tzinfo=UTC))
    summary = write_manifest(source, output, "run-2", options, carrier=carrier_of(output))
    assert (summary.num_objects, summary.num_carried, summary.num_older) == (1, 4, 1)
    assert [info.key for info in read_manifest_shard(output, "run-2", 0)] == ["c.txt"]


def test_a_file_of_the_last_run_that_is_gone_is_named(source, output):
    _, manifest = whole_run(source, output, "run-1")
    output.delete(manifest.files[0].file)
    with pytest.raises(StorageError, match=f"can't read .*{manifest.files[0].file} of the last run"):
        carrier_of(output)


def test_an_empty_last_run_carries_nothing(source, output, tmp_path):
    listed = list(source.list())
    for info in listed:
        source.delete(info.key)
    whole_run(source, output, "run-1")
    source.put("a.png", b"1")
    summary, _ = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (1, 0)
