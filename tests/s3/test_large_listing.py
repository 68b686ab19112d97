"""A large bucket is listed once, in order, in bounded memory, whatever its keys and however its pages repeat."""

import json
import os
import subprocess
import sys

import pytest
import s3fs

from zsad.storage import open_store, s3_listing
from zsad.storage import s3 as storage_s3

from .list_server import BUCKET, ODD_KEYS, list_server, regular_keys

MOST_GROWTH_MB = 100
# Runs in a process of its own, whose memory is only the listing's.
LIST = """
import json, resource, sys
from zsad.report.manifest import ListingOptions, iter_listing, read_manifest_shard, write_manifest
from zsad.storage import open_store, retry, s3
s3.POLICY = retry.RetryPolicy(base_s=0.001)
source, output = open_store("s3://%s"), open_store(sys.argv[1])
next(iter_listing(source, ListingOptions()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
summary = write_manifest(source, output, "r", ListingOptions(rows_per_shard=64))
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
keys = [info.key for shard in range(summary.num_shards) for info in read_manifest_shard(output, "r", shard)]
json.dump({"growth_mb": growth, "num_objects": summary.num_objects, "num_bytes": summary.num_bytes}, sys.stdout)
open(sys.argv[2], "w").write(json.dumps(keys))
"""


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])]
)
def test_each_key_is_listed_once_and_in_order(count, tmp_path):
    with list_server(count, has_faults=True) as env:
        done = subprocess.run(
            [sys.executable, "-c", LIST % BUCKET, str(tmp_path / "report"), str(tmp_path / "keys.json")],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    expected = sorted([*regular_keys(count), *ODD_KEYS])
    assert json.loads((tmp_path / "keys.json").read_text()) == expected
    told = json.loads(done.stdout)
    assert (told["num_objects"], told["num_bytes"]) == (len(expected), 5 * len(expected) - 5)
    assert told["growth_mb"] <= MOST_GROWTH_MB


@pytest.mark.s3
def test_the_real_server_is_listed_in_ranges_too(s3, monkeypatch):
    store = open_store(s3.new_bucket() + "/in put")
    keys = [f"{line}/cam {number}/{place}.jpg" for line in "ab" for number in (1, 2) for place in range(3)]
    keys = sorted([*keys, "a", "b/größe 🔩.jpg", "line1/../x", "trailing/", "z" * 1000])
    for key in keys:
        s3fs.S3FileSystem().call_s3("put_object", Bucket=store.bucket, Key=store.root + key, Body=b"x")
    monkeypatch.setattr(storage_s3, "KEYS_PER_PAGE", 2)
    monkeypatch.setattr(s3_listing, "SEQUENTIAL_PAGES", 1)
    assert s3_listing.split_points(store.list_folders, "", "a")  # so that it is cut
    assert [info.key for info in store.list()] == keys
    assert [info.key for info in store.list("b/", "b/cam 1/0.jpg")] == [
        key for key in keys if key.startswith("b/") and key > "b/cam 1/0.jpg"
    ]
