"""Kill the driver, its scorers and its decode workers on a real Ray: the job ends with the table of an undisturbed run.

The model is a hash of the pixels, so that every value must come back bit for bit.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fault_table import IS_FULL, seed, size
from job_runs import Job, objects, table_bytes

from zsad import failpoints
from zsad.report import ledger, read_report
from zsad.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_IMAGES = size(160, 2000)
SHARD_ROWS = size(20, 100)
NUM_SHARDS = NUM_IMAGES // SHARD_ROWS
RUN_ID = "20260301T000000Z-test"
LIMIT_S = 280


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "images"
    folder.mkdir()
    for key, data in objects(NUM_IMAGES):
        (folder / key).write_bytes(data)
    return folder


@pytest.fixture
def job(local_ray, images, tmp_path):
    """Start the job on the module's images; `name` keeps outputs and logs apart."""

    def begin(name, *arguments, output=None, source=images, **options):
        folder = tmp_path / name
        output = output or folder / "report"
        return Job(local_ray, source, output, folder, "--run-id", RUN_ID, *arguments, shard_rows=SHARD_ROWS, **options)

    return begin


@pytest.fixture(scope="module")
def clean(local_ray, images, tmp_path_factory):
    """An undisturbed run: its output, its rows as bytes, and its seconds."""
    folder = tmp_path_factory.mktemp("clean")
    with Job(local_ray, images, folder / "report", folder, "--run-id", RUN_ID, shard_rows=SHARD_ROWS) as job:
        code, said = job.finish()
        assert code == 0, said
        assert job.num_scored() == NUM_IMAGES
        seconds = time.time() - job.began_s
    return folder / "report", table_bytes(folder / "report"), seconds


def num_records(output):
    return len(list(Path(output).glob("runs/*/shards/*.json")))


def wait_for(is_done, timeout_s=120.0):
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, "nothing happened in time"
        time.sleep(0.02)


# R1


