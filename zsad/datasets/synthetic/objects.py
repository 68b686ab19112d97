"""Parts on a ground: a signed distance to an outline turns any material into a washer, pill, cap, bracket and so on.

A shape is a function of pixel coordinates x, y (px from the centre) and its half width r in px, and returns the
distance to its outline in px, positive inside. Bevel, dome, drop shadow and rings all derive from that one field.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsad.datasets.synthetic.materials import surface
from zsad.datasets.synthetic.noise import (
    REFERENCE_PX,
    Field,
    Rng,
    axes,
    between,
    blurred,
    chance,
    log_between,
    mixed,
    pick,
    ramp,
    relief,
    smooth,
)
from zsad.datasets.synthetic.scene import Scene, backdrop, printed_mark, reflection, shading, specks

Distance = NDArray[np.floating[Any]]
Shape = Callable[[Rng, Field, Field, float], Distance]


def _box(x: Field, y: Field, half_x: float, half_y: float, corner: float) -> Field:
    """Signed distance to a rectangle with rounded corners."""
    dx, dy = np.abs(x) - (half_x - corner), np.abs(y) - (half_y - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return np.asarray(corner - outside - np.minimum(np.maximum(dx, dy), 0), np.float32)


def _polar(x: Field, y: Field) -> tuple[Distance, Distance]:
    return np.hypot(x, y), np.arctan2(y, x)


def disc(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Round plate."""
    return np.asarray(r - np.hypot(x, y))


