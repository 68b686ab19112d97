"""Kill, stop and double the driver at every step of a commit: readers see whole runs, and no row is lost or doubled.

The drivers are plain processes (`plain_run`), so that hundreds can be killed; `test_job_faults` does it through Ray.
"""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fault_table import IS_FULL, seed, size
from plain_run import PlainRun, finish, run, score, start

from zsad import failpoints
from zsad.batch_config import BatchConfig
from zsad.distributed import batch
from zsad.errors import ConfigError
from zsad.images import DecodeLimits
from zsad.report import ledger, read_report
from zsad.report.lease import LeaseTimes
from zsad.report.publish import load_run_manifest
from zsad.storage import open_store

NUM_IMAGES = size(100, 200)
ROWS_PER_SHARD = NUM_IMAGES // 10
RUN_ID = "20260301T000000Z-test"
QUICK = LeaseTimes(heartbeat_s=0.2, stale_after_s=0.6)


@pytest.fixture
def images(tmp_path):
    """A folder of small different files; nobody decodes them here."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number:04d}.jpg").write_bytes(b"%d" % number * (1 + number % 7))
    return folder


@pytest.fixture
def plan(images, tmp_path):
    return PlainRun(
        source=str(images),
        output=str(tmp_path / "report"),
        acks=tmp_path / "acks",
        rows_per_shard=ROWS_PER_SHARD,
        times=QUICK,
    )


def rows_of(plan, run_id=None):
    """Rows of a published run, sorted; None when nothing is published."""
    try:
        return sorted(read_report(plan.output, run_id).to_table().to_pylist(), key=lambda row: row["uri"])
    except ConfigError:
        return None


def check_complete(plan):
    """Every object of the source is one row, scored from its own content."""
    rows = rows_of(plan)
    listed = list(open_store(plan.source).list())
    assert [row["uri"] for row in rows] == [info.uri for info in listed]
    assert [row["score"] for row in rows] == [score(info.etag) for info in listed]
    return rows


def failing(plan, tmp_path, rule):
    """The plan with a failpoint, and the folder in which it leaves word."""
    folder = tmp_path / "reached"
    folder.mkdir(exist_ok=True)
    env = {failpoints.VARIABLE: rule, failpoints.FOLDER_VARIABLE: str(folder)}
    return replace(plan, env=env), folder


# R4


@pytest.mark.parametrize("has_previous", [False, True], ids=["first run", "second run"])
def test_a_driver_killed_at_any_step_leaves_no_half_run(plan, images, tmp_path, has_previous, table):
    previous = None
    if has_previous:
        assert run(plan) == 0
        previous = rows_of(plan)
        (images / "0007.jpg").write_bytes(b"changed")
    pristine = Path(plan.output)
    for point in (f"{side}-{step}" for step in failpoints.COMMIT_STEPS for side in ("before", "after")):
        output = tmp_path / point
        if has_previous:
            _copy(pristine, output)
        one = replace(plan, output=str(output))
        times = "@3" if point.endswith(("data", "record")) and not has_previous else ""
        failing_one, folder = failing(one, tmp_path, f"{point}=kill{times}")
        assert run(failing_one) == -signal.SIGKILL
        assert (folder / f"{point}.1").exists()
        if point == "after-pointer":
            check_complete(one)
        else:
            assert rows_of(one) == previous
        assert run(one) == 0
        check_complete(one)
        (folder / f"{point}.1").unlink()
    kind = "a run over a published one" if has_previous else "a first run"
    table.add("R4", f"SIGKILL before and after each of 5 commit steps, {kind}", f"10 points, {NUM_IMAGES} rows",
              "reader before restart: no run or the whole previous one; after restart: complete")  # fmt: skip


def _copy(source, target):
    """Copy an output; its reports name files by keys, so they open anywhere."""
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(path.read_bytes())


# R5


@pytest.mark.parametrize("run_id", [RUN_ID, ""], ids=["one run id", "ids of their own"])
def test_of_two_drivers_one_publishes_and_the_other_ends_with_3(plan, table, run_id):
    plan = replace(plan, run_id=run_id, times=LeaseTimes())
    slow = replace(plan, env={failpoints.VARIABLE: "before-record=wait:0.2"})
    num_rounds, slowest_s = size(2, 20), 0.0
    assert run(replace(plan, output=f"{plan.output}-first")) == 0  # the fork server has imported everything
    for number in range(num_rounds):
        one = replace(slow, output=f"{plan.output}-{number}")
        began_s = time.monotonic()
        processes = [start(one), start(one)]
        codes = []
        for process in processes:
            process.join(10)
            if process.exitcode is not None and process.exitcode == 3:
                slowest_s = max(slowest_s, time.monotonic() - began_s)
            codes.append(finish(process))
        assert sorted(codes) == [0, 3]
        check_complete(one)
        store = open_store(one.output)
        (only,) = store.list_folders("runs/")
        assert ledger.latest_published(store) == only
        assert only == RUN_ID or not run_id
        assert len({record.config_hash for record in ledger.load_shard_records(store, only)}) == 1
    assert slowest_s < 10 or not IS_FULL
    which = "one run id" if run_id else "each its own run id"
    table.add("R5", f"two drivers at once, {which} (plain processes)", f"{num_rounds} races",
              f"exit codes 0 and 3 each time, the loser within {slowest_s:.1f} s; one config hash")  # fmt: skip


def test_two_drivers_of_one_run_id_with_different_settings_never_mix(plan):
    plan = replace(plan, run_id=RUN_ID, times=LeaseTimes())
    for number in range(size(2, 10)):
        one = replace(plan, output=f"{plan.output}-{number}")
        processes = [start(one), start(replace(one, fingerprint="other settings"))]
        codes = sorted(finish(process) for process in processes)
        assert codes in ([0, 2], [0, 3])
        check_complete(one)
        store = open_store(one.output)
        state = ledger.load_run_state(store, RUN_ID)
        assert {r.config_hash for r in ledger.load_shard_records(store, RUN_ID)} == {state.config_hash}


# R6


def test_a_driver_that_sleeps_past_its_lease_changes_nothing_when_it_wakes(plan, tmp_path, table):
    plan = replace(plan, run_id=RUN_ID)
    past_s = size(1, 30)
    sleeping, folder = failing(plan, tmp_path, "before-record=stop@4*1")
    zombie = start(sleeping)
    _wait_for((folder / "before-record.1").exists)
    time.sleep(QUICK.stale_after_s + past_s)
    assert run(plan) == 0
    before = check_complete(plan)
    files = {path: path.read_bytes() for path in Path(plan.output).rglob("*.json") if "lease" not in path.parts}
    os.kill(zombie.pid, signal.SIGCONT)
    assert finish(zombie) == 3
    assert rows_of(plan) == before
    assert {path: path.read_bytes() for path in files} == files
    store = open_store(plan.output)
    named = {file.file for file in load_run_manifest(store, RUN_ID).files}
    written = {info.key for info in store.list(f"runs/{RUN_ID}/data/")}
    assert len(written - named) == 7  # shards 4 to 10 of the sleeper: written late, never visible
    assert {record.fence for record in ledger.load_shard_records(store, RUN_ID)} == {1, 2}
    table.add("R6", "SIGSTOP before a shard record, past the lease; another driver finishes; SIGCONT",
              f"{past_s} s past the lease", "the sleeper ends with 3; published rows and JSON unchanged")  # fmt: skip


def _wait_for(is_done, timeout_s=30.0):
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, "nothing happened in time"
        time.sleep(0.01)


# R7


def test_nothing_acknowledged_is_lost_whenever_drivers_are_killed(plan, tmp_path, table):
    first, num_seeds, kills = seed(7000), size(4, 50), 0
    for number in range(first, first + num_seeds):
        print(f"history {number}")
        one = replace(plan, output=f"{plan.output}-{number}", acks=tmp_path / f"acks-{number}", run_id=RUN_ID)
        kills += _torment(one, random.Random(number))
        rows = check_complete(one)
        assert len(rows) == NUM_IMAGES
        store = open_store(one.output)
        named = {file.file for file in load_run_manifest(store, RUN_ID).files}
        acknowledged = {line.split()[2] for line in one.acks.read_text().splitlines() if line.startswith("shard")}
        assert acknowledged <= named
    table.add("R7", "drivers killed at random times, sometimes two at once (plain processes)",
              f"{num_seeds} seeds x {NUM_IMAGES} images, {kills} kills", "0 lost, 0 duplicate, 0 phantom")  # fmt: skip


def _torment(plan, rng):
    """Start drivers and kill them until one gets through; returns how many were killed."""
    kills = 0
    for _ in range(rng.randint(2, 5)):
        processes = [start(plan) for _ in range(rng.choice([1, 1, 2]))]
        for process in processes:
            process.join(rng.uniform(0.0, 0.6))
            if process.exitcode is None:
                process.kill()
                kills += 1
            process.join()
            assert process.exitcode in {0, 3, -signal.SIGKILL}
    assert run(plan) == 0
    return kills


# R9

CHANGES = {
    "batch_size": {"batch_size": 4},
    "maps": {"maps": "all"},
    "partition": {"partition": "{line}/"},
    "decode.max_pixels": {"decode": DecodeLimits(max_pixels=10**6)},
    "include": {"include": ("*.png",)},
    "limit": {"limit": 7},
    "detector": {},
}


def test_a_resumed_run_with_other_settings_is_refused_by_the_fields_name(plan, tmp_path, table):
    crashed, _ = failing(replace(plan, run_id=RUN_ID), tmp_path, "after-record=kill@2")
    assert run(crashed) == -signal.SIGKILL
    output = open_store(plan.output)
    records = ledger.load_shard_records(output, RUN_ID)
    for name, change in CHANGES.items():
        config = BatchConfig(input=plan.source, output=plan.output, **change)
        fingerprint = "another detector" if name == "detector" else plan.fingerprint
        with pytest.raises(ConfigError, match=rf"{RUN_ID} is unfinished and was made with another {name}; give --res"):
            batch.open_run(config, output, fingerprint)
    assert ledger.load_shard_records(output, RUN_ID) == records
    assert run(plan) == 0
    check_complete(plan)
    table.add("R9", "settings changed between crash and resume", f"{len(CHANGES)} fields",
              "ConfigError (exit 2) that names the field; the old settings resume")  # fmt: skip


def test_a_run_id_that_sorts_before_the_last_published_run_is_refused(plan):
    assert run(replace(plan, run_id=RUN_ID)) == 0
    output = open_store(plan.output)
    config = BatchConfig(input=plan.source, output=plan.output, run_id="20260228T235959Z-late")
    with pytest.raises(ConfigError, match=rf"late would stay behind run {RUN_ID} .* give a --run-id that sorts behind"):
        batch.open_run(config, output, plan.fingerprint)
    assert ledger.load_run_state(output, config.run_id) is None