@pytest.mark.parametrize("percent", [10, 25, 50, 75, 90] if IS_FULL else [50])
def test_a_killed_driver_costs_at_most_the_shards_in_flight(job, clean, table, percent):
    wanted = max(1, NUM_SHARDS * percent // 100)
    with job("run") as first:
        wait_for(lambda: num_records(first.output) >= wanted or first.process.poll() is not None)
        first.process.kill()
        assert first.process.wait() == -signal.SIGKILL
        begun = first.begun()
    with job("run") as second:
        code, said = second.finish()
        assert code == 0, said
        assert f"going on with unfinished run {RUN_ID}" in said
        again = sum((second.begun() - begun).values()) + sum(begun.values()) - NUM_SHARDS
        startup_s = min(at_s for _, _, at_s in second._lines() if at_s > second.began_s) - second.began_s
    assert table_bytes(second.output) == clean[1]
    num_in_flight = 2 * 4 + 2  # two scorers with up to four blocks each, and two decode tasks
    assert again <= num_in_flight
    table.add("R1", f"SIGKILL of the driver at {percent} % of the shards, restart", f"{NUM_IMAGES:,} images, Ray",
              f"table byte-identical; {again * SHARD_ROWS} images scored again; first batch {startup_s:.1f} s after "
              "the restart, new process and workers included")  # fmt: skip


# R2


def test_deleted_records_are_exactly_what_is_scored_again(job, clean, tmp_path, table):
    found = []
    for percent in (0, 10, 25, 50, 75, 90) if IS_FULL else (25,):
        output = tmp_path / str(percent) / "report"
        shutil.copytree(clean[0], output)
        (output / f"published/{RUN_ID}.json").unlink()
        (output / f"runs/{RUN_ID}/_MANIFEST.json").unlink()
        records = sorted(output.glob("runs/*/shards/*.json"))
        deleted = random.Random(percent).sample(records, NUM_SHARDS * percent // 100)
        for path in deleted:
            path.unlink()
        with job(str(percent), output=output) as one:
            code, said = one.finish()
            assert code == 0, said
            assert sorted(one.begun().elements()) == sorted(int(path.stem) for path in deleted)
        assert table_bytes(output) == clean[1]
        found.append(f"{percent} %: {len(deleted) * SHARD_ROWS}")
    table.add("R2", "shard records deleted, rerun", f"{NUM_IMAGES:,} images, Ray",
              f"images scored again, exactly those: {', '.join(found)}; table byte-identical")  # fmt: skip


# R3


@pytest.mark.parametrize(("point", "kills"), [("score", 3), ("decode", 5)])
def test_killed_workers_cost_time_and_nothing_else(job, clean, tmp_path, table, point, kills):
    folder = tmp_path / "reached"
    folder.mkdir()
    kills = kills if IS_FULL else 2
    second = "@2" if point == "score" else ""  # a scorer's second batch is in the middle of its shard
    env = {failpoints.VARIABLE: f"{point}=kill{second}*{kills}", failpoints.FOLDER_VARIABLE: str(folder)}
    with job("run", env=env) as one:
        code, said = one.finish()
        seconds = time.time() - one.began_s
    assert code == 0, said
    assert len(list(folder.glob(f"{point}.*"))) == kills
    assert table_bytes(one.output) == clean[1]
    assert seconds - clean[2] <= 60 or not IS_FULL
    who = "scoring actor, in the middle of a shard" if point == "score" else "decode worker"
    table.add("R3", f"SIGKILL of a {who}, {kills} times", f"{NUM_IMAGES:,} images, Ray",
              f"exit 0, table byte-identical, {max(0.0, seconds - clean[2]):.0f} s longer")  # fmt: skip


# R5


def test_a_second_job_on_a_held_output_ends_with_3_within_10_s(job, clean, table):
    with job("run", env={failpoints.VARIABLE: "before-record=wait:4"}) as first:  # so long that the second meets it
        wait_for(lambda: num_records(first.output) >= 1)
        began_s = time.monotonic()
        with job("second", output=first.output) as second:
            code, said = second.finish()
        seconds = time.monotonic() - began_s
        assert code == 3, said
        assert seconds <= 10 or not IS_FULL
        code, said = first.finish()
        assert code == 0, said
    assert table_bytes(first.output) == clean[1]
    table.add("R5", "a second job on a held output", f"{NUM_IMAGES:,} images, Ray",
              f"exit 3 after {seconds:.1f} s, start of Python included; the first job ends well")  # fmt: skip


# R7


def test_kills_at_random_times_lose_nothing_through_ray(job, clean, table):
    first, num_seeds, kills = seed(7100), size(1, 5), 0
    for number in range(first, first + num_seeds):
        rng = random.Random(number)
        for _ in range(2):
            with job(str(number)) as one:
                _wait_or_end(one, rng.uniform(2, 2 + clean[2]))
                kills += one.process.poll() is None
                for pid in one.scorers()[-1:]:
                    _kill(pid)
        with job(str(number)) as last:
            code, said = last.finish()
            assert code == 0, said
        assert table_bytes(last.output) == clean[1]
    table.add("R7", "driver and a scorer killed at random times (Ray)", f"{num_seeds} seeds x {NUM_IMAGES:,} images",
              f"{kills} kills: 0 lost, 0 duplicate, 0 phantom; tables byte-identical")  # fmt: skip


def _wait_or_end(job, seconds):
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.process.wait(seconds)


def _kill(pid):
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)


# R8


def test_a_scorer_above_its_memory_is_killed_and_goes_on_with_half_of_the_batch(job, clean, table):
    with job("run", "--scorer-memory-gib", "0.6", "--limit", "40", bytes_per_image=120_000_000) as one:
        code, said = one.finish()
    assert code == 0, said
    summary = ledger.read_json(open_store(one.output), f"runs/{RUN_ID}/summary.json")
    assert summary["num_halvings"] == 2  # 10 images take 1.2 GB and 5 take 0.6 GB besides the worker's own; 2 fit
    assert table_bytes(one.output) == table_bytes(clean[0], 40)
    repeated = one.num_scored() - 40
    table.add("R8", "scorers above --scorer-memory-gib 0.6 with 10 and with 5 images", "40 images, Ray",
              f"killed, 2 halvings in the summary, {repeated} images begun again, table byte-identical")  # fmt: skip


# S7


def test_too_many_errors_end_the_job_early_and_publish_nothing(job, tmp_path, table):
    folder = tmp_path / "bad"
    folder.mkdir()
    num_images = size(1400, 3000)
    good = next(objects(1))[1]
    for number in range(num_images):
        (folder / f"{number:05d}.jpg").write_bytes(b"" if number % 10 < 7 else good)
    with job("run", source=folder) as one:
        code, said = one.finish()
    assert code == 6, said
    store = open_store(one.output)
    assert ledger.latest_published(store) is None
    partial = ledger.read_json(store, f"runs/{RUN_ID}/partial.json")
    assert 1000 <= partial["rows"] < num_images
    assert partial["error_counts"] == {"empty": partial["errors"]}
    assert partial["errors"] == pytest.approx(0.7 * partial["rows"], rel=0.02)
    assert 3 <= len(partial["error_examples"]["empty"]) <= 10
    table.add("S7", "70 % of the images can't be used", f"{num_images:,} images, Ray",
              f"exit 6 after {partial['rows']:,} rows, nothing published, partial.json has counts")  # fmt: skip


def test_every_row_of_the_clean_run_has_a_score(clean):
    statuses = read_report(str(clean[0])).to_table(columns=["status"])["status"].to_pylist()
    assert statuses == ["ok"] * NUM_IMAGES
