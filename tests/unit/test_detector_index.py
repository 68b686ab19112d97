"""Which detector scores which key: fields in references, values in keys, and what is refused of both."""

import json

import pytest

from zsad.batch_config import BatchConfig
from zsad.detector_index import DetectorIndex, Entry, comparable, filled, inherited, list_values
from zsad.errors import ConfigError
from zsad.images import Preprocess, Tiling
from zsad.partition import PartitionTemplate
from zsad.report.manifest import ListingOptions
from zsad.storage import open_store

KEYS = ("l1/bottle/a.png", "l1/nut/a.png", "l2/bottle/b.png", "l2/cap/x/y.png", "readme.txt")
INDEX = DetectorIndex(
    ref="s3://models/{product}/",
    partition="{line}/{product}/",
    fields=("product",),
    entries={
        ("bottle",): Entry(
            ref="s3://models/bottle/", bundle="detectors/1", fingerprint="f1", preprocess=Preprocess(size=32)
        ),
        ("nut",): Entry(ref="s3://models/nut/", bundle="detectors/2", fingerprint="f2", preprocess=Preprocess(size=64)),
        ("cap",): Entry(ref="s3://models/{product}/", error="no detector.json there"),
    },
)


def config(**changes):
    return BatchConfig(**({"input": "s3://images", "output": "s3://out", "partition": "{line}/{product}/"} | changes))


@pytest.fixture
def source(tmp_path):
    store = open_store(str(tmp_path / "images"))
    for key in KEYS:
        store.put(key, b"x")
    return store


def values_of(source, template, *fields, **options):
    return list_values(source, PartitionTemplate(template), fields, ListingOptions(**options))


# Fields in references


def test_fields_choose_a_detector_in_the_order_of_the_template():
    assert config().detector_fields == ()
    chosen = config(object="{product}", detector="s3://m/{product}/{line}/")
    assert chosen.detector_fields == ("line", "product")


def test_the_settings_of_one_product():
    asked = config(
        detector="s3://m/{product}/", object="{product}", prompts="s3://p/{product}.json", normals="/n/{product}"
    )
    one = asked.of({"product": "metal_nut"})
    assert (one.detector, one.prompts, one.normals) == ("s3://m/metal_nut/", "s3://p/metal_nut.json", "/n/metal_nut")
    assert one.object == "metal nut"
    assert one.detector_fields == ()


def test_a_local_bundle_that_is_missing_can_not_pass_for_a_backbone():
    assert config(detector="/models/{product}").of({"product": "a b"}).detector == "file:///models/a%20b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": ""}, r"{product} is not in --partition \(which is empty\)"),
        ({"partition": "{line}/"}, r"{product} is not in --partition {line}/"),
        ({"detector": "s3://{product}/models"}, "behind a bucket or folder"),
        ({"detector": "{product}"}, "behind a bucket or folder"),
        ({"detector": "nano:{product}"}, "behind a bucket or folder"),
        ({"prompts": "{product}/bank.json"}, "behind a bucket or folder"),
    ],
)
def test_fields_that_can_not_be_filled_or_could_lead_elsewhere_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**({"detector": "s3://models/{product}/"} | changes))


@pytest.mark.parametrize("value", ["..", ".", "...", "a\nb", "a\0"])
def test_values_that_could_lead_elsewhere_are_refused(value):
    with pytest.raises(ConfigError, match="can't be a part of a reference"):
        filled("s3://models/{product}/", {"product": value})


def test_a_file_url_gets_a_value_escaped():
    assert filled("file:///m/{p}/", {"p": "%2e%2e?#"}) == "file:///m/%252e%252e%3F%23/"
    assert open_store(filled("file:///m/{p}/x", {"p": "%2e%2e"})).url == "/m/%2e%2e/x"


# Values in keys


def test_values_are_read_from_folders(source):
    assert values_of(source, "{line}/{product}/", "product") == [("bottle",), ("cap",), ("nut",)]
    assert values_of(source, "{line}/{product}/", "line", "product") == [
        ("l1", "bottle"),
        ("l1", "nut"),
        ("l2", "bottle"),
        ("l2", "cap"),
    ]
    assert values_of(source, "l1/{product}/", "product") == [("bottle",), ("nut",)]


def test_folders_need_no_listing_of_their_objects(source, monkeypatch):
    def refused(*_arguments, **_named):
        raise AssertionError("listed")

    monkeypatch.setattr(type(source), "list", refused)
    assert len(values_of(source, "{line}/{product}/", "product")) == 3
    with pytest.raises(AssertionError, match="listed"):
        values_of(source, "{line}/{product}/{name}.png", "name")


def test_values_in_names_are_read_from_the_listing(source):
    assert values_of(source, "{line}/{kind}/{name}.png", "name") == [("a",), ("b",)]


def test_a_limited_run_prepares_only_the_products_it_lists(source):
    assert values_of(source, "{line}/{product}/", "product", limit=1) == [("bottle",)]


def test_an_input_that_fits_no_template_is_refused(source):
    with pytest.raises(ConfigError, match="no key under"):
        values_of(source, "x/{product}/", "product")


# The index


@pytest.mark.parametrize(
    ("key", "bundle", "error"),
    [
        ("l1/bottle/a.png", "detectors/1", ""),
        ("l9/nut/b/c.png", "detectors/2", ""),
        ("l1/cap/a.png", "", "no detector.json there"),
        ("l1/new/a.png", "", "newer than the run's list"),
        ("readme.txt", "", "does not fit --partition"),
    ],
)
def test_every_key_has_a_detector_or_a_reason(key, bundle, error):
    found = INDEX.find(key, INDEX.template())
    assert found.bundle == bundle
    assert error in found.error
    assert bool(found.error) == bool(error)


def test_one_detector_for_all_keys():
    only = DetectorIndex(ref="nano", entries={(): Entry(ref="nano", bundle="runs/r/detector", fingerprint="f")})
    assert only.find("any/key", only.template()).bundle == "runs/r/detector"
    assert only.fingerprints() == "f"


def test_the_index_reads_back_from_json():
    tiled = DetectorIndex(
        ref="n",
        entries={
            (): Entry(ref="n", preprocess=Preprocess(size=60, tiling=Tiling(per_side=2, overlap_px=4, tile_px=32)))
        },
    )
    for index in (INDEX, tiled):
        assert DetectorIndex.from_dict(json.loads(json.dumps(index.to_dict()))) == index


def test_the_largest_preprocessing_decides_how_many_rows_fit():
    assert INDEX.largest() == Preprocess(size=64)


# Runs behind each other


def test_only_products_with_a_detector_on_both_sides_are_compared():
    before = {"detector": INDEX.fingerprints(), "maps": "all"}
    assert before["detector"] == {"bottle": "f1", "nut": "f2", "cap": None}
    now = {"detector": {"bottle": "f1", "nut": "other", "cap": "f3", "new": "f4"}, "maps": "all"}
    one, other = comparable(before, now)
    assert one == {"detector": {"bottle": "f1", "nut": "f2"}, "maps": "all"}
    assert other == {"detector": {"bottle": "f1", "nut": "other"}, "maps": "all"}


def test_a_product_without_a_detector_now_keeps_what_its_older_rows_were_scored_with():
    assert inherited({"a": "f1", "gone": "f2"}, {"a": None, "b": None, "c": "f3"}) == {"a": "f1", "b": None, "c": "f3"}
    assert inherited("f1", "f2") == "f2"
