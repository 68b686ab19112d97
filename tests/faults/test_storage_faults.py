"""Storage that throttles, breaks off, goes silent, refuses or runs full, in front of the real S3 server."""

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import plain_run
import pytest
import s3fs
from fault_proxy import seeded
from fault_table import IS_FULL, seed, size
from job_runs import Job, objects
from plain_run import PlainRun, run, score

from zsad.errors import ErrorCode, StorageError
from zsad.report import ledger, read_report
from zsad.scoring import fetched
from zsad.storage import counters, open_store, retry, s3

pytestmark = pytest.mark.s3

NUM_IMAGES = size(60, 2000)
RUN_ID = "20260301T000000Z-test"


@pytest.fixture(scope="module")
def bucket(s3):
    """A bucket of pictures."""
    url = s3.new_bucket()
    store = open_store(url)
    for key, data in objects(NUM_IMAGES):
        store.put(key, data)
    return url


@pytest.fixture
def small_store(s3):
    """A store of 40 small objects, written without faults."""
    store = open_store(s3.new_bucket())
    for number in range(40):
        store.put(f"{number:02d}", b"%d" % number * 500)
    return store


def job_on(local_ray, proxy, source, folder):
    env = {"AWS_ENDPOINT_URL": proxy.url}
    return Job(local_ray, source, folder / "report", folder, env=env, shard_rows=size(20, 100))


def finished(job):
    """Seconds of a job that must end with 0."""
    code, said = job.finish()
    assert code == 0, said
    return time.time() - job.began_s


# S1


@pytest.mark.ray
@pytest.mark.slow
def test_throttles_and_broken_connections_cost_no_row(local_ray, faulty_s3, bucket, tmp_path, table):
    with job_on(local_ray, faulty_s3, bucket, tmp_path / "clean") as job:
        clean_s = finished(job)
    faulty_s3.restart(seeded(seed(2), {"slow_down": 0.2, "hidden": 0.05, "reset": 0.02}))
    with job_on(local_ray, faulty_s3, bucket, tmp_path / "faulty") as job:
        faulty_s = finished(job)
    rows = read_report(job.output).to_table().to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * NUM_IMAGES
    faults = faulty_s3.num_faults()
    assert set(faults) == {"slow_down", "hidden", "reset"}
    assert faults["slow_down"] > 0.1 * NUM_IMAGES
    store = open_store(job.output)
    records = ledger.load_shard_records(store, ledger.latest_published(store))
    counted = [sum(record.stats[name] for record in records) for name in ("retries", "throttles")]
    assert counted == [faults.total(), faults["slow_down"] + faults["hidden"]]
    assert faulty_s <= 3 * clean_s or not IS_FULL
    gaps = gaps_after_faults(faulty_s3.requests)
    # First waits are spread over [0, base_s], their median is base_s / 2; a machine's slowness lies on all gaps alike.
    assert statistics.median(gaps) - min(gaps) > 0.3 * retry.RetryPolicy().base_s
    assert statistics.pstdev(gaps) > 0.02  # no two come back together
    table.add("S1", "20 % of GETs SlowDown, 5 % SlowDown inside 200, 2 % reset mid-body", f"{NUM_IMAGES:,} images, Ray",
              f"{NUM_IMAGES:,} rows ok; {counted[0]} retries and {counted[1]} throttles counted, as many as the proxy "
              f"made; {faulty_s:.0f} s, clean {clean_s:.0f} s")  # fmt: skip


def gaps_after_faults(requests):
    """Seconds from each spoiled request to the next one for the same object."""
    by_path = defaultdict(list)
    for request, fault in requests:
        by_path[request.method, request.path].append((request.at_s, fault))
    return [later - at_s for seen in by_path.values() for (at_s, fault), (later, _) in pairwise(seen) if fault]


