"""ROC, precision-recall and region-overlap curves as SVG geometry: one line per defect type, or per product.

With one product the lines are its defect types and, bold, all of them; with several they are the products. Curves are
thinned to `NUM_POINTS` points evenly spaced along their length, which no screen tells from the whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsad.evaluation.tally import Group, Tally
from zsad.metrics.ranking import Cumulated, cumulated, precision
from zsad.metrics.streaming import PRO_LIMIT, PixelTally, pixel_counts, pro_curve

NUM_POINTS = 160
WIDTH, HEIGHT = 300, 250
LEFT, TOP, BOTTOM, RIGHT = 38, 10, 34, 10
NUM_COLOURS = 6

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: `points` of an SVG polyline, px; `colour` 0 for the bold one, 1 to 6, or 7 where there are more."""

    name: str
    points: str
    colour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One set of curves over the unit square, or up to `x_limit`; none: there is a `reason`."""

    title: str
    x_label: str
    y_label: str
    x_limit: float = 1.0
    diagonal: bool = False
    lines: list[Line] = field(default_factory=list)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Place in px and text."""
        return [(_x(k / 4), f"{k / 4 * self.x_limit:.3g}") for k in range(5)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Place in px and text."""
        return [(_y(k / 4), f"{k / 4:.3g}") for k in range(5)]

    @property
    def frame(self) -> dict[str, float]:
        """Edges of the plot, px."""
        return {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


def charts(tally: Tally) -> list[Chart]:
    """Those that can be drawn: of images where there are both kinds, of pixels where there are masks."""
    groups = list(_groups(tally))
    images = "False-positive rate of images", "Share of defects found"
    drawn = [
        _chart("Images: ROC", *images, groups, _image_roc, diagonal=True),
        _chart("Images: precision and recall", "Recall", "Precision", groups, _image_precision),
        _chart("Pixels: ROC", "False-positive rate of pixels", "Share found", groups, _pixel_roc, diagonal=True),
        _chart("Pixels: precision and recall", "Recall", "Precision", groups, _pixel_precision),
        _chart(
            "Regions: overlap", "False-positive rate of pixels", "Mean overlap", groups, _overlap, x_limit=PRO_LIMIT
        ),
    ]
    return [chart for chart in drawn if chart.lines]


def thinned(x: NDArray[np.float64], y: NDArray[np.float64], count: int = NUM_POINTS) -> Curve:
    """At most `count` points of a curve, evenly along its length, both ends kept."""
    if len(x) <= count:
        return x, y
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], count)))
    kept = np.unique(np.append(kept, len(x) - 1))
    return x[kept], y[kept]


def _groups(tally: Tally) -> Iterator[tuple[str, int, Group, list[Group]]]:
    """Name, colour, normal images and defects of each line."""
    products = tally.products()
    if len(products) > 1:
        for place, product in enumerate(products):
            yield product, _colour(place, len(products)), tally.normals(product), [g for _, g in tally.defects(product)]
    elif products:
        good, defects = tally.normals(products[0]), list(tally.defects(products[0]))
        if len(defects) > 1:
            for place, (kind, group) in enumerate(defects):
                yield kind, _colour(place, len(defects)), good, [group]
        yield "all defects", 0, good, [group for _, group in defects]


def _colour(place: int, count: int) -> int:
    return place + 1 if count <= NUM_COLOURS else NUM_COLOURS + 1


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    groups: list[tuple[str, int, Group, list[Group]]],
    curve: Callable[[Group, list[Group]], Curve | None],
    *,
    x_limit: float = 1.0,
    diagonal: bool = False,
) -> Chart:
    lines = []
    for name, colour, good, defects in groups:
        found = curve(good, defects)
        if found is not None:
            x, y = found
            inside = x <= x_limit
            x, y = np.append(x[inside], x_limit), np.append(y[inside], np.interp(x_limit, x, y))
            x, y = thinned(x / x_limit, y)
            points = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(x, y, strict=True))
            lines.append(Line(name=name, points=points, colour=colour))
    return Chart(title=title, x_label=x_label, y_label=y_label, x_limit=x_limit, diagonal=diagonal, lines=lines)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _image_roc(good: Group, defects: list[Group]) -> Curve | None:
    counts = _image_counts(good, defects)
    return None if counts is None else _roc(counts)


def _image_precision(good: Group, defects: list[Group]) -> Curve | None:
    counts = _image_counts(good, defects)
    return None if counts is None else _precision(counts)


def _image_counts(good: Group, defects: list[Group]) -> Cumulated | None:
    bad = [score for group in defects for score in group.raw_scores]
    if not bad or not good.raw_scores:
        return None
    return cumulated([0] * len(good.raw_scores) + [1] * len(bad), [*good.raw_scores, *bad])


def _roc(counts: Cumulated) -> Curve:
    return np.append(0, counts.false_T / counts.num_false), np.append(0, counts.true_T / counts.num_true)


def _precision(counts: Cumulated) -> Curve:
    """Recall and precision, from the first threshold that anything reaches."""
    reached_T = counts.true_T + counts.false_T > 0
    return (counts.true_T / counts.num_true)[reached_T], precision(counts)[reached_T]


def _pixels(good: Group, defects: list[Group]) -> PixelTally | None:
    pixels = sum((group.pixels for group in defects), good.pixels)
    return pixels if pixels.defect_N.any() and pixels.normal_N.any() else None


def _pixel_roc(good: Group, defects: list[Group]) -> Curve | None:
    if (pixels := _pixels(good, defects)) is None:
        return None
    return _roc(pixel_counts(pixels))


def _pixel_precision(good: Group, defects: list[Group]) -> Curve | None:
    if (pixels := _pixels(good, defects)) is None:
        return None
    return _precision(pixel_counts(pixels))


def _overlap(good: Group, defects: list[Group]) -> Curve | None:
    return None if (pixels := _pixels(good, defects)) is None else pro_curve(pixels)
