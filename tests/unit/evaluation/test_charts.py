"""Curves as geometry: what is drawn for one product, for several, and when there is nothing to draw."""

import numpy as np
import pytest
from test_figures import group, image, pixels

from zsad.evaluation.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts, thinned
from zsad.evaluation.tally import Tally


def corners(line):
    return [tuple(map(float, point.split(","))) for point in line.points.split()]


@pytest.fixture
def tally():
    """One product: perfect images and pixels, two types."""
    counted = Tally()
    counted.add(group("a", "good", [image("g", 0.1)], pixels(False, score=-5)))
    counted.add(group("a", "crack", [image("c", 0.9)], pixels(True)))
    counted.add(group("a", "hole", [image("h", 0.8)], pixels(True)))
    return counted


def test_one_product_has_a_line_per_type_and_a_bold_one(tally):
    drawn = charts(tally)
    assert [chart.title.split(":")[0] for chart in drawn] == ["Images", "Images", "Pixels", "Pixels", "Regions"]
    assert [(line.name, line.colour) for line in drawn[0].lines] == [("crack", 1), ("hole", 2), ("all defects", 0)]


def test_a_perfect_roc_goes_through_the_upper_left_corner(tally):
    for line in charts(tally)[0].lines:
        found = corners(line)
        assert found[0] == (LEFT, HEIGHT - 34)
        assert (LEFT, TOP) in found
        assert found[-1] == (WIDTH - RIGHT, TOP)


def test_the_overlap_chart_ends_at_its_limit(tally):
    overlap = charts(tally)[4]
    assert overlap.x_ticks[-1] == (WIDTH - RIGHT, "0.3")
    assert corners(overlap.lines[0])[-1][0] == WIDTH - RIGHT


def test_several_products_are_a_line_each():
    counted = Tally()
    for product in "abcdefgh":
        counted.add(group(product, "good", [image("g", 0.1)]))
        counted.add(group(product, "crack", [image("c", 0.9)]))
    drawn = charts(counted)
    assert [chart.title for chart in drawn] == ["Images: ROC", "Images: precision and recall"]
    assert {line.colour for line in drawn[0].lines} == {7}
    assert [line.name for line in drawn[0].lines] == list("abcdefgh")


def test_nothing_to_compare_draws_nothing():
    counted = Tally()
    counted.add(group("a", "good", [image("g", 0.1)]))
    assert charts(counted) == []
    assert charts(Tally()) == []


def test_thinning_keeps_both_ends_and_stays_on_the_curve():
    x = np.linspace(0, 1, 5000)
    short_x, short_y = thinned(x, x**2, 100)
    assert len(short_x) <= 101
    assert (short_x[0], short_x[-1], short_y[-1]) == (0, 1, 1)
    np.testing.assert_allclose(short_y, short_x**2)
