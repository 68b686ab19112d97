"""One driver at a time: the living are respected, the dead are followed."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from zsad.errors import CommitConflict, StorageError
from zsad.report import lease as lease_module
from zsad.report.lease import LeaseRecord, LeaseTimes, acquire_lease, refuse_if_held

FAST = LeaseTimes(heartbeat_s=0.05, stale_after_s=0.3)
KEY = "runs/r/lease/000001.json"


def stored(output, number=1):
    return LeaseRecord(**json.loads(output.get(f"runs/r/lease/{number:06d}.json", max_bytes=10_000)))


def foreign_lease(output, *, age_s, **changes):
    """A lease of another machine whose last heartbeat is `age_s` old."""
    now_s = time.time()
    record = LeaseRecord(
        number=1,
        host="far-away",
        machine="far-away/boot/ns",
        pid=4711,
        process_started="1",
        since_s=0.0,
        heartbeat_s=now_s - age_s,
    )
    record = replace(record, **changes)
    output.put(KEY, json.dumps(asdict(record)).encode())
    return record


def test_numbers_grow_and_a_released_lease_is_free_at_once(output):
    with acquire_lease(output, "r") as first:
        assert first.number == 1
        first.check()
    with acquire_lease(output, "r") as second:
        assert second.number == 2
    assert stored(output, 2).is_released


def test_a_held_lease_names_its_holder(output):
    with (
        acquire_lease(output, "r"),
        pytest.raises(CommitConflict, match=r"held by process \d+ on .* since 20") as caught,
    ):
        acquire_lease(output, "r")
    assert caught.value.exit_code == 3


def test_runs_do_not_share_a_lease(output):
    with acquire_lease(output, "r"), acquire_lease(output, "other") as other:
        assert other.number == 1


def test_one_of_many_gets_it(output):
    results = []

    def take():
        try:
            results.append(acquire_lease(output, "r"))
        except CommitConflict:
            results.append(None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (held,) = [found for found in results if found is not None]
    held.release()


def test_a_dead_process_of_this_machine_is_followed_at_once(output):
    script = (
        "import os, sys\nfrom zsad.storage import open_store\nfrom zsad.report.lease import acquire_lease\n"
        "acquire_lease(open_store(sys.argv[1]), 'r')\nos._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, output.url], check=False)
    assert not stored(output).is_released
    with acquire_lease(output, "r", sleep=lambda _: pytest.fail("it waited")) as lease:
        assert lease.number == 2


def test_a_reused_process_id_is_not_mistaken_for_the_holder(output):
    lease = acquire_lease(output, "r")
    lease._stop.set()
    output.put(KEY, json.dumps(asdict(replace(stored(output), process_started="12"))).encode())
    with acquire_lease(output, "r", sleep=lambda _: pytest.fail("it waited")) as second:
        assert second.number == 2


@pytest.mark.parametrize("age_s", [0.0, 20.0, -20.0])
def test_a_fresh_lease_of_another_machine_is_respected_without_waiting(output, age_s):
    foreign_lease(output, age_s=age_s)
    with pytest.raises(CommitConflict, match="process 4711 on far-away"):
        acquire_lease(output, "r", sleep=lambda _: pytest.fail("it waited"))


def test_a_stale_lease_is_watched_and_then_taken_over(output):
    foreign_lease(output, age_s=31)
    waits = []
    with acquire_lease(output, "r", sleep=waits.append) as lease:
        assert lease.number == 2
    assert waits == [15.0]


@pytest.mark.parametrize("age_s", [3600, -3600])
def test_a_live_driver_with_a_wrong_clock_keeps_its_lease(output, age_s):
    foreign_lease(output, age_s=age_s)

    def beat(_seconds):
        foreign_lease(output, age_s=age_s - 10)

    with pytest.raises(CommitConflict):
        acquire_lease(output, "r", sleep=beat)


def test_heartbeats_move_the_stored_time(output):
    with acquire_lease(output, "r", FAST):
        first = stored(output).heartbeat_s
        deadline_s = time.monotonic() + 5
        while stored(output).heartbeat_s == first:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


def test_a_driver_that_was_replaced_finds_out_and_changes_nothing(output):
    lease = acquire_lease(output, "r", LeaseTimes(heartbeat_s=60, stale_after_s=0.0))
    output.put("runs/r/lease/000002.json", b"{}")
    before = stored(output)
    with pytest.raises(CommitConflict, match="taken over"):
        lease.check()
    lease.release()
    assert stored(output) == before


def test_a_failing_heartbeat_is_logged_and_tried_again(output, monkeypatch, caplog):
    failures = iter([StorageError("store is down", retryable=True)])
    real = lease_module.Lease._renew

    def renew(self):
        for error in failures:
            raise error
        real(self)

    monkeypatch.setattr(lease_module.Lease, "_renew", renew)
    with acquire_lease(output, "r", FAST):
        first = stored(output).heartbeat_s
        deadline_s = time.monotonic() + 5
        while stored(output).heartbeat_s == first:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    assert "store is down" in caplog.text


def test_looking_whether_a_run_is_held_takes_nothing(output):
    refuse_if_held(output, "r")
    with acquire_lease(output, "r"), pytest.raises(CommitConflict, match="held by process"):
        refuse_if_held(output, "r")
    refuse_if_held(output, "r")
    assert not output.exists("runs/r/lease/000002.json")


def test_a_run_without_a_fresh_heartbeat_is_not_refused_early(output):
    foreign_lease(output, age_s=31)
    refuse_if_held(output, "r")
    foreign_lease(output, age_s=5)
    with pytest.raises(CommitConflict, match="far-away"):
        refuse_if_held(output, "r")
