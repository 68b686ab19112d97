"""Defects of some area on the surface: hole, stain, dent, bump, burn, contamination, corrosion, discolouration.

Each takes a seeded generator and a scene and returns an `Edit`; forms with depth are shaded by the light of the scene.
"""

import math

import numpy as np

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.edits import (
    Edit,
    covered,
    full_extent,
    lightened,
    local_colour,
    other_colour,
    radius,
    sign,
    spot,
    strength,
)
from zsad.datasets.synthetic.noise import (
    Field,
    Rng,
    between,
    blurred,
    chance,
    colour,
    fractal,
    log_between,
    mixed,
    ramp,
    relief,
    rotated,
    smooth,
)
from zsad.datasets.synthetic.scene import Scene


def hole(rng: Rng, scene: Scene) -> Edit:
    """One or a few pits, mostly a few px wide: dark inside, shadowed towards the lamp, a bright rim opposite."""
    k = scene.scale
    at, size = spot(rng, scene), radius(rng, scene, 1.5, 22)
    cover = np.zeros((scene.size, scene.size), np.float32)
    for i in range(int(rng.integers(2, 7)) if size < 5 * k and chance(rng, 0.35) else 1):
        place = at + rng.normal(0, size * 3, 2) * bool(i)
        soft = between(rng, 0.6, 1.2 + size * 0.5)
        cover = np.maximum(cover, strokes.blob(rng, scene.size, place, size, ragged=between(rng, 0, 0.4), soft_px=soft))
    wall = relief(blurred(-cover * size * 0.5, 0.7 * k), scene.light)
    inner = scene.image * np.float32(between(rng, 0.08, 0.75))
    if chance(rng, 0.35) and size > 3 * k:
        inner = scene.behind * (1 + np.minimum(wall, 0))[..., None]
    image = lightened(scene, np.clip(wall, -0.3, 0.5) * np.float32(between(rng, 0, 0.7)))
    return Edit(image=mixed(cover, image, inner), extent=full_extent(cover))


def stain(rng: Rng, scene: Scene) -> Edit:
    """A spill or smear that tints the material and lets its texture through; some dry to a dark rim."""
    k = scene.scale
    at, size = spot(rng, scene), radius(rng, scene, 2, 38)
    soft = between(rng, 0.8, 1.5 + size * 0.8)
    cover = strokes.blob(rng, scene.size, at, size, ragged=between(rng, 0.15, 0.7), soft_px=soft)
    for _ in range(int(rng.integers(0, 5)) if chance(rng, 0.3) else 0):
        drop = strokes.blob(rng, scene.size, at + rng.normal(0, size * 1.3, 2), size * between(rng, 0.1, 0.4))
        cover = np.maximum(cover, drop)
    if chance(rng, 0.3) and size > 5 * k:
        rim = np.clip(cover - blurred(cover, between(rng, 1, 2.5) * k) * 0.8, 0, 1)
        cover = np.clip(cover * between(rng, 0.25, 0.6) + rim * 1.5, 0, 1)
    density = cover * np.clip(1 + between(rng, 0, 0.25) * smooth(rng, scene.size, 7 * k), 0.3, 1.3)
    tone = other_colour(rng, scene, at)
    share = np.asarray(np.clip(density, 0, 1) * between(rng, 0.4, 0.95), np.float32)
    tinted = np.asarray(scene.image * (tone / np.maximum(local_colour(scene, at), 0.08)), np.float32)
    image = mixed(share, scene.image, mixed(np.full(share.shape, between(rng, 0.1, 0.9), np.float32), tinted, tone))
    return Edit(image=image, extent=full_extent(cover))


def _shaded(rng: Rng, scene: Scene, height: Field) -> tuple[Field, Field]:
    """Brightness change of a form of some height, and where it shows."""
    slope = relief(height, scene.light)
    slope = slope / max(float(np.abs(slope).max()), 1e-6)
    flat = height / max(float(np.abs(height).max()), 1e-6)
    amount = 0.12 + strength(rng)
    delta = amount * slope + between(rng, -0.1, 0.25) * amount * flat
    return np.asarray(delta, np.float32), full_extent(slope * 0.9, flat)


def _mound(rng: Rng, scene: Scene, size: float) -> Field:
    """A rounded form (H, W) about `size` px in half width, 0 outside."""
    at = spot(rng, scene)
    flank = between(rng, 0.5, 1.6) * size
    return strokes.blob(rng, scene.size, at, size, ragged=between(rng, 0, 0.25), soft_px=flank)


def dent(rng: Rng, scene: Scene) -> Edit:
    """A pressed-in spot: the side towards the lamp lies in shadow, the far side shines."""
    delta, extent = _shaded(rng, scene, -_mound(rng, scene, radius(rng, scene, 2.5, 32)))
    return Edit(image=lightened(scene, delta), extent=extent)


def bump(rng: Rng, scene: Scene) -> Edit:
    """A blister or lump: bright towards the lamp, dark behind, at times with a small mirror spot."""
    height = _mound(rng, scene, radius(rng, scene, 2.5, 30))
    delta, extent = _shaded(rng, scene, height)
    if chance(rng, 0.4):
        peak = height * ramp(relief(height, scene.light), 0, 0.15)
        delta = delta + between(rng, 0.1, 0.5) * peak**4
    return Edit(image=lightened(scene, delta), extent=extent)


