"""A run is visible whole or not at all, and publishing twice changes nothing."""

import pytest
from report_helpers import HASH, score_shard, start_run, whole_run

from zsad.errors import CommitConflict, ConfigError, ErrorCode, StorageError
from zsad.report import read_report
from zsad.report.ledger import load_shard_records
from zsad.report.manifest import ListingOptions, write_manifest
from zsad.report.publish import (
    build_manifest,
    error_share,
    load_run_manifest,
    publish_run,
    write_partial,
    write_pointer,
    write_run_manifest,
)


def published_uris(output, run_id=None):
    return sorted(read_report(output.url, run_id).to_table(columns=["uri"])["uri"].to_pylist())


def everything(store):
    return {info.key: store.get(info.key, max_bytes=10**6) for info in store.list()}


def test_a_published_run_has_one_row_for_each_listed_object(source, output):
    _, manifest = whole_run(source, output, "run-1", codes={"c.txt": ErrorCode.UNKNOWN_FORMAT})
    assert published_uris(output) == [info.uri for info in source.list()]
    assert manifest.totals == {"rows": 5, "ok": 4, "errors": 1, "anomalies": 1}
    assert manifest.error_counts == {"unknown_format": 1}
    assert load_run_manifest(output, "run-1") == manifest


def test_a_run_with_a_missing_shard_is_not_published(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
    score_shard(output, "r", 0)
    with pytest.raises(StorageError, match="no record of 2 shards, first 1"):
        publish_run(output, "r", num_shards=3, config_hash=HASH)
    with pytest.raises(ConfigError, match="nothing is published"):
        read_report(output.url)


def test_shards_of_another_configuration_are_never_mixed_in(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=5))
    score_shard(output, "r", 0)
    with pytest.raises(CommitConflict, match="shard 0 of run r"):
        publish_run(output, "r", num_shards=1, config_hash="other")


def test_publishing_again_changes_nothing(source, output):
    summary, _ = whole_run(source, output, "r")
    before = everything(output)
    publish_run(output, "r", num_shards=summary.num_shards, config_hash=HASH)
    assert everything(output) == before


def test_readers_see_the_previous_run_until_the_pointer_is_there(source, output):
    whole_run(source, output, "run-1")
    source.put("new.png", b"new")
    start_run(output, "run-2", source)
    write_manifest(source, output, "run-2", ListingOptions(rows_per_shard=10))
    assert len(published_uris(output)) == 5
    score_shard(output, "run-2", 0)
    assert len(published_uris(output)) == 5
    manifest = build_manifest("run-2", load_shard_records(output, "run-2"), num_shards=1, config_hash=HASH)
    write_run_manifest(output, manifest)
    assert len(published_uris(output)) == 5
    assert write_pointer(output, "run-2")
    assert len(published_uris(output)) == 6
    assert not write_pointer(output, "run-2")


def test_late_files_and_records_of_a_zombie_are_not_visible(source, output):
    whole_run(source, output, "r", rows_per_shard=5)
    before = read_report(output.url).to_table().sort_by("uri")
    score_shard(output, "r", 0, codes={"a/1.png": ErrorCode.MODEL}, fence=0)
    output.put("runs/r/data/00000000-torn.parquet", b"PAR1 torn")
    assert read_report(output.url).to_table().sort_by("uri").equals(before)


def test_another_manifest_of_the_same_run_is_a_conflict(source, output):
    whole_run(source, output, "r")
    other = build_manifest("r", [], num_shards=0, config_hash=HASH)
    with pytest.raises(CommitConflict, match="other content"):
        write_run_manifest(output, other)


def test_partial_has_counts_and_examples(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=5))
    codes = dict.fromkeys(("a/1.png", "a/2-bad.png", "b/1.png", "b/2.png"), ErrorCode.FORBIDDEN)
    record = score_shard(output, "r", 0, codes=codes)
    found = write_partial(output, "r", [record], "80 % of the images failed")
    assert (found["rows"], found["errors"]) == (5, 4)
    assert found["error_counts"] == {"forbidden": 4}
    assert found["error_examples"] == {"forbidden": [source.uri(key) for key in list(codes)[:3]]}
    assert output.exists("runs/r/partial.json")
    assert error_share(record.error_counts, record.rows) == 0.8
    assert error_share({}, 0) == 0
