"""The shipped bundle and its figures."""

from types import SimpleNamespace

import numpy as np
import pytest

from zsad import bundle, detector
from zsad.backbone import load, model
from zsad.datasets.synthetic import Sample
from zsad.detector import load_detector
from zsad.learn import ship


def sample(defect, masked):
    """A 2 x 2 image whose first `masked` pixels are defective."""
    mask = np.zeros((2, 2), bool)
    mask.flat[:masked] = True
    return SimpleNamespace(image=np.zeros((2, 2, 3), np.uint8), mask=mask, defect_type=defect)


def finding(score, grid, word=None):
    grid = np.array(grid, np.float32)
    return SimpleNamespace(score=score, anomaly_map=grid, width=2, height=2, defect_type=word)


class Stub:
    """A detector with a threshold of 0.5 that was taught two words and gives these findings."""

    config = SimpleNamespace(calibration=SimpleNamespace(threshold=0.5))
    defect_words = ("dent", "missing part")

    def __init__(self, findings):
        self.findings = findings

    def with_threshold(self, threshold):
        """Itself."""
        assert threshold < 0.1  # so that every image gets a name
        return self

    def inspect(self, images):
        """The findings, whatever the images."""
        return self.findings[: len(images)]


def test_figures_by_hand():
    """Five images: the defects score 0.9, 0.6 and 0.2, the normal ones 0.55 and 0.1."""
    samples = [sample("dent", 1), sample("missing_part", 1), sample("hole", 1), sample("good", 0), sample("good", 0)]
    flat = [[0.1, 0.1], [0.1, 0.1]]
    peak = [[0.9, 0.1], [0.1, 0.1]]
    findings = [
        finding(0.9, peak, "dent"),
        finding(0.6, peak, "unknown"),
        finding(0.2, flat, "dent"),
        finding(0.55, flat, "dent"),
        finding(0.1, flat, "dent"),
    ]
    found = ship.measure(Stub(findings), samples)
    assert found.num_images == 5
    assert found.image_auroc == pytest.approx(5 / 6)  # of 3 x 2 pairs only (0.2, 0.55) is out of order
    assert found.pixel_auroc == pytest.approx((2 + 0.5) / 3)  # two defective pixels stand out, one ties with all
    assert found.type_accuracy == 0.5  # of the dent and the missing part; holes were not taught
    assert found.num_types == 2
    assert found.false_alarm_rate == 0.5
    assert found.detection_rate == pytest.approx(2 / 3)


def test_held_out_samples_are_drawn_from_their_own_seed():
    from zsad.datasets.synthetic import SyntheticConfig, generate

    found = ship.held_out(2, SyntheticConfig(size=32))
    assert all(isinstance(item, Sample) for item in found)
    np.testing.assert_array_equal(found[1].image, generate(10_000, 1, SyntheticConfig(size=32)).image)


@pytest.fixture
def as_nano(tiny_folder, tmp_path, monkeypatch):
    """The tiny backbone takes nano's place; calibration on few random images."""

    def normals(size, count=8):
        return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    monkeypatch.setattr(load, "NANO", tiny_folder)
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path)
    monkeypatch.setattr(detector, "procedural_normals", normals)
    monkeypatch.setattr(detector, "DEFECT_WORDS", ("scratch", "dent"))
    monkeypatch.setattr(ship, "DEFECT_WORDS", ("scratch", "dent"))
    monkeypatch.setattr(ship, "procedural_normals", normals)
    monkeypatch.setattr(ship, "CALIBRATION_NORMALS", 12)
    monkeypatch.setattr(ship, "SHIPPED_WINCLIP", tmp_path / "winclip")
    model._load.cache_clear()
    yield tmp_path
    model._load.cache_clear()


def test_the_shipped_bundle_is_calibrated_and_loads(as_nano):
    (as_nano / "winclip").mkdir()
    (as_nano / "winclip" / "stale.json").write_text("{}")
    made = ship.make_shipped_bundle()
    assert sorted(path.name for path in (as_nano / "winclip").iterdir()) == ["detector.json", "tensors.safetensors"]
    loaded = load_detector("nano", device="cpu")
    assert loaded.config == made.config
    assert loaded.config.calibration.num_normals == 12
    assert loaded.config.calibration.source == "12 procedural normal images"
    assert dict(loaded.method.tensors) == {}  # procedural images are nobody's product: nothing is remembered
