"""A tiny random backbone and a calibrated detector over it, made once."""

import numpy as np
import pytest

from zsad.bundle import DetectorConfig
from zsad.images import Preprocess


@pytest.fixture(scope="session")
def tiny_network():
    """The open_clip model; do not change it."""
    import tiny_model
    import torch

    torch.set_num_threads(1)  # so small a tower gains nothing from a second one
    return tiny_model.random_model()


@pytest.fixture(scope="session")
def tiny_folder(tiny_network, tmp_path_factory):
    import tiny_model

    return tiny_model.write_folder(tmp_path_factory.mktemp("backbone"), tiny_network)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder):
    from zsad.backbone import load_backbone

    return load_backbone(str(tiny_folder), "cpu", "fp32")


@pytest.fixture(scope="session")
def tiny_config(tiny_folder, tiny_backbone):
    """An uncalibrated detector description with two defect words."""
    return DetectorConfig(
        backbone=str(tiny_folder),
        backbone_sha256=tiny_backbone.sha256,
        precision="fp32",
        method="winclip",
        settings={},
        preprocess=Preprocess(size=32),
        object_name="object",
        defect_words=("scratch", "dent"),
    )


@pytest.fixture(scope="session")
def tiny_detector(tiny_config):
    """A detector for batches of 4, calibrated on 16 random images."""
    from zsad.detector import Detector

    normals = np.random.default_rng(7).integers(0, 256, (16, 40, 48, 3), dtype=np.uint8)
    return Detector(tiny_config, {}, batch_size=4).calibrated(normals, source="random images")
