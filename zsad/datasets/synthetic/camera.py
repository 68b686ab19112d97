"""The camera: optics that are the same for every pixel, then sensor and file.

Split in two because contrast is checked in between: `Optics` is linear and free of noise, `Sensor` adds what can't be
undone. Both hold drawn numbers only, so the same camera can photograph a scene with and without its defect.
"""

import io
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsad.datasets.synthetic.noise import Field, Rng, between, blurred, chance

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optics:
    """Lens and exposure.

    Attributes:
        blur_px: standard deviation of the defocus.
        gain: factor of the exposure.
        offset: black level, [-0.05, 0.05].
        cast: factor of each colour channel.
        gamma: exponent of the tone curve.
        is_grey: whether the camera has no colour.
    """

    blur_px: float
    gain: float
    offset: float
    cast: tuple[float, float, float]
    gamma: float
    is_grey: bool

    @classmethod
    def drawn(cls, rng: Rng, *, strength: float, grey_share: float, scale: float) -> Self:
        """A random camera; `strength` 0 is perfect, 1 usual; `scale` is image side / 224."""
        blur = max(0.0, float(rng.normal(0.25, 0.4))) * strength * scale
        cast = 1 + rng.normal(0, 0.03 * strength, 3)
        return cls(
            blur_px=min(blur, 1.3 * scale),
            gain=float(np.exp(rng.normal(0, 0.15 * strength))),
            offset=float(rng.normal(0, 0.015 * strength)),
            cast=(float(cast[0]), float(cast[1]), float(cast[2])),
            gamma=float(np.exp(rng.normal(0, 0.15 * strength))),
            is_grey=chance(rng, grey_share),
        )

    def applied(self, image: Field, exposure: float) -> Field:
        """The picture (H, W, 3) in [0, 1] that the lens throws; `exposure` is a factor set for the scene."""
        level = image * np.asarray(self.cast, np.float32) * np.float32(self.gain * exposure) + np.float32(self.offset)
        if self.is_grey:
            grey = blurred(np.asarray(np.clip(level @ _LUMA, 0, 1), np.float32), self.blur_px)
            return np.repeat((grey ** np.float32(self.gamma))[..., None], 3, 2)
        level = blurred(np.clip(level, 0, 1), self.blur_px)
        return np.asarray(level ** np.float32(self.gamma), np.float32)


def exposure_for(image: Field, wanted: float) -> float:
    """The factor in [0.5, 2.5] that brings the mean of a picture towards `wanted`."""
    return float(np.clip(wanted / max(float(image.mean()), 0.02), 0.5, 2.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """Noise and file format.

    Attributes:
        seed: of the noise, so that two pictures get the same.
        read_noise: standard deviation in the dark, share of full scale.
        shot_noise: standard deviation at full scale, share of full scale.
        jpeg_quality: 0 for a lossless file.
    """

    seed: int
    read_noise: float
    shot_noise: float
    jpeg_quality: int

    @classmethod
    def drawn(cls, rng: Rng, *, strength: float) -> Self:
        """A random sensor; `strength` 0 adds nothing."""
        return cls(
            seed=int(rng.integers(2**63)),
            read_noise=between(rng, 0.0, 0.012) * strength,
            shot_noise=between(rng, 0.0, 0.025) * strength,
            jpeg_quality=int(rng.integers(55, 97)) if chance(rng, 0.35 * min(strength, 1.0)) else 0,
        )

    def exposed(self, image: Field, *, is_grey: bool) -> NDArray[np.uint8]:
        """The file's pixels (H, W, 3) of a picture in [0, 1]."""
        rng = np.random.default_rng(self.seed)
        shape = (*image.shape[:2], 1 if is_grey else 3)
        spread = np.sqrt(np.float32(self.read_noise**2) + np.float32(self.shot_noise**2) * image)
        noisy = image + spread * rng.standard_normal(shape, np.float32)
        pixels: NDArray[np.uint8] = np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8)
        if not self.jpeg_quality:
            return pixels
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.jpeg_quality)
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8)
