"""The last stage of a run: choose the images worth looking at, look at them again, and write the gallery.

Maps are not kept for every image, so the few dozen chosen ones are read and inspected once more by the run's own
detector, in one Ray task with the same resources as a scorer. Scores and regions shown are those of the report.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from PIL import Image

from zsad import __version__
from zsad.distributed.stages import Plan
from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.images import DecodeLimits, RgbImage, decode_image
from zsad.report.gallery import RunInfo, Tile, render_gallery
from zsad.report.paths import run_key
from zsad.report.read import read_report
from zsad.report.selection import Selection, choose
from zsad.report.summary import RunSummary
from zsad.storage import Store

GALLERY = "gallery.html"
_THUMBNAIL_PX = 320


def write_gallery(plan: Plan, summary: RunSummary) -> tuple[Selection, str]:
    """Write `runs/<run>/gallery.html`; returns the selection and the page's address."""
    selection = choose(read_report(plan.config.output, plan.run_id))
    gpus = plan.config.num_gpus_per_scorer
    tiles = ray.get(_make_tiles.options(num_cpus=1, num_gpus=gpus).remote(plan, list(selection.uris)))
    key = run_key(plan.run_id, GALLERY)
    plan.output.put(key, render_gallery(selection, tiles, run=_info(plan, summary)).encode())
    return selection, plan.output.uri(key)


@ray.remote
def _make_tiles(plan: Plan, uris: list[str]) -> dict[str, Tile]:
    return dict(_tiles(plan, uris))


def _tiles(plan: Plan, uris: list[str]) -> Iterator[tuple[str, Tile]]:
    from zsad.detector import load_detector

    device = "cuda" if plan.config.num_gpus_per_scorer else "cpu"
    detector = load_detector(plan.bundle_url, device=device, batch_size=plan.config.batch_size)
    calibration = plan.detector.calibration
    map_threshold = calibration.map_threshold if calibration else 0.5
    for start in range(0, len(uris), detector.batch_size):
        chunk = uris[start : start + detector.batch_size]
        read = {uri: _reread(plan.source, plan.source.key(uri), plan.config.decode) for uri in chunk}
        images = {uri: image for uri, image in read.items() if not isinstance(image, str)}
        maps = {uri: f.anomaly_map for uri, f in zip(images, detector.inspect(list(images.values())), strict=True)}
        for uri, image in read.items():
            reason = image if isinstance(image, str) else ""
            thumbnail = None if isinstance(image, str) else _thumbnail(image)
            tile = Tile(thumbnail=thumbnail, anomaly_map=maps.get(uri), map_threshold=map_threshold, reason=reason)
            yield uri, tile


def _reread(source: Store, key: str, limits: DecodeLimits) -> RgbImage | str:
    """The image, or why it can't be shown."""
    try:
        return decode_image(source.get(key, max_bytes=limits.max_bytes), limits)
    except (ImageError, StorageError) as error:
        code: Any = getattr(error, "code", ErrorCode.READ_ERROR)
        return f"{code}: {error}"


def _thumbnail(image: RgbImage) -> RgbImage:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return np.asarray(picture)


def _info(plan: Plan, summary: RunSummary) -> RunInfo:
    calibration = plan.detector.calibration
    return RunInfo(
        run_id=plan.run_id,
        input_url=summary.input_url,
        detector=summary.detector,
        object_name=plan.detector.object_name,
        started=summary.started_at,
        finished=summary.finished_at,
        images_per_s=summary.images_per_s,
        config_hash=plan.config_hash,
        version=__version__,
        threshold=calibration.threshold if calibration else None,
        calibration_source=calibration.source if calibration else None,
        calibration_num_normals=calibration.num_normals if calibration else None,
    )
