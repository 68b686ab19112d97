"""Naming a defect by its mean patch token, or by a method's own types."""

import math

import numpy as np
import pytest
import tiny_model

from zsad.defect_types import DefectTypes, OwnTyping, SharedTyping, encode_words, split_seen
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


def test_the_shared_classifier_names_an_image_by_its_first_area():
    patches = np.eye(3, dtype=np.float32)
    typing = SharedTyping(TYPES, patches)
    areas = [np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)]
    assert typing.of_image(areas) == typing.of_area(areas[0]) == TYPES.classify(patches, areas[0])
    assert typing.of_area(areas[1]) != typing.of_area(areas[0])
    assert typing.name({"scratch": 0.3, "dent": 0.2}) == "scratch"
    assert typing.name({"scratch": 0.29, "dent": 0.2}) == "unknown"


def own(scratch, dent):
    """Types of 300 patches: given values, then 0.01."""
    rows = [[*values, *[0.01] * (300 - len(values))] for values in (scratch, dent)]
    return OwnTyping(("scratch", "dent"), np.array(rows, np.float32))


def area(*patches):
    weights = np.zeros(300, np.float32)
    weights[list(patches)] = 0.25
    return weights


def test_own_types_are_told_by_the_clearest_hundredth_of_the_patches():
    """Three of 300: scratch 0.6, 0.5, 0.4 (mean 0.5), dent 0.3, 0.3, 0.15 (mean 0.25) in other patches."""
    typing = own([0.6, 0.1, 0.5, 0.1, 0.4, 0.1], [0.1, 0.3, 0.1, 0.3, 0.1, 0.15])
    assert typing.of_area(area(*range(300))) == pytest.approx({"scratch": 2 / 3, "dent": 1 / 3})


def test_own_types_are_looked_for_inside_the_area():
    """Patches 1 and 3 alone: both are fewer than three, so both count."""
    typing = own([0.6, 0.1, 0.5, 0.1], [0.1, 0.4, 0.1, 0.2])
    assert typing.of_area(area(1, 3)) == pytest.approx({"scratch": 0.25, "dent": 0.75})


def test_a_small_grid_is_told_by_its_clearest_patch():
    typing = OwnTyping(("scratch", "dent"), np.array([[0.3, 0.2, 0.1], [0.1, 0.1, 0.2]], np.float32))
    assert typing.of_area(np.ones(3, np.float32)) == pytest.approx({"scratch": 0.6, "dent": 0.4})


def test_all_areas_name_an_image_by_own_types():
    """The first area is a dent, but the scratch in the second is clearer."""
    typing = own([0.1, 0.1, 0.1, 0.9, 0.9, 0.9], [0.3, 0.3, 0.3, 0.1, 0.1, 0.1])
    areas = [area(0, 1, 2), area(3, 4, 5)]
    assert typing.of_area(areas[0]) == pytest.approx({"scratch": 0.25, "dent": 0.75})
    assert typing.of_image(areas) == pytest.approx({"scratch": 0.75, "dent": 0.25})


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        ({"scratch": 0.4, "dent": 0.25, "hole": 0.35}, "unknown"),  # nearer than 0.1 to the second
        ({"scratch": 0.4, "dent": 0.29, "hole": 0.28}, "scratch"),  # exactly the limit is enough
        ({"scratch": 0.39, "dent": 0.2, "hole": 0.2}, "unknown"),
        ({"scratch": 0.5, "dent": 0.5}, "unknown"),
        ({"dent": 1.0}, "dent"),
    ],
)
def test_own_types_have_a_name_only_when_high_and_clear(scores, name):
    assert OwnTyping(("scratch",), np.ones((1, 1), np.float32)).name(scores) == name


def test_without_words_everything_is_unknown(tiny_backbone):
    types = encode_words(tiny_backbone, [])
    found = types.classify(np.ones((4, 32), np.float32), np.ones(4, np.float32))
    assert found == {}
    assert types.name(found) == "unknown"


def test_words_that_a_backbone_was_never_taught_are_told_apart(tiny_network):
    taught = tiny_model.backbone_of(tiny_network, words=frozenset({"missing", "part", "scratch"}))
    words = ("scratch", "missing part", "missing rivet", "Scratch-part", "Riß")
    assert split_seen(taught, words) == (("scratch", "missing part", "Scratch-part"), ("missing rivet", "Riß"))
    assert taught.unseen("missing rivet 7") == ("rivet",)


def test_a_backbone_that_lists_no_words_knows_them_all(tiny_backbone):
    assert split_seen(tiny_backbone, ("scratch", "Riß")) == (("scratch", "Riß"), ())
