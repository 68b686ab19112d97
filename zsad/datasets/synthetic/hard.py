"""Pictures of hard materials: metals, mesh, tile, stone, glass, plastic, concrete, ceramic, paint, circuit boards.

Painters have the same form as those of `soft`: seeded generator, image side in px and light angle in, `Surface` out.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from zsad.datasets.synthetic import strokes
from zsad.datasets.synthetic.noise import (
    REFERENCE_PX,
    Field,
    Rng,
    between,
    blurred,
    cells,
    chance,
    colour,
    fractal,
    log_between,
    mixed,
    painted,
    ramp,
    relief,
    rotated,
    smooth,
    streaks,
    unit,
    white,
)
from zsad.datasets.synthetic.soft import Surface, print_lines, straight_angle

_METALS = [(0.62, 0.62, 0.63), (0.45, 0.46, 0.48), (0.75, 0.75, 0.76), (0.3, 0.3, 0.31), (0.7, 0.58, 0.38)]


def brushed_metal(rng: Rng, size: int, light: float) -> Surface:
    """Sheet with fine parallel lines and a soft sheen across them."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng)
    level = 0.9 + between(rng, 0.02, 0.08) * streaks(rng, size, angle, between(rng, 40, 300) * k, 0.9 * k)
    level = level + between(rng, 0.01, 0.05) * streaks(rng, size, angle, 120 * k, between(rng, 2, 8) * k)
    u, _ = rotated(size, angle)
    level = level + between(rng, 0, 0.2) * np.cos(u / (size * between(rng, 0.15, 0.5)) + between(rng, 0, 6))
    image = painted(np.asarray(level, np.float32), colour(rng, _METALS, jitter=0.02, free=0.03))
    return Surface(image=image, grain=angle, gloss=between(rng, 0.3, 1))


def ground_metal(rng: Rng, size: int, light: float) -> Surface:
    """Ground face, mostly dark grey: strong grain at several widths and single harmless grinding lines."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng)
    length = log_between(rng, 25, 400) * k
    level = 0.85 + between(rng, 0.03, 0.14) * streaks(rng, size, angle, length, between(rng, 0.8, 1.6) * k)
    level = level + between(rng, 0.02, 0.1) * streaks(rng, size, angle, length * 1.5, between(rng, 2, 7) * k)
    level = level + between(rng, 0.01, 0.08) * streaks(rng, size, angle, 500 * k, between(rng, 12, 50) * k)
    lines = streaks(rng, size, angle + float(rng.normal(0, 0.03)), length * 2, 1.1 * k)
    level = level + float(rng.choice([-1, 1])) * between(rng, 0, 0.2) * ramp(lines, 1.4, 2.6)
    level = level + between(rng, 0.01, 0.06) * white(rng, size) + between(rng, 0, 0.06) * smooth(rng, size, 50 * k)
    grey = [(0.3, 0.3, 0.3), (0.42, 0.42, 0.42), (0.55, 0.55, 0.55), (0.22, 0.22, 0.22)]
    image = painted(np.asarray(level, np.float32), colour(rng, grey, jitter=0.02, free=0.02))
    return Surface(image=image, grain=angle, gloss=between(rng, 0, 0.5))


def cast_metal(rng: Rng, size: int, light: float) -> Surface:
    """Rough casting skin: fine grain, shallow pits, clouds of oxide."""
    k = size / REFERENCE_PX
    height = fractal(rng, size, between(rng, 0.6, 1.3))
    level = 0.9 + between(rng, 0.03, 0.12) * relief(blurred(height, between(rng, 0.3, 0.9) * k), light)
    level = level + between(rng, 0.02, 0.08) * height + between(rng, 0, 0.08) * smooth(rng, size, 30 * k)
    pits = unit(blurred(white(rng, size), between(rng, 0.7, 1.4) * k))
    level = level - between(rng, 0, 0.15) * ramp(pits, 2.0, 3.2)
    rgb = colour(
        rng, [(0.45, 0.45, 0.46), (0.33, 0.33, 0.34), (0.6, 0.6, 0.6), (0.4, 0.37, 0.34)], jitter=0.02, free=0.03
    )
    return Surface(image=painted(np.asarray(level, np.float32), rgb), grain=0.0, gloss=between(rng, 0, 0.4))


def mesh(rng: Rng, size: int, light: float) -> Surface:
    """Wire grid or perforated sheet before a plain ground."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng) if chance(rng, 0.5) else between(rng, 0, math.pi)
    u, v = rotated(size, angle)
    pitch = log_between(rng, 9, 34) * k
    a, b = u / pitch + 0.02 * smooth(rng, size, 60 * k), v / pitch + 0.02 * smooth(rng, size, 60 * k)
    if chance(rng, 0.65):
        share = between(rng, 0.12, 0.4)
        wire_a, wire_b = np.abs((a % 1) - 0.5) * 2, np.abs((b % 1) - 0.5) * 2
        height = np.sqrt(np.maximum(0, 1 - (np.minimum(wire_a, wire_b) / share) ** 2))
    else:
        a = a + 0.5 * (np.floor(b) % 2)
        height = ramp(np.hypot((a % 1) - 0.5, (b % 1) - 0.5), between(rng, 0.2, 0.34), 0.4)
    height = np.asarray(height, np.float32)
    cover = ramp(height, 0.05, 0.45)
    level = 0.75 + 0.25 * height + between(rng, 0.05, 0.4) * relief(height * 2, light) + 0.03 * white(rng, size)
    wire = painted(np.asarray(level, np.float32), colour(rng, _METALS, free=0.15))
    ground = [(0.06, 0.06, 0.06), (0.15, 0.15, 0.17), (0.85, 0.85, 0.85), (0.5, 0.5, 0.5)]
    behind = painted(1 + 0.05 * smooth(rng, size, 30 * k), colour(rng, ground, free=0.1))
    return Surface(image=mixed(cover, behind, wire), grain=angle, gloss=between(rng, 0, 0.3))


