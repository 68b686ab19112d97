"""The last stage of a run: choose the images worth looking at, look at them again, and write the gallery.

Maps are not kept for every image, so the few dozen chosen ones are read and inspected once more by the run's own
detector, in one Ray task with the same resources as a scorer. Scores and regions shown are those of the report.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from PIL import Image

from zsad import __version__
from zsad.bundle import read_config
from zsad.distributed.stages import Plan
from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.images import DecodeLimits, RgbImage, decode_image
from zsad.report.gallery import RunInfo, Tile, render_gallery
from zsad.report.paths import run_key
from zsad.report.selection import Selection
from zsad.report.summary import RunSummary
from zsad.storage import Store

if TYPE_CHECKING:
    from zsad.detector import Detector

GALLERY = "gallery.html"
_THUMBNAIL_PX = 320


def write_gallery(plan: Plan, summary: RunSummary, selection: Selection) -> str:
    """Write `runs/<run>/gallery.html` of the chosen images; returns the page's address."""
    gpus = plan.config.num_gpus_per_scorer
    tiles = ray.get(_make_tiles.options(num_cpus=1, num_gpus=gpus).remote(plan, selection.etags))
    key = run_key(plan.run_id, GALLERY)
    plan.output.put(key, render_gallery(selection, tiles, run=_info(plan, summary)).encode())
    return plan.output.uri(key)


@ray.remote
def _make_tiles(plan: Plan, etags: dict[str, str | None]) -> dict[str, Tile]:
    return dict(_tiles(plan, etags))


def _tiles(plan: Plan, etags: dict[str, str | None]) -> Iterator[tuple[str, Tile]]:
    source, index, detectors = plan.source, plan.detectors, plan.open_detectors()
    template = index.template()
    by_bundle: dict[str, list[str]] = {}
    for uri in etags:
        by_bundle.setdefault(index.find(source.key(uri), template).bundle, []).append(uri)
    for bundle, mine in by_bundle.items():
        detector = detectors.get(plan.output.uri(bundle)) if bundle else None
        for start in range(0, len(mine), plan.config.batch_size):
            some = mine[start : start + plan.config.batch_size]
            yield from _inspected(plan, detector, {uri: etags[uri] for uri in some})


def _inspected(plan: Plan, detector: "Detector | None", etags: dict[str, str | None]) -> Iterator[tuple[str, Tile]]:
    calibration = detector.config.calibration if detector else None
    map_threshold = calibration.map_threshold if calibration else 0.5
    read = {uri: _reread(plan.source, plan.source.key(uri), etag, plan.config.decode) for uri, etag in etags.items()}
    images = {uri: image for uri, image in read.items() if not isinstance(image, str)}
    findings = detector.inspect(list(images.values())) if detector else []
    maps = {uri: finding.anomaly_map for uri, finding in zip(images, findings, strict=False)}
    for uri, image in read.items():
        reason = image if isinstance(image, str) else ""
        thumbnail = None if isinstance(image, str) else _thumbnail(image)
        yield uri, Tile(thumbnail=thumbnail, anomaly_map=maps.get(uri), map_threshold=map_threshold, reason=reason)


def _reread(source: Store, key: str, etag: str | None, limits: DecodeLimits) -> RgbImage | str:
    """The image that was scored, or why it can't be shown."""
    try:
        return decode_image(source.get(key, max_bytes=limits.max_bytes, etag=etag or None), limits)
    except (ImageError, StorageError) as error:
        code: Any = getattr(error, "code", ErrorCode.READ_ERROR)
        return f"{code}: {error}"


def _thumbnail(image: RgbImage) -> RgbImage:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return np.asarray(picture)


def _info(plan: Plan, summary: RunSummary) -> RunInfo:
    """What the page says of the run; of several detectors, only that there are several."""
    index = plan.detectors
    detector = read_config(plan.output.uri(index.entries[()].bundle)) if not index.fields else None
    calibration = detector.calibration if detector else None
    return RunInfo(
        run_id=plan.run_id,
        input_url=summary.input_url,
        detector=summary.detector,
        object_name=detector.object_name if detector else f"one for each {', '.join(index.fields)}",
        started=summary.started_at,
        finished=summary.finished_at,
        images_per_s=summary.images_per_s,
        config_hash=plan.config_hash,
        version=__version__,
        threshold=calibration.threshold if calibration else None,
        calibration_source=calibration.source if calibration else None,
        calibration_num_normals=calibration.num_normals if calibration else None,
    )
