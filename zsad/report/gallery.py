"""One HTML file for the person who looks at last night's images: pictures first, numbers in front, nothing to install.

The page holds everything it shows and asks no other host for anything: pictures are data URLs, there is no script, and
a content policy forbids the browser to fetch. Names and messages come from untrusted objects: control characters are
shown as escapes and everything is HTML-escaped.

Cost: about 20 kB a picture and 10 ms to make it; a page of the default 84 images has 2 MB, and never more than 5 MB.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from zsad.report import overlay
from zsad.report.selection import NUM_BINS, Row, Selection, choose
from zsad.visible import visible

__all__ = ["RunInfo", "Selection", "Tile", "choose", "render_gallery"]

NOT_READ = "the picture was not read again for this page"
NO_MAP = "the heat map could not be made again for this page"
_NUM_TYPES = 3
_NUM_PROMPTS = 6
_MAX_TEXT_CHARS = 1_100  # an S3 key has at most 1,024
_CHART_WIDTH, _CHART_HEIGHT, _CHART_LEFT, _CHART_TOP, _CHART_BOTTOM = 440, 180, 54, 22, 24
_GROUPS = (
    ("top", "Highest scores", "The images the detector is surest about, highest score first."),
    ("above", "Just above the threshold", "Marked by the smallest margin. False alarms gather here."),
    ("below", "Just under the threshold", "Passed by the smallest margin. Missed defects gather here."),
    (
        "normals",
        "Normal images at random",
        "Passed, and drawn by lot. A defect seen here is a blind spot.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The pictures of one chosen image, made again when the page is made.

    Attributes:
        thumbnail: uint8 RGB (H, W, 3), longer side about 288 px or more; None if the image could not be read.
        anomaly_map: float32 (h, w), calibrated [0, 1]; None if there is none.
        map_threshold: calibrated, of the detector that scored the image.
        reason: why something is missing; shown in its place.
    """

    thumbnail: NDArray[np.uint8] | None
    anomaly_map: NDArray[np.float32] | None
    map_threshold: float = 0.5
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What the page says about the run.

    Attributes:
        detector: the REF.
        started, finished: ISO 8601 with zone.
        images_per_s: None if unknown.
        version: of zsad.
        threshold: calibrated; None if it differs between detectors.
        calibration_source: what kind of normal images the thresholds come from; None if unknown.
        calibration_num_normals: how many; None if unknown.
        partition: field -> value, where the page shows one part of the report only.
    """

    run_id: str
    input_url: str
    detector: str
    object_name: str
    started: str
    finished: str
    images_per_s: float | None
    config_hash: str
    version: str
    threshold: float | None
    calibration_source: str | None = None
    calibration_num_normals: int | None = None
    partition: Mapping[str, str] = field(default_factory=dict)


def render_gallery(selection: Selection, tiles_by_uri: Mapping[str, Tile], *, run: RunInfo) -> str:
    """The page, as one HTML document.

    Args:
        selection: what `choose` returned.
        tiles_by_uri: pictures of the uris in `selection.uris`; one that is missing gets a placeholder.
        run: of the whole report.

    Raises:
        ConfigError: if a tile's picture is not uint8 RGB (H, W, 3).
    """
    numbers = count(1)
    groups = [
        {"id": name, "title": title, "text": text, "figures": _figures(getattr(selection, name), tiles_by_uri, numbers)}
        for name, title, text in _GROUPS
    ]
    counts = selection.counts
    return (
        environment()
        .get_template("gallery.html")
        .render(
            run=run,
            duration=_duration(run.started, run.finished),
            verdict=_verdict(selection),
            counts=counts,
            anomalous_share=_share(counts.anomalous, counts.ok),
            types=_bars(counts.by_defect_type),
            histogram=_histogram(selection, run.threshold),
            groups=[group for group in groups if group["figures"]],
            scale=_scale(selection.uris, tiles_by_uri),
            errors=_errors(selection),
        )
    )


def printable(value: object) -> object:
    """Text with control, direction and other invisible characters as escapes, cut in the middle when very long."""
    if not isinstance(value, str) or isinstance(value, Markup):  # the templates' own macros are Markup
        return value
    text = visible(value)
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    half = _MAX_TEXT_CHARS // 2
    return f"{text[:half]} ... {text[-half:]}"


def environment() -> Environment:
    """Every value printed by a template goes through `printable`, then through HTML escaping."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _verdict(selection: Selection) -> dict[str, str]:
    """The headline, and the tone it is set in."""
    counts = selection.counts
    if not counts.listed:
        return {"tone": "warn", "text": "No image was listed"}
    if not counts.ok:
        return {"tone": "warn", "text": f"None of {_images(counts.listed)} could be read"}
    if not counts.anomalous:
        return {"tone": "good", "text": f"No defect found in {_images(counts.ok)}"}
    verb = "looks" if counts.anomalous == 1 else "look"
    return {"tone": "bad", "text": f"{counts.anomalous:,} of {_images(counts.ok)} {verb} defective"}


