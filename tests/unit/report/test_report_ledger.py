"""Shards are committed once, by record; runs know what they were started with."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from report_helpers import CONFIG, HASH, score_shard, start_run, whole_run

from zsad.errors import ErrorCode, StorageError
from zsad.report.ledger import (
    ShardRecord,
    canonical_json,
    committed_shards,
    config_hash,
    diff_fields,
    find_unfinished_run,
    latest_published,
    load_run_state,
    load_shard_records,
    read_json,
)
from zsad.report.manifest import ListingOptions, write_manifest
from zsad.report.publish import write_partial


def test_config_hash_does_not_depend_on_the_order_of_keys():
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert canonical_json({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'


def test_config_hash_is_sha256_of_the_json():
    # printf '{"a":1}' | sha256sum
    assert config_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_diff_names_nested_missing_and_changed_fields():
    old = {"same": 1, "decode": {"max_pixels": 1, "min": 2}, "gone": None}
    new = {"same": 1, "decode": {"max_pixels": 9, "min": 2}, "added": 0}
    assert diff_fields(old, new) == ["added", "decode.max_pixels", "gone"]
    assert diff_fields(old, old) == []


def test_a_run_keeps_the_state_it_was_started_with(source, output):
    first = start_run(output, "r", source)
    assert start_run(output, "r", output) == first
    assert load_run_state(output, "r") == first
    assert load_run_state(output, "r").config == CONFIG
    assert load_run_state(output, "other") is None


def test_a_shard_record_counts_its_rows(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=5))
    record = score_shard(output, "r", 0, codes={"c.txt": ErrorCode.UNKNOWN_FORMAT}, fence=7)
    assert (record.rows, record.ok, record.errors, record.anomalies, record.fence) == (5, 4, 1, 1, 7)
    assert record.error_counts == {"unknown_format": 1}
    assert record.error_examples == {"unknown_format": [source.uri("c.txt")]}
    assert record.file.startswith("runs/r/data/00000000-7-")
    assert load_shard_records(output, "r") == [record]


def test_of_many_attempts_one_commits_and_the_others_learn_which(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=5))
    with ThreadPoolExecutor(6) as threads:
        records = list(threads.map(lambda fence: score_shard(output, "r", 0, fence=fence), range(6)))
    assert all(record == records[0] for record in records)
    assert len(list(output.list("runs/r/data/"))) == 6
    assert output.exists(records[0].file)


def test_committed_shards_are_those_with_a_record(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
    assert committed_shards(output, "r") == set()
    score_shard(output, "r", 2)
    score_shard(output, "r", 0)
    assert committed_shards(output, "r") == {0, 2}
    assert [record.shard for record in load_shard_records(output, "r")] == [0, 2]


def test_unfinished_run_is_the_latest_that_is_neither_published_nor_given_up(source, output):
    assert find_unfinished_run(output) is None
    start_run(output, "run-1", source)
    assert find_unfinished_run(output) == "run-1"
    whole_run(source, output, "run-2")
    assert latest_published(output) == "run-2"
    assert find_unfinished_run(output) is None
    start_run(output, "run-3", source)
    start_run(output, "run-4", source)
    assert find_unfinished_run(output) == "run-4"
    write_partial(output, "run-4", [], "too many")
    assert find_unfinished_run(output) == "run-3"


def test_a_folder_without_state_is_no_run(output):
    output.put("runs/run-9/data/x.parquet", b"")
    assert find_unfinished_run(output) is None


def test_a_broken_json_names_its_object(output):
    output.put("x.json", b"{")
    with pytest.raises(StorageError, match=r"x\.json is not valid JSON"):
        read_json(output, "x.json")
    output.put("x.json", b"[]")
    with pytest.raises(StorageError, match=r"x\.json is no JSON object"):
        read_json(output, "x.json")


def test_records_are_readable_json(source, output):
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=5))
    record = score_shard(output, "r", 0)
    found = json.loads(output.get("runs/r/shards/00000000.json", max_bytes=10_000))
    assert ShardRecord(**found) == record
    assert found["config_hash"] == HASH
