"""A stand-in for the model in pipeline tests: the score of an image is a hash of its pixels at model size."""

import hashlib
import sys

import numpy as np
import pytest
from ray import cloudpickle

from zsad.distributed import batch, finish
from zsad.distributed.stages import Plan, ShardScorer
from zsad.finding import Finding
from zsad.images import Preprocess


class HashDetector:
    """Scores batches of any size; half of all images are anomalies."""

    def __init__(self, batch_size: int, preprocess: Preprocess) -> None:
        self.batch_size = batch_size
        self.config = type("Config", (), {"preprocess": preprocess})

    def inspect_pixels(self, pixels_BSSC, sizes):
        """One finding for each image."""
        return [self._finding(pixels, size) for pixels, size in zip(pixels_BSSC, sizes, strict=True)]

    def _finding(self, pixels_SSC, size):
        score = hash_score(pixels_SSC)
        grid = np.full((4, 4), score, np.float32)
        return Finding(
            score=score,
            raw_score=score,
            threshold=0.5,
            defect_type="dent" if score >= 0.5 else None,
            defect_scores={},
            anomaly_map=grid,
            raw_map=grid,
            regions=[],
            width=size[0],
            height=size[1],
        )


def hash_score(pixels_SSC) -> float:
    """In [0, 1), from the first four bytes of a SHA-256."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels_SSC).tobytes()).digest()
    return float(np.float32(int.from_bytes(digest[:3], "big") / 2**24))


class HashScorer(ShardScorer):
    """The pool's actor without a model; all else is the product's."""

    def _load(self, plan: Plan) -> None:
        # Only of this actor's process, which ends with it.
        Plan.open_detectors = lambda self, batch_size=None: HashDetectors(self, batch_size)
        super()._load(plan)


class HashDetectors:
    """The same stand-in for every bundle."""

    def __init__(self, plan: Plan, batch_size: int | None = None) -> None:
        self._detector = HashDetector(batch_size or plan.config.batch_size, plan.detectors.largest())

    def get(self, _url: str) -> HashDetector:
        """The stand-in."""
        return self._detector


def no_pictures(_plan, _summary, _selection):
    """In the place of `write_gallery`, which would look at up to 84 images again with the real model."""
    return ""


@pytest.fixture
def hash_scorer(monkeypatch):
    """Jobs of this test score by hash and draw no gallery."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import what lies beside the tests
    monkeypatch.setattr(batch, "ShardScorer", HashScorer)
    monkeypatch.setattr(finish, "write_gallery", no_pictures)
