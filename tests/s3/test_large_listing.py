"""A large bucket is listed once, in order, in bounded memory, whatever its keys and however its pages repeat."""

import json
import os
import subprocess
import sys

import pytest

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
    "count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
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
