"""The main job's configuration: what is refused, and what decides a report's values."""

from dataclasses import fields, replace

import pytest

from zsad.batch_config import BatchConfig, absolute, listing_fields, result_fields
from zsad.errors import ConfigError
from zsad.images import DecodeLimits

CONFIG = BatchConfig(input="in", output="out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": ""}, "--input is empty"),
        ({"output": "  "}, "--output is empty"),
        ({"defect_words": ("dent", "")}, r"defect words \['dent', ''\] can't be used"),
        ({"defect_words": ("dent", "dent")}, "'dent' is given twice"),
        ({"maps": "some"}, "--maps 'some': choose none, anomalous or all"),
        ({"threshold": 1.0}, "--threshold 1.0"),
        ({"threshold": -0.1}, "--threshold -0.1"),
        ({"max_error_share": 1.1}, "--max-error-share 1.1"),
        ({"max_error_share": -0.1}, "--max-error-share -0.1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"limit": -1}, "--limit -1"),
        ({"settings": ("dense",)}, "setting 'dense': write NAME=VALUE"),
        ({"size": -1}, "--size -1"),
        ({"tiles": -1}, "--tiles -1"),
        ({"num_scorers": -1}, "--num-scorers -1"),
        ({"num_gpus_per_scorer": -0.5}, "--num-gpus-per-scorer -0.5"),
        ({"partition": "{line}{camera}/"}, "between"),
        ({"run_id": "a/b"}, "can't be a run id"),
        ({"since": "yesterday"}, "--since 'yesterday': give a time"),
        ({"since": "last", "restart": True}, "--since last needs the rows of the last run"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)


@pytest.mark.parametrize("change", [{"max_error_share": 0.0}, {"max_error_share": 1.0}, {"threshold": 0.999}])
def test_the_ends_of_ranges_are_allowed(change):
    assert replace(CONFIG, **change)


def test_settings_by_name():
    config = replace(CONFIG, settings=("dense=windows", "temperature=0.01"))
    assert config.method_settings() == {"dense": "windows", "temperature": 0.01}
    assert CONFIG.method_settings() == {}


def test_listing_and_template():
    config = replace(CONFIG, include=("*.png",), exclude=("x*",), limit=7, partition="{line}/")
    listing = config.listing(50)
    assert (listing.include, listing.exclude, listing.limit) == (("*.png",), ("x*",), 7)
    assert listing.rows_per_shard == 50
    assert CONFIG.listing().limit is None
    assert config.template().fields == ("line",)
    assert CONFIG.template() is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [("/data", True), ("s3://b/p", True), ("file:///data", True), ("data", False), ("./data", False)],
)
def test_absolute_urls(url, expected):
    assert absolute(url) is expected


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 8},
        {"partition": "{line}/"},
        {"maps": "all"},
        {"decode": DecodeLimits(max_pixels=99)},
    ],
)
def test_fields_that_change_values_are_in_the_hash(change):
    assert result_fields(replace(CONFIG, **change), "f") != result_fields(CONFIG, "f")


@pytest.mark.parametrize("change", [{"input": "b"}, {"include": ("*",)}, {"exclude": ("*",)}, {"limit": 3}])
def test_fields_that_decide_the_listing(change):
    changed = replace(CONFIG, **change)
    assert listing_fields(changed) != listing_fields(CONFIG)
    assert result_fields(changed, "f") == result_fields(CONFIG, "f")


def test_one_folder_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["in", "./in/", str(tmp_path / "in"), f"file://{tmp_path}/in"]
    assert len({listing_fields(replace(CONFIG, input=name))["input"] for name in names}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_scorers": 3},
        {"restart": True},
        {"max_error_share": 1.0},
        {"run_id": "r"},
        {"decode": DecodeLimits(timeout_s=3)},
    ],
)
def test_fields_that_change_only_the_work_are_in_neither(change):
    changed = replace(CONFIG, **change)
    assert result_fields(changed, "f") == result_fields(CONFIG, "f")
    assert listing_fields(changed) == listing_fields(CONFIG)


def test_the_detector_counts_by_its_fingerprint():
    """Threshold, object, normals and resolution are part of it; the reference is only a name."""
    assert result_fields(replace(CONFIG, detector="other", size=448, tiles=2), "f") == result_fields(CONFIG, "f")
    assert result_fields(CONFIG, "f") != result_fields(CONFIG, "g")


def test_every_field_is_explained():
    assert all(f"        {field.name}: " in (BatchConfig.__doc__ or "") for field in fields(BatchConfig))
