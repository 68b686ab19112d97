"""Pictures of soft and organic materials: textiles, leather, wood, paper, rubber, foam.

Each painter takes a seeded generator, the image side in px and the light angle, and returns an evenly lit `Surface`;
everything that a painter draws at random is harmless by definition.
"""

import math
from dataclasses import dataclass

import numpy as np

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.noise import (
    REFERENCE_PX,
    Field,
    Rng,
    axes,
    between,
    blurred,
    cells,
    chance,
    colour,
    fractal,
    lattice,
    log_between,
    mixed,
    painted,
    pick,
    ramp,
    relief,
    rotated,
    smooth,
    streaks,
    unit,
    white,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """An evenly lit material.

    Attributes:
        image: reflectance (H, W, 3), about [0, 1].
        grain: direction of its texture, radians.
        gloss: how strongly it mirrors lamps, [0, 1].
    """

    image: Field
    grain: float
    gloss: float


def straight_angle(rng: Rng) -> float:
    """A direction that is horizontal or vertical within a few degrees in most cases, anything otherwise."""
    if chance(rng, 0.2):
        return between(rng, 0, math.pi)
    return (0.0 if chance(rng, 0.5) else math.pi / 2) + float(rng.normal(0, 0.04))


def woven(rng: Rng, size: int, light: float) -> Surface:
    """Plain, basket or twill cloth of two thread colours with uneven threads."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng) if chance(rng, 0.6) else between(rng, 0, math.pi)
    u, v = rotated(size, angle)
    pitch = log_between(rng, 3.2, 15) * k
    ripple = between(rng, 0.0, 0.25) * pitch
    a = (u + ripple * smooth(rng, size, 40 * k)) / pitch
    b = (v + ripple * smooth(rng, size, 40 * k)) / (pitch * between(rng, 0.7, 1.4))
    thread_a, thread_b = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
    period = int(rng.choice([2, 2, 3, 4]))
    over = (thread_a + thread_b) % period < (period + 1) // 2
    bulge_a, bulge_b = np.sin(math.pi * (a - thread_a)), np.sin(math.pi * (b - thread_b))
    height = np.where(over, bulge_a * (0.5 + 0.5 * bulge_b), bulge_b * (0.5 + 0.5 * bulge_a))
    tones = rng.normal(0, between(rng, 0.02, 0.12), (2, 4096)).astype(np.float32)
    uneven = np.where(over, tones[0][thread_a % 4096], tones[1][thread_b % 4096])
    depth = between(rng, 0.25, 0.8)
    level = 1 - depth + depth * height + uneven + between(rng, 0.01, 0.07) * white(rng, size)
    level = level + between(rng, 0.0, 0.5) * relief(blurred(np.asarray(height, np.float32), 0.6), light)
    palette = [(0.75, 0.7, 0.6), (0.35, 0.4, 0.5), (0.6, 0.6, 0.62), (0.2, 0.2, 0.22), (0.7, 0.3, 0.25)]
    first = colour(rng, palette, free=0.4)
    second = colour(rng, palette, free=0.4) if chance(rng, 0.4) else first * np.float32(between(rng, 0.75, 1.1))
    image = np.where(over[..., None], first, second) * level[..., None]
    return Surface(image=blurred(np.asarray(image, np.float32), between(rng, 0.2, 0.7)), grain=angle, gloss=0.0)


def carpet(rng: Rng, size: int, light: float) -> Surface:
    """Tufted pile: granular noise of a few yarn tones, sometimes in rows."""
    k = size / REFERENCE_PX
    tuft = log_between(rng, 0.8, 2.6) * k
    pile = unit(blurred(white(rng, size), tuft))
    level = 0.8 + between(rng, 0.06, 0.2) * pile + between(rng, 0.02, 0.08) * white(rng, size)
    angle = straight_angle(rng)
    if chance(rng, 0.4):
        _, v = rotated(size, angle)
        rows = v / (log_between(rng, 4, 14) * k) + 0.12 * smooth(rng, size, 20 * k)
        level = level + between(rng, 0.05, 0.2) * np.sin(2 * math.pi * rows)
    level = level + between(rng, 0.0, 0.2) * relief(pile, light)
    palette = [(0.55, 0.55, 0.55), (0.45, 0.4, 0.36), (0.3, 0.35, 0.45), (0.6, 0.5, 0.38), (0.25, 0.27, 0.27)]
    image = painted(level, colour(rng, palette))
    if chance(rng, 0.5):
        share = ramp(unit(blurred(white(rng, size), tuft)), 0.4, 1.2) * np.float32(between(rng, 0.3, 1))
        image = mixed(share, image, painted(level, colour(rng, palette, free=0.4)))
    return Surface(image=image, grain=angle, gloss=0.0)


def leather(rng: Rng, size: int, light: float) -> Surface:
    """Pebbled or smooth hide with soft colour clouds and fine creases."""
    k = size / REFERENCE_PX
    if chance(rng, 0.65):
        wall, _ = cells(rng, size, log_between(rng, 4.5, 16) * k)
        height = ramp(wall, 0, between(rng, 2, 5) * k) * between(rng, 0.7, 2) + 0.25 * smooth(rng, size, 3 * k)
    else:
        height = unit(blurred(white(rng, size), between(rng, 0.8, 1.8) * k)) * between(rng, 0.3, 0.8)
    height = height + between(rng, 0, 1.0) * unit(fractal(rng, size, 1.3))
    strength = between(rng, 0.05, 0.22)
    level = 0.9 + strength * relief(np.asarray(height, np.float32), light) + strength * 0.25 * unit(height)
    level = level + between(rng, 0.01, 0.06) * fractal(rng, size, 1.5)
    palette = [(0.4, 0.24, 0.14), (0.55, 0.36, 0.22), (0.13, 0.12, 0.12), (0.65, 0.55, 0.42), (0.4, 0.12, 0.1)]
    return Surface(image=painted(level, colour(rng, palette, free=0.15)), grain=0.0, gloss=between(rng, 0, 0.35))


def _knots(rng: Rng, size: int, bend: Field) -> tuple[Field, Field]:
    """Adds the bow of the rings around up to two knots to `bend`; returns it and the darkness of the knots."""
    k = size / REFERENCE_PX
    dark = np.zeros((size, size), np.float32)
    y, x = axes(size)
    for _ in range(int(rng.choice([0, 0, 0, 1, 2]))):
        cx, cy = rng.uniform(0, size, 2)
        radius = between(rng, 4, 14) * k
        distance = np.hypot((x - cx) / between(rng, 0.8, 2), y - cy).astype(np.float32)
        bend = bend + radius * 2.2 * np.exp(-((distance / (radius * 2)) ** 2))
        dark = np.maximum(dark, ramp(distance, radius, radius * 0.6) * between(rng, 0.3, 0.7))
    return np.asarray(bend, np.float32), np.asarray(dark, np.float32)


def wood(rng: Rng, size: int, light: float) -> Surface:
    """Year rings, fibres, pores and sometimes knots or the joints of planks."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng)
    u, v = rotated(size, angle)
    bend, dark = _knots(rng, size, np.zeros((size, size), np.float32))
    waves = lattice(rng, u, v, between(rng, 60, 200) * k, between(rng, 25, 80) * k)
    across = v + bend + between(rng, 2, 14) * k * blurred(waves, 5 * k)
    pitch = log_between(rng, 4, 30) * k
    rings = lattice(rng, np.zeros_like(u), across, 1.0, pitch / 2)
    saw = (across / pitch) % 1.0
    level = 0.85 + between(rng, 0.02, 0.09) * rings + between(rng, 0, 0.12) * (saw - 0.5)
    level = level + between(rng, 0.015, 0.06) * lattice(rng, u, across, 45 * k, between(rng, 0.8, 1.6) * k)
    pores = lattice(rng, u, across, between(rng, 6, 20) * k, between(rng, 0.7, 1.2) * k)
    level = level - between(rng, 0, 0.16) * ramp(pores, 1.1, 2.2) - dark
    if chance(rng, 0.25):
        width = between(rng, 35, 110) * k
        plank = np.floor((v + size * 2) / width).astype(np.int32)
        level = level + rng.normal(0, 0.08, 4096).astype(np.float32)[plank % 4096]
        gap = np.abs((v + size * 2) % width - 1.5)
        level = level * (1 - between(rng, 0.3, 0.8) * ramp(np.asarray(gap, np.float32), 1.6 * k, 0.5 * k))
    palette = [(0.72, 0.53, 0.34), (0.8, 0.66, 0.46), (0.5, 0.32, 0.2), (0.62, 0.45, 0.3), (0.35, 0.24, 0.17)]
    rgb = colour(rng, palette, free=0.05)
    warm = np.asarray([0.9, 1.05, 1.25], np.float32)
    image = np.asarray(rgb * np.maximum(level, 0.05)[..., None] ** warm, np.float32)
    return Surface(image=image, grain=angle, gloss=between(rng, 0, 0.3))


def paper(rng: Rng, size: int, light: float) -> Surface:
    """Paper or corrugated card, often printed with lines of text or a block of colour."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng)
    level = 0.95 + between(rng, 0.005, 0.03) * streaks(rng, size, angle, 12 * k, 2 * k)
    level = level + between(rng, 0.005, 0.03) * fractal(rng, size, between(rng, 0.4, 1.2))
    if chance(rng, 0.35):
        _, v = rotated(size, angle)
        level = level + between(rng, 0.02, 0.08) * np.sin(v * (2 * math.pi / (between(rng, 5, 16) * k)))
    palette = [(0.92, 0.91, 0.88), (0.72, 0.58, 0.42), (0.85, 0.82, 0.74), (0.95, 0.95, 0.95), (0.6, 0.62, 0.66)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette, free=0.15))
    if chance(rng, 0.55):
        image = print_lines(rng, image)
    return Surface(image=image, grain=angle, gloss=between(rng, 0, 0.15))


def print_lines(rng: Rng, image: Field) -> Field:
    """The image with one to six regular lines of print, and sometimes a bar or a frame, in one ink."""
    size = image.shape[0]
    k = size / REFERENCE_PX
    ink = colour(rng, [(0.1, 0.1, 0.12), (0.1, 0.15, 0.45), (0.6, 0.1, 0.1), (0.1, 0.35, 0.2)], free=0.2)
    height = between(rng, 9, 30) * k
    x, y = rng.uniform(0.05, 0.5, 2) * size
    cover = np.zeros((size, size), np.float32)
    for i in range(int(rng.integers(1, 6))):
        top = y + i * height * 1.35
        if top < size:
            cover = np.maximum(cover, strokes.text(rng, size, np.array([x, top]), height))
    if chance(rng, 0.35):
        x0, y0, x1, y1 = np.sort(rng.uniform(0, size, (2, 2)), 0).ravel()
        box = strokes.polygon(size, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
        inner = blurred(box, 3 * k) > 0.98 if chance(rng, 0.5) else np.zeros_like(box, bool)
        cover = np.maximum(cover, np.where(inner, 0, box) * np.float32(0.7))
    return mixed(cover * np.float32(between(rng, 0.5, 0.95)), image, ink)


def rubber(rng: Rng, size: int, light: float) -> Surface:
    """Dark, matt and granular, sometimes ribbed or studded."""
    k = size / REFERENCE_PX
    grain = unit(blurred(white(rng, size), between(rng, 0.5, 1.4) * k))
    level = 1 + between(rng, 0.04, 0.16) * grain + between(rng, 0.02, 0.08) * fractal(rng, size, 1.5)
    angle = straight_angle(rng)
    kind = pick(rng, ("plain", "ribbed", "studded"))
    u, v = rotated(size, angle)
    pitch = between(rng, 9, 32) * k
    if kind == "ribbed":
        height = ramp(np.sin(v * (2 * math.pi / pitch)), -0.5, 0.5) * pitch * 0.12
        level = level + between(rng, 0.15, 0.5) * relief(blurred(height, 0.7), light) + 0.05 * height
    elif kind == "studded":
        height = ramp(np.sin(u * (2 * math.pi / pitch)) * np.sin(v * (2 * math.pi / pitch)), 0.2, 0.6) * pitch * 0.1
        level = level + between(rng, 0.15, 0.5) * relief(blurred(height, 0.7), light) + 0.05 * height
    palette = [(0.15, 0.15, 0.16), (0.22, 0.22, 0.22), (0.3, 0.28, 0.27), (0.4, 0.15, 0.12), (0.2, 0.24, 0.3)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette, free=0.1))
    return Surface(image=image, grain=angle, gloss=between(rng, 0, 0.2))


def foam(rng: Rng, size: int, light: float) -> Surface:
    """Sponge or foam: pores of many sizes in a pale matrix."""
    k = size / REFERENCE_PX
    pores = unit(blurred(white(rng, size), log_between(rng, 0.8, 3.5) * k))
    coarse = smooth(rng, size, between(rng, 5, 14) * k)
    depth = ramp(pores + between(rng, 0, 0.8) * coarse, 0.3, 1.6)
    level = 1 - between(rng, 0.12, 0.5) * depth + between(rng, 0.05, 0.25) * relief(pores, light)
    level = level + 0.02 * white(rng, size)
    palette = [(0.85, 0.8, 0.6), (0.8, 0.8, 0.8), (0.9, 0.75, 0.3), (0.35, 0.36, 0.38), (0.55, 0.7, 0.8)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette))
    return Surface(image=image, grain=0.0, gloss=0.0)
