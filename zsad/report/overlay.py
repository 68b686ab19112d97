"""Pictures of findings: the image beside the same image with its anomaly map, contour and region boxes.

The colour scale is one for all pictures: a calibrated value has the same colour and opacity wherever it appears, so
that a good part never looks hot because it happens to be compared with itself. Opacity grows with the value; normal
areas stay what they are.

Legend: (h, w) patch grid, (H, W) picture px.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from zsad.errors import ConfigError
from zsad.regions import upsample

PANEL_PX = 288
MAX_BYTES = 40_000
CONTOUR_RGB = (0, 224, 255)
BOX_RGB = (255, 255, 255)
_LABELLED_BOXES = 5
_GAP_PX = 4
_GAP_RGB = (128, 128, 128)
_MIN_SIDE_PX = 24
_WIDE = 2.0
_QUALITIES = (84, 74, 60, 45, 30, 15)
# Lightness falls evenly from yellow to purple, so that the order also reads in grey and with colour-blind eyes.
_STOPS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
_RED = np.array([255, 255, 253, 238, 205, 140])
_GREEN = np.array([246, 222, 174, 116, 52, 8])
_BLUE = np.array([160, 96, 48, 40, 70, 118])
_ALPHA = np.array([0.0, 0.12, 0.32, 0.5, 0.62, 0.72])


def heat(values: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour and opacity of calibrated values.

    Args:
        values: any shape, [0, 1]; what lies outside is clipped, what is not a number counts as 0.

    Returns:
        Colours (..., 3) in [0, 255] and opacities (...) in [0, 1].
    """
    clipped = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0), 0, 1)
    channels = [np.interp(clipped, _STOPS, channel) for channel in (_RED, _GREEN, _BLUE)]
    return np.stack(channels, axis=-1).astype(np.float32), np.interp(clipped, _STOPS, _ALPHA).astype(np.float32)


def overlay(
    rgb_HW3: NDArray[np.uint8],
    anomaly_map_hw: NDArray[np.float32],
    regions: Sequence[Mapping[str, Any]],
    *,
    map_threshold: float,
    image_size: tuple[int, int],
) -> NDArray[np.uint8]:
    """A picture with its anomaly map, the contour at the map's threshold, and the regions' boxes.

    Args:
        rgb_HW3: uint8 picture at the size wanted.
        anomaly_map_hw: calibrated, [0, 1]; stretched over the whole picture.
        regions: `x, y, width, height, score` of each, px of the original image, highest score first.
        map_threshold: calibrated.
        image_size: (width, height) of the original image, px.

    Returns:
        uint8 (H, W, 3); equal to `rgb_HW3` where the map is 0 and no line is drawn.
    """
    height, width = rgb_HW3.shape[:2]
    fine_HW = upsample(np.ascontiguousarray(anomaly_map_hw, dtype=np.float32), height, width)
    colour_HW3, alpha_HW = heat(fine_HW)
    mixed_HW3 = rgb_HW3 + alpha_HW[..., None] * (colour_HW3 - rgb_HW3)
    painted_HW3 = np.rint(mixed_HW3).astype(np.uint8)
    painted_HW3[contour(fine_HW, map_threshold)] = CONTOUR_RGB
    return _with_boxes(painted_HW3, regions, image_size)


def contour(fine_HW: NDArray[np.float32], map_threshold: float) -> NDArray[np.bool_]:
    """Rim, 2 px wide, of the areas at or above the threshold; closed at the picture's edge."""
    inside_HW = fine_HW >= map_threshold
    core_HW = ndimage.binary_erosion(inside_HW, structure=np.ones((3, 3)), iterations=2)
    return np.asarray(inside_HW & ~core_HW, dtype=np.bool_)