def _images(number: int) -> str:
    return f"{number:,} image" if number == 1 else f"{number:,} images"


def _share(part: int, whole: int) -> str:
    """Percentage for people: never "0.0 %" for something, never "100.0 %" for not quite all."""
    percent = 100 * part / whole if whole else 0.0
    if part and percent < 0.05:
        return "< 0.1 %"
    if part < whole and percent >= 99.95:
        return "> 99.9 %"
    return f"{percent:.1f} %"


def _duration(started: str, finished: str) -> str:
    """Time between two ISO moments, "1 h 05 min"; empty if they can't be read."""
    try:
        seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return ""
    if seconds < 0:
        return ""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds_left:02} s" if minutes else f"{seconds_left} s"


def _bars(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    most, total = max(counts.values(), default=1), sum(counts.values())
    return [
        {"name": name, "count": number, "share": _share(number, total), "width": max(1, round(100 * number / most))}
        for name, number in counts.items()
    ]


def _errors(selection: Selection) -> list[dict[str, Any]]:
    """One entry per error code with its example rows."""
    codes = selection.counts.by_error_code
    return [
        {
            "code": code,
            "count": number,
            "share": _share(number, selection.counts.listed),
            "examples": [row for row in selection.errors if (row["error_code"] or "unknown") == code],
        }
        for code, number in codes.items()
    ]


def _figures(rows: Sequence[Row], tiles_by_uri: Mapping[str, Tile], numbers: Iterator[int]) -> list[dict[str, Any]]:
    missing = Tile(thumbnail=None, anomaly_map=None, reason=NOT_READ)
    return [_figure(row, tiles_by_uri.get(row["uri"], missing), next(numbers)) for row in rows]


def _figure(row: Row, tile: Tile, number: int) -> dict[str, Any]:
    regions = row.get("regions") or []
    types = sorted(row.get("defect_scores") or [], key=lambda item: (-item["score"], item["name"]))
    picture, reason = _picture(row, tile, regions)
    facts = {
        "Margin": f"{row['score'] - row['threshold']:+.4f} from the threshold {row['threshold']:.3f}",
        "Raw score": f"{row['raw_score']:.6g}" if row.get("raw_score") is not None else None,
        "Size": f"{row['width']} x {row['height']} px" if row.get("width") else None,
        "Detector": row.get("detector"),
    }
    return {
        "id": f"image-{number}",
        "uri": row["uri"],
        "name": row["uri"].rstrip("/").rsplit("/", 1)[-1] or row["uri"],
        "score": _score_text(row["score"], row["threshold"]),
        "threshold": f"{row['threshold']:.2f}",
        "is_anomaly": bool(row["is_anomaly"]),
        "defect_type": row.get("defect_type") if row["is_anomaly"] else "normal",
        "types": [
            {"name": item["name"], "percent": f"{100 * item['score']:.0f} %", "width": round(100 * item["score"])}
            for item in types[:_NUM_TYPES]
        ],
        "prompts": [
            {"text": item["prompt"], "side": item["side"], "similarity": f"{item['similarity']:.3f}"}
            for item in (row.get("explanation") or [])[:_NUM_PROMPTS]
        ],
        "num_regions": len(regions),
        "facts": {name: value for name, value in facts.items() if value},
        "picture": picture,
        "reason": reason,
        "has_map": tile.anomaly_map is not None,
    }


def _score_text(score: float, threshold: float) -> str:
    """Three decimals, up to six where they are needed to tell the score from its threshold."""
    if score != threshold:
        if 0.9995 <= score < 1:
            return "> 0.999"
        if 0 < score < 0.0005:
            return "< 0.001"
    digits = next((n for n in range(3, 6) if f"{score:.{n}f}" != f"{threshold:.{n}f}"), 6)
    return f"{score:.{3 if score == threshold else digits}f}"


def _picture(row: Row, tile: Tile, regions: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The picture as base64 JPEG, empty if there is none, and why something is missing."""
    if tile.thumbnail is None:
        return "", tile.reason or NOT_READ
    height, width = tile.thumbnail.shape[:2]
    data = overlay.render(
        tile.thumbnail,
        tile.anomaly_map,
        regions,
        map_threshold=tile.map_threshold,
        image_size=(row.get("width") or width, row.get("height") or height),
    )
    reason = (tile.reason or NO_MAP) if tile.anomaly_map is None else ""
    return base64.b64encode(data).decode("ascii"), reason


def _scale(uris: Sequence[str], tiles_by_uri: Mapping[str, Tile]) -> dict[str, Any]:
    """Colour stops of the legend, and the map threshold as a percentage if all pictures share one."""
    steps = np.linspace(0, 1, 21)
    colours, alphas = overlay.heat(steps)
    stops = ", ".join(
        f"rgba({red:.0f},{green:.0f},{blue:.0f},{alpha:.2f}) {100 * step:.0f}%"
        for step, (red, green, blue), alpha in zip(steps, colours, alphas, strict=True)
    )
    thresholds = {round(tiles_by_uri[uri].map_threshold, 4) for uri in uris if uri in tiles_by_uri}
    shared = thresholds.pop() if len(thresholds) == 1 else None
    contour = "rgb({}, {}, {})".format(*overlay.CONTOUR_RGB)
    return {"stops": stops, "contour": contour, "threshold": shared}


def _histogram(selection: Selection, threshold: float | None) -> dict[str, Any]:
    """Geometry of the score chart: bars on a logarithmic count axis, px of its view box."""
    normal, anomalous = selection.normal_bins, selection.anomalous_bins
    decades = max(1, math.ceil(math.log10(max(1, *normal, *anomalous) + 1e-9)))
    floor_y = _CHART_HEIGHT - _CHART_BOTTOM
    unit = (floor_y - _CHART_TOP) / (decades + 0.3)  # px per decade; a single image still has a bar
    step = (_CHART_WIDTH - _CHART_LEFT - 8) / NUM_BINS
    bars, table = [], []
    for index in range(NUM_BINS):
        here = [(kind, bins[index]) for kind, bins in (("normal", normal), ("anomalous", anomalous)) if bins[index]]
        span = f"{index / NUM_BINS:.2f} to {(index + 1) / NUM_BINS:.2f}"
        for place, (kind, number) in enumerate(here):
            height = unit * (math.log10(number) + 0.3)
            width = (step - 2) / len(here)
            x = _CHART_LEFT + step * index + 1 + place * width
            bars.append(
                {"kind": kind, "x": x, "y": floor_y - height, "width": width, "height": height}
                | {"title": f"score {span}: {number:,} {kind}"}
            )
        if here:
            table.append({"span": span, "normal": normal[index], "anomalous": anomalous[index]})
    return {
        "width": _CHART_WIDTH,
        "height": _CHART_HEIGHT,
        "left": _CHART_LEFT,
        "top": _CHART_TOP,
        "right": _CHART_WIDTH - 8,
        "floor": floor_y,
        "bars": bars,
        "table": table,
        "lines": [{"y": floor_y - unit * (k + 0.3), "text": f"{10**k:,}"} for k in range(decades + 1)],
        "ticks": [{"x": _CHART_LEFT + step * NUM_BINS * k / 4, "text": f"{k / 4:g}"} for k in range(5)],
        "threshold_x": None if threshold is None else _CHART_LEFT + step * NUM_BINS * threshold,
    }