def _joints(rng: Rng, image: Field, light: float) -> Field:
    """The image cut into rectangular tiles by grout lines; every tile gets its own tone."""
    size = image.shape[0]
    k = size / REFERENCE_PX
    u, v = rotated(size, straight_angle(rng))
    pitch = between(rng, 55, 170) * k
    u, v = u + size * 2 + between(rng, 0, pitch), v + size * 2 + between(rng, 0, pitch)
    if chance(rng, 0.3):
        u = u + pitch / 2 * (np.floor(v / pitch) % 2)
    number = (np.floor(u / pitch) * 7 + np.floor(v / pitch) * 13).astype(np.int32) % 997
    image = image * (1 + rng.normal(0, 0.04, 997).astype(np.float32))[number][..., None]
    half = between(rng, 0.8, 3) * k
    gap = np.minimum(pitch / 2 - np.abs(u % pitch - pitch / 2), pitch / 2 - np.abs(v % pitch - pitch / 2))
    edge = ramp(np.asarray(gap, np.float32), half, half + 1.5 * k)
    image = image * (1 + 0.3 * relief(edge * 2, light))[..., None]
    return mixed(edge, colour(rng, [(0.6, 0.6, 0.58), (0.3, 0.3, 0.3), (0.85, 0.84, 0.8)], free=0.05), image)


def tile(rng: Rng, size: int, light: float) -> Surface:
    """Terrazzo, speckled or plain floor tile, half of them with joints."""
    k = size / REFERENCE_PX
    palette = [(0.7, 0.68, 0.64), (0.5, 0.5, 0.5), (0.8, 0.78, 0.72), (0.35, 0.37, 0.4), (0.6, 0.45, 0.36)]
    rgb = colour(rng, palette)
    image = painted(1 + between(rng, 0.01, 0.06) * fractal(rng, size, between(rng, 0.5, 1.5)), rgb)
    for _ in range(int(rng.integers(0, 4))):
        spots = unit(blurred(white(rng, size), log_between(rng, 0.6, 5) * k))
        fleck = colour(rng, palette, free=0.3)
        low = between(rng, 0.6, 1.8)
        image = mixed(ramp(spots, low, low + 0.25) * np.float32(between(rng, 0.3, 1)), image, fleck)
    if chance(rng, 0.5):
        image = _joints(rng, image, light)
    return Surface(image=image, grain=straight_angle(rng), gloss=between(rng, 0.1, 0.9))


def stone(rng: Rng, size: int, light: float) -> Surface:
    """Granite with mineral grains, or marble with clouds and broad veins."""
    k = size / REFERENCE_PX
    palette = [(0.75, 0.74, 0.72), (0.4, 0.4, 0.41), (0.6, 0.5, 0.46), (0.2, 0.2, 0.21), (0.5, 0.52, 0.46)]
    rgb, other = colour(rng, palette, free=0.08), colour(rng, palette, free=0.08)
    if chance(rng, 0.5):
        _, number = cells(rng, size, log_between(rng, 2.6, 7) * k)
        share = rng.beta(0.5, 0.8, 4096).astype(np.float32)[number % 4096] * np.float32(between(rng, 0.4, 1))
        share = blurred(share, 0.5) + 0.3 * fractal(rng, size, 0.8) * share
    else:
        clouds = fractal(rng, size, between(rng, 1.5, 2.0))
        veins = np.abs(fractal(rng, size, 1.8))
        share = ramp(clouds, -1.5, 1.5) * 0.5 + between(rng, 0, 0.5) * ramp(veins, 0.25, 0.0)
    image = mixed(np.asarray(share, np.float32), rgb, other)
    return Surface(image=image, grain=0.0, gloss=between(rng, 0, 0.9))


