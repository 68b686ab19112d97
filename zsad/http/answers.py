"""From a finding to the JSON of the API: numbers as they are, pictures as base64 PNG.

Cost: a mask as PNG is drawn at the image's size, 0.1 s for 10 megapixels; call `inspection` off the event loop then.
"""

import io
from base64 import b64encode
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from zsad.finding import Finding
from zsad.http.engine import Inspected
from zsad.http.requests import InspectOptions
from zsad.regions import Region
from zsad.scoring import encode_map


def at_threshold(finding: Finding, threshold: float) -> Finding:
    """`finding` judged at another threshold: below it there is no defect, so no type and no regions."""
    if finding.score >= threshold:
        return replace(finding, threshold=threshold)
    return replace(finding, threshold=threshold, defect_type=None, defect_scores={}, regions=[])


def inspection(inspected: Inspected, options: InspectOptions, *, request_id: str, total_ms: float) -> dict[str, Any]:
    """The answer to one image.

    Args:
        inspected: what the engine found.
        options: which parts are asked for.
        request_id: of the request.
        total_ms: from the first byte of the body handed on to now.
    """
    finding, detector = inspected.finding, inspected.detector
    shown = finding.regions[: options.top_k]
    waited_ms = max(0.0, total_ms - inspected.decode_ms - inspected.model_ms)
    return {
        "request_id": request_id,
        "detector": detector.name,
        "config_hash": detector.config_hash,
        "width": finding.width,
        "height": finding.height,
        "score": finding.score,
        "raw_score": finding.raw_score,
        "threshold": finding.threshold,
        "is_anomaly": finding.is_anomaly,
        "defect_type": finding.defect_type,
        "defect_scores": finding.defect_scores,
        "regions": [_region(region, with_rle=options.mask == "rle") for region in shown],
        "explanation": _explanation(finding) if options.explain else [],
        "map": _base64(encode_map(finding.anomaly_map)) if options.map == "png" else None,
        "mask": _base64(mask_png(shown, finding)) if options.mask == "png" else None,
        "timings_ms": {
            "queue": round(waited_ms, 3),
            "decode": round(inspected.decode_ms, 3),
            "model": round(inspected.model_ms, 3),
            "total": round(total_ms, 3),
        },
    }


def mask_png(regions: list[Region], finding: Finding) -> bytes:
    """1-bit PNG of the image's size, white where any of `regions` is."""
    size = [finding.height, finding.width]
    mask_HW = np.zeros(size, bool)
    for region in regions:
        mask_HW |= coco.decode({"size": size, "counts": region.rle.encode("ascii")}).astype(bool)
    sink = io.BytesIO()
    Image.fromarray(mask_HW).save(sink, "PNG")
    return sink.getvalue()


def _region(region: Region, *, with_rle: bool) -> dict[str, Any]:
    return {
        "box": [region.x, region.y, region.width, region.height],
        "area_px": region.area_px,
        "score": region.score,
        "defect_type": region.defect_type,
        "rle": region.rle if with_rle else None,
    }


def _explanation(finding: Finding) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "side": side, "similarity": similarity} for prompt, side, similarity in finding.explanation
    ]


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
