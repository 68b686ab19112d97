"""Defects that are lines: scratch, crack, cut, thread, fray, wrinkle, wear.

Each takes a seeded generator and a scene and returns an `Edit`. A groove has a dark and a bright flank, which side is
which follows from the light of the scene; the width goes below one pixel.
"""

import math

import numpy as np

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.edits import (
    Edit,
    full_extent,
    lightened,
    other_colour,
    radius,
    rim_spot,
    shifted,
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
    log_between,
    mixed,
    relief,
    smooth,
    streaks,
)
from zsad.datasets.synthetic.scene import Scene
from zsad.datasets.synthetic.strokes import Points

Paths = list[tuple[Points, Points]]


def _direction(rng: Rng, scene: Scene) -> float:
    """Mostly any direction; at times along the grain, where it is hardest to see."""
    if chance(rng, 0.15):
        return scene.grain + float(rng.normal(0, 0.05))
    return between(rng, 0, 2 * math.pi)


def _centred(points: Points, at: Points) -> Points:
    return np.asarray(points - points[len(points) // 2] + at)


def _groove(scene: Scene, cover: Field, amount: float, flank: float) -> Edit:
    """A line of brightness `amount` with a flank of brightness `flank` on the side away from the light."""
    side = shifted(cover, scene.light + math.pi, 0.9 * scene.scale) * (1 - cover)
    image = lightened(scene, amount * cover + flank * side)
    visible = abs(flank) > 0.5 * abs(amount)
    return Edit(image=image, extent=full_extent(cover, side * 0.8) if visible else full_extent(cover))


def scratch(rng: Rng, scene: Scene) -> Edit:
    """One to five nearly straight, thin, partly broken lines."""
    k = scene.scale
    angle, at = _direction(rng, scene), spot(rng, scene)
    length = log_between(rng, 9, 150) * k
    width = between(rng, 0.35, 2.2) * k
    paths: Paths = []
    for _ in range(1 if chance(rng, 0.65) else int(rng.integers(2, 6))):
        turned = angle + float(rng.normal(0, 0.08))
        points = strokes.wander(rng, at, turned, length * between(rng, 0.5, 1), curl=between(rng, 0, 0.5))
        points = _centred(points, at + rng.normal(0, 5 * k, 2) * bool(paths))
        widths = strokes.taper(len(points), width, ends=between(rng, 0.05, 0.5))
        if chance(rng, 0.35):
            widths = widths * np.clip(1 + np.cumsum(rng.normal(0, 0.35, len(points))), 0, 1.2)
        paths.append((points, widths))
    cover = blurred(strokes.line(scene.size, paths), between(rng, 0, 0.5))
    amount = sign(rng) * strength(rng) * 1.4
    return _groove(scene, cover, amount, -amount * between(rng, 0, 0.8))


def crack(rng: Rng, scene: Scene) -> Edit:
    """A jagged dark line with branches; often starts at the edge of the part."""
    k = scene.scale
    at, angle = rim_spot(rng, scene) if chance(rng, 0.35) else (spot(rng, scene), between(rng, 0, 2 * math.pi))
    length, width = log_between(rng, 14, 140) * k, log_between(rng, 0.5, 3) * k
    jag = between(rng, 0.25, 0.75)
    trunk = strokes.wander(rng, at, angle, length, curl=0.6, jag=jag)
    paths: Paths = [(trunk, strokes.taper(len(trunk), width, ends=0.4) * rng.uniform(0.5, 1.2, len(trunk)))]
    for _ in range(int(rng.integers(0, 5))):
        i = int(rng.integers(len(trunk) - 1))
        heading = math.atan2(*(trunk[i + 1] - trunk[i])[::-1]) + sign(rng) * between(rng, 0.4, 1.2)
        twig = strokes.wander(rng, trunk[i], heading, length * between(rng, 0.1, 0.45), curl=0.4, jag=jag)
        paths.append((twig, np.linspace(width * 0.7, 0.2 * k, len(twig))))
    cover = strokes.line(scene.size, paths)
    amount = sign(rng, 0.9) * (0.2 + strength(rng))
    return _groove(scene, cover, amount, between(rng, 0, 0.35) * -math.copysign(1, amount))


def cut(rng: Rng, scene: Scene) -> Edit:
    """A clean straight slit with raised lips; wide ones gape."""
    k = scene.scale
    at, angle = rim_spot(rng, scene) if chance(rng, 0.25) else (spot(rng, scene), _direction(rng, scene))
    length = log_between(rng, 12, 90) * k
    points = _centred(strokes.wander(rng, at, angle, length, curl=between(rng, 0, 0.4)), at)
    width = min(log_between(rng, 0.8, 7) * k, length / 5)
    gap = strokes.line(scene.size, [(points, strokes.taper(len(points), width, ends=0.5))])
    lips = np.maximum(blurred(gap, between(rng, 0.8, 2) * k) * 2 - gap, 0)
    lit = relief(blurred(gap, 1.2 * k), scene.light) * between(rng, 0.3, 1.5)
    image = lightened(scene, lit - between(rng, 0.0, 0.15) * lips)
    depth = np.float32(between(rng, 0.1, 0.45))
    inner = scene.behind if chance(rng, 0.3) and scene.shape == "surface" else scene.image * depth
    return Edit(image=mixed(gap, image, inner), extent=full_extent(gap))


def thread(rng: Rng, scene: Scene) -> Edit:
    """A loose fibre, hair or thread that lies on the part and throws a thin shadow."""
    k = scene.scale
    at = spot(rng, scene)
    paths: Paths = []
    for _ in range(1 if chance(rng, 0.75) else int(rng.integers(2, 5))):
        length = log_between(rng, 14, 150) * k
        points = strokes.wander(rng, at, between(rng, 0, 6.3), length, curl=between(rng, 0.5, 3.2), jag=0.08)
        points = _centred(points, at + rng.normal(0, 5 * k, 2) * bool(paths))
        paths.append((points, np.full(len(points), max(0.4, log_between(rng, 0.5, 3) * k))))
    cover = strokes.line(scene.size, paths)
    drop = between(rng, 0.7, 2.5) * k
    shadow = shifted(blurred(cover, drop * 0.4), scene.light + math.pi, drop) * (1 - cover)
    image = scene.image * (1 - between(rng, 0.0, 0.5) * shadow)[..., None]
    tone = other_colour(rng, scene, at) * (1 + 0.3 * relief(blurred(cover, 0.6), scene.light))[..., None]
    return Edit(image=mixed(cover * np.float32(between(rng, 0.6, 1)), image, tone), extent=full_extent(cover))


def fray(rng: Rng, scene: Scene) -> Edit:
    """A bundle of short, curled fibres or slivers torn loose along a line, usually at the edge."""
    k = scene.scale
    at, inward = rim_spot(rng, scene) if chance(rng, 0.6) else (spot(rng, scene), between(rng, 0, 2 * math.pi))
    spread, length = radius(rng, scene, 3, 22), log_between(rng, 5, 28) * k
    along = np.array([-math.sin(inward), math.cos(inward)])
    light_paths: Paths = []
    dark_paths: Paths = []
    for i in range(int(rng.integers(8, 40))):
        start = at + along * rng.normal(0, spread * 0.6)
        points = strokes.wander(rng, start, inward + rng.normal(0, 0.6), length * between(rng, 0.3, 1.2), curl=1.0)
        widths = np.linspace(between(rng, 0.4, 1.5) * k, 0.25 * k, len(points))
        (light_paths if i % 3 else dark_paths).append((points, widths))
    light, dark = strokes.line(scene.size, light_paths), strokes.line(scene.size, dark_paths)
    gap = strokes.blob(rng, scene.size, at, spread * 0.6, ragged=0.5, soft_px=3 * k) * np.float32(between(rng, 0, 0.6))
    amount = sign(rng, 0.3) * (0.1 + strength(rng))
    image = lightened(scene, amount * light - 0.7 * abs(amount) * dark - 0.5 * gap)
    body = blurred(np.maximum(light, dark), 0.8 * k) * 1.5
    return Edit(image=image, extent=full_extent(np.maximum.reduce([light, dark, np.clip(body, 0, 1) * 0.7, gap])))


def wrinkle(rng: Rng, scene: Scene) -> Edit:
    """One to four soft folds, seen as a bright and a dark flank."""
    k = scene.scale
    at, angle = spot(rng, scene), between(rng, 0, 2 * math.pi)
    length, width = log_between(rng, 30, 160) * k, log_between(rng, 1.5, 7) * k
    paths: Paths = []
    for _ in range(int(rng.integers(1, 5))):
        start = at + rng.normal(0, 10 * k, 2) * bool(paths)
        points = strokes.wander(rng, start, angle + rng.normal(0, 0.35), length * between(rng, 0.4, 1), curl=0.5)
        points = _centred(points, start)
        paths.append((points, strokes.taper(len(points), width, ends=0.5)))
    ridge = blurred(strokes.line(scene.size, paths), width * between(rng, 0.3, 0.7))
    flanks = relief(ridge * width, scene.light)
    delta = flanks / max(float(np.abs(flanks).max()), 1e-6) * (0.12 + strength(rng)) * sign(rng)
    return Edit(image=lightened(scene, np.asarray(delta, np.float32)), extent=full_extent(flanks, ridge * 0.9))


def wear(rng: Rng, scene: Scene) -> Edit:
    """A rubbed patch: fine parallel scoring, lost texture, changed brightness."""
    k = scene.scale
    at, size = spot(rng, scene), radius(rng, scene, 5, 40)
    patch = strokes.blob(rng, scene.size, at, size, ragged=between(rng, 0.1, 0.6), soft_px=between(rng, 1, 10) * k)
    angle = _direction(rng, scene)
    scoring = streaks(rng, scene.size, angle, between(rng, 10, 60) * k, between(rng, 0.8, 1.6) * k)
    amount = strength(rng)
    delta = patch * (sign(rng) * amount * 0.6 + amount * between(rng, 0.2, 0.7) * scoring)
    flat = mixed(patch * np.float32(between(rng, 0, 0.9)), scene.image, blurred(scene.image, 2.5 * k))
    uneven = patch * (1 + 0.15 * smooth(rng, scene.size, 6 * k))
    image = flat * (1 + delta[..., None]) + 0.3 * delta[..., None]
    return Edit(image=np.asarray(image, np.float32), extent=full_extent(np.clip(uneven, 0, 1)))