@pytest.mark.slow
def test_a_report_is_read_and_carried_through_throttles_and_broken_connections(faulty_s3, s3, tmp_path, table):
    """Arrow reads it, which passes our retries by."""
    num_files = size(24, 400)
    images, output = tmp_path / "images", s3.new_bucket() + "/report"
    images.mkdir()
    for number in range(2 * num_files):
        (images / f"{number:04d}.jpg").write_bytes(b"%d" % number)
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    plan = PlainRun(source=str(images), output=output, acks=tmp_path / "acks", rows_per_shard=2, env=env)
    assert run(replace(plan, run_id=RUN_ID), timeout_s=300) == 0
    expected = [(info.uri, score(info.etag), RUN_ID) for info in open_store(str(images)).list()]
    faulty_s3.restart(seeded(seed(6), {"slow_down": 0.2, "hidden": 0.05, "reset": 0.05}))
    assert rows_of(output) == expected
    num_read = spoiled_data_files(faulty_s3)
    assert num_read > 0
    assert run(replace(plan, run_id="20260302T000000Z-test"), timeout_s=300) == 0
    num_carried = spoiled_data_files(faulty_s3) - num_read
    assert num_carried > 0
    faulty_s3.restart()
    assert rows_of(output) == expected  # rows of the first run, carried by the second
    table.add("S1", "20 % of GETs SlowDown, 5 % SlowDown inside 200, 5 % reset mid-body, through Arrow",
              f"a report of {num_files} files, plain process",
              f"read_report and the next run's comparison end well; {num_read} and {num_carried} of their reads of "
              "data files were spoiled and repeated")  # fmt: skip


def rows_of(output):
    """Uri, score and run of each row of the latest run, by uri."""
    table = read_report(output).to_table(columns=["uri", "score", "run_id"])
    return sorted(tuple(row.values()) for row in table.to_pylist())


def spoiled_data_files(proxy):
    """How many reads of Parquet data files it spoiled."""
    return sum(fault is not None for request, fault in proxy.requests if "/data/" in request.path)


# S2


def test_an_outage_is_waited_out_with_few_requests(faulty_s3, small_store, table):
    outage_s = size(5, 30)
    began_s = time.monotonic()
    faulty_s3.restart(lambda request: "slow_down" if request.at_s < began_s + outage_s else None)
    before = counters.snapshot()
    keys = [(f"{number:02d}", None) for number in range(40)]
    found = list(fetched(small_store, keys, 10_000))
    assert found == [b"%d" % number * 500 for number in range(40)]
    during = [request.at_s - began_s for request, fault in faulty_s3.requests if fault]
    per_second = [sum(second <= at_s < second + 1 for at_s in during) for second in range(outage_s)]
    assert sum(per_second) / outage_s <= 10
    assert max(per_second[1:]) <= 10
    assert (counters.snapshot() - before).throttles == len(during)
    table.add("S2", f"every request answered 503 for {outage_s} s", "40 objects, 8 threads, one process",
              f"all read; {sum(per_second) / outage_s:.1f} requests/s on average, {per_second[0]} in the first second, "
              f"at most {max(per_second[1:])} in any later one")  # fmt: skip


# S3


@pytest.mark.ray
@pytest.mark.slow
def test_what_can_not_be_read_is_asked_for_once_and_coded(local_ray, faulty_s3, s3, tmp_path, table):
    url = s3.new_bucket()
    store, direct = open_store(url), s3fs.S3FileSystem(endpoint_url=s3.env["AWS_ENDPOINT_URL"])
    for key, data in objects(20):
        store.put(key, data)
    faulty_s3.restart()
    bucket_path = url.removeprefix("s3:/")

    def script(request):
        if request.is_object_get and request.number == 0:
            if request.path == f"{bucket_path}/00001.jpg":
                direct.rm_file(request.path.lstrip("/"))
            if request.path == f"{bucket_path}/00002.jpg":
                direct.pipe_file(request.path.lstrip("/"), b"other content")
        names = {f"{bucket_path}/00003.jpg": "forbidden", f"{bucket_path}/00004.jpg": "missing"}
        return names.get(request.path) if request.is_object_get else None

    faulty_s3.script = script
    with job_on(local_ray, faulty_s3, url, tmp_path) as job:
        code, said = job.finish()
    assert code == 6, said  # 4 of 20 are above the error budget of 5 %
    store = open_store(job.output)
    (run_id,) = store.list_folders("runs/")
    examples = ledger.read_json(store, f"runs/{run_id}/partial.json")["error_examples"]
    assert {code: sorted(uri[-9:] for uri in uris) for code, uris in examples.items()} == {
        "missing": ["00001.jpg", "00004.jpg"],
        "changed": ["00002.jpg"],
        "forbidden": ["00003.jpg"],
    }
    gets = [request.path[-9:] for request, _ in faulty_s3.requests if request.is_object_get]
    assert sorted(gets) == [f"{number:05d}.jpg" for number in range(20)]
    table.add("S3", "403; 404; deleted, or overwritten, between listing and reading", "20 objects, Ray",
              "codes forbidden, missing, missing, changed; one GET each")  # fmt: skip


