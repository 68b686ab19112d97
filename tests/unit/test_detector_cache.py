"""Detectors of many bundles in one process: shared backbone, bounded memory, forgotten by last use."""

import json
import shutil

import numpy as np
import pytest

from zsad.bundle import DetectorConfig, read_config, write_bundle
from zsad.detector_cache import DetectorCache, held_bytes
from zsad.errors import ModelError


@pytest.fixture
def bundles(tiny_detector, tmp_path):
    urls = [str(tmp_path / name) for name in "abc"]
    for url in urls:
        tiny_detector.save(url)
    return urls


def test_detectors_are_loaded_once_and_share_their_backbone(bundles):
    cache = DetectorCache(device="cpu", batch_size=4)
    first, second = cache.get(bundles[0]), cache.get(bundles[1])
    assert cache.get(bundles[0]) is first
    assert cache.num_loaded == 2
    assert first.backbone is second.backbone


def test_the_same_weights_under_another_name_are_one_backbone(bundles, tiny_folder, tmp_path):
    copy = str(shutil.copytree(tiny_folder, tmp_path / "copy"))
    stored = read_config(bundles[0])
    plain = stored.to_dict() | {"backbone": copy}
    write_bundle(bundles[1], type(stored).from_dict(plain, "test"), (tmp_path / "a/tensors.safetensors").read_bytes())
    cache = DetectorCache(device="cpu", batch_size=4)
    assert cache.get(bundles[0]).backbone is cache.get(bundles[1]).backbone


def test_the_same_weights_described_otherwise_are_another_backbone(bundles, tiny_folder, tmp_path):
    """Where the value-value path begins is no tensor, and changes every map."""
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    described = json.loads((copy / "open_clip_config.json").read_text())
    (copy / "open_clip_config.json").write_text(json.dumps(described | {"zsad": {"vv_start": 0}}))
    plain = read_config(bundles[0]).to_dict() | {"backbone": str(copy)}
    stored = DetectorConfig.from_dict(plain, "test")
    write_bundle(bundles[1], stored, (tmp_path / "a/tensors.safetensors").read_bytes())
    cache = DetectorCache(device="cpu", batch_size=4)
    assert cache.get(bundles[0]).backbone is not cache.get(bundles[1]).backbone


def test_the_least_recently_used_is_forgotten_first(bundles):
    size = held_bytes(DetectorCache(device="cpu", batch_size=4).get(bundles[0]))
    cache = DetectorCache(device="cpu", batch_size=4, max_bytes=2 * size)
    for url in (bundles[0], bundles[1], bundles[0], bundles[2]):
        cache.get(url)
    assert (len(cache), cache.num_loaded) == (2, 3)
    cache.get(bundles[0])
    assert cache.num_loaded == 3
    cache.get(bundles[1])
    assert cache.num_loaded == 4


def test_one_detector_stays_whatever_the_bound(bundles):
    cache = DetectorCache(device="cpu", batch_size=4, max_bytes=1)
    assert cache.get(bundles[0]) is cache.get(bundles[0])
    cache.get(bundles[1])
    assert (len(cache), cache.num_loaded) == (1, 2)


def test_what_a_detector_holds_is_its_own_arrays_each_once(tiny_detector):
    class Holder:
        def __init__(self):
            self.array = np.zeros(10, np.float64)
            self.again = [self.array, {"x": np.ones(3, np.uint8)}]
            self.backbone = tiny_detector.backbone

    assert held_bytes(Holder()) == 83


def test_a_missing_bundle_is_an_error_of_its_own(bundles, tmp_path):
    cache = DetectorCache(device="cpu", batch_size=4)
    with pytest.raises(ModelError, match=r"no detector\.json there"):
        cache.get(str(tmp_path / "nowhere"))
    assert cache.get(bundles[0])
