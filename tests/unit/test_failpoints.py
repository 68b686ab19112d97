"""Failpoints act only when asked to, as often as asked to, and leave word of it."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zsad import failpoints
from zsad.errors import ConfigError


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(failpoints, "_reached", failpoints.Counter())
    monkeypatch.setenv(failpoints.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)


def acts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_without_the_variable_nothing_happens(tmp_path):
    failpoints.hit("score")
    with failpoints.around("record"):
        pass
    assert acts(tmp_path) == []


def test_a_step_has_a_point_on_either_side_and_none_behind_it_when_it_fails(monkeypatch, tmp_path):
    monkeypatch.setenv(failpoints.VARIABLE, "before-record=note,after-record=note")
    with failpoints.around("record"):
        assert acts(tmp_path) == ["before-record.1"]
    assert acts(tmp_path) == ["after-record.1", "before-record.1"]
    with pytest.raises(ValueError, match="broken"), failpoints.around("record"):
        raise ValueError("broken")
    assert acts(tmp_path) == ["after-record.1", "before-record.1", "before-record.2"]


def test_it_acts_from_the_nth_time_on_and_at_most_so_often(monkeypatch, tmp_path):
    monkeypatch.setenv(failpoints.VARIABLE, "score=note@3*2")
    for _ in range(2):
        failpoints.hit("score")
    assert acts(tmp_path) == []
    for _ in range(5):
        failpoints.hit("score")
    assert acts(tmp_path) == ["score.1", "score.2"]


def test_waiting_takes_its_time(monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "decode=wait:0.05")
    started_s = time.monotonic()
    failpoints.hit("decode")
    assert time.monotonic() - started_s >= 0.05


def test_kill_is_a_sigkill_of_the_process_that_gets_there(tmp_path):
    code = "from zsad import failpoints; failpoints.hit('score'); print('went on')"
    env = {failpoints.VARIABLE: "score=kill*1", failpoints.FOLDER_VARIABLE: str(tmp_path)}
    first = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    second = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (-9, "")
    assert (second.returncode, second.stdout) == (0, "went on\n")


@pytest.mark.parametrize("text", ["nowhere=kill", "score=explode", "score", "score=kill@x", "score=kill, =note"])
def test_a_rule_that_can_not_be_understood_is_refused(monkeypatch, text):
    monkeypatch.setenv(failpoints.VARIABLE, text)
    with pytest.raises(ConfigError, match="POINT=ACTION; points are before-listing"):
        failpoints.hit("score")


def test_a_limit_over_all_processes_needs_a_folder(monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "score=note*2")
    monkeypatch.delenv(failpoints.FOLDER_VARIABLE)
    with pytest.raises(ConfigError, match="needs ZSAD_FAILPOINTS_FOLDER"):
        failpoints.hit("score")


def test_the_code_reaches_exactly_the_points_that_are_named():
    """That each is reached is proven in tests/faults: steps in test_commit_faults, the others in test_job_faults."""
    folder = Path(failpoints.__file__).parent
    text = "\n".join(path.read_text() for path in folder.rglob("*.py") if path.name != "failpoints.py")
    steps = set(re.findall(r"failpoints\.around\(\"([a-z]+)\"\)", text))
    single = set(re.findall(r"failpoints\.hit\(\"([a-z]+)\"\)", text))
    assert steps == set(failpoints.COMMIT_STEPS)
    assert {f"{side}-{step}" for side in ("before", "after") for step in steps} | single == set(failpoints.POINTS)
