"""Losses over the course of a training as SVG geometry: one chart of the total, one a loss term.

Steps are averaged to at most `NUM_POINTS` places, as single batches scatter; validation has a point an epoch, and is a
short dash after a single one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsad.learn.checkpoints import EpochRecord

NUM_POINTS = 120
WIDTH, HEIGHT = 300, 200
LEFT, TOP, BOTTOM, RIGHT = 46, 10, 34, 10
_DASH = 0.05  # of the plot's width


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: `points` of an SVG polyline, px; `colour` 1 for training, 2 for validation."""

    name: str
    points: str
    colour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Values over epochs, from 0 to `top`."""

    title: str
    num_epochs: int
    top: float
    lines: list[Line] = field(default_factory=list)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Place in px and text."""
        return [(_x(k / 4), f"{k / 4 * self.num_epochs:.3g}") for k in range(5)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Place in px and text."""
        return [(_y(k / 4), f"{k / 4 * self.top:.2g}") for k in range(5)]

    @property
    def frame(self) -> dict[str, float]:
        """Edges of the plot, px."""
        return {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


def charts(history: Sequence[EpochRecord]) -> list[Chart]:
    """The total first, then every term.

    Args:
        history: at least one epoch of at least one step.
    """
    names = list(history[0].steps[0])
    return [_chart("total", names, history), *(_chart(name.replace("_", " "), [name], history) for name in names)]


def _chart(title: str, names: Sequence[str], history: Sequence[EpochRecord]) -> Chart:
    learned, times = _learned(names, history)
    validated = np.array([sum(record.validation.get(name, 0.0) for name in names) for record in history])
    has_validation = bool(history[0].validation)
    top = float(max(learned.max(), validated.max() if has_validation else 0.0)) or 1.0
    lines = [Line(name="training", points=_points(times / len(history), learned / top), colour=1)]
    if has_validation:
        ends = np.arange(1, len(history) + 1) / len(history)
        if len(ends) == 1:
            ends, validated = np.array([1 - _DASH, 1.0]), validated.repeat(2)
        lines.append(Line(name="validation", points=_points(ends, validated / top), colour=2))
    return Chart(title=title, num_epochs=len(history), top=top, lines=lines)


def _learned(names: Sequence[str], history: Sequence[EpochRecord]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Averaged values, and when they were taken, in epochs."""
    values = np.array([sum(step[name] for name in names) for record in history for step in record.steps])
    times = np.concatenate(
        [record.epoch + (np.arange(len(record.steps)) + 0.5) / len(record.steps) for record in history]
    )
    together = -(-len(values) // NUM_POINTS)
    count = -(-len(values) // together)  # the same number everywhere: means of one and of two scatter differently
    return (
        np.array([part.mean() for part in np.array_split(values, count)]),
        np.array([part.mean() for part in np.array_split(times, count)]),
    )


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return " ".join(f"{_x(float(a)):.1f},{_y(float(b)):.1f}" for a, b in zip(x, y, strict=True))


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
