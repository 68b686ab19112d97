"""Inspect decoded images and count their pixels against the masks: the model's half of an evaluation.

Compared is the method's own map, as published figures do: uncalibrated, up-sampled bilinearly from the patch grid and,
where the method was published with a Gaussian filter, filtered (`zsad.methods.maps`). Calibration keeps every patch's
rank, but what lies between two patches depends on the scale one interpolates in, and the calibrated one is steep.
Pixels are counted in standard units (`Scale.standardise`), which change no rank.

Types are asked for of every image, normal or not: the detector compares with an almost zero threshold, and whether an
image is an anomaly is decided here by the detector's real one.

Legend: N images, (h, w) patch grid, (H, W) pixels compared, K defect words.
Cost: one pass of the model, and about 2 ms an image at 256 x 256, filtered or not.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from zsad.calibration import Scale
from zsad.detector import Detector, Finding
from zsad.errors import ImageError
from zsad.evaluation.truth import MASK, unpack
from zsad.methods.maps import published_map
from zsad.metrics.streaming import PixelTally, empty_tally, tally_image
from zsad.regions import upsample
from zsad.scoring import PIXELS, inspect_each, pixel_array

ALMOST_ZERO = 1e-30
_IMAGE = pa.struct(
    [
        pa.field("key", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("mask", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("raw_score", pa.float64()),
        pa.field("is_anomaly", pa.bool_()),
        pa.field("answer", pa.string()),
        pa.field("type_scores", pa.list_(pa.float64())),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
RESULT_SCHEMA = pa.schema(
    [
        pa.field("product", pa.string(), nullable=False),
        pa.field("defect_type", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("tally", pa.binary(), nullable=False),
        pa.field("words", pa.list_(pa.string()), nullable=False),
        pa.field("images", pa.list_(_IMAGE), nullable=False),
    ]
)


def compare_table(detector: Detector, decoded: pa.Table, *, threshold: float, side_px: int | None) -> pa.Table:
    """Inspect what `decode_truth` returned and count.

    Args:
        detector: calibrated, with the threshold `ALMOST_ZERO`.
        decoded: N rows.
        threshold: the detector's real one, calibrated.
        side_px: as for `decode_truth`.

    Returns:
        One row per product and defect type, in the order they come, with `RESULT_SCHEMA`; all N images are in them.
    """
    listed = decoded.drop_columns([PIXELS]).to_pylist()
    outcomes = _findings(detector, listed, pixel_array(decoded, detector.config.preprocess.size))
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for index, row in enumerate(listed):
        group = groups.setdefault(
            (row["product"], row["defect_type"]),
            {name: row[name] for name in ("product", "defect_type", "label")}
            | {"tally": empty_tally(), "words": [], "images": []},
        )
        outcome = outcomes.get(index)
        if isinstance(outcome, Finding) and (row["mask"] is not None or not row["label"]):
            group["tally"] += _tally(outcome, row, detector, side_px)
        if isinstance(outcome, Finding):
            group["words"] = group["words"] or list(outcome.defect_scores)
        group["images"].append(_image_row(row, outcome, threshold))
    rows = [{**group, "tally": group["tally"].to_bytes()} for group in groups.values()]
    return pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)


def standard_map(
    raw_hw: NDArray[np.float32], scale: Scale, *, height: int, width: int, sigma: float
) -> NDArray[np.float64]:
    """A method's own map, up-sampled to (height, width) and filtered, in standard units.

    Args:
        raw_hw: on the patch grid.
        scale: of the detector's maps.
        height: px.
        width: px.
        sigma: of the Gaussian, as a share of each side; 0: none.
    """
    if not sigma:
        return scale.standardise(upsample(raw_hw, height, width))
    return scale.standardise(published_map(torch.from_numpy(raw_hw)[None], (height, width), sigma)[0].numpy())


def _findings(
    detector: Detector, listed: list[dict[str, Any]], pixels_NSSC: NDArray[np.uint8]
) -> dict[int, Finding | ImageError]:
    good = [index for index, row in enumerate(listed) if row["error_code"] is None]
    found: dict[int, Finding | ImageError] = {}
    for start in range(0, len(good), detector.batch_size):
        batch = good[start : start + detector.batch_size]
        sizes = [(listed[index]["width"], listed[index]["height"]) for index in batch]
        found.update(zip(batch, inspect_each(detector, pixels_NSSC[batch], sizes), strict=True))
    return found


def _tally(finding: Finding, row: Mapping[str, Any], detector: Detector, side_px: int | None) -> PixelTally:
    scales = detector.config.calibration
    assert scales is not None  # noqa: S101 - an uncalibrated detector inspects nothing; for the type checker
    sigma = getattr(detector.method, "map_sigma", 0.0)
    height, width = side_px or row["height"], side_px or row["width"]
    bits = row[MASK]
    mask_HW = np.zeros((height, width), np.bool_) if bits is None else unpack(bits, height, width)
    units_HW = standard_map(finding.raw_map, scales.map, height=height, width=width, sigma=sigma)
    return tally_image(units_HW, mask_HW)


def _image_row(
    row: Mapping[str, Any],
    outcome: Finding | ImageError | None,
    threshold: float,
) -> dict[str, Any]:
    where = {name: row[name] for name in ("key", "uri", "mask")}
    if not isinstance(outcome, Finding):
        code = outcome.code.value if outcome else row["error_code"]
        return {**where, "error_code": code, "error_message": str(outcome) if outcome else row["error_message"]}
    is_anomaly = outcome.score >= threshold
    return {
        **where,
        "score": outcome.score,
        "raw_score": outcome.raw_score,
        "is_anomaly": is_anomaly,
        "answer": outcome.defect_type if is_anomaly else None,
        "type_scores": [outcome.score * share for share in outcome.defect_scores.values()],
    }
