"""Readers follow pointers, and say what is missing."""

import json

import pyarrow.dataset as ds
import pytest
from report_helpers import whole_run

from zsad.errors import ConfigError, StorageError
from zsad.report import read_report
from zsad.report.ledger import canonical_json
from zsad.report.schema import report_schema


def test_latest_is_the_greatest_id_and_older_ones_stay_readable(source, output):
    whole_run(source, output, "20260301T000000Z-zzzz")
    source.put("new.png", b"new")
    whole_run(source, output, "20260302T000000Z-aaaa")
    assert read_report(output.url).count_rows() == 6
    assert read_report(output.url, "20260301T000000Z-zzzz").count_rows() == 5


def test_a_report_is_an_arrow_dataset_that_filters(source, output):
    whole_run(source, output, "r")
    report = read_report(output.url)
    found = report.to_table(columns=["uri", "score"], filter=ds.field("is_anomaly"))
    assert found.to_pylist() == [{"uri": source.uri("a/2-bad.png"), "score": 0.11}]
    assert report.schema.names == report_schema().names


def test_an_empty_run_is_an_empty_report(source, output):
    for info in list(source.list()):
        source.delete(info.key)
    whole_run(source, output, "r")
    assert read_report(output.url).count_rows() == 0
    assert read_report(output.url).schema.names == report_schema().names


def test_nothing_published_says_so(output):
    with pytest.raises(ConfigError, match=r"nothing is published in .*report"):
        read_report(output.url)


def test_an_unknown_run_names_the_latest(source, output):
    whole_run(source, output, "run-1")
    with pytest.raises(ConfigError, match=r"run-9 is not published .* latest published run is run-1"):
        read_report(output.url, "run-9")


def test_a_report_of_another_version_is_refused_by_name(source, output):
    whole_run(source, output, "r")
    key = "runs/r/_MANIFEST.json"
    content = json.loads(output.get(key, max_bytes=10**6))
    output.put(key, canonical_json(content | {"schema_version": 2, "new_field": 1}))
    with pytest.raises(ConfigError, match="version 2; this zsad reads version 1"):
        read_report(output.url)


def test_a_pointer_to_nothing_is_a_storage_error(source, output):
    whole_run(source, output, "r")
    output.delete("runs/r/_MANIFEST.json")
    with pytest.raises(StorageError, match=r"_MANIFEST\.json is gone"):
        read_report(output.url)
