"""Shapes with clean edges: lines of sub-pixel width, polygons, text and ragged blobs, as coverage in [0, 1].

Lines and polygons are drawn four times too large with Pillow and averaged down, so a width of 0.25 px is still a faint
line. Points are (N, 2) arrays of x, y in px. Cost: 1 to 3 ms each at 224 px.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zsad.datasets.synthetic.noise import Field, Rng, axes, between, ramp, smooth

Points = NDArray[np.float64]
_SCALE = 4


def _coverage(canvas: Image.Image) -> Field:
    return np.asarray(canvas.reduce(_SCALE), np.float32) / 255.0


def line(size: int, paths: list[tuple[Points, Points]]) -> Field:
    """Coverage (size, size) of polylines, each given as points (N, 2) and widths (N,) in px; width 0 is a gap."""
    canvas = Image.new("L", (size * _SCALE, size * _SCALE))
    draw = ImageDraw.Draw(canvas)
    for points, widths in paths:
        scaled = points * _SCALE
        for i in range(len(points) - 1):
            width = round(float(widths[i] + widths[i + 1]) / 2 * _SCALE)
            if width < 1:
                continue
            draw.line([*scaled[i], *scaled[i + 1]], fill=255, width=width)
            if width > 4:
                (x, y), r = scaled[i], width / 2 - 0.5
                draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    return _coverage(canvas)


def polygon(size: int, points: Points) -> Field:
    """Coverage (size, size) of a filled polygon."""
    canvas = Image.new("L", (size * _SCALE, size * _SCALE))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points * _SCALE], fill=255)
    return _coverage(canvas)


def wander(rng: Rng, start: Points, angle: float, length_px: float, *, curl: float, jag: float = 0.0) -> Points:
    """Points about 3 px apart along a path that leaves `start` at `angle`.

    Args:
        rng: source of the turns.
        start: x, y in px.
        angle: first direction, radians.
        length_px: length of the path.
        curl: slow change of direction over the whole path, radians.
        jag: sudden change of direction at each step, radians.
    """
    steps = max(2, round(length_px / 3))
    drift = np.cumsum(rng.normal(0, curl / math.sqrt(steps), steps)) + np.linspace(0, rng.normal(0, curl), steps)
    headings = angle + drift + rng.normal(0, jag, steps) if jag else angle + drift
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * (length_px / steps)
    return np.concatenate([start[None], start + np.cumsum(moves, 0)])


def taper(count: int, width_px: float, *, ends: float = 0.3) -> Points:
    """Widths (count,) that rise from nothing to `width_px` and fall again over a share `ends` at each end."""
    t = np.linspace(0, 1, count)
    return width_px * np.clip(np.minimum(t, 1 - t) / max(ends, 1e-3), 0.15, 1)


def outline(rng: Rng, centre: Points, radius_px: float, *, corners: int, ragged: float) -> Points:
    """Corners (N, 2) of a closed irregular outline; `ragged` is the spread of its radius, 0 a regular polygon."""
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False) + rng.normal(0, ragged / corners, corners)
    radii = radius_px * np.clip(1 + rng.normal(0, ragged, corners), 0.3, 2)
    turn, squash = between(rng, 0, math.pi), between(rng, 0.45, 1)
    x, y = np.cos(angles) * radii, np.sin(angles) * radii * squash
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([x * cos - y * sin, x * sin + y * cos], 1) + centre


def blob(rng: Rng, size: int, centre: Points, radius_px: float, *, ragged: float = 0.3, soft_px: float = 1.0) -> Field:
    """Coverage (size, size) of an irregular, often elongated blob.

    Args:
        rng: source of the shape.
        size: image side, px.
        centre: x, y in px.
        radius_px: geometric mean of the two half axes.
        ragged: how far the edge strays, as a share of the radius.
        soft_px: width over which the edge fades.
    """
    y, x = axes(size)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    angle, stretch = between(rng, 0, math.pi), math.sqrt(between(rng, 1, 2.6))
    u = (x * math.cos(angle) + y * math.sin(angle)) / stretch
    v = (y * math.cos(angle) - x * math.sin(angle)) * stretch
    edge = radius_px - np.hypot(u, v)
    if ragged > 0:
        edge = edge + ragged * radius_px * smooth(rng, size, max(2.5, radius_px * between(rng, 0.35, 1.0)))
    return ramp(np.asarray(edge, np.float32), -soft_px / 2, soft_px / 2)


def text(rng: Rng, size: int, corner: Points, height_px: float, *, angle: float = 0.0) -> Field:
    """Coverage (size, size) of a short line of letters and digits that starts at `corner`."""
    letters = "ABCDEFGHKLMNPRSTUVXYZ0123456789-/."
    words = "".join(letters[i] for i in rng.integers(len(letters), size=int(rng.integers(2, 9))))
    canvas = Image.new("L", (size * 2, size * 2))
    position = (float(corner[0]) * 2, float(corner[1]) * 2)
    ImageDraw.Draw(canvas).text(position, words, fill=255, font=ImageFont.load_default(size=max(6.0, height_px * 2)))
    if angle:
        canvas = canvas.rotate(math.degrees(-angle), Image.Resampling.BILINEAR, center=position)
    return np.asarray(canvas.reduce(2), np.float32) / 255.0