def washer(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Disc with a round bore."""
    radius = np.hypot(x, y)
    return np.minimum(r - radius, radius - r * between(rng, 0.25, 0.8))


def pill(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Capsule or oblong tablet."""
    half = r * between(rng, 0.3, 0.7)
    return _box(x, y, r, half, half * 0.999)


def block(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Rectangle with rounded corners."""
    half = r * between(rng, 0.45, 1)
    return _box(x, y, r * 0.9, half * 0.9, half * between(rng, 0.03, 0.5))


def nut(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Hexagon, usually with a bore."""
    third = math.pi / 3
    hexagon = [x * math.cos(i * third) + y * math.sin(i * third) for i in range(3)]
    edge = r * 0.87 - np.maximum.reduce([np.abs(side) for side in hexagon])
    return np.asarray(edge if chance(rng, 0.25) else np.minimum(edge, np.hypot(x, y) - r * between(rng, 0.3, 0.6)))


def cap(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Bottle cap: disc with a wavy rim."""
    radius, angle = _polar(x, y)
    return r * (0.95 + 0.03 * np.sin(angle * int(rng.integers(16, 40)))) - radius


def gear(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Toothed wheel with a bore."""
    radius, angle = _polar(x, y)
    tooth = np.tanh(np.sin(angle * int(rng.integers(9, 24))) * 3)
    return np.asarray(
        np.minimum(r * (0.9 + between(rng, 0.04, 0.1) * tooth) - radius, radius - r * between(rng, 0.15, 0.4))
    )


def bracket(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Angle plate with holes in both legs."""
    leg = r * between(rng, 0.22, 0.38)
    upright = _box(x + r * 0.85 - leg, y, leg, r * 0.85, leg * 0.2)
    foot = _box(x, y - r * 0.85 + leg, r * 0.85, leg, leg * 0.2)
    hole = leg * between(rng, 0.25, 0.5)
    holes = [(leg - r * 0.85, -r * 0.5), (r * 0.5, r * 0.85 - leg)]
    edge = np.maximum(upright, foot)
    return np.asarray(np.minimum.reduce([edge, *(np.hypot(x - cx, y - cy) - hole for cx, cy in holes)]))


def screw(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Screw from the side: flat head, threaded shank, point."""
    shank = r * between(rng, 0.13, 0.24)
    turns = np.sin((x + y * 0.25) * (2 * math.pi / (r * between(rng, 0.1, 0.2)))) * shank * 0.12
    body = np.minimum(shank + turns - np.abs(y), np.minimum(r - x, r - x - np.abs(y) * 0.8))
    body = np.minimum(body, x + r * 0.8)
    return np.asarray(np.maximum(body, _box(x + r * 0.82, y, r * 0.16, shank * between(rng, 1.8, 2.6), r * 0.06)))


def bottle(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Bottle or vial from the side: body, shoulder, neck."""
    half = r * between(rng, 0.4, 0.6)
    body = _box(x, y - r * 0.3, half, r * 0.68, half * between(rng, 0.1, 0.4))
    return np.maximum(body, _box(x, y + r * 0.55, half * between(rng, 0.35, 0.6), r * 0.43, r * 0.03))


def connector(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Housing with a row of pins."""
    pitch = 2 * r / int(rng.integers(4, 11))
    body = _box(x, y + r * 0.15, r * 0.95, r * 0.35, r * 0.05)
    pins = np.minimum(
        pitch * between(rng, 0.18, 0.3) - np.abs((x + r) % pitch - pitch / 2), r * 0.5 - np.abs(y - r * 0.3)
    )
    return np.asarray(np.maximum(body, np.minimum(pins, r * 0.9 - np.abs(x))))


def tablets(rng: Rng, x: Field, y: Field, r: float) -> Distance:
    """Several equal small parts in rows, not quite aligned."""
    pitch = 2 * r / int(rng.integers(2, 5))
    column, row = np.floor((x + r) / pitch), np.floor((y + r) / pitch)
    number = (column * 5 + row).astype(np.int32) % 64
    offset = rng.normal(0, pitch * 0.03, (2, 64)).astype(np.float32)
    u, v = (x + r) % pitch - pitch / 2 + offset[0][number], (y + r) % pitch - pitch / 2 + offset[1][number]
    half_x, half_y = pitch * between(rng, 0.3, 0.42), pitch * between(rng, 0.2, 0.42)
    edge = _box(u, v, half_x, half_y, min(half_x, half_y) * between(rng, 0.3, 0.99))
    inside = (np.abs(x) < r * 0.999) & (np.abs(y) < r * 0.999)
    return np.where(inside, edge, -np.float32(pitch))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "disc": disc,
        "washer": washer,
        "pill": pill,
        "block": block,
        "nut": nut,
        "cap": cap,
        "gear": gear,
        "bracket": bracket,
        "screw": screw,
        "bottle": bottle,
        "connector": connector,
        "tablets": tablets,
    }
)


def _distance(rng: Rng, shape: str, size: int) -> Field:
    """Signed distance (size, size) to the outline of a shape placed somewhat off the centre at some angle."""
    y, x = axes(size)
    shift = rng.normal(0, size * 0.03, 2)
    x, y = x - np.float32(size / 2 + shift[0]), y - np.float32(size / 2 + shift[1])
    angle = (
        between(rng, 0, 2 * math.pi) if chance(rng, 0.5) else float(rng.choice([0, math.pi / 2]) + rng.normal(0, 0.03))
    )
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    radius = size * (between(rng, 0.28, 0.46) if shape != "tablets" else between(rng, 0.38, 0.48))
    distance = SHAPES[shape](rng, x * cos + y * sin, y * cos - x * sin, radius)
    return np.asarray(distance + between(rng, 0, 0.5) * smooth(rng, size, 12), np.float32)


def _form(rng: Rng, distance: Field, light: float) -> Field:
    """Brightness factor (H, W) of the body of a part: bevelled or domed edges, at times turned rings."""
    scale = distance.shape[0] / REFERENCE_PX
    bevel = log_between(rng, 2, 45) * scale
    inside = np.clip(distance, 0, bevel)
    height = np.sqrt(np.maximum(bevel**2 - (bevel - inside) ** 2, 0)) if chance(rng, 0.6) else inside
    level = 1 + between(rng, 0.15, 0.6) * relief(blurred(np.asarray(height, np.float32), 0.8 * scale), light)
    if chance(rng, 0.3):
        pitch = between(rng, 4, 20) * scale
        rings = np.sin(np.maximum(distance, 0) * (2 * math.pi / pitch)) * (distance < pitch * int(rng.integers(1, 5)))
        level = level + between(rng, 0.02, 0.15) * blurred(np.asarray(rings, np.float32), 0.5)
    return np.asarray(np.clip(level, 0.2, 1.9), np.float32)


def _shadowed(rng: Rng, ground: Field, region: Field, light: float) -> Field:
    """The ground with the soft shadow of a part that lies on it."""
    scale = ground.shape[0] / REFERENCE_PX
    reach, soft = between(rng, 1, 9) * scale, between(rng, 1.5, 9) * scale
    move = (-round(math.sin(light) * reach), -round(math.cos(light) * reach))
    shadow = blurred(np.roll(region, move, (0, 1)), soft)
    return ground * (1 - between(rng, 0.1, 0.75) * shadow)[..., None]


def object_scene(rng: Rng, material: str, size: int) -> Scene:
    """A part of some shape, made of a material, lying on a calm ground."""
    light = between(rng, 0, 2 * math.pi)
    shape = pick(rng, tuple(SHAPES))
    distance = _distance(rng, shape, size)
    region = ramp(distance, -0.7, 0.7)
    base = surface(rng, material, size, light)
    body = base.image * _form(rng, distance, light)[..., None]
    ground = backdrop(rng, size)
    if abs(float(body[region > 0.5].mean() - ground.mean())) < 0.12:
        ground = ground * np.float32(0.35) if ground.mean() > 0.4 else 1 - (1 - ground) * np.float32(0.5)
    if chance(rng, 0.3):
        body = printed_mark(rng, body, region)
    bare = np.asarray(ground, np.float32)
    ground = _shadowed(rng, bare, region, light)
    image = mixed(region, ground, body)
    return Scene(
        image=specks(rng, image) if chance(rng, 0.4) else image,
        region=region,
        behind=bare,
        shading=shading(rng, size, light),
        reflection=reflection(rng, size, base.gloss) * region,
        light=light,
        grain=base.grain,
        material=material,
        shape=shape,
    )
