"""From an anomaly map to regions: connected parts at or above the threshold, in pixels of the input image.

The patch grid is up-sampled bilinearly to the model's input size, where components are found; boxes and masks are then
scaled to the input image, so that the cost does not grow with the camera's resolution except in the final mask.

Legend: (h, w) patch grid, S model input side px, (H, W) input image px.
Masks: COCO run-length encoding (column-major counts string) over the whole input image, by pycocotools.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

MAX_REGIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One connected defective area of the input image.

    Attributes:
        x, y, width, height: bounding box, px, origin top left.
        area_px: number of pixels of the mask.
        score: largest calibrated map value inside, [0, 1].
        defect_type: best word, or "unknown".
        rle: COCO run-length counts of the mask over the whole image.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    score: float
    defect_type: str
    rle: str


@dataclass(frozen=True, slots=True)
class Component:
    """A connected area on the model's input square, before scaling: its mask (S, S) and largest map value."""

    mask_SS: NDArray[np.bool_]
    score: float


def upsample(map_hw: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear up-sampling of a map to (height, width); values keep their range."""
    resized = Image.fromarray(map_hw, mode="F").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def components(map_hw: NDArray[np.float32], *, size: int, threshold: float, min_area_px: int) -> list[Component]:
    """Connected areas (8-neighbourhood) of the up-sampled map at or above `threshold`, highest first.

    Args:
        map_hw: calibrated anomaly map on the patch grid, [0, 1].
        size: model input side S, px.
        threshold: calibrated.
        min_area_px: smaller areas are dropped; px on the model's input square.
    """
    if float(map_hw.max()) < threshold:
        return []
    fine_SS = upsample(map_hw, size, size)
    labels, count = ndimage.label(fine_SS >= threshold, structure=np.ones((3, 3)))
    indices = np.arange(1, count + 1)
    areas = ndimage.sum_labels(np.ones_like(labels), labels, indices)
    peaks = ndimage.maximum(fine_SS, labels, indices)
    kept = [(float(p), int(i)) for p, a, i in zip(peaks, areas, indices, strict=True) if a >= min_area_px]
    kept.sort(key=lambda item: (-item[0], item[1]))
    return [Component(labels == index, peak) for peak, index in kept[:MAX_REGIONS]]


def to_region(component: Component, *, width: int, height: int, defect_type: str) -> Region:
    """Scale a component to an input image of `width` x `height` px."""
    square = Image.fromarray(component.mask_SS.astype(np.uint8))
    full_HW = np.asarray(square.resize((width, height), Image.Resampling.NEAREST))
    if not full_HW.any():  # the image is so small that no pixel centre falls inside: take the pixels it touches
        touched = square.convert("F").resize((width, height), Image.Resampling.BOX)
        full_HW = (np.asarray(touched) > 0).astype(np.uint8)
    rle = coco.encode(np.asfortranarray(full_HW))
    x, y, box_width, box_height = (int(v) for v in coco.toBbox(rle))
    return Region(
        x=x,
        y=y,
        width=box_width,
        height=box_height,
        area_px=int(coco.area(rle)),
        score=component.score,
        defect_type=defect_type,
        rle=rle["counts"].decode("ascii"),
    )


def patch_weights(component: Component, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Share of every patch that the component covers, (h, w) in [0, 1]."""
    rows, columns = grid
    size = component.mask_SS.shape[0]
    blocks = component.mask_SS.reshape(rows, size // rows, columns, size // columns)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)
