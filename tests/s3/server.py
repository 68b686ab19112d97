"""Start and stop a real S3-compatible server (OpenStack Swift with s3api and tempauth) on loopback.

Standard library only. Swift lives in its own environment `.venv-s3` (`make .venv-s3/.done`) and is run by
`swift_processes.py`. It is complete but slow (about 40 small puts per second): use it for truth, not for load.
By hand: `python tests/s3/server.py` prints the export lines for a shell and serves until Ctrl-C.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType, TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
SWIFT_PYTHON = REPOSITORY / ".venv-s3" / "bin" / "python"
ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"  # noqa: S105 - the fixed secret of a server that only this machine can reach
REGION = "us-east-1"
NUM_SERVERS = 4
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 40


class ServerUnavailableError(Exception):
    """This machine lacks something the server needs; the message says what and how to get it."""


class ServerStartError(Exception):
    """The server should have started and did not; the message ends with the tail of its log."""


def has_user_xattrs(directory: Path) -> bool:
    """Whether files in directory can carry user extended attributes of 1 KiB, where Swift keeps object metadata."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as probe:
            os.setxattr(probe.name, "user.swift.metadata", b"x" * 1024)
    except (OSError, AttributeError):  # AttributeError: a system without os.setxattr
        return False
    return True


def find_data_directory() -> Path:
    """The first of the system's temporary directory and the repository's build/ that has user xattrs.

    Raises:
        ServerUnavailableError: if neither has.
    """
    candidates = (Path(tempfile.gettempdir()), REPOSITORY / "build")
    for directory in candidates:
        with contextlib.suppress(OSError):  # an unwritable checkout is a candidate that fails the probe
            directory.mkdir(exist_ok=True)
        if has_user_xattrs(directory):
            return directory
    names = " and ".join(map(str, candidates))
    raise ServerUnavailableError(
        f"the S3 server needs a filesystem with user extended attributes; {names} have none: set TMPDIR to one that has"
    )


def free_ports(count: int) -> list[int]:
    """Numbers of loopback ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_healthy(port: int) -> bool:
    """Whether the Swift server on this loopback port answers its health check."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/healthcheck", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


class SwiftServer:
    """Context manager: inside the block an S3 endpoint runs on 127.0.0.1 with empty storage; afterwards all is removed.

    `env` holds the AWS_* variables of a client. The servers also stop if this process is killed.
    """

    def __init__(self, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self.env: dict[str, str] = {}
        self.pid = 0
        self._start_timeout_s = start_timeout_s
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "SwiftServer":
        """Start the servers and wait until all of them answer.

        Raises:
            ServerUnavailableError: if `.venv-s3` or a filesystem with user xattrs is missing.
            ServerStartError: if a server ended or did not answer within the time limit.
        """
        if not SWIFT_PYTHON.exists():
            raise ServerUnavailableError("the S3 server is not installed: run `make .venv-s3/.done`")
        with contextlib.ExitStack() as stack:
            parent = find_data_directory()
            root = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="zsad-s3-", dir=parent, ignore_cleanup_errors=True)
            )
            self._start(Path(root), stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every process and delete the storage."""
        self._stack.close()

    def _start(self, root: Path, stack: contextlib.ExitStack) -> None:
        ports = free_ports(NUM_SERVERS)
        script = Path(__file__).with_name("swift_processes.py")
        log = root / "log"
        command = [str(SWIFT_PYTHON), "-E", "-s", str(script), str(root), *map(str, ports), ACCESS_KEY, SECRET_KEY]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
            )
        stack.callback(stop_process_group, process)
        self.pid = process.pid
        self._wait_until_ready(process, ports, log)
        self.env = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes], ports: list[int], log: Path) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not all(map(is_healthy, ports)):
            if process.poll() is not None:
                raise ServerStartError(f"the S3 server ended with {process.returncode}; its log:\n{log_tail(log)}")
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"the S3 server did not answer within {self._start_timeout_s:g} s; its log:\n{log_tail(log)}"
                )
            time.sleep(0.05)


def stop_process_group(process: subprocess.Popen[bytes]) -> None:
    """Let the supervisor stop its servers; after STOP_TIMEOUT_S, or if it is already gone, kill what is left."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def log_tail(path: Path) -> str:
    """The last LOG_TAIL_LINES lines of a log."""
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(empty)"


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; print what a shell must export to use the server."""

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        with SwiftServer() as server:
            for name, value in server.env.items():
                print(f"export {name}={shlex.quote(value)}")
            print("# serving until Ctrl-C", flush=True)
            threading.Event().wait()
    except (ServerUnavailableError, ServerStartError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
