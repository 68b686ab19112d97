"""The main job from one S3 bucket to another: the same rows as from a local folder, clear ends without access."""

import pytest
import s3fs
from batch_runs import (
    BAD,
    PLACE_COLUMNS,
    RUN_COLUMNS,
    config_for,
    keys_of,
    last_line,
    map_bytes,
    rows_by_key,
    run_job,
    without,
)

import zsad
from zsad.distributed.batch import score_bucket
from zsad.storage import open_store

pytestmark = [pytest.mark.s3, pytest.mark.ray]


@pytest.fixture(scope="module")
def s3_bucket(s3, bucket):
    """The local bucket's files under a prefix with a space, in a bucket of the S3 server."""
    url = s3.new_bucket() + "/night shift"
    store = open_store(url)
    for key in keys_of(bucket):
        store.put(key, (bucket / key).read_bytes())
    return url


@pytest.fixture(scope="module")
def report(s3, s3_bucket, scored):
    """URL of a report of the whole bucket; `scored` has started Ray."""
    output = s3.new_bucket() + "/reports"
    score_bucket(config_for(s3_bucket, output, partition="{line}/{camera}/"))
    return output


def test_rows_are_those_of_the_local_run(report, s3_bucket, scored):
    rows, expected = rows_by_key(s3_bucket, report), scored.rows
    dropped = RUN_COLUMNS | PLACE_COLUMNS
    assert sorted(rows) == sorted(expected)
    for key, row in rows.items():
        assert without(row, dropped) == without(expected[key], dropped)
        assert row["uri"] == f"{s3_bucket}/{key}"


def test_maps_lie_in_the_output_with_the_same_bytes(report, s3_bucket, scored):
    output, expected = open_store(report), scored.rows
    for key, row in rows_by_key(s3_bucket, report).items():
        assert (row["map_uri"] is None) == (expected[key]["map_uri"] is None)
        if row["map_uri"]:
            assert output.get(output.key(row["map_uri"]), max_bytes=2**20) == map_bytes(expected[key])


def test_the_report_opens_by_its_url(report, s3_bucket):
    report_of_all = zsad.read_report(report)
    assert report_of_all.count_rows() == len(rows_by_key(s3_bucket, report))
    codes = report_of_all.to_table(columns=["error_code"])["error_code"].drop_null()
    assert sorted(codes.to_pylist()) == sorted(BAD.values())


@pytest.mark.parametrize(
    ("env", "suffix"), [({"AWS_SECRET_ACCESS_KEY": "wrong"}, ""), ({}, "-that-is-not-there")], ids=["secret", "bucket"]
)
def test_without_access_the_job_ends_with_4_and_writes_nothing(s3, s3_bucket, env, suffix):
    bucket_url, _, prefix = s3_bucket.removeprefix("s3://").partition("/")
    output = s3.new_bucket()
    done = run_job("--input", f"s3://{bucket_url}{suffix}/{prefix}", "--output", output, **env)
    assert done.returncode == 4, done.stderr
    assert "exit 4: " in last_line(done.stderr)
    assert bucket_url in last_line(done.stderr)
    assert "wrong" not in done.stderr
    s3fs.S3FileSystem.clear_instance_cache()
    assert s3fs.S3FileSystem().ls(output) == []


def test_an_output_bucket_that_is_not_there_is_4(s3, s3_bucket):
    output = s3.new_bucket() + "-that-is-not-there"
    done = run_job("--input", s3_bucket, "--output", output)
    assert done.returncode == 4, done.stderr
    assert "exit 4: " in last_line(done.stderr)
    assert output.removeprefix("s3://") in last_line(done.stderr)
