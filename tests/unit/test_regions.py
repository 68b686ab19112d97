"""From hand-made maps to boxes, areas and masks."""

import numpy as np
import pytest
from pycocotools import mask as coco

from zsad.regions import MAX_REGIONS, Component, components, patch_weights, to_region, upsample


def decoded(region, width, height):
    return coco.decode({"size": [height, width], "counts": region.rle.encode()}).astype(bool)


def square(size, rows, columns, score=0.9):
    """A component on a `size` px square that covers the given half-open ranges."""
    mask = np.zeros((size, size), bool)
    mask[slice(*rows), slice(*columns)] = True
    return Component(mask, score)


def found_in(map_hw, *, size=None, threshold=0.5, min_area_px=0):
    map_hw = np.asarray(map_hw, np.float32)
    return components(map_hw, size=size or map_hw.shape[0], threshold=threshold, min_area_px=min_area_px)


def test_one_component_on_its_own_grid():
    grid = np.zeros((8, 8))
    grid[2:4, 3:6] = 0.8
    grid[3, 4] = 0.9
    (part,) = found_in(grid)
    np.testing.assert_array_equal(part.mask_SS, grid > 0)
    assert part.score == pytest.approx(0.9)


def test_the_threshold_itself_belongs_to_the_component():
    assert len(found_in([[0.5, 0.0], [0.0, 0.0]])) == 1
    assert found_in([[0.4999, 0.0], [0.0, 0.0]]) == []


def test_corners_connect_and_gaps_do_not():
    grid = np.zeros((8, 8))
    grid[0, 0] = grid[1, 1] = 0.6  # diagonal neighbours: one part
    grid[0, 7] = 0.9
    parts = found_in(grid)
    assert [(round(part.score, 3), int(part.mask_SS.sum())) for part in parts] == [(0.9, 1), (0.6, 2)]


def test_small_areas_are_dropped():
    grid = np.zeros((8, 8))
    grid[0, :3] = 0.6
    grid[4, :4] = 0.7
    assert [int(part.mask_SS.sum()) for part in found_in(grid, min_area_px=4)] == [4]
    assert [int(part.mask_SS.sum()) for part in found_in(grid, min_area_px=3)] == [4, 3]
    assert found_in(grid, min_area_px=5) == []


def test_only_the_highest_are_kept():
    grid = np.zeros((16, 16))
    grid[::2, ::2] = np.linspace(0.5, 0.99, 64).reshape(8, 8)
    parts = found_in(grid)
    assert len(parts) == MAX_REGIONS == 20
    np.testing.assert_allclose([part.score for part in parts], np.linspace(0.5, 0.99, 64)[:-21:-1], rtol=1e-6)


def test_equal_peaks_come_in_reading_order():
    grid = np.zeros((8, 8))
    grid[1, 1] = grid[1, 5] = grid[5, 1] = 0.7
    places = [tuple(np.argwhere(part.mask_SS)[0].tolist()) for part in found_in(grid)]
    assert places == [(1, 1), (1, 5), (5, 1)]


def test_up_sampling_is_bilinear_between_pixel_centres():
    found = upsample(np.array([[0.0, 1.0]], np.float32), 1, 4)
    np.testing.assert_allclose(found, [[0.0, 0.25, 0.75, 1.0]], atol=1e-6)
    assert upsample(np.eye(3, dtype=np.float32), 5, 7).shape == (5, 7)


def test_a_lone_patch_at_the_threshold_is_no_region():
    """Eight pixels lie beside the middle of its patch, none on it, so that the fine map stays below the peak."""
    grid = np.zeros((4, 4))
    grid[1, 1] = 0.5
    assert found_in(grid, size=32) == []
    assert found_in(grid * 1.2, size=32)[0].score == pytest.approx(0.6 * (15 / 16) ** 2)


def test_components_are_found_on_the_fine_grid():
    """Doubled, a row 0, 1 becomes 0, 0.25, 0.75, 1: two of four columns reach 0.5."""
    (part,) = found_in([[0.0, 1.0], [0.0, 1.0]], size=4)
    np.testing.assert_array_equal(part.mask_SS, np.tile([False, False, True, True], (4, 1)))


def test_a_region_on_an_image_of_the_models_size():
    part = square(8, (2, 5), (3, 7))
    region = to_region(part, width=8, height=8, defect_type="dent")
    assert (region.x, region.y, region.width, region.height, region.area_px) == (3, 2, 4, 3, 12)
    assert (region.score, region.defect_type) == (0.9, "dent")
    np.testing.assert_array_equal(decoded(region, 8, 8), part.mask_SS)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (16, 16, (6, 4, 8, 6)),  # twice as large
        (80, 8, (30, 2, 40, 3)),  # wide
        (8, 80, (3, 20, 4, 30)),  # high
        (4, 4, (1, 1, 2, 1)),  # half as large: pixel centres at 1, 3, 5, 7 of the square
    ],
)
def test_regions_scale_to_the_image(width, height, box):
    """The square is 8 px, with rows 2-4 and columns 3-6 set."""
    region = to_region(square(8, (2, 5), (3, 7)), width=width, height=height, defect_type="dent")
    assert (region.x, region.y, region.width, region.height) == box
    assert region.area_px == box[2] * box[3]
    mask = decoded(region, width, height)
    assert mask.shape == (height, width)
    assert mask.sum() == region.area_px
    assert mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]].all()


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 31), (1, 1), (1, 50), (8, 3)])
def test_a_tiny_image_still_shows_the_region(width, height):
    region = to_region(square(224, (100, 103), (200, 204)), width=width, height=height, defect_type="dent")
    assert region.area_px >= 1
    assert 0 <= region.x < region.x + region.width <= width
    assert 0 <= region.y < region.y + region.height <= height
    assert region.x <= 202 * width / 224 <= region.x + region.width
    assert region.y <= 101.5 * height / 224 <= region.y + region.height


def test_rows_of_the_code_run_down_the_columns():
    """COCO counts go column by column: 4 zeros, 2 ones (rows 0-1 of column 1), 2 zeros."""
    part = square(4, (0, 2), (1, 2))
    region = to_region(part, width=4, height=4, defect_type="dent")
    expected = coco.frPyObjects({"size": [4, 4], "counts": [4, 2, 10]}, 4, 4)
    assert region.rle.encode() == expected["counts"]


def test_shares_of_patches():
    """Rows 0-2 and columns 2-3 of a 4 px square on 2 x 2 patches: right column, 4/4 above, 2/4 below."""
    weights = patch_weights(square(4, (0, 3), (2, 4)), (2, 2))
    assert weights.tolist() == [[0.0, 1.0], [0.0, 0.5]]
    assert weights.dtype == np.float32
