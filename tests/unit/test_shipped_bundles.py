"""The learned bundles that are shipped over nano; their true figures are in docs/training.md."""

import pytest

from zsad.detector import load_detector
from zsad.learn.ship import held_out, measure
from zsad.learn.styles import training_styles


@pytest.mark.parametrize("method", ["faprompt", "dapo"])
def test_it_loads_offline_and_tells_defects_from_normal_images(method):
    """Floors that catch broken tensors or a bundle of other weights; chance is 0.5."""
    detector = load_detector(f"nano:{method}", device="cpu")
    assert detector.config.method == method
    assert detector.config.calibration.num_normals >= 200
    figures = measure(detector, held_out(40, training_styles(detector.config.preprocess.size)))
    assert figures.image_auroc >= 0.70
    assert figures.pixel_auroc >= 0.75
