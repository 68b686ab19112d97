"""Pictures of the worst images of an evaluation: read and inspected once more, in one Ray task, with their true masks.

The mask's outline is painted into the picture before the anomaly map is laid over it, so both show it.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from zsad.distributed.evaluate_plan import Plan
from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.evaluation.tally import Seen
from zsad.evaluation.truth import MaskError, at_size, read_mask
from zsad.images import DecodeLimits, RgbImage, decode_image
from zsad.report.gallery import Tile
from zsad.storage import Store

TRUTH_RGB = (64, 255, 96)
_THUMBNAIL_PX = 320


def make_tiles(plan: Plan, seen: Sequence[Seen]) -> dict[str, Tile]:
    """Picture and calibrated map by uri; one that can't be read again has a reason instead."""
    gpus = plan.config.num_gpus_per_scorer
    made: dict[str, Tile] = ray.get(_make_tiles.options(num_cpus=1, num_gpus=gpus).remote(plan, list(seen)))
    return made


@ray.remote
def _make_tiles(plan: Plan, seen: list[Seen]) -> dict[str, Tile]:
    by_product = groupby(sorted(seen, key=lambda item: item.product), key=lambda item: item.product)
    return {uri: tile for product, group in by_product for uri, tile in _tiles(plan, product, list(group))}


def _tiles(plan: Plan, product: str, seen: list[Seen]) -> Iterator[tuple[str, Tile]]:
    config = plan.config
    detector = plan.open_detector(product)
    scales = detector.config.calibration
    threshold = scales.map_threshold if scales else 0.5
    for item in seen:
        try:
            image = decode_image(plan.source.get(item.key, max_bytes=config.decode.max_bytes), config.decode)
        except (ImageError, StorageError) as error:
            code: Any = getattr(error, "code", ErrorCode.READ_ERROR)
            yield item.uri, Tile(thumbnail=None, anomaly_map=None, reason=f"{code}: {error}")
            continue
        anomaly_map = detector.inspect([image])[0].anomaly_map
        mask_HW = _mask(plan.source, item.mask, config.decode, image)
        yield item.uri, Tile(thumbnail=_thumbnail(image, mask_HW), anomaly_map=anomaly_map, map_threshold=threshold)


def _mask(source: Store, key: str | None, limits: DecodeLimits, image: RgbImage) -> NDArray[np.bool_] | None:
    """The true mask, or None where there is none; it could be read when it was counted."""
    if key is None:
        return None
    try:
        data = source.get(key, max_bytes=limits.max_bytes)
        return read_mask(data, key, limits, width=image.shape[1], height=image.shape[0])
    except (MaskError, ImageError, StorageError):
        return None


def _thumbnail(image: RgbImage, mask_HW: NDArray[np.bool_] | None) -> RgbImage:
    """The image, its longer side at most 320 px, with the mask's outline."""
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    small_HW3 = np.array(picture)
    if mask_HW is not None:
        small_HW = at_size(mask_HW, *small_HW3.shape[:2])
        small_HW3[ndimage.binary_dilation(small_HW, structure=np.ones((3, 3))) & ~small_HW] = TRUTH_RGB
    return small_HW3
