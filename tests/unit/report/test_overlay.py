"""Pictures of findings."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ConfigError
from zsad.report import overlay
from zsad.report.overlay import CONTOUR_RGB, heat, render

GREY = np.full((64, 64, 3), 120, np.uint8)


def painted(map_hw, regions=(), image=GREY, image_size=(64, 64), map_threshold=0.5):
    return overlay.overlay(
        image, np.asarray(map_hw, np.float32), regions, map_threshold=map_threshold, image_size=image_size
    )


def opened(data):
    return Image.open(BytesIO(data))


def is_contour(image_HW3):
    return (image_HW3 == CONTOUR_RGB).all(axis=2)


def test_a_zero_map_leaves_the_picture_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(painted(np.zeros((5, 5)), image=noise, image_size=(60, 40)), noise)


def test_the_given_picture_is_not_written_to():
    picture = GREY.copy()
    painted(np.ones((4, 4)), image=picture)
    assert np.array_equal(picture, GREY)


def test_a_value_above_the_threshold_draws_a_contour_around_it():
    map_hw = np.zeros((8, 8))
    map_hw[2:6, 2:6] = 1
    rim = is_contour(painted(map_hw))
    assert rim.any()
    assert not rim[32, 32]
    assert not rim[:8].any()


def test_a_value_under_the_threshold_draws_none():
    assert not is_contour(painted(np.full((8, 8), 0.49))).any()
    assert is_contour(painted(np.full((8, 8), 0.49), map_threshold=0.4)).any()


def test_a_contour_is_closed_at_the_pictures_edge():
    rim = is_contour(painted(np.ones((8, 8))))
    assert rim[:2].all()
    assert rim[:, -2:].all()
    assert not rim[2:-2, 2:-2].any()


def test_equal_values_have_equal_colours_whatever_is_around_them():
    alone, beside_high = np.full((8, 8), 0.3), np.full((8, 8), 0.3)
    beside_high[:, 6:] = 1
    assert np.array_equal(painted(alone)[:, :32], painted(beside_high)[:, :32])


def test_opacity_grows_with_the_value_and_lightness_falls():
    colours, alphas = heat(np.linspace(0, 1, 101))
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert alphas[0] == 0
    assert (np.diff(alphas) > 0).all()
    assert (np.diff(lightness) < 0).all()
    assert alphas[-1] < 0.8, "the picture must stay visible under the hottest place"


def test_values_that_are_out_of_range_or_not_numbers_are_harmless():
    colours, alphas = heat([-1, np.nan, 2])
    assert alphas.tolist() == [0, 0, heat(1)[1]]
    assert np.isfinite(colours).all()


def test_boxes_are_scaled_from_the_original_image_to_the_picture():
    region = {"x": 200, "y": 400, "width": 100, "height": 100, "score": 0.9}
    white = (painted(np.zeros((4, 4)), [region], image_size=(640, 640)) == 255).all(axis=2)
    assert white[38:52, 18].all()  # 20 px and 40 px, two outside
    assert white[38, 18:31].all()


def test_boxes_at_or_beyond_the_edge_stay_inside_of_the_picture():
    regions = [{"x": 0, "y": 0, "width": 64, "height": 64, "score": 1.0}]
    regions += [{"x": 60, "y": 62, "width": 500, "height": 1, "score": 0.2}]
    assert painted(np.zeros((4, 4)), regions).shape == GREY.shape


def test_image_and_overlay_stand_side_by_side():
    map_hw = np.full((4, 4), 0.9, np.float32)
    picture = opened(render(GREY, map_hw, [], map_threshold=0.95, image_size=(64, 64), size=200))
    assert picture.format == "JPEG"
    assert picture.size == (404, 200)
    left, right = picture.getpixel((100, 100)), picture.getpixel((304, 100))
    assert max(abs(channel - 120) for channel in left) < 4
    assert right[0] > right[1] + 40


@pytest.mark.parametrize(
    ("shape", "size"), [((100, 400), (400, 204)), ((400, 100), (104, 200)), ((2, 4000), (400, 52))]
)
def test_wide_images_stand_one_above_the_other(shape, size):
    image = np.full((*shape, 3), 90, np.uint8)
    data = render(image, np.zeros((4, 4), np.float32), [], map_threshold=0.5, image_size=shape[::-1], size=200)
    assert opened(data).size == size


def test_without_a_map_only_the_image_is_shown():
    assert opened(render(GREY, None, [], map_threshold=0.5, image_size=(64, 64), size=100)).size == (100, 100)


def test_even_pure_noise_stays_small():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    data = render(noise, np.eye(16, dtype=np.float32), [], map_threshold=0.5, image_size=(600, 600))
    assert len(data) <= overlay.MAX_BYTES


def test_same_input_gives_same_bytes():
    one, two = (render(GREY, np.eye(8, dtype=np.float32), [], map_threshold=0.5, image_size=(64, 64)) for _ in "12")
    assert one == two


@pytest.mark.parametrize("image", [GREY.astype(np.float32), GREY[..., 0], GREY[:0]])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ConfigError, match="uint8 RGB"):
        render(image, None, [], map_threshold=0.5, image_size=(64, 64))


def test_what_is_no_map_is_refused():
    with pytest.raises(ConfigError, match="anomaly map"):
        render(GREY, np.zeros(4, np.float32), [], map_threshold=0.5, image_size=(64, 64))