# S4


def test_a_short_body_is_never_content(faulty_s3, small_store, monkeypatch, table):
    faulty_s3.restart(lambda request: "short" if request.number < 2 else None)
    assert small_store.get("07", max_bytes=10_000) == b"7" * 500
    assert len(faulty_s3.requests) == 3
    monkeypatch.setattr(s3, "POLICY", retry.RetryPolicy(give_up_after_s=1))
    faulty_s3.restart(lambda request: ["short", "reset"][request.number % 2])
    with pytest.raises(StorageError) as caught:
        small_store.get("07", max_bytes=10_000)
    assert caught.value.code == ErrorCode.READ_ERROR
    table.add("S4", "bodies shorter than their Content-Length", "1 object",
              "read again until whole; read_error when it never is; never a part")  # fmt: skip


def test_a_server_that_never_answers_is_given_up(faulty_s3, small_store, monkeypatch, table):
    limit_s = size(1, 10)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", float(limit_s))
    monkeypatch.setenv("AWS_ZSAD_TEST", "a pool with this time limit")
    faulty_s3.restart(lambda request: "silent" if request.number == 0 else None)
    began_s = time.monotonic()
    assert small_store.get("07", max_bytes=10_000) == b"7" * 500
    first_s = time.monotonic() - began_s
    assert limit_s <= first_s
    assert first_s <= limit_s + 3 or not IS_FULL
    monkeypatch.setattr(s3, "POLICY", retry.RetryPolicy(give_up_after_s=1.5 * limit_s))
    faulty_s3.restart(lambda _request: "silent")
    with pytest.raises(StorageError) as caught:
        small_store.get("07", max_bytes=10_000)
    assert caught.value.code == ErrorCode.READ_TIMEOUT
    table.add("S4", "the server takes a request and never answers", f"time limit {limit_s} s",
              f"read in {first_s:.1f} s when the second try is answered; else read_timeout")  # fmt: skip


# S5


def test_puts_that_fail_or_lose_their_answer_are_repeated_without_harm(faulty_s3, s3, tmp_path, table):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(100):
        (images / f"{number:03d}.jpg").write_bytes(b"%d" % number)
    output = s3.new_bucket() + "/report"
    faulty_s3.restart(seeded(seed(5), {"failed": 0.2, "lost": 0.1}, method="PUT"))
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    plan = PlainRun(source=str(images), output=output, acks=tmp_path / "acks", rows_per_shard=size(20, 5), env=env)
    assert run(replace(plan, run_id=RUN_ID), timeout_s=200) == 0
    faults = faulty_s3.num_faults()
    assert faults["failed"] > 0
    assert faults["lost"] > 0
    rows = sorted(read_report(output).to_table().to_pylist(), key=lambda row: row["uri"])
    assert [row["score"] for row in rows] == [score(info.etag) for info in open_store(str(images)).list()]
    table.add("S5", "20 % of PUTs fail, 10 % succeed but lose their answer", "100 rows, plain process",
              f"{faults.total()} repeated, one row each; a lost put-if-absent knows its own object")  # fmt: skip


def test_a_full_disk_ends_the_run_with_4_the_path_and_nothing_published(tmp_path, table):
    images, output = tmp_path / "images", tmp_path / "small"
    images.mkdir()
    output.mkdir()
    for number in range(100):
        (images / f"{number:03d}.jpg").write_bytes(hashlib.sha256(b"%d" % number).digest())
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1" || exit 99; "$2" "$3" "$4" "$1/report" "$5"; code=$?; '
        'find "$1" -name published; exit $code'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(output), sys.executable]
    try:
        done = subprocess.run(
            [*command, str(Path(plain_run.__file__)), str(images), str(tmp_path / "acks")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("needs util-linux's unshare to mount a small disk")
    if done.returncode in (1, 99) and "exit" not in done.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 4, done.stderr
    assert f"exit 4: can't write {output}/report/" in done.stderr
    assert "the disk is full: free space or choose another output" in done.stderr
    assert done.stdout == ""
    table.add("S5", "the output's disk fills up (tmpfs of 64 kB)", "100 rows, plain process",
              "exit 4 with the path and what to do; nothing published")  # fmt: skip
