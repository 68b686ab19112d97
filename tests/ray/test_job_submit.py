"""`ray job submit` to a cluster of its own: the same rows as in process, and only the source tree travels."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, RUN_COLUMNS, THRESHOLD, is_untouched, rows_by_key, without
from s3.server import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = Path(sys.executable).with_name("ray")
START_TRIES = 3
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
LEFT_OUT = {".venv", ".venv-s3", ".pretrain", ".git", "demo", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster: its dashboard, the environment of its clients, and the folder of its sessions."""

    url: str
    env: dict[str, str]
    folder: Path

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit the main job as README says and wait for its end; logs are in stdout."""
        command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "jobs/score_bucket.py", *arguments]
        return subprocess.run(
            command, env=self.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False
        )

    def status(self, token: str) -> int:
        """HTTP status of the dashboard's version for a client with `token`."""
        request = urllib.request.Request(f"{self.url}/api/version", headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - loopback
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node on loopback with token authentication, its own ports and folder; ends with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="zr-"))  # short: it holds Unix sockets
    try:
        with _started(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[Cluster]:
    """Start a head node, again if this machine is too busy for Ray's own limit of 15 s."""
    for attempt in range(START_TRIES):
        gcs, dashboard, client, agent, metrics = free_ports(5)
        url = f"http://127.0.0.1:{dashboard}"
        env = _environment(url)
        command = [
            RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
            f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--num-cpus=2",
            f"--object-store-memory={256 * 2**20}", f"--temp-dir={folder}", "--disable-usage-stats",
        ]  # fmt: skip
        with (folder / f"log{attempt}").open("wb") as log:
            head = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            found = Cluster(url=url, env=env, folder=folder)
            if _is_up(head, found):
                yield found
                return
        finally:
            _stop(head)
    logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("log*")))
    pytest.fail(f"the cluster did not start:\n{logs[-4000:]}", pytrace=False)


def _environment(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = f"{RAY.parent}{os.pathsep}{kept.get('PATH', '')}"
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return (
        kept
        | auth
        | {"PATH": paths, "RAY_API_SERVER_ADDRESS": url, "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "127.0.0.1"}
    )


def _is_up(head: subprocess.Popen[bytes], cluster: Cluster) -> bool:
    """Wait for the dashboard, and for the head to say that the node runs."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while head.poll() is None and time.monotonic() < deadline:
        is_running = any("Ray runtime started" in path.read_text() for path in cluster.folder.glob("log*"))
        with contextlib.suppress(OSError):
            if is_running and cluster.status(cluster.env["RAY_AUTH_TOKEN"]) == 200:
                return True
        time.sleep(0.2)
    return False


def _stop(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything it started: all processes of its session, and no other Ray on this machine.

    At once, because a head node in the foreground takes more than 15 s to end by itself.
    """
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (left := _session(head.pid)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.poll()
        time.sleep(0.1)
    head.wait(STOP_TIMEOUT_S)


def _session(leader: int) -> list[int]:
    """Living processes whose session was started by `leader`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in {"Z", "X"}:
                found.append(int(status.parent.name))
    return found


def test_a_submitted_job_gives_the_rows_of_a_direct_run(cluster, scored, tmp_path):
    output = tmp_path / "report"
    chosen = [
        "--include",
        "line1/cam1/00*",
        "bad/*",
        "--max-error-share",
        "1",
        "--batch-size",
        "8",
        "--threshold",
        str(THRESHOLD),
    ]
    done = cluster.submit("--input", str(scored.folder), "--output", str(output), *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    rows, expected = rows_by_key(scored.folder, output), scored.rows
    assert sorted(rows) == [key for key in sorted(expected) if key.startswith(("line1/cam1/00", "bad/"))]
    dropped = RUN_COLUMNS | {"line", "camera"}
    for key, row in rows.items():
        assert without(row, dropped) == without(expected[key], dropped)


def test_only_the_source_tree_travels(cluster):
    if not _packages(cluster):  # this test ran alone
        cluster.submit("--help")
    packages = _packages(cluster)
    assert packages
    for package in packages:
        files = [path for path in package.rglob("*") if path.is_file()]
        names = {path.relative_to(package).parts[0] for path in files}  # an ignored folder may travel, but empty
        assert {"jobs", "zsad", "pyproject.toml"} <= names
        assert names & LEFT_OUT == set()
        assert sum(path.stat().st_size for path in files) < 100 * 2**20


def _packages(cluster: Cluster) -> list[Path]:
    """Folders into which the cluster unpacked what clients sent."""
    found = cluster.folder.glob("session_2*/runtime_resources/working_dir_files/*")
    return [path for path in found if path.is_dir()]


def test_a_relative_input_is_refused_with_the_reason(cluster, tmp_path):
    output = tmp_path / "report"
    done = cluster.submit("--input", "images", "--output", str(output))
    assert done.returncode == 1
    said = [line for line in (done.stdout + done.stderr).splitlines() if "exit 2: " in line]
    assert said
    assert "--input images: inside a submitted job a relative path points into the shipped package" in said[0]
    assert is_untouched(output)


def test_without_the_token_the_dashboard_answers_nothing(cluster):
    assert cluster.status("") in {401, 403}
    assert cluster.status("0" * 64) in {401, 403}
