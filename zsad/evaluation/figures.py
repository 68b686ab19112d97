"""From counts to figures: per product, per defect type against that product's normal images, and their means.

A figure that can't be had (no normal images, no masks) is None with the reason, never a number. Means are over those
that can, and say how many they are.

Legend: image_* of images, pixel_* of pixels; `pro` the mean overlap of regions up to 30 % false-positive pixels.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zsad.datasets.labelled import GOOD, UNNAMED, as_word
from zsad.evaluation.tally import Group, Tally
from zsad.metrics.naming import f1_by_class, one_vs_rest
from zsad.metrics.ranking import auroc, average_precision, f1_max
from zsad.metrics.streaming import Estimate, PixelTally, pixel_auroc, pixel_average_precision, pixel_f1_max, pro

IMAGE_METRICS: dict[str, Callable[[Sequence[int], Sequence[float]], float]] = {
    "image_auroc": auroc,
    "image_ap": average_precision,
    "image_f1_max": f1_max,
}
PIXEL_METRICS: dict[str, Callable[[PixelTally], Estimate]] = {
    "pixel_auroc": pixel_auroc,
    "pixel_ap": pixel_average_precision,
    "pixel_f1_max": pixel_f1_max,
    "pro": pro,
}
TITLES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1_max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1_max": "Pixel F1-max",
    "pro": "PRO",
}
NO_NORMALS = "there are no normal images"
NO_DEFECTS = "there are no anomalous images"
NO_MASKS = "there are no masks"
NO_TYPES = "the data set names no defect types"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number in [0, 1], or why there is none; `error` is the most by which streaming can have moved it."""

    value: float | None
    error: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How well a product's defect types are named.

    Attributes:
        words: types that the detector has a word for; the figures are over these.
        unnameable: types it has none for.
        by_word: type -> (AUROC, AP, F1).
    """

    words: tuple[str, ...]
    unnameable: tuple[str, ...]
    by_word: dict[str, tuple[float, float, float]]
    macro_auroc: Figure
    macro_ap: Figure
    macro_f1: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductFigures:
    """Everything measured on one product.

    Attributes:
        num_pixel_images: images whose pixels have a truth.
        figures: metric -> figure, all defects against all normal images.
        types: defect type -> metric -> figure, against all normal images.
        num_by_type: defect type -> images.
        mean_of_types: metric -> mean over the types.
        false_alarms: share of normal images at or above the threshold.
        detections: share of anomalous images at or above it.
        naming: of defect types.
    """

    product: str
    num_normal: int
    num_anomalous: int
    num_pixel_images: int
    figures: dict[str, Figure]
    types: dict[str, dict[str, Figure]]
    num_by_type: dict[str, int]
    mean_of_types: dict[str, Figure]
    false_alarms: Figure
    detections: Figure
    naming: Naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """An evaluation's outcome; `mean` is over products, `confusion` over all images: (truth, answer) -> images."""

    num_images: int
    num_errors: int
    errors_by_code: dict[str, int]
    products: list[ProductFigures]
    mean: dict[str, Figure]
    confusion: dict[tuple[str, str], int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = asdict(self)
        cells = sorted(self.confusion.items())
        plain["confusion"] = [{"truth": truth, "answer": answer, "images": n} for (truth, answer), n in cells]
        return plain


def results(tally: Tally) -> Results:
    """All figures."""
    products = [product_figures(tally, product) for product in tally.products()]
    return Results(
        num_images=tally.num_images,
        num_errors=len(tally.errors),
        errors_by_code=dict(Counter(row.code for row in tally.errors).most_common()),
        products=products,
        mean=mean([product.figures for product in products]),
        confusion=confusion(tally),
    )


def product_figures(tally: Tally, product: str) -> ProductFigures:
    """Figures of one product."""
    good, defects = tally.normals(product), dict(tally.defects(product))
    types = {kind: group_figures(good, [group]) for kind, group in defects.items() if group.raw_scores}
    num_normal = len(good.raw_scores)
    num_anomalous = sum(len(group.raw_scores) for group in defects.values())
    found = sum(group.num_anomalies for group in defects.values())
    return ProductFigures(
        product=product,
        num_normal=num_normal,
        num_anomalous=num_anomalous,
        num_pixel_images=good.pixels.num_images + sum(group.pixels.num_images for group in defects.values()),
        figures=group_figures(good, list(defects.values())),
        types=types,
        num_by_type={kind: len(defects[kind].raw_scores) for kind in types},
        mean_of_types=mean(list(types.values())),
        false_alarms=_share(good.num_anomalies, num_normal, NO_NORMALS),
        detections=_share(found, num_anomalous, NO_DEFECTS),
        naming=naming(good, defects),
    )


def group_figures(good: Group, defects: Sequence[Group]) -> dict[str, Figure]:
    """Every metric of these defects against these normal images."""
    bad = [score for group in defects for score in group.raw_scores]
    labels, scores = [0] * len(good.raw_scores) + [1] * len(bad), [*good.raw_scores, *bad]
    image_reason = NO_DEFECTS if not bad else NO_NORMALS if not good.raw_scores else ""
    pixels = sum((group.pixels for group in defects), good.pixels)
    pixel_reason = NO_DEFECTS if not bad else NO_MASKS if not pixels.defect_N.any() else ""
    if not pixel_reason and not pixels.normal_N.any():
        pixel_reason = "there are no normal pixels"
    figures = {
        name: Figure(value=None, reason=image_reason) if image_reason else Figure(value=metric(labels, scores))
        for name, metric in IMAGE_METRICS.items()
    }
    for name, estimate in PIXEL_METRICS.items():
        if pixel_reason:
            figures[name] = Figure(value=None, reason=pixel_reason)
        else:
            found = estimate(pixels)
            figures[name] = Figure(value=found.value, error=found.error)
    return figures


def naming(good: Group, defects: Mapping[str, Group]) -> Naming:
    """How well this product's types are named; one-vs-rest figures take all its images, normal ones included."""
    words = next((group.words for group in (good, *defects.values()) if group.words), ())
    places = {word.lower(): place for place, word in enumerate(words)}
    named = [kind for kind, group in defects.items() if group.raw_scores and kind not in UNNAMED]
    nameable = tuple(as_word(kind) for kind in named if as_word(kind) in places)
    unnameable = tuple(as_word(kind) for kind in named if as_word(kind) not in places)
    reason = "" if nameable else NO_TYPES if not named else "the detector has no word for any type of this data set"
    groups = [(GOOD, good), *((as_word(kind), group) for kind, group in defects.items())]
    truths = [kind for kind, group in groups for _ in group.raw_scores]
    if not reason and len(set(truths)) < 2:
        reason = "there is only one type and nothing to tell it from"
    if reason:
        absent = Figure(value=None, reason=reason)
        return Naming(
            words=nameable, unnameable=unnameable, by_word={}, macro_auroc=absent, macro_ap=absent, macro_f1=absent
        )
    blank_K = np.zeros(len(words))
    scores_NK = np.stack([row if len(row) else blank_K for _, group in groups for row in group.type_scores])
    ranked = one_vs_rest(truths, {word: scores_NK[:, places[word]] for word in nameable})
    answers = {(kind, answer.lower()): n for kind, group in groups for answer, n in group.answers.items()}
    f1 = f1_by_class(answers, nameable)
    by_word = {word: (*ranked[word], f1[word]) for word in nameable}
    macro = [Figure(value=float(np.mean([row[place] for row in by_word.values()]))) for place in range(3)]
    return Naming(
        words=nameable,
        unnameable=unnameable,
        by_word=by_word,
        macro_auroc=macro[0],
        macro_ap=macro[1],
        macro_f1=macro[2],
    )


def confusion(tally: Tally) -> dict[tuple[str, str], int]:
    """(truth, answer) -> images, over all products; both as words in small letters."""
    cells: Counter[tuple[str, str]] = Counter()
    for (_, kind), group in tally.groups.items():
        for answer, count in group.answers.items():
            cells[as_word(kind) if group.label else GOOD, answer.lower()] += count
    return dict(cells)


def mean(rows: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Unweighted mean of each metric over the rows that have it; the errors' mean bounds its error."""
    means = {}
    for name in (*IMAGE_METRICS, *PIXEL_METRICS):
        there = [row[name] for row in rows if row[name].value is not None]
        absent = [row[name].reason for row in rows if row[name].value is None]
        if not there:
            means[name] = Figure(value=None, reason=absent[0] if absent else NO_DEFECTS)
            continue
        value = float(np.mean([figure.value for figure in there if figure.value is not None]))
        error = float(np.mean([figure.error for figure in there]))
        reason = f"over {len(there)} of {len(rows)}: {absent[0]}" if absent else ""
        means[name] = Figure(value=value, error=error, reason=reason)
    return means


def _share(part: int, whole: int, reason: str) -> Figure:
    return Figure(value=part / whole) if whole else Figure(value=None, reason=reason)
