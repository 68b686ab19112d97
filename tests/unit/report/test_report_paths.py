"""Names of a run."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from zsad.errors import ConfigError
from zsad.report import paths


def test_run_ids_are_utc_start_times_that_sort():
    india = timezone(timedelta(hours=5, minutes=30))
    early = paths.new_run_id(datetime(2026, 3, 1, 5, 0, 1, tzinfo=india))
    late = paths.new_run_id(datetime(2026, 3, 1, 0, 0, 0, tzinfo=UTC))
    assert re.fullmatch(r"20260228T233001Z-[a-z0-9]{4}", early)
    assert early < late
    assert paths.check_run_id(early) == early


@pytest.mark.parametrize(
    "last", ["20260301T000000Z-zzzz", "20260301T000010Z-zzzz"], ids=["same second", "clock set back"]
)
def test_a_run_id_sorts_behind_the_last_run_whatever_the_clock_says(last):
    new = paths.new_run_id(datetime(2026, 3, 1, tzinfo=UTC), after=last)
    assert new > last
    assert new[:15] == f"20260301T0000{int(last[13:15]) + 1:02d}"


def test_a_name_that_is_no_time_leaves_the_run_id_alone():
    assert paths.new_run_id(datetime(2026, 3, 1, tzinfo=UTC), after="nightly").startswith("20260301T000000Z-")


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".x", "x" * 65, "a b"])
def test_run_ids_that_are_no_folder_names_are_refused(run_id):
    with pytest.raises(ConfigError):
        paths.check_run_id(run_id)


def test_keys_of_a_run():
    assert paths.manifest_key("r", 7) == "runs/r/manifest/00000007.parquet"
    assert paths.data_key("r", 7, "2-ab") == "runs/r/data/00000007-2-ab.parquet"
    assert paths.record_key("r", 7) == "runs/r/shards/00000007.json"
    assert paths.map_key("r", 7, 12) == "runs/r/maps/00000007/000012.png"
    assert paths.pointer_key("r") == "published/r.json"
