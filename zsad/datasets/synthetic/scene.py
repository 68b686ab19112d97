"""A scene: one part or one stretch of material, lit, with all its harmless variation and no defect yet.

Harmless are joints, grain and print of the material itself, and here: specks, uneven light, vignettes, reflections,
borders where the part ends. They appear on every scene, so that a model can't take "anything unusual" for a defect.
"""

import math
from dataclasses import dataclass

import numpy as np

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.materials import surface
from zsad.datasets.synthetic.noise import (
    REFERENCE_PX,
    Field,
    Rng,
    axes,
    between,
    blurred,
    chance,
    colour,
    fractal,
    log_between,
    mixed,
    painted,
    ramp,
    rotated,
    smooth,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a defect is drawn on.

    Attributes:
        image: reflectance (H, W, 3), about [0, 1], before light and camera.
        region: how far each pixel belongs to the part, (H, W) in [0, 1].
        behind: what is seen where the part is missing, (H, W, 3).
        shading: factor of the light that reaches each pixel, (H, W).
        reflection: light mirrored on top, (H, W).
        light: direction to the lamp, radians.
        grain: direction of the texture, radians.
        material: name in `MATERIALS`.
        shape: name in `SHAPES`, or "surface" for material that fills the frame.
    """

    image: Field
    region: Field
    behind: Field
    shading: Field
    reflection: Field
    light: float
    grain: float
    material: str
    shape: str

    @property
    def size(self) -> int:
        """Side of the image, px."""
        return int(self.image.shape[0])

    @property
    def scale(self) -> float:
        """Factor from lengths at 224 px to lengths here."""
        return self.size / REFERENCE_PX

    def lit(self, image: Field) -> Field:
        """An image (H, W, 3) of this scene under its light."""
        return np.asarray(image * self.shading[..., None] + self.reflection[..., None], np.float32)


def shading(rng: Rng, size: int, light: float) -> Field:
    """Uneven light (size, size) around 1: a gradient, soft clouds, at times a vignette."""
    u, _ = rotated(size, light + float(rng.normal(0, 0.4)))
    field = 1 + between(rng, 0, 0.35) * u / size * float(chance(rng, 0.7))
    field = field + between(rng, 0, 0.06) * smooth(rng, size, size * between(rng, 0.3, 0.8))
    if chance(rng, 0.35):
        y, x = axes(size)
        cx, cy = rng.normal(size / 2, size * 0.12, 2)
        radius = np.hypot(x - cx, y - cy) / (size * 0.7)
        field = field - between(rng, 0.1, 0.6) * radius ** between(rng, 1.5, 4)
    return np.asarray(np.clip(field, 0.12, 1.8), np.float32)


def reflection(rng: Rng, size: int, gloss: float) -> Field:
    """Soft mirrored lamps (size, size): spots and bars, brighter on glossier material."""
    field = np.zeros((size, size), np.float32)
    if not chance(rng, 0.15 + 0.6 * gloss):
        return field
    for _ in range(int(rng.integers(1, 3))):
        u, v = rotated(size, between(rng, 0, math.pi))
        u, v = u + float(rng.normal(0, size / 3)), v + float(rng.normal(0, size / 3))
        wide, high = log_between(rng, 0.08, 0.5) * size, log_between(rng, 0.05, 2) * size
        spot = np.exp(-((np.abs(u) / wide) ** 2.5) - (np.abs(v) / high) ** 2.5)
        field = field + np.asarray(spot, np.float32) * np.float32(between(rng, 0.03, 0.1 + 0.3 * gloss))
    return field


def specks(rng: Rng, image: Field) -> Field:
    """The image with a sprinkle of faint dust, each speck one or two pixels wide."""
    size = image.shape[0]
    count = int(log_between(rng, 2, 60))
    dust = np.zeros((size, size), np.float32)
    rows, columns = rng.integers(0, size, (2, count))
    dust[rows, columns] = rng.uniform(0.2, 1, count) * between(rng, 0.1, 0.55)
    dust = np.clip(blurred(dust, between(rng, 0.25, 0.6)) * 1.6, 0, 0.5)
    tone = np.float32(0.9 if chance(rng, 0.5) else 0.1)
    return mixed(dust, image, np.full(3, tone, np.float32))


def _ends(rng: Rng, size: int) -> Field:
    """Region of a part whose straight, slightly rough edges show on some sides of the frame."""
    turn = float(rng.normal(0, 0.03))
    u, v = rotated(size, turn)
    region = np.ones((size, size), np.float32)
    k = size / REFERENCE_PX
    rough = log_between(rng, 0.03, 0.8) * smooth(rng, size, 7 * k) + log_between(rng, 0.1, 2) * smooth(
        rng, size, 60 * k
    )
    soft = between(rng, 0.6, 2.5)
    for distance in (size / 2 - u, size / 2 + u, size / 2 - v, size / 2 + v):
        if chance(rng, 0.5):
            inset = between(rng, 0.03, 0.18) * size
            region = np.minimum(region, ramp(np.asarray(distance + rough - inset, np.float32), -soft, soft))
    return region


def backdrop(rng: Rng, size: int) -> Field:
    """A calm ground (size, size, 3) such as a table, belt or light box."""
    palette = [(0.05, 0.05, 0.05), (0.92, 0.92, 0.92), (0.5, 0.5, 0.5), (0.25, 0.27, 0.3), (0.15, 0.3, 0.2)]
    if chance(rng, 0.55):
        level = 1 + between(rng, 0, 0.04) * fractal(rng, size, between(rng, 0.3, 1.5))
        return painted(level, colour(rng, palette, free=0.2))
    calm = ("rubber", "paint", "plastic", "paper", "brushed_metal", "woven", "concrete", "wood")
    ground = surface(rng, calm[int(rng.integers(len(calm)))], size, between(rng, 0, 2 * math.pi)).image
    flat = between(rng, 0.1, 0.6)
    return np.asarray(blurred(ground * (1 - flat) + ground.mean((0, 1)) * flat, between(rng, 0.3, 1.5)), np.float32)


def surface_scene(rng: Rng, material: str, size: int) -> Scene:
    """Material that fills the frame, or nearly: a third of the metal and tile scenes show where the part ends."""
    light = between(rng, 0, 2 * math.pi)
    base = surface(rng, material, size, light)
    image = specks(rng, base.image) if chance(rng, 0.5) else base.image
    dark = colour(rng, [(0.04, 0.04, 0.04), (0.1, 0.1, 0.1), (0.85, 0.85, 0.85)], free=0.1)
    behind = painted(1 + 0.05 * smooth(rng, size, 20), dark)
    edged = 0.55 if material == "ground_metal" else 0.15
    region = _ends(rng, size) if chance(rng, edged) else np.ones((size, size), np.float32)
    return Scene(
        image=mixed(region, behind, image),
        region=region,
        behind=behind,
        shading=shading(rng, size, light),
        reflection=reflection(rng, size, base.gloss) * region,
        light=light,
        grain=base.grain,
        material=material,
        shape="surface",
    )


def printed_mark(rng: Rng, image: Field, region: Field) -> Field:
    """The image with one printed or engraved mark near the middle of a part."""
    size = image.shape[0]
    rows, columns = np.nonzero(region > 0.9)
    at = np.array([columns.mean() - size * 0.12, rows.mean() - size * 0.06]) + rng.normal(0, size * 0.04, 2)
    angle = float(rng.choice([0, 0, math.pi / 2, between(rng, 0, 6.3)]))
    cover = strokes.text(rng, size, at, between(rng, 9, 26) * size / REFERENCE_PX, angle=angle) * region
    ink = np.full(3, 0.1 if image[rows, columns].mean() > 0.4 else 0.85, np.float32)
    return mixed(cover * np.float32(between(rng, 0.3, 0.9)), image, ink)
