"""Turn a method's raw numbers into calibrated ones that mean the same for every method.

A raw score in (0, 1) is taken to logits, shifted and scaled so that over normal images the median lands at 0.01 and the
99 % quantile at 0.5, and squashed back: by a sigmoid below 0.5, by the slower 1 - 0.5 / (1 + z) above. The map is
strictly monotone, so rankings are untouched, and extreme anomalies keep their order even in float32 (a sigmoid, or an
empirical distribution, would tie them all at 1). A threshold of 0.5 therefore marks 1 % of normal
images; the anomaly map is calibrated by the same rule on the largest value of each normal map, so that 1 % of normal
images show any region.

With fewer than 200 normal images the 99 % quantile is extrapolated from their median and spread instead of read off.

Cost: fitting is free; the normal images must be scored once.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from zsad.errors import ConfigError

MIN_NORMALS = 8
QUANTILE_NORMALS = 200
FALSE_ALARM_RATE = 0.01
_EPSILON = 1e-7
_Z_99 = 2.3263
_MAD_TO_SIGMA = 1.4826
_MIN_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One monotone map of z = (logit(raw) - center) / spread: sigmoid(z) below 0, 1 - 0.5 / (1 + z) above."""

    center: float
    spread: float

    def __post_init__(self) -> None:
        """Refuse maps that are not strictly increasing."""
        if not (math.isfinite(self.center) and math.isfinite(self.spread) and self.spread > 0):
            raise ConfigError(f"calibration needs a finite center and a positive spread, not {self}")

    def apply(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Calibrated values of raw ones, any shape, [0, 1]."""
        z = self.standardise(raw)
        return np.where(z < 0, expit(z), 1 - 0.5 / (1 + np.maximum(z, 0))).astype(np.float32)

    def standardise(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Raw values in standard units z, any shape: 0 at the calibrated value 0.5, -4.6 at 0.01."""
        return np.asarray((_logit(np.asarray(raw, dtype=np.float64)) - self.center) / self.spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Scales of image score and anomaly map, with both thresholds on the calibrated scale.

    Attributes:
        num_normals: how many normal images it was fitted on.
        source: where those came from, for the report.
    """

    image: Scale
    map: Scale
    threshold: float = 0.5
    map_threshold: float = 0.5
    num_normals: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse thresholds outside (0, 1)."""
        for name in ("threshold", "map_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; calibrated thresholds lie between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Calibration":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: if a field is missing, unknown or out of range.
        """
        try:
            return cls(**{**fields, "image": Scale(**fields["image"]), "map": Scale(**fields["map"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a calibration: {error}") from error


def fit(image_scores: ArrayLike, map_peaks: ArrayLike, *, source: str) -> Calibration:
    """Calibration from raw numbers of normal images.

    Args:
        image_scores: (N,) raw image scores, (0, 1).
        map_peaks: (N,) largest raw value of each image's anomaly map.
        source: named in the report.

    Raises:
        ConfigError: with fewer than 8 images.
    """
    scores, peaks = np.asarray(image_scores), np.asarray(map_peaks)
    if len(scores) < MIN_NORMALS:
        raise ConfigError(f"{source}: {len(scores)} usable normal images; calibration needs at least {MIN_NORMALS}")
    return Calibration(image=_scale(scores), map=_scale(peaks), num_normals=len(scores), source=source)


def _scale(raw: NDArray[np.floating[Any]]) -> Scale:
    """Median to 0.01 and the 99 % quantile to 0.5."""
    logits = _logit(raw.astype(np.float64))
    median = float(np.median(logits))
    if len(logits) >= QUANTILE_NORMALS:
        tail = float(np.quantile(logits, 1 - FALSE_ALARM_RATE))
    else:
        robust = _MAD_TO_SIGMA * float(np.median(np.abs(logits - median)))
        tail = median + _Z_99 * max(robust, float(logits.std()))
    spread = max(tail - median, _MIN_SPREAD) / math.log((1 - FALSE_ALARM_RATE) / FALSE_ALARM_RATE)
    return Scale(center=tail, spread=spread)


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(p, _EPSILON, 1 - _EPSILON)
    return np.log(clipped) - np.log1p(-clipped)
