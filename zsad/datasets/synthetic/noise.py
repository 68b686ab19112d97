"""Random fields and light: the few primitives that every synthetic material and defect is made of.

A field is a float32 array (H, W); noise has mean 0 and standard deviation 1. Lengths are pixels, angles are radians in
image axes (x right, y down). A light angle points from the surface towards the lamp.
Cost: 0.3 to 3 ms a field at 224 px; `cells` is the dearest (8 ms), so it works at half resolution.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from scipy.spatial import cKDTree

Field = NDArray[np.float32]
Rng = np.random.Generator
RGB = tuple[float, float, float]
REFERENCE_PX = 224
"""Image side at which lengths in this package are stated; other sizes scale them."""


def between(rng: Rng, low: float, high: float) -> float:
    """Uniform draw from [low, high)."""
    return float(rng.uniform(low, high))


def log_between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform draw from [low, high): small values are as likely as large ones."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def chance(rng: Rng, share: float) -> bool:
    """True with probability `share`."""
    return bool(rng.random() < share)


def pick(rng: Rng, items: Sequence[str]) -> str:
    """One of several names, all equally likely."""
    return items[int(rng.integers(len(items)))]


def unit(field: Field) -> Field:
    """The field shifted to mean 0 and scaled to standard deviation 1; a constant becomes 0."""
    centred = field - field.mean()
    return np.asarray(centred / (centred.std() + 1e-6), np.float32)


def ramp(field: Field, low: float, high: float) -> Field:
    """Smooth step: 0 below `low`, 1 above `high`; with low > high it falls instead."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def white(rng: Rng, size: int) -> Field:
    """Independent normal noise (size, size)."""
    return rng.standard_normal((size, size), np.float32)


def resized(field: Field, size: int) -> Field:
    """Bicubic copy (size, size) of a field."""
    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def blurred(field: Field, sigma_px: float) -> Field:
    """Gaussian blur of a field (H, W) or an image (H, W, 3); wide blurs run at a quarter of the resolution."""
    if sigma_px < 0.15:
        return field
    if field.ndim == 2 and sigma_px > 6.0:
        small = resized(field, max(4, field.shape[0] // 4))
        return resized(blurred(small, sigma_px / 4.0), field.shape[0])
    sigma = (sigma_px, sigma_px, 0.0)[: field.ndim]
    return np.asarray(ndimage.gaussian_filter(field, sigma, truncate=3.0, mode="nearest"), np.float32)


def smooth(rng: Rng, size: int, scale_px: float) -> Field:
    """Soft noise (size, size) whose features are about `scale_px` wide."""
    knots = max(3, math.ceil(size / scale_px) + 2)
    return unit(resized(rng.standard_normal((knots, knots), np.float32), size))


def fractal(rng: Rng, size: int, slope: float) -> Field:
    """Noise with amplitude 1 / frequency^slope: 0 is white, 1 cloudy grain, 2 soft clouds."""
    spectrum = fft.rfft2(white(rng, size))
    fy = np.fft.fftfreq(size).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(size).astype(np.float32)[None, :]
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    return unit(np.asarray(fft.irfft2(spectrum * radius**-slope, (size, size)), np.float32))


def axes(size: int) -> tuple[Field, Field]:
    """Pixel coordinates y and x, each (size, size), from 0 to size - 1."""
    line = np.arange(size, dtype=np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return y, x


def rotated(size: int, angle: float) -> tuple[Field, Field]:
    """Coordinates along and across a direction, in px from the centre, each (size, size)."""
    y, x = axes(size)
    y, x = y - size / 2, x - size / 2
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def lattice(rng: Rng, along: Field, across: Field, along_px: float, across_px: float) -> Field:
    """Value noise read at given coordinates, so it may be long and thin, turned or bent.

    Args:
        rng: source of the lattice values.
        along: first coordinate of every pixel, px.
        across: second coordinate of every pixel, px.
        along_px: correlation length along the first coordinate.
        across_px: correlation length along the second.
    """
    u, v = along / along_px, across / across_px
    u, v = u - u.min(), v - v.min()
    values = rng.standard_normal((int(v.max()) + 3, int(u.max()) + 3), np.float32)
    row, column = v.astype(np.int32), u.astype(np.int32)
    fv, fu = v - row, u - column
    top = values[row, column] * (1 - fu) + values[row, column + 1] * fu
    bottom = values[row + 1, column] * (1 - fu) + values[row + 1, column + 1] * fu
    return unit(top * (1 - fv) + bottom * fv)


def streaks(rng: Rng, size: int, angle: float, along_px: float, across_px: float) -> Field:
    """Directional grain: noise `along_px` long and `across_px` wide, lying at `angle`."""
    along, across = rotated(size, angle)
    return lattice(rng, along, across, along_px, across_px)


def cells(rng: Rng, size: int, pitch_px: float) -> tuple[Field, NDArray[np.intp]]:
    """Irregular cells (Voronoi) about `pitch_px` wide.

    Returns:
        Distance to the nearest wall, (size, size) in px; number of the cell that each pixel lies in, (size, size).
    """
    half = (size + 1) // 2
    per_side = max(3, round(size / pitch_px) + 2)
    knots = np.stack(np.meshgrid(np.arange(per_side), np.arange(per_side), indexing="ij"), -1).reshape(-1, 2)
    points = (knots + rng.uniform(-0.5, 0.5, knots.shape) - 0.5) * pitch_px / 2
    y, x = axes(half)
    distance, index = cKDTree(points).query(np.stack([y.ravel(), x.ravel()], 1), k=2)
    wall = np.asarray(distance[:, 1] - distance[:, 0], np.float32).reshape(half, half)
    number = np.repeat(np.repeat(index[:, 0].reshape(half, half), 2, 0), 2, 1)[:size, :size]
    return resized(wall, size), number


def relief(height: Field, light: float) -> Field:
    """Brightness change of a height field (px) under a lamp at angle `light`; positive faces the lamp."""
    dy, dx = np.empty_like(height), np.empty_like(height)
    dy[1:-1], dy[0], dy[-1] = (height[2:] - height[:-2]) / 2, 0, 0
    dx[:, 1:-1], dx[:, 0], dx[:, -1] = (height[:, 2:] - height[:, :-2]) / 2, 0, 0
    return np.asarray(-(dx * math.cos(light) + dy * math.sin(light)), np.float32)


def colour(rng: Rng, choices: Sequence[RGB], *, jitter: float = 0.05, free: float = 0.2) -> Field:
    """An RGB colour (3,) in [0.03, 0.97]: one of `choices` with jitter, or with share `free` any colour at all."""
    if chance(rng, free):
        base = colorsys.hsv_to_rgb(rng.random(), between(rng, 0.0, 0.8), between(rng, 0.25, 0.95))
    else:
        base = choices[int(rng.integers(len(choices)))]
    shifted = np.asarray(base) * between(rng, 0.8, 1.15) + rng.normal(0, jitter, 3) * 0.6 + rng.normal(0, jitter)
    return np.asarray(np.clip(shifted, 0.03, 0.97), np.float32)


def painted(level: Field, rgb: Field) -> Field:
    """Image (H, W, 3) of one colour whose brightness is multiplied by a level (H, W)."""
    return level[..., None] * rgb


def mixed(share: Field, first: Field, second: Field) -> Field:
    """Image (H, W, 3) between two colours or images; share 0 is the first, 1 the second."""
    return first + (second - first) * share[..., None]
