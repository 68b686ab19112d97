import json

import numpy as np
import pytest

from zsad.bundle import CONFIG_FILE
from zsad.detector import Detector
from zsad.errors import ErrorCode, StorageError
from zsad.http.answers import at_threshold
from zsad.http.engine import DetectorKey
from zsad.http.loaded import LoadedDetectors

KEYS = [DetectorKey(name) for name in ("a", "b", "c")]


@pytest.fixture
def bundles(tiny_detector, tmp_path):
    for key in KEYS:
        tiny_detector.save(str(tmp_path / key.name))
    return tmp_path


def detectors_of(folder, **changes):
    refs = {key.name: str(folder / key.name) for key in KEYS}
    return LoadedDetectors(refs, **{"device": "cpu", "batch_size": 4, "max_bytes": 2**30} | changes)


def test_a_detector_is_described_as_it_is_stored(bundles, tiny_detector):
    description = detectors_of(bundles).load(KEYS[0]).description
    assert (description.name, description.method, description.object_name) == ("a", "winclip", "object")
    assert description.threshold == tiny_detector.config.calibration.threshold
    assert description.preprocess == tiny_detector.config.preprocess
    assert not description.explains


def test_a_bundle_describes_itself_without_being_loaded(bundles):
    detectors = detectors_of(bundles)
    told, loaded = detectors.describe(KEYS[0]), detectors.load(KEYS[0]).description
    assert told.public() == loaded.public()
    assert told.preprocess == loaded.preprocess
    assert detectors.names() == []
    assert detectors.describe(DetectorKey("a", "nut")) is None


def test_findings_at_its_threshold_are_those_of_the_detector_itself(bundles, tiny_detector):
    loaded = detectors_of(bundles).load(KEYS[0])
    images = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    plain = Detector(tiny_detector.config, {}, batch_size=4).with_threshold(0.02)
    expected = plain.inspect(list(images))
    assert {finding.is_anomaly for finding in expected} == {True, False}
    for found, wanted in zip(loaded.detector.inspect(list(images)), expected, strict=True):
        judged = at_threshold(found, 0.02)
        for name in ("score", "raw_score", "threshold", "is_anomaly", "defect_type", "defect_scores", "regions"):
            assert getattr(judged, name) == getattr(wanted, name), name


def test_the_longest_unused_goes_when_memory_is_short_but_never_the_last(bundles):
    detectors = detectors_of(bundles)
    loaded = {key: detectors.load(key) for key in KEYS}
    size = loaded[KEYS[0]].num_bytes
    assert size > 0
    small = detectors_of(bundles, max_bytes=2 * size)
    assert small.keep(KEYS[0], loaded[KEYS[0]]) == []
    assert small.keep(KEYS[1], loaded[KEYS[1]]) == []
    small.get(KEYS[0])
    assert small.keep(KEYS[2], loaded[KEYS[2]]) == [KEYS[1]]
    assert small.names() == [KEYS[0], KEYS[2]]
    tiny = detectors_of(bundles, max_bytes=1)
    for key in KEYS:
        tiny.keep(key, loaded[key])
    assert tiny.names() == [KEYS[2]]


def test_looking_does_not_count_as_use(bundles):
    detectors = detectors_of(bundles)
    for key in KEYS[:2]:
        detectors.keep(key, detectors.load(key))
    detectors.peek(KEYS[0])
    assert detectors.names() == KEYS[:2]
    detectors.get(KEYS[0])
    assert detectors.names() == [KEYS[1], KEYS[0]]


def test_detectors_over_the_same_weights_share_the_backbone(bundles):
    detectors = detectors_of(bundles)
    assert detectors.load(KEYS[0]).detector.backbone is detectors.load(KEYS[1]).detector.backbone


def test_the_version_changes_with_the_stored_files_and_not_without(bundles):
    detectors = detectors_of(bundles)
    before = detectors.load(KEYS[0]).version
    assert detectors.version(KEYS[0]) == before
    path = bundles / "a" / CONFIG_FILE
    stored = json.loads(path.read_text())
    stored["calibration"]["threshold"] = 0.25
    path.write_text(json.dumps(stored))
    assert detectors.version(KEYS[0]) != before
    assert detectors.load(KEYS[0]).description.threshold == 0.25


def test_a_missing_bundle_is_no_detector(bundles):
    detectors = LoadedDetectors({"gone": f"file://{bundles}/gone"}, device="cpu", batch_size=4, max_bytes=1)
    with pytest.raises(StorageError) as caught:
        detectors.load(DetectorKey("gone"))
    assert caught.value.code == ErrorCode.MISSING