def glass(rng: Rng, size: int, light: float) -> Surface:
    """Clear, frosted or pressed glass: very even, or rippled like a lens."""
    k = size / REFERENCE_PX
    level = 0.9 + between(rng, 0.0, 0.1) * smooth(rng, size, 120 * k) + 0.008 * white(rng, size)
    kind = rng.random()
    if kind < 0.3:
        level = level + between(rng, 0.04, 0.2) * relief(2 * smooth(rng, size, between(rng, 6, 16) * k), light)
    elif kind < 0.5:
        level = level + between(rng, 0.01, 0.04) * unit(blurred(white(rng, size), 0.8 * k))
    palette = [(0.75, 0.82, 0.82), (0.55, 0.65, 0.62), (0.2, 0.22, 0.24), (0.35, 0.5, 0.35), (0.85, 0.87, 0.88)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette))
    return Surface(image=image, grain=straight_angle(rng), gloss=between(rng, 0.5, 1))


def plastic(rng: Rng, size: int, light: float) -> Surface:
    """Moulded plastic: even colour, fine grain or ribs, at times printed."""
    k = size / REFERENCE_PX
    angle = straight_angle(rng)
    grain = unit(blurred(white(rng, size), between(rng, 0.5, 1.6) * k))
    level = 0.95 + between(rng, 0.004, 0.06) * grain + between(rng, 0, 0.04) * smooth(rng, size, 60 * k)
    if chance(rng, 0.25):
        _, v = rotated(size, angle)
        pitch = between(rng, 8, 40) * k
        rib = ramp(np.asarray(np.sin(v * (2 * math.pi / pitch)), np.float32), 0.4, 0.9) * 2
        level = level + between(rng, 0.1, 0.35) * relief(blurred(rib, 0.8), light)
    palette = [(0.9, 0.9, 0.9), (0.12, 0.12, 0.13), (0.75, 0.15, 0.12), (0.15, 0.3, 0.65), (0.9, 0.8, 0.2)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette, free=0.4))
    if chance(rng, 0.25):
        image = print_lines(rng, image)
    return Surface(image=image, grain=angle, gloss=between(rng, 0.1, 0.9))


def concrete(rng: Rng, size: int, light: float) -> Surface:
    """Cement with clouds, sand grain and small air pores."""
    k = size / REFERENCE_PX
    clouds = fractal(rng, size, between(rng, 1.2, 1.9))
    sand = fractal(rng, size, between(rng, 0.2, 0.8))
    level = 0.9 + between(rng, 0.03, 0.09) * clouds + between(rng, 0.02, 0.08) * sand
    level = level + between(rng, 0, 0.08) * relief(blurred(sand, 0.7 * k), light)
    pores = unit(blurred(white(rng, size), between(rng, 0.7, 1.8) * k))
    level = level - between(rng, 0, 0.4) * ramp(pores, 2.4, 3.2)
    rgb = colour(rng, [(0.6, 0.59, 0.57), (0.72, 0.7, 0.66), (0.45, 0.45, 0.45), (0.66, 0.58, 0.5)], free=0.03)
    return Surface(image=painted(np.asarray(level, np.float32), rgb), grain=straight_angle(rng), gloss=0.0)


def ceramic(rng: Rng, size: int, light: float) -> Surface:
    """Glazed ware: smooth glaze, soft pooling of colour, small iron specks."""
    k = size / REFERENCE_PX
    level = 0.95 + between(rng, 0.005, 0.05) * smooth(rng, size, between(rng, 20, 80) * k)
    level = level + between(rng, 0.0, 0.06) * relief(smooth(rng, size, 12 * k) * 2, light) + 0.006 * white(rng, size)
    palette = [(0.92, 0.91, 0.88), (0.85, 0.82, 0.75), (0.3, 0.45, 0.6), (0.55, 0.35, 0.25), (0.35, 0.5, 0.45)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette))
    if chance(rng, 0.45):
        specks = unit(blurred(white(rng, size), between(rng, 0.5, 1.1) * k))
        share = ramp(specks, 2.4, 3.2) * np.float32(between(rng, 0.2, 0.8))
        image = mixed(share, image, colour(rng, [(0.25, 0.18, 0.12), (0.1, 0.1, 0.1)], free=0.1))
    return Surface(image=image, grain=0.0, gloss=between(rng, 0.4, 1))


