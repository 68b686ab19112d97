"""Defects of form and print: chip, missing part, misprint, bend.

Each takes a seeded generator and a scene and returns an `Edit`. Chips and missing parts show what lies behind the part.
"""

import math

import numpy as np
from scipy import ndimage

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.edits import (
    Edit,
    covered,
    full_extent,
    other_colour,
    radius,
    rim_spot,
    sign,
    spot,
    strength,
)
from zsad.datasets.synthetic.noise import (
    Field,
    Rng,
    axes,
    between,
    blurred,
    chance,
    fractal,
    mixed,
    ramp,
    relief,
    unit,
)
from zsad.datasets.synthetic.scene import Scene
from zsad.datasets.synthetic.strokes import Points


def chip(rng: Rng, scene: Scene) -> Edit:
    """A flake broken off at the edge: faceted, rough fracture face of another tone, or the ground behind."""
    k = scene.scale
    at, _ = rim_spot(rng, scene) if chance(rng, 0.8) else (spot(rng, scene), 0.0)
    size = radius(rng, scene, 2.5, 24)
    cover = strokes.polygon(scene.size, strokes.outline(rng, at, size, corners=int(rng.integers(5, 12)), ragged=0.3))
    if scene.region.min() < 0.5 and chance(rng, 0.35):
        return _removed(scene, cover, scene.behind)
    facets = unit(fractal(rng, scene.size, between(rng, 1.2, 1.8)))
    bowl = relief(-blurred(cover, size * 0.35) * size, scene.light)
    tone = other_colour(rng, scene, at)
    face = tone * (1 + 0.1 * facets + 0.35 * bowl + 0.25 * relief(facets, scene.light))[..., None]
    edge = relief(blurred(cover, 0.6 * k), scene.light) * (1 - cover)
    image = scene.image * (1 - between(rng, 0, 0.8) * edge)[..., None]
    broken = mixed(cover, image, np.asarray(face, np.float32))
    return Edit(image=mixed(scene.region, scene.image, broken), extent=full_extent(cover * scene.region))


def _removed(scene: Scene, cover: Field, ground: Field) -> Edit:
    """The part without a piece of it and its shadow; the ground (H, W, 3) shows instead."""
    gone = cover * ramp(blurred(scene.region, 7 * scene.scale), 0.01, 0.15)
    return Edit(image=mixed(gone, scene.image, ground), extent=full_extent(cover * scene.region))


def _lost(rng: Rng, scene: Scene) -> Field:
    """Coverage of the piece that is missing: a bite, a slice across the part, or a regular cut-out."""
    at, inward = rim_spot(rng, scene)
    kind = rng.random()
    if kind < 0.4:
        size = radius(rng, scene, 6, 36)
        shape = strokes.outline(rng, at, size, corners=int(rng.integers(6, 14)), ragged=between(rng, 0, 0.25))
        return strokes.polygon(scene.size, shape)
    if kind < 0.65 and scene.shape != "surface":
        y, x = axes(scene.size)
        turned = inward + float(rng.normal(0, 0.5))
        depth = (x - at[0]) * math.cos(turned) + (y - at[1]) * math.sin(turned)
        jagged = depth + fractal(rng, scene.size, 1.5) * between(rng, 0, 3) * scene.scale
        cut = between(rng, 6, 40) * scene.scale
        piece = ramp(np.asarray(jagged, np.float32), cut + 0.7, cut - 0.7)
        return 1 - piece if (piece * scene.region).sum() > 0.5 * scene.region.sum() else piece
    centre = spot(rng, scene) if scene.shape == "surface" or chance(rng, 0.5) else at
    corners = int(rng.choice([4, 4, 6, 24]))
    return strokes.polygon(
        scene.size, strokes.outline(rng, centre, radius(rng, scene, 4, 30), corners=corners, ragged=0)
    )


def missing_part(rng: Rng, scene: Scene) -> Edit:
    """A piece of the part is gone and the ground shows, with the shadow of the new edge."""
    cover = _lost(rng, scene)
    rest = blurred(scene.region * (1 - cover), between(rng, 1, 4) * scene.scale)
    shade = 1 - between(rng, 0, 0.5) * np.clip(rest * 1.5, 0, 1)
    return _removed(scene, cover, np.asarray(scene.behind * shade[..., None], np.float32))


