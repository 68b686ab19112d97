"""Detector references and what is stored of a detector."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from zsad import bundle
from zsad.bundle import (
    CONFIG_FILE,
    TENSORS_FILE,
    BundleRef,
    DetectorConfig,
    ModelRef,
    check_words,
    parse_ref,
    read_config,
    read_tensors,
    write_bundle,
)
from zsad.calibration import Calibration, Scale
from zsad.errors import ConfigError, ModelError
from zsad.images import Preprocess

SCALE = Scale(center=-1.0, spread=0.1)
CONFIG = DetectorConfig(
    backbone="nano",
    backbone_sha256="0" * 64,
    precision="fp32",
    method="winclip",
    settings={"temperature": 0.1},
    preprocess=Preprocess(size=64),
    object_name="cable",
    defect_words=("scratch", "dent"),
    calibration=Calibration(image=SCALE, map=SCALE, num_normals=9, source="x"),
    provenance={"seed": 3},
)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package folder with one shipped bundle, `winclip`, and one of a made-up method."""
    for name in ("winclip", "learned"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "shipped" / name / CONFIG_FILE).write_text("{}")
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "shipped"


@pytest.mark.parametrize(
    ("ref", "backbone"),
    [
        ("ViT-L-14-336/openai", "ViT-L-14-336/openai"),
        ("ViT-L-14-336/openai:winclip", "ViT-L-14-336/openai"),
        ("some/folder", "some/folder"),
        ("some/folder:winclip", "some/folder"),
    ],
)
def test_references_to_backbones(shipped, ref, backbone):
    assert parse_ref(ref) == ModelRef(backbone, "winclip")


@pytest.mark.parametrize(
    ("ref", "name"), [("nano", "winclip"), ("nano:winclip", "winclip"), ("nano:learned", "learned")]
)
def test_references_to_shipped_bundles(shipped, ref, name):
    assert parse_ref(ref) == BundleRef(str(shipped / name))


def test_nano_without_its_bundle_is_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path)
    assert parse_ref("nano") == ModelRef("nano", "winclip")


@pytest.mark.parametrize("ref", ["s3://models/x", "s3://models/x:1/", "file:///models/x"])
def test_urls_are_bundles(ref):
    assert parse_ref(ref) == BundleRef(ref)


def test_a_folder_with_a_description_is_a_bundle(tmp_path):
    assert parse_ref(str(tmp_path)) == ModelRef(str(tmp_path), "winclip")
    (tmp_path / CONFIG_FILE).write_text("{}")
    assert parse_ref(str(tmp_path)) == BundleRef(str(tmp_path))


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("", "empty; try 'nano'"),
        ("  ", "empty; try 'nano'"),
        ("nano:nonsense", "unknown method 'nonsense'; zsad has winclip"),
        ("nano:", "unknown method ''"),
        ("ViT-B-32/openai:learned", "unknown method 'learned'"),
    ],
)
def test_references_that_can_not_be_used(shipped, ref, words):
    with pytest.raises(ConfigError, match=words):
        parse_ref(ref)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, calibration=None)])
def test_a_bundle_reads_back_as_written(tmp_path, config):
    write_bundle(str(tmp_path / "b"), config, b"tensors")
    assert read_config(str(tmp_path / "b")) == config
    assert read_tensors(str(tmp_path / "b")) == b"tensors"
    assert json.loads((tmp_path / "b" / CONFIG_FILE).read_text())["format_version"] == 1


def test_the_description_is_written_last(tmp_path, monkeypatch):
    written = []

    class Store:
        def put(self, key, _data):
            written.append(key)

    monkeypatch.setattr(bundle, "open_store", lambda _url: Store())
    write_bundle("x", CONFIG, b"")
    assert written == [TENSORS_FILE, CONFIG_FILE]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format version 2; this zsad reads version 1"),
        ({"format_version": None}, "format version None"),
        ({"preprocess": {"size": 64, "crop": 3}}, "crop"),
        ({"preprocess": {"size": 3}}, "16 to 4096"),
        ({"preprocess": None}, "not a detector description"),
        ({"calibration": {"image": {}}}, "not a calibration"),
        ({"defect_words": None}, "not a detector description"),
        ({"defect_words": [7]}, "must be a list of words"),
        ({"defect_words": ["dent", "dent"]}, "'dent' is given twice"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_descriptions_that_can_not_be_used(tmp_path, change, words):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**CONFIG.to_dict(), **change}))
    with pytest.raises(ModelError, match=words) as caught:
        read_config(str(tmp_path))
    assert str(tmp_path / CONFIG_FILE) in str(caught.value)


@pytest.mark.parametrize("name", sorted(CONFIG.to_dict().keys() - {"min_region_patches", "provenance"}))
def test_missing_fields_are_refused(tmp_path, name):
    stored = CONFIG.to_dict()
    del stored[name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(stored))
    with pytest.raises(ModelError):
        read_config(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\udcff"])
def test_descriptions_that_are_no_json_object(tmp_path, text):
    (tmp_path / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"not JSON|not an object"):
        read_config(str(tmp_path))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=f"no {CONFIG_FILE} there"):
        read_config(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=f"no {TENSORS_FILE} there"):
        read_tensors(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"backbone_sha256": "1" * 64},
        {"settings": {}},
        {"object_name": "x"},
        {"defect_words": ("dent", "scratch")},
        {"calibration": None},
        {"min_region_patches": 2.0},
        {"precision": "bf16"},
    ],
)
def test_the_fingerprint_notices_what_changes_results(change):
    assert replace(CONFIG, **change).fingerprint() != CONFIG.fingerprint()


def test_the_fingerprint_ignores_provenance():
    assert replace(CONFIG, provenance={}).fingerprint() == CONFIG.fingerprint()


def test_words_are_kept_in_order():
    assert check_words(["hole", "missing part"]) == ("hole", "missing part")


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "at least one"), (("dent", " "), "none of them empty"), (("dent", "hole", "dent"), "'dent' is given twice")],
)
def test_word_lists_that_can_not_be_used(words, message):
    with pytest.raises(ConfigError, match=message):
        check_words(words)


def test_descriptions_are_read_without_torch():
    code = "import sys, zsad.bundle; zsad.bundle.parse_ref('x'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
