"""The zero-shot baseline against its formula, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from zsad.backbone import ImageFeatures
from zsad.errors import ConfigError
from zsad.methods import METHODS, WinCLIP, WinCLIPConfig
from zsad.methods.base import Subject
from zsad.methods.winclip import abnormal_probability

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4


class StubBackbone:
    """Two axes: normal texts point along the first, abnormal ones along the second."""

    def __init__(self, image, patches, grid, *, same=False):
        self.image, self.patches, self.grid, self.same = image, patches, grid, same
        self.vv_start = "never asked"

    def encode_text(self, strings):  # noqa: D102
        def is_abnormal(text):
            return any(word in text for word in ("damaged", "with flaw", "with defect", "with damage"))

        return torch.stack([torch.eye(2)[int(not self.same and is_abnormal(text))] for text in strings])

    def encode_image(self, pixels, *, vv_start=None):  # noqa: D102
        self.vv_start = vv_start
        image, patches = torch.tensor([self.image]), torch.tensor([self.patches])
        return ImageFeatures(image_BD=image, patches_BPD=patches, grid=self.grid, taps={})


def along(logit, temperature=0.07):
    """Features (first axis, second axis) whose margin / temperature is `logit`."""
    return [0.0, logit * temperature]


def predict(backbone, **settings):
    method = WinCLIP(WinCLIPConfig(**settings), backbone, Subject(object_name="cable"))
    return method.predict(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_score_and_map_by_hand():
    """Image 3/4; patches 3/4, 1/2, 1/4, 1/4, 1/2, 9/10: peak of the best 3 is (0.9 + 0.75 + 0.5) / 3."""
    logits = [LN3, 0.0, -LN3, -LN3, 0.0, math.log(9)]
    backbone = StubBackbone(along(LN3), [along(logit) for logit in logits], (2, 3))
    found = predict(backbone)
    expected = torch.tensor([[[0.75, 0.5, 0.25], [0.25, 0.5, 0.9]]])
    torch.testing.assert_close(found.map_Bhw, expected)
    torch.testing.assert_close(found.score_B, torch.tensor([0.5 * 0.75 + 0.5 * 2.15 / 3]))
    torch.testing.assert_close(found.patches_BPD, torch.tensor([backbone.patches]))


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        ({"map_weight": 0.0}, 0.75),
        ({"map_weight": 1.0, "top_patches": 1}, 0.9),
        ({"map_weight": 1.0, "top_patches": 2}, 0.575),
        ({"map_weight": 1.0, "top_patches": 99}, 0.575),
        ({"map_weight": 0.25, "top_patches": 1}, 0.75 * 0.75 + 0.25 * 0.9),
    ],
)
def test_settings_of_the_score(settings, score):
    found = predict(StubBackbone(along(LN3), [along(math.log(9)), along(-LN3)], (1, 2)), **settings)
    torch.testing.assert_close(found.score_B, torch.tensor([score]))


def test_temperature_divides_the_margin():
    found = predict(StubBackbone(along(LN3, 0.5), [along(-LN3, 0.5)], (1, 1)), temperature=0.5, map_weight=0.0)
    torch.testing.assert_close(found.score_B, torch.tensor([0.75]))
    torch.testing.assert_close(found.map_Bhw, torch.tensor([[[0.25]]]))


def test_equal_directions_say_nothing():
    backbone = StubBackbone([0.3, 0.8], [[0.9, 0.1], [0.0, 1.0]], (1, 2), same=True)
    found = predict(backbone)
    assert found.map_Bhw.tolist() == [[[0.5, 0.5]]]
    assert found.score_B.tolist() == [0.5]


def test_probability_is_the_softmax_of_two():
    features = torch.nn.functional.normalize(torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    states = torch.eye(4)[:2]
    expected = torch.softmax(features @ states.T / 0.07, dim=-1)[..., 1]
    torch.testing.assert_close(abnormal_probability(features, states, 0.07), expected)


@pytest.mark.parametrize("start", [None, 2])
def test_the_start_of_the_value_value_path_is_passed_on(start):
    backbone = StubBackbone(along(0.0), [along(0.0)], (1, 1))
    predict(backbone, vv_start=start)
    assert backbone.vv_start == start


def test_over_a_real_tower(tiny_backbone):
    import tiny_model

    method = WinCLIP(WinCLIPConfig(), tiny_backbone, Subject(object_name="cable"))
    found = method.predict(tiny_model.pixels(2, 32, 64))
    assert found.map_Bhw.shape == (2, 4, 8)
    features = tiny_backbone.encode_image(tiny_model.pixels(2, 32, 64))
    flat = abnormal_probability(features.patches_BPD, method.states_2D, 0.07)
    np.testing.assert_array_equal(found.map_Bhw.numpy(), flat.reshape(2, 4, 8).numpy())
    assert dict(method.tensors) == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.1}, "temperature is 1.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"map_weight": -0.1}, "map_weight is -0.1"),
        ({"map_weight": 1.1}, "map_weight is 1.1"),
        ({"top_patches": 0}, "top_patches is 0"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        WinCLIPConfig(**settings)


def test_the_method_is_registered():
    from zsad.bundle import METHOD_NAMES

    assert METHODS["winclip"] == (WinCLIP, WinCLIPConfig)
    assert set(METHOD_NAMES) == set(METHODS)
