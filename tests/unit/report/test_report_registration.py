"""New runs form one chain: whoever comes second joins the run that is being made."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from zsad.errors import CommitConflict, ConfigError
from zsad.report.ledger import RunState, load_run_state
from zsad.report.publish import write_partial, write_pointer
from zsad.report.registration import last_run, register_run

STATE = RunState(
    run_id="b", started_at="2026-03-01T00:00:00+00:00", input_url="in", config={"size": 1}, config_hash="h"
)


def named(run_id, **changes):
    return replace(STATE, run_id=run_id, **changes)


def test_the_first_run_is_behind_nothing_and_the_next_behind_it(output):
    assert last_run(output) is None
    assert register_run(output, named("b"), None).run_id == "b"
    write_pointer(output, "b")
    assert last_run(output) == "b"
    assert register_run(output, named("c"), "b").run_id == "c"


def test_whoever_comes_second_gets_the_run_of_the_first(output):
    first = register_run(output, named("b", started_at="then"), None)
    assert register_run(output, named("c"), None) == first
    assert load_run_state(output, "c") is None


def test_of_many_at_once_all_get_the_same_run(output):
    with ThreadPoolExecutor(8) as drivers:
        found = list(drivers.map(lambda n: register_run(output, named(f"run{n}"), None).run_id, range(8)))
    assert len(set(found)) == 1
    assert last_run(output) == found[0]


def test_a_claim_whose_driver_died_is_taken_up(output):
    output.put("runs/next.json", b'{"run_id":"dead"}')
    assert register_run(output, named("b"), None).run_id == "dead"
    assert load_run_state(output, "dead") == named("dead")


def test_runs_that_are_over_are_passed_by(output):
    for run_id, behind in (("a", None), ("k", "a"), ("m", "k")):
        register_run(output, named(run_id), behind)
    write_pointer(output, "a")
    write_partial(output, "k", [], "given up")
    write_pointer(output, "m")
    assert register_run(output, named("z"), None).run_id == "z"


def test_a_run_that_readers_would_take_for_the_older_one_is_not_begun(output):
    register_run(output, named("m"), None)
    write_pointer(output, "m")
    with pytest.raises(CommitConflict, match=r"run m of .* was made by another driver meanwhile; start again"):
        register_run(output, named("b"), None)


def test_other_settings_are_refused_by_name(output):
    register_run(output, named("b"), None)
    with pytest.raises(ConfigError, match=r"run b was just started by another driver with another size"):
        register_run(output, named("c", config={"size": 2}), None)
