"""`Finding`: what a detector says of one image, the same in the batch job, the notebook and the HTTP endpoint."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsad import regions
from zsad.regions import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a detector says of one image.

    Attributes:
        score: calibrated, [0, 1].
        raw_score: the method's own number.
        threshold: calibrated.
        defect_type: best word, "unknown", or None when normal.
        defect_scores: probability per defect word; empty when normal.
        anomaly_map: float32 (h, w) on the patch grid, calibrated [0, 1].
        raw_map: the same on the method's own scale.
        regions: connected defective areas, highest score first, px of the input image.
        explanation: (prompt, "normal" | "abnormal", similarity); empty unless the method keeps prompts.
        width, height: of the input image, px.
    """

    score: float
    raw_score: float
    threshold: float
    defect_type: str | None
    defect_scores: dict[str, float]
    anomaly_map: NDArray[np.float32]
    raw_map: NDArray[np.float32]
    regions: list[Region]
    width: int
    height: int
    explanation: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def is_anomaly(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.score >= self.threshold

    def full_map(self) -> NDArray[np.float32]:
        """The anomaly map up-sampled to the input image, float32 (height, width)."""
        return regions.upsample(self.anomaly_map, self.height, self.width)