def burn(rng: Rng, scene: Scene) -> Edit:
    """Scorched: near-black or brown core that fades through a warm halo."""
    at, size = spot(rng, scene), radius(rng, scene, 3, 30)
    halo = strokes.blob(rng, scene.size, at, size, ragged=between(rng, 0.1, 0.5), soft_px=size * between(rng, 0.6, 1.5))
    core = halo ** between(rng, 1.5, 4) * np.clip(0.8 + 0.2 * fractal(rng, scene.size, 1.0), 0, 1)
    scorched = scene.image * rng.uniform((0.5, 0.4, 0.3), (0.9, 0.75, 0.6)).astype(np.float32)
    image = mixed(halo * np.float32(between(rng, 0.5, 1)), scene.image, scorched)
    char = colour(rng, [(0.05, 0.04, 0.04), (0.15, 0.1, 0.06)], jitter=0.02, free=0)
    image = mixed(np.asarray(core * between(rng, 0, 1), np.float32), image, char)
    return Edit(image=image, extent=full_extent(halo))


def contamination(rng: Rng, scene: Scene) -> Edit:
    """Foreign matter on top: crumbs, a lump of paste, a clear drop, or powder."""
    k = scene.scale
    at = spot(rng, scene)
    tone = other_colour(rng, scene, at)
    kind = rng.random()
    if kind < 0.25:
        cloud = strokes.blob(rng, scene.size, at, radius(rng, scene, 6, 36), ragged=0.4, soft_px=14 * k)
        powder = ramp(blurred(rng.standard_normal(cloud.shape, np.float32), 0.6) * 2 + 3 * cloud, 2.6, 3.4)
        return Edit(image=mixed(powder * cloud, scene.image, tone), extent=full_extent(cloud * (0.2 + 0.8 * powder)))
    size = radius(rng, scene, 1.8, 9 if kind < 0.6 else 24)
    cover = np.zeros((scene.size, scene.size), np.float32)
    for i in range(int(rng.integers(2, 9)) if kind < 0.6 else 1):
        place = at + rng.normal(0, size * 3, 2) * bool(i)
        grain = size * between(rng, 0.5, 1.1)
        cover = np.maximum(cover, strokes.blob(rng, scene.size, place, grain, ragged=between(rng, 0.1, 0.5)))
    form = relief(blurred(cover, 0.25 * size) * size, scene.light)
    shadow = np.roll(
        blurred(cover, 1.2 * k), (-round(2 * k * math.sin(scene.light)), -round(2 * k * math.cos(scene.light))), (0, 1)
    )
    image = scene.image * (1 - between(rng, 0, 0.4) * shadow * (1 - cover))[..., None]
    matter = tone * (1 + between(rng, 0.1, 0.5) * form)[..., None] + 0.04 * fractal(rng, scene.size, 0.8)[..., None]
    if kind > 0.85:
        matter = image * (0.95 + 0.8 * np.clip(form, -0.4, 0.6))[..., None] + 0.03
    return Edit(image=mixed(cover, image, np.asarray(matter, np.float32)), extent=full_extent(cover))


def corrosion(rng: Rng, scene: Scene) -> Edit:
    """Rust, tarnish or mould: ragged patches and specks of rough matter inside a loose outline."""
    k = scene.scale
    at, size = spot(rng, scene), radius(rng, scene, 4, 40)
    outline = strokes.blob(rng, scene.size, at, size, ragged=0.4, soft_px=size)
    texture = fractal(rng, scene.size, between(rng, 0.7, 1.2))
    cover = ramp(outline * 3 + texture * 0.9, 1.6, 2.4) * ramp(outline, 0.02, 0.2)
    tones = [(0.45, 0.22, 0.1), (0.3, 0.16, 0.1), (0.75, 0.75, 0.7), (0.2, 0.3, 0.25), (0.12, 0.11, 0.1)]
    rust = colour(rng, tones, free=0.1) * (1 + 0.18 * fractal(rng, scene.size, 0.7))[..., None]
    rust = rust * (1 + 0.2 * relief(blurred(texture, 0.6 * k), scene.light))[..., None]
    return covered(scene, np.asarray(cover * between(rng, 0.45, 1), np.float32), np.asarray(rust, np.float32))


def discolouration(rng: Rng, scene: Scene) -> Edit:
    """Uneven tone: a broad cloud, a band or a patch that is lighter, darker or of another hue."""
    k = scene.scale
    at = spot(rng, scene)
    if chance(rng, 0.35):
        u, v = rotated(scene.size, scene.grain if chance(rng, 0.6) else between(rng, 0, math.pi))
        i = (int(np.clip(at[1], 0, scene.size - 1)), int(np.clip(at[0], 0, scene.size - 1)))
        half, reach = log_between(rng, 2, 14) * k, log_between(rng, 25, 300) * k
        soft = between(rng, 1, 6) * k
        band = half - np.abs(v - v[i]) + 0.25 * half * smooth(rng, scene.size, 15 * k)
        cover = ramp(np.asarray(band, np.float32), -soft, soft) * ramp(np.abs(u - u[i]), reach, reach * 0.7)
    else:
        size = radius(rng, scene, 8, 42)
        cover = strokes.blob(
            rng, scene.size, at, size, ragged=between(rng, 0.1, 0.5), soft_px=size * between(rng, 0.3, 1.3)
        )
    hue = rng.normal(0, 0.12, 3) * bool(chance(rng, 0.5))
    factor = 1 + sign(rng) * (0.08 + strength(rng) * 0.7) + hue
    image = scene.image * (1 + cover[..., None] * (factor - 1)) + 0.25 * cover[..., None] * (factor - 1)
    return Edit(image=np.asarray(image, np.float32), extent=full_extent(cover))
