"""Naming a defect by its mean patch token."""

import math

import numpy as np
import pytest

from zsad.defect_types import DefectTypes, encode_words
from zsad.prompts.ensemble import compose, defect_states

TYPES = DefectTypes(words=("scratch", "dent"), directions_KD=np.eye(2, 3, dtype=np.float32))


def test_shares_by_hand():
    """Mean of the weighted patches is (3, 1, 0) / sqrt(10); shares are a softmax over 0.07."""
    patches = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    found = TYPES.classify(patches, np.array([3, 1, 0], np.float32))
    odds = math.exp(2 / math.sqrt(10) / 0.07)
    assert found == pytest.approx({"scratch": odds / (1 + odds), "dent": 1 / (1 + odds)})


def test_only_the_ratio_of_weights_counts():
    patches = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weights = np.array([0, 0.25, 1, 0, 0.5], np.float32)
    assert TYPES.classify(patches, weights) == pytest.approx(TYPES.classify(patches, 8 * weights))


def test_patches_that_cancel_out_say_nothing():
    found = TYPES.classify(np.array([[1, 0, 0], [-1, 0, 0]], np.float32), np.ones(2, np.float32))
    assert found == {"scratch": 0.5, "dent": 0.5}


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        ({"scratch": 0.3, "dent": 0.2, "hole": 0.25}, "scratch"),  # exactly the limit is enough
        ({"scratch": 0.29, "dent": 0.28, "hole": 0.27}, "unknown"),
        ({"scratch": 0.1, "dent": 0.9}, "dent"),
        ({"scratch": 0.5, "dent": 0.5}, "scratch"),
    ],
)
def test_the_best_word_or_unknown(scores, name):
    assert TYPES.name(scores) == name


def test_words_become_directions_of_a_generic_object(tiny_backbone):
    types = encode_words(tiny_backbone, ["scratch", "missing part"])
    assert types.words == ("scratch", "missing part")
    mean = tiny_backbone.encode_text(compose(defect_states("missing part"), "object")).mean(dim=0)
    np.testing.assert_allclose(types.directions_KD[1], (mean / mean.norm()).numpy(), atol=1e-6)
