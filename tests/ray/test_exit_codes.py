"""The job as a process: its exit code, its last line, and what it leaves behind.

Cases that can run at the same time do, two at once: most of their time is the start of Python.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from batch_runs import (
    JOB,
    REPOSITORY,
    THRESHOLD,
    config_for,
    is_untouched,
    keys_of,
    last_line,
    register_run,
    rows_by_key,
    run_job,
)

from zsad.bundle import SHIPPED
from zsad.distributed.batch import score_bucket
from zsad.report import ledger
from zsad.storage import open_store

pytestmark = pytest.mark.ray

# The command line's form of `config_for`.
SETTINGS = ("--batch-size", "8", "--threshold", str(THRESHOLD), "--max-error-share", "1")

# Name -> (exit code, words of the last line, arguments); {0} is a folder of the case's own. None of them writes.
REFUSED = {
    "no arguments": (2, "--help", []),
    "no objects": (2, "there are no objects under", ["--input", "{0}/empty", "--output", "{0}/out"]),
    "nothing included": (2, "--include", ["--input", "{bucket}", "--output", "{0}/out", "--include", "*.nothing"]),
    "output inside input": (2, "lies inside the input", ["--input", "{bucket}", "--output", "{bucket}/out"]),
    "unknown key in TOML": (2, "did you mean 'batch_size'", ["--config", "{0}/typo.toml"]),
    "broken TOML": (2, "--config", ["--config", "{0}/broken.toml"]),
    "unknown method": (
        2,
        "unknown method 'nothing'",
        ["--input", "{bucket}", "--output", "{0}/out", "--detector", "nano:nothing"],
    ),
    "no input folder": (4, "no folder", ["--input", "{0}/nowhere", "--output", "{0}/out"]),
    "output under a file": (4, "typo.toml", ["--input", "{bucket}", "--output", "{0}/typo.toml/out"]),
    "unknown backbone": (
        5,
        "unknown backbone 'ViT-Z-99/nobody'",
        ["--input", "{bucket}", "--output", "{0}/out", "--detector", "ViT-Z-99/nobody"],
    ),
    "damaged bundle": (
        5,
        "detector.json",
        ["--input", "{bucket}", "--output", "{0}/out", "--detector", "{0}/bundle"],
    ),
}


@pytest.fixture(scope="module")
def refused(local_ray, bucket, tmp_path_factory):
    """Folder and finished process of every case of REFUSED."""
    folders = {name: tmp_path_factory.mktemp("refused") for name in REFUSED}
    for folder in folders.values():
        (folder / "empty").mkdir()
        (folder / "typo.toml").write_text('input = "a"\noutput = "b"\nbatch_sice = 4\n')
        (folder / "broken.toml").write_text("input = \n")
        shutil.copytree(SHIPPED / "winclip", folder / "bundle")
        (folder / "bundle/detector.json").write_text('{"format_version": 1')

    def run(name: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            part.replace("{0}", str(folders[name])).replace("{bucket}", str(bucket)) for part in REFUSED[name][2]
        ]
        return run_job(*arguments, **local_ray.env)

    with ThreadPoolExecutor(2) as runners:
        return {name: (folders[name], done) for name, done in zip(REFUSED, runners.map(run, REFUSED), strict=True)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_job_says_why_and_writes_nothing(refused, bucket, name):
    code, words, _ = REFUSED[name]
    folder, done = refused[name]
    assert done.returncode == code, done.stderr
    assert f"exit {code}: " in last_line(done.stderr)
    assert words in last_line(done.stderr)
    assert is_untouched(folder / "out")
    assert not (bucket / "out").exists()


def test_a_good_job_ends_with_0_and_a_summary(local_ray, bucket, tmp_path):
    settings = tmp_path / "job.toml"
    settings.write_text(f'input = "{bucket}"\nmaps = "none"\nbatch_size = 4\ninclude = ["line1/cam1/00*"]\n')
    output = tmp_path / "report"
    done = run_job("--config", str(settings), "--output", str(output), "--batch-size", "8", **local_ray.env)
    assert done.returncode == 0, done.stderr
    assert "5 = 5 ok + 0 errors" in done.stdout
    assert str(output) in done.stdout
    rows = rows_by_key(bucket, output)
    assert sorted(rows) == [key for key in keys_of(bucket) if key.startswith("line1/cam1/00")]
    assert {row["map_uri"] for row in rows.values()} == {None}


def test_a_held_output_is_3(local_ray, bucket, tmp_path):
    output = tmp_path / "report"
    run_id, lease = register_run(config_for(bucket, output))
    with lease:
        done = run_job("--input", str(bucket), "--output", str(output), *SETTINGS, **local_ray.env)
    assert done.returncode == 3, done.stderr
    assert f"exit 3: run {run_id} in {output}" in last_line(done.stderr)
    assert f"held by process {os.getpid()}" in last_line(done.stderr)


def test_too_many_bad_images_is_6(local_ray, bucket, tmp_path):
    output = tmp_path / "report"
    done = run_job("--input", str(bucket), "--output", str(output), "--include", "bad/*", **local_ray.env)
    assert done.returncode == 6, done.stderr
    assert "exit 6: 8 of 8 images can't be scored; the limit is 5.0%" in last_line(done.stderr)
    assert ledger.latest_published(open_store(str(output))) is None


def test_control_c_is_130_and_the_next_call_goes_on(local_ray, bucket, tmp_path):
    output = tmp_path / "report"
    arguments = ["--input", str(bucket), "--output", str(output), *SETTINGS]
    log = tmp_path / "log"
    with log.open("w") as stream:
        job = subprocess.Popen(
            [sys.executable, str(JOB), *arguments],
            env={**os.environ, **local_ray.env},
            cwd=REPOSITORY,
            stderr=stream,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(lambda: list(output.glob("runs/*/detector/detector.json")) or job.poll() is not None)
            time.sleep(0.5)  # somewhere in the pipeline's start
            job.send_signal(signal.SIGINT)
            code = job.wait(120)
        finally:
            job.kill()
            job.wait()
    assert code == 130, log.read_text()
    assert "exit 130: interrupted; the same command goes on where it stopped" in last_line(log.read_text())
    store = open_store(str(output))
    run_id = ledger.find_unfinished_run(store)
    assert run_id is not None
    assert ledger.latest_published(store) is None
    score_bucket(config_for(bucket, output))
    assert ledger.latest_published(store) == run_id
    assert sorted(rows_by_key(bucket, output)) == keys_of(bucket)


def _wait_for(is_done, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)