def paint(rng: Rng, size: int, light: float) -> Surface:
    """Painted sheet: orange peel, at times with metal flakes."""
    k = size / REFERENCE_PX
    peel = unit(blurred(white(rng, size), between(rng, 1.2, 3.5) * k))
    level = 0.92 + between(rng, 0.01, 0.12) * relief(peel, light) + between(rng, 0, 0.04) * smooth(rng, size, 70 * k)
    if chance(rng, 0.4):
        level = level + between(rng, 0.03, 0.12) * np.maximum(white(rng, size) - 1.2, 0)
    palette = [(0.7, 0.1, 0.1), (0.1, 0.2, 0.5), (0.9, 0.9, 0.9), (0.1, 0.1, 0.11), (0.5, 0.52, 0.55), (0.2, 0.45, 0.3)]
    image = painted(np.asarray(level, np.float32), colour(rng, palette, free=0.35))
    return Surface(image=image, grain=0.0, gloss=between(rng, 0.2, 1))


def _tracks(rng: Rng, size: int) -> tuple[Field, Field]:
    """Copper tracks and solder pads of a circuit, as coverage (size, size) each."""
    scale = 2
    tracks, pads = (Image.new("L", (size * scale, size * scale)) for _ in range(2))
    track_pen, pad_pen = ImageDraw.Draw(tracks), ImageDraw.Draw(pads)
    step = size * scale / float(rng.integers(9, 24))
    width = max(1, round(step * between(rng, 0.15, 0.5)))
    turns = np.array([[1, 0], [1, 1], [0, 1], [1, -1], [1, 0], [0, 1]]) * step
    for _ in range(int(rng.integers(8, 26))):
        points = [np.round(rng.uniform(0, size * scale, 2) / step) * step]
        for _ in range(int(rng.integers(1, 4))):
            move = turns[int(rng.integers(len(turns)))] * rng.integers(1, 7) * rng.choice([-1, 1])
            points.append(points[-1] + move)
        track_pen.line([tuple(p) for p in points], fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            r = width * between(rng, 0.8, 1.4)
            pad_pen.ellipse([x - r, y - r, x + r, y + r], fill=255)
            pad_pen.ellipse([x - r / 2, y - r / 2, x + r / 2, y + r / 2], fill=0)
    for _ in range(int(rng.integers(0, 5))):
        x, y = np.round(rng.uniform(0, size * scale, 2) / step) * step
        for i in range(int(rng.integers(3, 9))):
            pad_pen.rectangle([x + i * step, y, x + i * step + step * 0.5, y + step * 0.9], fill=255)
    covers = [np.asarray(layer.reduce(scale), np.float32) / np.float32(255) for layer in (tracks, pads)]
    return covers[0], covers[1]


def circuit(rng: Rng, size: int, light: float) -> Surface:
    """Circuit board: lacquer, tracks, pads, dark packages and white print."""
    k = size / REFERENCE_PX
    boards = [(0.08, 0.35, 0.2), (0.07, 0.2, 0.4), (0.1, 0.1, 0.11), (0.45, 0.1, 0.1), (0.12, 0.3, 0.14)]
    lacquer = colour(rng, boards, free=0.05)
    tracks, pads = _tracks(rng, size)
    level = 1 + between(rng, 0.01, 0.05) * white(rng, size) + 0.4 * relief(blurred(tracks, 0.5), light)
    image = mixed(
        tracks * np.float32(between(rng, 0.3, 0.9)), lacquer, lacquer * np.float32(between(rng, 1.2, 2)) + 0.03
    )
    image = image * level[..., None]
    metal = colour(rng, [(0.75, 0.75, 0.75), (0.8, 0.65, 0.35)], free=0)
    image = mixed(pads, image, metal * (1 + 0.4 * relief(blurred(pads, 0.7) * 2, light))[..., None])
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, 0.85, 2) * size
        w, h = rng.uniform(12, 60, 2) * k
        box = strokes.polygon(size, np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]))
        shade = 1 + 0.5 * relief(blurred(box, 0.7) * 2, light)
        package = colour(rng, [(0.1, 0.1, 0.11), (0.15, 0.14, 0.13), (0.6, 0.5, 0.35)], free=0)
        image = mixed(box, image, package * shade[..., None])
        mark = strokes.text(rng, size, np.array([x + w * 0.1, y + h * 0.2]), max(6 * k, h * 0.3)) * box
        image = mixed(mark * np.float32(0.6), image, np.full(3, 0.8, np.float32))
    return Surface(image=np.asarray(image, np.float32), grain=0.0, gloss=between(rng, 0.1, 0.6))