def render(
    rgb_HW3: NDArray[np.uint8],
    anomaly_map_hw: NDArray[np.float32] | None,
    regions: Sequence[Mapping[str, Any]],
    *,
    map_threshold: float,
    image_size: tuple[int, int],
    size: int = PANEL_PX,
) -> bytes:
    """The image and its overlay as one JPEG: left and right, or one above the other if wider than 2:1.

    Args:
        rgb_HW3: uint8 picture of any size.
        anomaly_map_hw: calibrated, [0, 1]; None: the image alone.
        regions: as for `overlay`.
        map_threshold: calibrated.
        image_size: (width, height) of the original image, px.
        size: longer side of either picture, px; twice that where one is above the other.

    Returns:
        JPEG bytes, at most 40 kB unless even the lowest quality needs more.

    Raises:
        ConfigError: if the picture is not uint8 (H, W, 3), or the map not two-dimensional.
    """
    if rgb_HW3.dtype != np.uint8 or rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or 0 in rgb_HW3.shape:
        raise ConfigError(f"a picture must be uint8 RGB (H, W, 3), not {rgb_HW3.dtype} {rgb_HW3.shape}")
    is_wide = rgb_HW3.shape[1] > _WIDE * rgb_HW3.shape[0]
    panel_HW3 = _fitted(rgb_HW3, 2 * size if is_wide else size)
    if anomaly_map_hw is None:
        return _jpeg(Image.fromarray(panel_HW3))
    if anomaly_map_hw.ndim != 2 or 0 in anomaly_map_hw.shape:
        raise ConfigError(f"an anomaly map must be (h, w), not {anomaly_map_hw.shape}")
    painted_HW3 = overlay(panel_HW3, anomaly_map_hw, regions, map_threshold=map_threshold, image_size=image_size)
    axis = 0 if is_wide else 1
    shape = list(panel_HW3.shape)
    shape[axis] = _GAP_PX
    gap = np.full(shape, _GAP_RGB, dtype=np.uint8)
    return _jpeg(Image.fromarray(np.concatenate([panel_HW3, gap, painted_HW3], axis=axis)))


def _fitted(rgb_HW3: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scaled so that the longer side has `size` px; a needle keeps 24 px of its shorter side."""
    height, width = rgb_HW3.shape[:2]
    scale = size / max(height, width)
    target = (max(_MIN_SIDE_PX, round(width * scale)), max(_MIN_SIDE_PX, round(height * scale)))
    if target == (width, height):
        return rgb_HW3
    return np.asarray(Image.fromarray(rgb_HW3).resize(target, Image.Resampling.LANCZOS), dtype=np.uint8)


def _with_boxes(
    painted_HW3: NDArray[np.uint8], regions: Sequence[Mapping[str, Any]], image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    if not regions:
        return painted_HW3
    picture = Image.fromarray(painted_HW3)
    draw = ImageDraw.Draw(picture)
    boxes = [_box(region, picture.size, image_size) for region in regions]
    for box in reversed(boxes):
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=(0, 0, 0))
        draw.rectangle(box, outline=BOX_RGB)
    for box, region in reversed(list(zip(boxes, regions, strict=True))[:_LABELLED_BOXES]):
        _label(draw, f"{float(region['score']):.2f}", box, picture.size)
    return np.asarray(picture, dtype=np.uint8)


def _box(
    region: Mapping[str, Any], picture_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Corners in the picture, inclusive, a little outside of the region and inside of the picture."""
    scale_x, scale_y = (picture / image for picture, image in zip(picture_size, image_size, strict=True))
    left, top = round(region["x"] * scale_x) - 2, round(region["y"] * scale_y) - 2
    right = round((region["x"] + region["width"]) * scale_x) + 1
    bottom = round((region["y"] + region["height"]) * scale_y) + 1
    x_max, y_max = picture_size[0] - 2, picture_size[1] - 2
    left, top = min(max(left, 1), x_max), min(max(top, 1), y_max)
    return left, top, max(left, min(right, x_max)), max(top, min(bottom, y_max))


def _label(draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """The score on dark ground: above the box, or inside it at the picture's top."""
    font = ImageFont.load_default(size=12)
    width, height = round(draw.textlength(text, font=font)) + 6, 15
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else min(box[1] + 1, size[1] - height)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(20, 20, 20))
    draw.text((x + 3, y + 1), text, fill=BOX_RGB, font=font)


def _jpeg(picture: Image.Image) -> bytes:
    data = b""
    for quality in _QUALITIES:
        sink = BytesIO()
        picture.save(sink, "JPEG", quality=quality, subsampling="4:4:4" if quality > 80 else "4:2:0")
        data = sink.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data
