"""What a sweep deletes, and above all what it leaves."""

import pytest
from report_helpers import HASH, score_shard, start_run, whole_run

from zsad.report import read_report
from zsad.report.compact import cut, write_part
from zsad.report.lease import acquire_lease
from zsad.report.ledger import canonical_json, load_shard_records
from zsad.report.manifest import ListingOptions, write_manifest
from zsad.report.publish import publish_run, write_partial
from zsad.report.sweep import find_garbage, sweep


def keys(output):
    return {info.key for info in output.list()}


def garbage(output):
    return sorted(one.key for one in find_garbage(output, min_age_s=0))


def scored_run(source, output, run_id):
    """A run with every shard committed, and one file of an attempt that lost."""
    start_run(output, run_id, source)
    summary = write_manifest(source, output, run_id, ListingOptions(rows_per_shard=2))
    for shard in range(summary.num_shards):
        score_shard(output, run_id, shard)
    output.put(f"runs/{run_id}/data/00000000-1-loser.parquet", b"late")
    return load_shard_records(output, run_id)


def test_of_a_published_run_only_rows_that_no_report_names_are_deleted(source, output):
    records = scored_run(source, output, "r1")
    parts = [write_part(output, "r1", 0, next(cut(records, 100)), ())]
    publish_run(output, "r1", num_shards=3, config_hash=HASH, parts=parts)
    rows = read_report(output.url).to_table().to_pylist()
    expected = {record.file for record in records} | {"runs/r1/data/00000000-1-loser.parquet"}
    assert set(garbage(output)) == expected
    before = keys(output)
    assert "4 files" in sweep(output, is_dry=False, min_age_s=0)
    assert before - keys(output) == expected
    assert read_report(output.url).to_table().to_pylist() == rows
    assert garbage(output) == []


def test_rows_that_a_later_run_took_over_stay(source, output):
    from zsad.report.carry import Carrier

    _, first = whole_run(source, output, "r1")
    whole_run(source, output, "r2", carrier=Carrier(output, first, rows_per_file=2))
    rows = read_report(output.url, "r2").to_table().num_rows
    sweep(output, is_dry=False, min_age_s=0)
    assert read_report(output.url, "r1").to_table().num_rows == rows == 5
    assert read_report(output.url, "r2").to_table().num_rows == rows


def test_the_run_that_would_be_resumed_is_left_alone(source, output):
    scored_run(source, output, "r1")
    assert garbage(output) == []


def test_of_runs_that_are_over_only_the_account_stays(source, output):
    scored_run(source, output, "r1")
    write_partial(output, "r1", [], "too many errors")
    scored_run(source, output, "r2")
    whole_run(source, output, "r3")
    assert {key.split("/")[1] for key in garbage(output)} == {"r1", "r2"}
    sweep(output, is_dry=False, min_age_s=0)
    left = {key for key in keys(output) if key.startswith(("runs/r1/", "runs/r2/"))}
    assert left == {"runs/r1/run.json", "runs/r1/partial.json", "runs/r2/run.json"}


def test_what_a_live_lease_holds_is_never_touched(source, output):
    scored_run(source, output, "r1")
    write_partial(output, "r1", [], "given up, but its driver is still there")
    lease = acquire_lease(output, "r1")
    try:
        assert garbage(output) == []
    finally:
        lease.release()
    assert "runs/r1/data/00000000-1-loser.parquet" in garbage(output)


def test_bundles_stay_as_long_as_a_run_refers_to_them(source, output):
    for name in ("used", "resumable", "unused"):
        output.put(f"detectors/{name}/detector.json", b"{}")
    whole_run(source, output, "r1")
    scored_run(source, output, "r2")
    for run_id, name in (("r1", "used"), ("r2", "resumable")):
        index = {"ref": "x", "partition": "", "fields": [], "entries": [{"values": [], "bundle": f"detectors/{name}"}]}
        output.put(f"runs/{run_id}/detectors.json", canonical_json(index))
    assert garbage(output) == ["detectors/unused/detector.json"]


def test_what_is_young_or_not_of_zsad_stays(source, output):
    records = scored_run(source, output, "r1")
    publish_run(output, "r1", num_shards=len(records), config_hash=HASH)
    output.put("notes.txt", b"mine")
    output.put("runs/notes/x.parquet", b"no run")
    assert list(find_garbage(output)) == []
    assert garbage(output) == ["runs/r1/data/00000000-1-loser.parquet"]


def test_a_dry_sweep_lists_and_deletes_nothing(source, output):
    records = scored_run(source, output, "r1")
    publish_run(output, "r1", num_shards=len(records), config_hash=HASH)
    before = keys(output)
    said = sweep(output, is_dry=True, min_age_s=0).splitlines()
    assert said == [
        "runs/r1/data/00000000-1-loser.parquet  4 bytes  rows that no published run names",
        "1 files, 0.0 MB would be deleted (--dry-run)",
    ]
    assert keys(output) == before


@pytest.mark.parametrize("name", ["runs", "published"])
def test_an_empty_output_has_nothing_to_sweep(output, name):
    output.put(f"{name}.txt", b"")
    assert garbage(output) == []
