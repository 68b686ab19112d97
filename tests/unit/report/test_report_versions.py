"""Reports of another schema version are refused by name, never misread: old by new code, and new by old."""

import json

import pytest
from report_helpers import whole_run

from zsad.errors import ConfigError
from zsad.report import publish, read_report, schema
from zsad.report.carry import Carrier
from zsad.report.publish import load_run_manifest
from zsad.report.sweep import sweep


def read(output):
    return read_report(output.url).to_table()


def test_new_code_refuses_an_old_report_by_its_version(source, output, monkeypatch):
    whole_run(source, output, "r1")
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    with pytest.raises(ConfigError, match=r"run r1 in .* has report schema version 1; this zsad reads version 2"):
        read(output)


def test_old_code_refuses_a_new_report_by_its_version(source, output):
    with pytest.MonkeyPatch.context() as new_code:
        for module in (schema, publish):
            new_code.setattr(module, "SCHEMA_VERSION", 2)
        whole_run(source, output, "r1")
        assert read(output).num_rows == 5
    with pytest.raises(ConfigError, match=r"has report schema version 2; this zsad reads version 1"):
        read(output)


def test_nothing_is_taken_over_from_or_swept_by_a_report_of_another_version(source, output):
    _, manifest = whole_run(source, output, "r1")
    key = "runs/r1/_MANIFEST.json"
    stored = json.loads(output.get(key, max_bytes=10**6))
    output.put(key, json.dumps(stored | {"schema_version": 2}).encode())
    with pytest.raises(ConfigError, match="version 2"):
        Carrier(output, load_run_manifest(output, "r1"))
    before = {info.key for info in output.list()}
    with pytest.raises(ConfigError, match="version 2"):
        sweep(output, is_dry=False, min_age_s=0)
    assert {info.key for info in output.list()} == before
    assert manifest.schema_version == 1