def _print_error(rng: Rng, scene: Scene, at: Points) -> Field:
    """Coverage of ink that should not be there: letters, a doubled line, a bar, a smear or a logo."""
    k = scene.scale
    kind = int(rng.integers(5))
    if kind == 0:
        return strokes.text(rng, scene.size, at, between(rng, 9, 34) * k, angle=between(rng, 0, 6.3))
    if kind == 1:
        row = strokes.text(rng, scene.size, at, between(rng, 9, 24) * k)
        return np.asarray(
            np.maximum(row, 0.6 * np.roll(row, (round(2 * k), round(between(rng, 1.6, 5) * k)), (0, 1))), np.float32
        )
    if kind == 2:
        points = strokes.wander(rng, at, between(rng, 0, 6.3), radius(rng, scene, 12, 110), curl=0)
        return strokes.line(scene.size, [(points, np.full(len(points), between(rng, 1, 9) * k))])
    if kind == 3:
        size = radius(rng, scene, 3, 18)
        smear = strokes.blob(rng, scene.size, at, size, ragged=0.3)
        moved = [np.roll(smear, round(i * size * 0.4), 1) * (1 - i / 6) for i in range(6)]
        return np.asarray(np.maximum.reduce(moved), np.float32)
    size = radius(rng, scene, 4, 26)
    outer = strokes.polygon(
        scene.size, strokes.outline(rng, at, size, corners=int(rng.choice([3, 4, 5, 24])), ragged=0)
    )
    inner = strokes.blob(rng, scene.size, at, size * 0.5, ragged=0)
    return np.asarray(outer * (1 - inner), np.float32) if chance(rng, 0.5) else outer


def misprint(rng: Rng, scene: Scene) -> Edit:
    """Ink in the wrong place, doubled or smeared; flat, sharp and without relief."""
    at = spot(rng, scene)
    cover = _print_error(rng, scene, at)
    patchy = cover * np.clip(1 + between(rng, 0, 0.3) * fractal(rng, scene.size, 0.8), 0.2, 1)
    edit = covered(scene, np.asarray(patchy * between(rng, 0.5, 1), np.float32), other_colour(rng, scene, at))
    return Edit(image=edit.image, extent=full_extent(cover))


def bend(rng: Rng, scene: Scene) -> Edit:
    """Part of the picture is pushed sideways, so pattern or outline is out of true, with a hint of relief."""
    at, inward = rim_spot(rng, scene)
    if scene.shape == "surface" or chance(rng, 0.2):
        at, inward = spot(rng, scene), between(rng, 0, 2 * math.pi)
    size = radius(rng, scene, 10, 45)
    y, x = axes(scene.size)
    distance = np.hypot(x - at[0], y - at[1])
    push = np.exp(-((distance / size) ** 2) * 1.5) * size * between(rng, 0.2, 0.6) * sign(rng)
    where = np.stack([y - push * math.sin(inward), x - push * math.cos(inward)])
    moved = [ndimage.map_coordinates(scene.image[..., c], where, order=1, mode="nearest") for c in range(3)]
    slope = relief(np.asarray(push, np.float32), scene.light) * between(rng, 0, 0.5) * (0.3 + strength(rng))
    part = ndimage.map_coordinates(scene.region, where, order=1, mode="nearest")
    touched = blurred(ndimage.maximum_filter(np.maximum(part, scene.region), 3), 0.5)
    bent = np.stack(moved, -1) * (1 + slope * scene.region)[..., None]
    image = mixed(touched, scene.image, np.asarray(bent, np.float32))
    changed = np.abs(image - scene.image).max(-1)
    near = ramp(blurred(np.asarray(changed, np.float32), 1.2 * scene.scale), 0.01, 0.05)
    return Edit(
        image=image, extent=full_extent(near * np.asarray(np.abs(push) > 0.12 * np.abs(push).max(), np.float32))
    )
