"""A whole run on a real S3 server: list, commit, publish, read."""

import pytest

from zsad.errors import CommitConflict, ErrorCode
from zsad.report import read_report
from zsad.report.lease import acquire_lease
from zsad.report.ledger import commit_shard, find_unfinished_run, write_shard_data
from zsad.report.manifest import ListingOptions, read_manifest_shard, write_manifest
from zsad.report.publish import publish_run
from zsad.report.schema import RunStamp, error_row, rows_to_table
from zsad.storage import open_store

pytestmark = pytest.mark.s3


def test_a_run_on_s3_is_published_once_and_whole(s3):
    source, output = open_store(s3.new_bucket()), open_store(s3.new_bucket() + "/reports/line 1")
    keys = [f"cam/{number}.png" for number in range(5)]
    for key in keys:
        source.put(key, key.encode())
    assert find_unfinished_run(output) is None
    with acquire_lease(output, "r") as lease:
        with pytest.raises(CommitConflict):
            acquire_lease(output, "r")
        summary = write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
        for shard in range(summary.num_shards):
            stamp = RunStamp(run_id="r", config_hash="h")
            objects = read_manifest_shard(output, "r", shard)
            table = rows_to_table([error_row(stamp, info, ErrorCode.EMPTY, "") for info in objects])
            first = write_shard_data(output, "r", shard, table, hash_="h", fence=lease.number)
            second = write_shard_data(output, "r", shard, table, hash_="h", fence=lease.number)
            assert commit_shard(output, "r", first) == first
            assert commit_shard(output, "r", second) == first
        for _ in range(2):
            publish_run(output, "r", num_shards=summary.num_shards, config_hash="h")
    found = read_report(output.url).to_table(columns=["uri"])["uri"].to_pylist()
    assert sorted(found) == [source.uri(key) for key in keys]
