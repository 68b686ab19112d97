"""What a method is: a frozen config, learned tensors (maybe none), and `predict` from pixels to scores and maps.

A method holds no calibration, thresholds or regions: those are the detector's, the same for all methods.

Legend: B images, P patches, (h, w) the patch grid, D joint width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """Raw output for one batch, fp32.

    Attributes:
        score_B: image scores on the method's own scale, larger = more anomalous.
        map_Bhw: anomaly maps on the patch grid, same direction.
        patches_BPD: unit-length patch tokens in the joint space, for the shared defect-type classifier.
    """

    score_B: Tensor
    map_Bhw: Tensor
    patches_BPD: Tensor


class Method(Protocol):
    """A detector's heart.

    `config` is the method's frozen dataclass, `tensors` what must be stored beside it to rebuild the method.
    """

    config: Any

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Learned tensors for the bundle; empty for training-free methods."""
        ...

    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch of uint8 RGB images (B, H, W, 3) whose sides are multiples of the patch size."""
        ...
