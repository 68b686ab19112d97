"""The embedded model as it is shipped; its true figures are in docs/nano.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zsad.backbone.load import NANO, WEIGHTS_FILE
from zsad.detector import load_detector
from zsad.learn.ship import held_out, measure
from zsad.learn.styles import training_styles


@pytest.fixture(scope="module")
def nano():
    return load_detector("nano", device="cpu")


def test_it_is_calibrated_on_many_images(nano):
    assert nano.config.backbone == "nano"
    assert nano.config.calibration.num_normals >= 500


def test_it_is_small_and_stored_in_fp16():
    files = [path for path in Path(NANO).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20
    assert {tensor.dtype for tensor in load_file(NANO / WEIGHTS_FILE).values()} == {torch.float16}


def test_it_tells_defects_from_normal_images(nano):
    """Floors that catch broken weights or preprocessing, well under the figures in docs/nano.md; chance is 0.5."""
    figures = measure(nano, held_out(60, training_styles(nano.config.preprocess.size)))
    assert figures.image_auroc >= 0.80
    assert figures.pixel_auroc >= 0.88
