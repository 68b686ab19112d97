"""An engine that needs no model: its findings say what was sent. And an observer that keeps what it is told."""

import asyncio

import numpy as np

from zsad.finding import Finding
from zsad.http.answers import at_threshold
from zsad.http.engine import Description, DetectorKey, Inspected, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.regions import Component, to_region

HELD = b"hold me"


def description(name: str) -> Description:
    return Description(
        name=name,
        backbone="tiny",
        method="alfa",
        object_name="object",
        defect_words=("scratch", "dent"),
        threshold=0.5,
        explains=True,
        config_hash="abc",
        preprocess=Preprocess(size=32),
    )


def finding(score: float = 0.75) -> Finding:
    """A 4 x 3 px image whose left half is one region."""
    square = np.zeros((32, 32), bool)
    square[:, :16] = True
    region = to_region(Component(square, 0.875), width=4, height=3, defect_type="dent")
    return Finding(
        score=score,
        raw_score=0.25,
        threshold=1e-6,
        defect_type="dent",
        defect_scores={"scratch": 0.25, "dent": 0.75},
        anomaly_map=np.array([[0.0, 1.0]], np.float32),
        raw_map=np.array([[0.0, 1.0]], np.float32),
        regions=[region],
        width=4,
        height=3,
        explanation=[("a dented object", "abnormal", 0.5)],
    )


class FakeEngine:
    """Every upload is an image with score 0.75, unless its bytes are `bad`; stored images are remembered."""

    def __init__(self) -> None:
        self.stored: list[StoredImage] = []
        self.keys: list[DetectorKey] = []
        self.release = asyncio.Event()
        self.num_held = 0
        self.num_cancelled = 0
        self.is_ready = True
        self.broken: set[str] = set()

    async def describe(self, key: DetectorKey) -> Description:
        """Always the same but for its name; `broken` ones can't be had."""
        if key.name in self.broken:
            raise Problem("no_detector", "it can't be loaded")
        return description(key.name)

    async def check_ready(self) -> None:
        """As `is_ready` says."""
        if not self.is_ready:
            raise Problem("unavailable", "no scorer")

    async def inspect(self, image: Upload | StoredImage, key: DetectorKey, threshold: float | None) -> Inspected:
        """See the class."""
        self.keys.append(key)
        if isinstance(image, StoredImage):
            self.stored.append(image)
        elif image.data == b"bad":
            raise Problem("truncated", "the JPEG has no end mark")
        elif image.data == b"bug":
            raise ZeroDivisionError("secret words")
        elif image.data == HELD:
            self.num_held += 1
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        return Inspected(
            finding=at_threshold(finding(), threshold or 0.5),
            detector=description(key.name),
            decode_ms=1.0,
            model_ms=2.0,
        )


class FakeObserver:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records = []
        self.images = []

    def request(self, record) -> None:
        """Keep it."""
        self.records.append(record)

    def image(self, inspected, queue_ms) -> None:
        """Keep it."""
        self.images.append(inspected)
