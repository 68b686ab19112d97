"""What a defect does to a scene, and where it may sit."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from zsad.datasets.synthetic.noise import Field, Rng, between, chance, colour, log_between, mixed
from zsad.datasets.synthetic.scene import Scene
from zsad.datasets.synthetic.strokes import Points


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A scene with a defect.

    Attributes:
        image: reflectance (H, W, 3) after the defect.
        extent: how much of each pixel the defect changes, (H, W) in [0, 1].
    """

    image: Field
    extent: Field


def full_extent(*layers: Field) -> Field:
    """The union of several layers (H, W), each scaled so that pixels near its strongest count fully."""
    scaled = [np.abs(layer) / max(0.7 * float(np.abs(layer).max()), 1e-6) for layer in layers]
    return np.asarray(np.clip(np.maximum.reduce(scaled), 0, 1), np.float32)


def spot(rng: Rng, scene: Scene) -> Points:
    """A random place (x, y) in px on the part, seldom close to the frame."""
    rows, columns = np.nonzero(scene.region > 0.8)
    if not rows.size:
        return rng.uniform(0.3, 0.7, 2) * scene.size
    for _ in range(4):
        i = int(rng.integers(rows.size))
        at = np.array([columns[i], rows[i]], np.float64)
        if min(at.min(), scene.size - at.max()) > 0.08 * scene.size:
            break
    return at


def rim_spot(rng: Rng, scene: Scene) -> tuple[Points, float]:
    """A place (x, y) on the outline of the part and the direction from there into the part.

    Where material fills the frame there is no outline: mostly any place and direction, else one at the frame.
    """
    inside = np.pad(scene.region > 0.5, 1)
    rim = inside & ~ndimage.binary_erosion(inside)
    if scene.region.min() < 0.5:
        true_rim = rim.copy()
        true_rim[[1, -2]] = False
        true_rim[:, [1, -2]] = False
        rim = true_rim if true_rim.any() else rim
    elif chance(rng, 0.7):
        return spot(rng, scene), between(rng, 0, 2 * math.pi)
    rows, columns = np.nonzero(rim)
    if not rows.size:
        return spot(rng, scene), between(rng, 0, 2 * math.pi)
    i = int(rng.integers(rows.size))
    y, x = int(rows[i]), int(columns[i])
    reach = max(4, round(9 * scene.scale))
    window = inside[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
    near_y, near_x = np.nonzero(window)
    towards = (near_y.mean() - min(y, reach), near_x.mean() - min(x, reach))
    return np.array([x - 1.0, y - 1.0]), math.atan2(*towards)


def radius(rng: Rng, scene: Scene, low: float = 1.6, high: float = 34.0) -> float:
    """Half width of a defect in px: log-uniform between `low` and `high` px at 224 px."""
    return log_between(rng, low, high) * scene.scale


def strength(rng: Rng) -> float:
    """Contrast in reflectance, from faint (0.05) to strong (0.6); faint ones are the more frequent."""
    return 0.05 + 0.55 * float(rng.beta(1.1, 2.4))


def sign(rng: Rng, dark_share: float = 0.5) -> float:
    """-1 for a defect darker than its surroundings, else +1."""
    return -1.0 if chance(rng, dark_share) else 1.0


def local_colour(scene: Scene, at: Points) -> Field:
    """Mean colour (3,) of the scene around a place."""
    x, y = (int(np.clip(c, 4, scene.size - 5)) for c in at)
    return np.asarray(scene.image[y - 4 : y + 5, x - 4 : x + 5].mean((0, 1)), np.float32)


def other_colour(rng: Rng, scene: Scene, at: Points) -> Field:
    """A colour (3,) that differs from the surroundings by a random, often small, contrast; at times any colour."""
    base = local_colour(scene, at)
    if chance(rng, 0.3):
        return colour(rng, [(0.1, 0.1, 0.1), (0.9, 0.9, 0.9)], free=0.8)
    direction = sign(rng, 0.6 if base.mean() > 0.3 else 0.3)
    return np.asarray(np.clip(base + direction * strength(rng) + rng.normal(0, 0.05, 3), 0, 1), np.float32)


def shifted(field: Field, angle: float, distance_px: float) -> Field:
    """The field moved by a distance towards an angle, between pixels too; edges repeat."""
    move = (math.sin(angle) * distance_px, math.cos(angle) * distance_px)
    return np.asarray(ndimage.shift(field, move, order=1, mode="nearest"), np.float32)


def lightened(scene: Scene, delta: Field) -> Field:
    """The scene brightened by `delta` (H, W); half as an offset, half as a factor, so that it suits dark parts too."""
    return np.asarray(scene.image * (1 + delta[..., None]) + 0.4 * delta[..., None], np.float32)


def covered(scene: Scene, cover: Field, rgb: Field) -> Edit:
    """The scene painted over with a colour or picture by a coverage (H, W)."""
    return Edit(image=mixed(cover, scene.image, rgb), extent=full_extent(cover))
