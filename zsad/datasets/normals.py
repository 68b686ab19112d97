"""Normal procedural images for calibration where the user gives none."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CALIBRATION_IMAGES = 256
_MIN_CALIBRATION_IMAGES = 64
_FULL_COUNT_PX = 448
_CALIBRATION_SEED = 20_000


def procedural_normals(size: int, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Normal procedural images (size, size, 3) that no training has seen, always the same.

    Args:
        size: side, px.
        count: None: 256 up to 448 px; fewer of larger ones, so that drawing costs the same, but at least 64.
    """
    from zsad.datasets.synthetic import SyntheticConfig, generate

    config = SyntheticConfig(size=size, anomaly_share=0.0)
    if count is None:
        fit = CALIBRATION_IMAGES * _FULL_COUNT_PX**2 // size**2
        count = min(CALIBRATION_IMAGES, max(_MIN_CALIBRATION_IMAGES, fit))
    return (generate(_CALIBRATION_SEED, index, config).image for index in range(count))
