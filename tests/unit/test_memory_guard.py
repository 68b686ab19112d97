"""A batch that does not fit is halved once for all scorers of a run, and remembered."""

import json
import subprocess
import sys
import time

import pytest

from zsad.distributed import memory_guard
from zsad.distributed.memory_guard import MemoryGuard, fitting_batch, num_halvings
from zsad.errors import ModelError
from zsad.storage import open_store

# A scorer that takes 150 MB an image of its batch, 4 images at first, below a cap of 0.5 GiB.
HUNGRY = """
import sys, time
from zsad.distributed.memory_guard import MemoryGuard
from zsad.storage import open_store
guard = MemoryGuard(open_store(sys.argv[1]), "r", int(sys.argv[2]), 2**29)
held = b"1" * (150_000_000 * guard.batch_size)
time.sleep(1)
guard.check()
print(guard.batch_size)
"""


@pytest.fixture
def output(tmp_path):
    return open_store(str(tmp_path))


def test_scorers_that_fail_together_halve_once_and_later_ones_start_with_the_half(output):
    first, second = (MemoryGuard(output, "r", 16, 0) for _ in range(2))
    first.halve("CUDA out of memory")
    second.halve("CUDA out of memory")
    assert (first.batch_size, second.batch_size, num_halvings(output, "r")) == (8, 8, 1)
    first.halve("again")
    assert num_halvings(output, "r") == 2
    assert MemoryGuard(output, "r", 16, 0).batch_size == 4
    assert MemoryGuard(output, "other", 16, 0).batch_size == 16


def test_a_mark_says_what_did_not_fit(output):
    MemoryGuard(output, "r", 16, 0).halve("why")
    mark = json.loads(output.get("runs/r/memory/001.json", max_bytes=1000))
    assert (mark["batch_size"], mark["reason"]) == (16, "why")


def test_a_batch_never_falls_below_one_image():
    assert [fitting_batch(10, halvings) for halvings in range(6)] == [10, 5, 2, 1, 1, 1]


def test_a_process_above_its_cap_is_killed_and_the_next_goes_on_with_half(output):
    def run():
        command = [sys.executable, "-c", HUNGRY, output.url, "4"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = run()
    assert (first.returncode, first.stdout) == (-9, "")
    assert "a batch of 4 images does not fit" in first.stderr
    second = run()
    assert (second.returncode, second.stdout) == (0, "2\n")
    assert num_halvings(output, "r") == 1


def test_one_image_above_the_cap_ends_the_run_with_advice(output, monkeypatch):
    monkeypatch.setattr(memory_guard, "heap_bytes", lambda: 3 * 2**30)
    guard = MemoryGuard(output, "r", 1, 2**31)
    time.sleep(5 * memory_guard.LOOK_EVERY_S)
    with pytest.raises(ModelError, match=r"3\.00 GiB for one image at a time; the limit is 2 GiB"):
        guard.check()
    assert num_halvings(output, "r") == 0
