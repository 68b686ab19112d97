"""The evaluation as one HTML file: figures first, then curves, confusion and the images that went most wrong.

Like the gallery it holds all it shows, has no script and asks no host for anything; names and messages come from data
sets that nobody vouches for, and every printed value is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from zsad.datasets.labelled import GOOD
from zsad.datasets.protocols import PROTOCOLS
from zsad.defect_types import UNKNOWN
from zsad.evaluation.charts import HEIGHT, WIDTH, charts
from zsad.evaluation.figures import TITLES, Figure, ProductFigures, Results
from zsad.evaluation.summary import NUM_ERRORS, EvaluationInfo, method_notes, number, reasons
from zsad.evaluation.tally import Seen, Tally
from zsad.report import overlay
from zsad.report.gallery import NOT_READ, Tile, environment

_HEADLINE = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro")


def render_page(results: Results, tally: Tally, tiles_by_uri: Mapping[str, Tile], *, info: EvaluationInfo) -> str:
    """The page, as one HTML document.

    Args:
        results: all figures.
        tally: what they were made from; gives curves and the worst images.
        tiles_by_uri: pictures of `tally.false_alarms` and `tally.misses`; one that is missing gets a placeholder.
        info: of the run.
    """
    groups = (
        ("alarms", "Worst false alarms", "Normal images with the highest scores.", tally.false_alarms),
        ("misses", "Worst misses", "Anomalous images with the lowest scores.", tally.misses),
    )
    drawn = charts(tally)
    metrics = [metric for metric in TITLES if results.mean[metric].value is not None] or list(TITLES)
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            info=info,
            results=results,
            num_used=results.num_images - results.num_errors,
            titles={metric: TITLES[metric] for metric in metrics},
            headline=[{"title": TITLES[name], **_cell(results.mean[name])} for name in _HEADLINE],
            products=_products(results, metrics),
            types=[_types(product, metrics) for product in results.products],
            charts=drawn,
            lines=list({line.name: line for chart in drawn for line in chart.lines}.values()),
            chart_size=(WIDTH, HEIGHT),
            confusion=_confusion(results.confusion),
            groups=[
                {"id": name, "title": title, "text": text, "figures": [_figure(item, tiles_by_uri) for item in seen]}
                for name, title, text, seen in groups
                if seen
            ],
            threshold=info.threshold,
            errors=tally.errors[:NUM_ERRORS],
            num_more_errors=max(0, len(tally.errors) - NUM_ERRORS),
            notes=method_notes(info),
            reasons=[line.removeprefix("- ") for line in reasons(results).splitlines()],
            protocol=PROTOCOLS.get(info.layout),
        )
    )


def _cell(figure: Figure) -> dict[str, str]:
    """A figure and what there is to say about it."""
    return {"text": number(figure), "reason": figure.reason}


def _row(name: str, note: str, figures: Mapping[str, Figure], metrics: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "note": note, "cells": [_cell(figures[metric]) for metric in metrics]}


def _products(results: Results, metrics: Sequence[str]) -> list[dict[str, Any]]:
    rows = [
        _row(p.product, f"{p.num_normal:,} normal, {p.num_anomalous:,} anomalous", p.figures, metrics)
        for p in results.products
    ]
    return [*rows, _row("mean", f"of {len(rows)} products", results.mean, metrics)] if len(rows) > 1 else rows


def _types(product: ProductFigures, metrics: Sequence[str]) -> dict[str, Any]:
    """Rows of one product's types, and its figures at the threshold."""
    counts = product.num_by_type
    rows = [_row(kind, f"{counts[kind]:,} images", figures, metrics) for kind, figures in product.types.items()]
    if len(rows) > 1:
        rows.append(_row("mean of types", f"of {len(rows)} types", product.mean_of_types, metrics))
    return {
        "product": product.product,
        "num_normal": product.num_normal,
        "rows": rows,
        "false_alarms": number(product.false_alarms),
        "detections": number(product.detections),
        "naming": product.naming,
        "naming_cells": [number(f) for f in (product.naming.macro_auroc, product.naming.macro_ap)]
        + [number(product.naming.macro_f1)],
        "by_word": [
            {"word": word, "cells": [f"{value:.3f}" for value in values]}
            for word, values in product.naming.by_word.items()
        ],
    }


def _confusion(cells: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """Rows by truth, columns by answer, both with "good" first; shades are shares of the row."""
    totals: dict[str, int] = {}
    for (_, answer), count in cells.items():
        totals[answer] = totals.get(answer, 0) + count
    truths = _good_first({truth for truth, _ in cells})
    answers = _good_first(set(totals) - {UNKNOWN}) + [UNKNOWN] * (UNKNOWN in totals)
    rows = []
    for truth in truths:
        counts = [cells.get((truth, answer), 0) for answer in answers]
        whole = sum(counts)
        rows.append(
            {
                "truth": truth,
                "total": whole,
                "cells": [
                    {"count": count, "shade": round(100 * count / whole), "is_right": answer == truth}
                    for answer, count in zip(answers, counts, strict=True)
                ],
            }
        )
    return {"answers": answers, "rows": rows}


def _good_first(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != GOOD, name))


def _figure(item: Seen, tiles_by_uri: Mapping[str, Tile]) -> dict[str, Any]:
    tile = tiles_by_uri.get(item.uri, Tile(thumbnail=None, anomaly_map=None, reason=NOT_READ))
    picture = ""
    if tile.thumbnail is not None:
        height, width = tile.thumbnail.shape[:2]
        threshold = tile.map_threshold
        data = overlay.render(
            tile.thumbnail, tile.anomaly_map, _NO_REGIONS, map_threshold=threshold, image_size=(width, height)
        )
        picture = base64.b64encode(data).decode("ascii")
    return {
        "name": item.uri.rsplit("/", 1)[-1],
        "uri": item.uri,
        "product": item.product,
        "truth": item.defect_type,
        "answer": (item.answer or UNKNOWN) if item.is_anomaly else "passed",
        "is_anomaly": item.is_anomaly,
        "score": f"{item.score:.3f}" if item.score >= 0.0005 else "< 0.001",
        "picture": picture,
        "reason": tile.reason,
    }


_NO_REGIONS: Sequence[Mapping[str, Any]] = ()
