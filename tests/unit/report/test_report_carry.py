"""A second run scores what is new or changed; every listed object still has exactly one row."""

import time
from collections import Counter

from report_helpers import whole_run

from zsad.errors import ErrorCode
from zsad.report import read_report
from zsad.report.carry import Carrier, load_carried
from zsad.report.publish import load_run_manifest


def rows(output):
    return {row["uri"]: row for row in read_report(output.url).to_table().to_pylist()}


def second_run(source, output, *, rows_per_file=2, **options):
    carrier = Carrier(output, load_run_manifest(output, "run-1"), rows_per_file=rows_per_file)
    return whole_run(source, output, "run-2", carrier=carrier, **options)


def scored_by(output):
    table = read_report(output.url).to_table(columns=["uri", "run_id"])
    assert max(Counter(table["uri"].to_pylist()).values()) == 1
    return Counter(table["run_id"].to_pylist())


def test_an_unchanged_input_scores_nothing_and_copies_nothing(source, output):
    _, first = whole_run(source, output, "run-1")
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (0, 5)
    assert {file.file for file in manifest.files} == {file.file for file in first.files}
    assert manifest.totals == first.totals
    assert scored_by(output) == {"run-1": 5}


def test_only_new_and_changed_objects_are_scored(source, output):
    whole_run(source, output, "run-1")
    before = rows(output)
    time.sleep(0.01)  # so that the modification time differs
    source.put("b/1.png", b"other content")
    source.put("d.png", b"new")
    source.delete("a/1.png")
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (2, 3)
    assert scored_by(output) == {"run-1": 3, "run-2": 2}
    found = rows(output)
    assert sorted(found) == [info.uri for info in source.list()]
    for key in ("a/2-bad.png", "b/2.png", "c.txt"):
        assert found[source.uri(key)] == before[source.uri(key)]
    assert manifest.totals == {"rows": 5, "ok": 5, "errors": 0, "anomalies": 1}


def test_passing_errors_are_tried_again_and_lasting_ones_are_carried(source, output):
    whole_run(source, output, "run-1", codes={"a/1.png": ErrorCode.READ_TIMEOUT, "c.txt": ErrorCode.UNKNOWN_FORMAT})
    summary, manifest = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (1, 4)
    assert manifest.error_counts == {"unknown_format": 1}
    assert rows(output)[source.uri("a/1.png")]["status"] == "ok"


def test_small_files_are_merged(source, output):
    whole_run(source, output, "run-1", rows_per_shard=1)
    _, manifest = second_run(source, output, rows_per_file=100)
    assert [file.rows for file in manifest.files] == [5]
    assert manifest.files[0].file.startswith("runs/run-2/data/carried-")
    assert rows(output).keys() == {info.uri for info in source.list()}


def test_carried_files_survive_a_restart(source, output):
    whole_run(source, output, "run-1")
    _, manifest = second_run(source, output)
    assert load_carried(output, "run-2") == manifest.files
    assert load_carried(output, "run-1") == []


def test_an_empty_last_run_carries_nothing(source, output, tmp_path):
    listed = list(source.list())
    for info in listed:
        source.delete(info.key)
    whole_run(source, output, "run-1")
    source.put("a.png", b"1")
    summary, _ = second_run(source, output)
    assert (summary.num_objects, summary.num_carried) == (1, 0)
