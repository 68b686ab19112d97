"""What the driver holds while results stream in: counts per product and defect type, and a few images to look at.

Pixel counts are histograms of constant size per group. Image scores are kept, so that image figures are exact: about
20 + 8 K bytes an image for K defect words, 20 MB for 100,000 images and 22 words. Error rows are kept in full; they
are bounded by the job's error budget.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zsad.datasets.labelled import GOOD
from zsad.metrics.streaming import PixelTally, empty_tally

NUM_WORST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """An image that counts nowhere, and why."""

    uri: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An image worth looking at; the smaller `rank`, the more so."""

    rank: float
    key: str
    uri: str
    mask: str | None
    product: str
    defect_type: str
    score: float
    is_anomaly: bool
    answer: str | None


@dataclass(slots=True, eq=False)
class Group:
    """Images of one product and defect type.

    Attributes:
        label: 0 normal, 1 anomalous.
        pixels: of the images that have a truth for each pixel.
        raw_scores: of each image, the method's own number.
        words: the defect words that the product's detector chose from; empty until an image says so.
        type_scores: of each image, per word; empty for an image whose score is 0.
        answers: what images were called: a type, "unknown", or "good".
        num_anomalies: images whose score reached the threshold.
    """

    label: int
    pixels: PixelTally = field(default_factory=empty_tally)
    raw_scores: list[float] = field(default_factory=list)
    words: tuple[str, ...] = ()
    type_scores: list[NDArray[np.float64]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    num_anomalies: int = 0


class Tally:
    """Adds up tables with `zsad.evaluation.compare.RESULT_SCHEMA`; their order does not matter."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, str], Group] = {}
        self.errors: list[ErrorRow] = []
        self.false_alarms: list[Seen] = []
        self.misses: list[Seen] = []
        self.num_images = 0

    def add(self, results: pa.Table) -> None:
        """Count one table."""
        for row in results.to_pylist():
            group = self.groups.setdefault((row["product"], row["defect_type"]), Group(row["label"]))
            group.words = group.words or tuple(row["words"])
            group.pixels += PixelTally.from_bytes(row["tally"])
            for image in row["images"]:
                self._add_image(group, row["product"], row["defect_type"], image)

    def products(self) -> list[str]:
        """Products with at least one group, sorted."""
        return sorted({product for product, _ in self.groups})

    def normals(self, product: str) -> Group:
        """The product's normal images; empty where there are none."""
        return self.groups.get((product, GOOD), Group(0))

    def defects(self, product: str) -> Iterator[tuple[str, Group]]:
        """The product's defect types and their images, sorted."""
        for (name, kind), group in sorted(self.groups.items(), key=lambda item: item[0]):
            if name == product and group.label:
                yield kind, group

    def _add_image(self, group: Group, product: str, defect_type: str, image: dict[str, Any]) -> None:
        self.num_images += 1
        if image["error_code"] is not None:
            self.errors.append(
                ErrorRow(uri=image["uri"], code=image["error_code"], message=image["error_message"] or "")
            )
            return
        group.raw_scores.append(image["raw_score"])
        group.type_scores.append(np.asarray(image["type_scores"], np.float64))
        group.answers[(image["answer"] or GOOD) if image["is_anomaly"] else GOOD] += 1
        group.num_anomalies += image["is_anomaly"]
        worst, sign = (self.misses, 1) if group.label else (self.false_alarms, -1)
        seen = Seen(
            rank=sign * image["score"],
            key=image["key"],
            uri=image["uri"],
            mask=image["mask"],
            product=product,
            defect_type=defect_type,
            score=image["score"],
            is_anomaly=image["is_anomaly"],
            answer=image["answer"],
        )
        insort(worst, seen, key=lambda item: (item.rank, item.key))
        del worst[NUM_WORST:]
