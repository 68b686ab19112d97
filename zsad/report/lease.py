"""One driver at a time for a run: a numbered lease object with a heartbeat.

`runs/<run>/lease/<n>.json` is created by put-if-absent, so number n has one owner for ever; the number is the fencing
token in file names and shard records. The owner rewrites its object every 10 s. A lease whose heartbeat is older than
30 s is stale, and so is one of this machine whose process is gone. Clocks of two machines may differ: before a lease
that looks stale is taken over, it is watched for one heartbeat and a half, and one that moves is alive.

A driver that was stopped for too long finds number n + 1 at its next `check` and gives up; what it wrote meanwhile
can't be seen, since shard records and pointers are put-if-absent too.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from zsad.errors import CommitConflict, StorageError
from zsad.report.ledger import canonical_json, read_json
from zsad.report.paths import run_key
from zsad.storage import Store

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds between heartbeats and until a lease without one is stale."""

    heartbeat_s: float = 10.0
    stale_after_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """Content of a lease object; times are UTC in seconds since 1970."""

    number: int
    host: str
    machine: str
    pid: int
    process_started: str
    since_s: float
    heartbeat_s: float
    is_released: bool = False


class Lease:
    """A held lease: heartbeats until `release`; `number` is the fencing token.

    Make one with `acquire_lease`, best as a context manager.
    """

    def __init__(self, output: Store, run_id: str, record: LeaseRecord, times: LeaseTimes) -> None:
        self.number = record.number
        self._output = output
        self._run_id = run_id
        self._record = record
        self._times = times
        self._renewed_s = time.monotonic()
        self._lost = ""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="zsad-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Make sure that this driver may still write; cheap while heartbeats succeed.

        Raises:
            CommitConflict: another driver took over.
            StorageError: the lease is overdue and can't be renewed.
        """
        if not self._lost and time.monotonic() - self._renewed_s > self._times.stale_after_s / 2:
            self._renew()
        if self._lost:
            raise CommitConflict(self._lost)

    def release(self) -> None:
        """Stop the heartbeat and let the next driver in at once."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            if not self._lost:
                self._record = replace(self._record, is_released=True)
                try:
                    self._output.put(_lease_key(self._run_id, self.number), canonical_json(asdict(self._record)))
                except StorageError as error:
                    _LOG.warning("lease %d was not released and will run out by itself: %s", self.number, error)

    def _beat(self) -> None:
        while not self._stop.wait(self._times.heartbeat_s) and not self._lost:
            try:
                self._renew()
            except StorageError as error:
                _LOG.warning(
                    "heartbeat of lease %d failed, next try in %g s: %s", self.number, self._times.heartbeat_s, error
                )

    def _renew(self) -> None:
        with self._lock:
            next_key = _lease_key(self._run_id, self.number + 1)
            if self._output.exists(next_key):
                self._lost = f"lease {self.number} of run {self._run_id} was taken over: {self._output.uri(next_key)}"
                return
            self._record = replace(self._record, heartbeat_s=time.time())
            self._output.put(_lease_key(self._run_id, self.number), canonical_json(asdict(self._record)))
            self._renewed_s = time.monotonic()


def acquire_lease(
    output: Store, run_id: str, times: LeaseTimes | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> Lease:
    """Take the lease of a run, from nobody, from a released one, or from a dead driver.

    Raises:
        CommitConflict: a live driver holds it; the message has its host, process and since when.
        StorageError: the store fails.
    """
    times = times or LeaseTimes()
    holder = _latest(output, run_id)
    if holder is not None and _is_alive(output, run_id, holder, times, sleep):
        raise _conflict(output, run_id, holder)
    record = _new_record(1 if holder is None else holder.number + 1)
    if not output.put_if_absent(_lease_key(run_id, record.number), canonical_json(asdict(record))):
        raise _conflict(output, run_id, _latest(output, run_id) or record)
    return Lease(output, run_id, record, times)


def refuse_if_held(output: Store, run_id: str, times: LeaseTimes | None = None) -> None:
    """Look whether a driver with a fresh heartbeat holds the run, without taking anything; for an early answer.

    Raises:
        CommitConflict: it is held.
        StorageError: the store fails.
    """
    holder = _latest(output, run_id)
    if holder is not None and _is_held(holder, times or LeaseTimes()):
        raise _conflict(output, run_id, holder)


def _is_held(holder: LeaseRecord, times: LeaseTimes) -> bool:
    """Whether a record says that its driver lives."""
    if holder.is_released or _is_gone(holder):
        return False
    return abs(time.time() - holder.heartbeat_s) <= times.stale_after_s


def _is_alive(
    output: Store, run_id: str, holder: LeaseRecord, times: LeaseTimes, sleep: Callable[[float], None]
) -> bool:
    if _is_held(holder, times):
        return True
    if holder.is_released or _is_gone(holder):
        return False
    _LOG.warning("lease %d of run %s by %s looks stale; watching it", holder.number, run_id, holder.host)
    sleep(times.heartbeat_s * 1.5)
    return _latest(output, run_id) != holder


def _is_gone(holder: LeaseRecord) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    return holder.machine == _machine() and _process_started(holder.pid) != holder.process_started


def _latest(output: Store, run_id: str) -> LeaseRecord | None:
    """The lease with the greatest number, or None."""
    number = 0
    while output.exists(_lease_key(run_id, number + 1)):
        number += 1
    found = read_json(output, _lease_key(run_id, number)) if number else None
    return None if found is None else LeaseRecord(**found)


def _conflict(output: Store, run_id: str, holder: LeaseRecord) -> CommitConflict:
    since = datetime.fromtimestamp(holder.since_s, UTC)
    return CommitConflict(
        f"run {run_id} in {output.url} is held by process {holder.pid} on {holder.host} "
        f"since {since:%Y-%m-%d %H:%M:%S} UTC; wait for it, or stop it and run again"
    )


def _new_record(number: int) -> LeaseRecord:
    now_s, pid = time.time(), os.getpid()
    return LeaseRecord(
        number=number,
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        process_started=_process_started(pid) or "unknown",
        since_s=now_s,
        heartbeat_s=now_s,
    )


def _lease_key(run_id: str, number: int) -> str:
    return run_key(run_id, f"lease/{number:06d}.json")


@lru_cache(maxsize=1)
def _machine() -> str:
    """Host name, boot and process-id namespace: where equal, process ids can be compared."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists() or not namespace.is_symlink():
        return f"{socket.gethostname()}/{os.getpid()}"  # unknown elsewhere: only heartbeats count
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{namespace.readlink()}"


def _process_started(pid: int) -> str | None:
    """Start time of a living process in clock ticks since boot, so that a reused id is not mistaken; None when gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]
