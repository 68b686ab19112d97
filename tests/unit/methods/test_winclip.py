"""The zero-shot baseline against its formula, worked out by hand."""

import math

import numpy as np
import pytest
import tiny_model
import torch

from zsad.backbone import ImageFeatures
from zsad.errors import ConfigError
from zsad.methods import METHODS, WinCLIP, WinCLIPConfig, memory
from zsad.methods.base import FewShot, Subject
from zsad.methods.own_reference import unlikeness
from zsad.methods.winclip import PUBLISHED, abnormal_probability, margin
from zsad.methods.windows import encode, harmonic_map, harmonic_mean

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4


class StubBackbone:
    """Two axes: normal texts point along the first, abnormal ones along the second."""

    num_layers = 4

    def __init__(self, image, patches, grid, *, same=False, tokens=None):
        self.image, self.patches, self.grid, self.same, self.tokens = image, patches, grid, same, tokens
        self.vv_start = "never asked"

    def encode_text(self, strings):  # noqa: D102
        def is_abnormal(text):
            return any(word in text for word in ("damaged", "with flaw", "with defect", "with damage"))

        return torch.stack([torch.eye(2)[int(not self.same and is_abnormal(text))] for text in strings])

    def encode_image(self, pixels, *, vv_start=None, taps=()):  # noqa: D102
        self.vv_start = vv_start
        image, patches = torch.tensor([self.image]), torch.tensor([self.patches])
        kept = {tap: torch.tensor([self.tokens]) for tap in taps}
        return ImageFeatures(image_BD=image, patches_BPD=patches, grid=self.grid, taps=kept)


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


def test_contrast_adds_what_a_patch_is_unlike_its_own_image():
    """Last block's tokens x, x, x, y: unlike 0, 0, 0, 1, less the mean 1/4; each moves the margin in cosines."""
    tokens = [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]
    backbone = StubBackbone(along(0.0), [along(0.0)] * 4, (2, 2), tokens=tokens)
    found = predict(backbone, contrast=4 * 0.07 * LN3)
    torch.testing.assert_close(found.map_Bhw, torch.tensor([[[0.25, 0.25], [0.25, 27 / 28]]]))
    assert found.score_B.tolist() == [0.5]  # says where, not whether


def test_contrast_takes_the_last_block_of_a_real_tower(tiny_backbone):
    pixels = tiny_model.pixels(2, 32, 64)
    last = tiny_backbone.num_layers - 1
    features = tiny_backbone.encode_image(pixels, taps=[last])
    method = WinCLIP(WinCLIPConfig(contrast=2.0), tiny_backbone, Subject(object_name="cable"))
    margins = margin(features.patches_BPD, method.states_2D) + 2 * unlikeness(features.taps[last])
    torch.testing.assert_close(method.predict(pixels).map_Bhw, torch.sigmoid(margins / 0.07).view(2, 4, 8))


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
    method = WinCLIP(WinCLIPConfig(), tiny_backbone, Subject(object_name="cable"))
    found = method.predict(tiny_model.pixels(2, 32, 64))
    assert found.map_Bhw.shape == (2, 4, 8)
    features = tiny_backbone.encode_image(tiny_model.pixels(2, 32, 64))
    flat = abnormal_probability(features.patches_BPD, method.states_2D, 0.07)
    np.testing.assert_array_equal(found.map_Bhw.numpy(), flat.reshape(2, 4, 8).numpy())
    assert dict(method.tensors) == {}
    assert isinstance(method, FewShot)


@pytest.fixture
def windowed(tiny_backbone):
    """The published form over the tiny tower."""
    return WinCLIP(PUBLISHED, tiny_backbone, Subject(object_name="cable"))


def test_the_published_map_is_the_harmonic_mean_of_image_and_both_scales(windowed, tiny_backbone):
    pixels = tiny_model.pixels(2, 32, 40)
    found = windowed.predict(pixels)
    features, windows = encode(tiny_backbone, pixels, sizes=(2, 3))
    image, small, large = (
        abnormal_probability(x, windowed.states_2D, 0.01) for x in (features.image_BD, windows[2], windows[3])
    )
    scales = [harmonic_map(small, (4, 5), 2), harmonic_map(large, (4, 5), 3)]
    expected = harmonic_mean([image[:, None].expand(2, 20), *scales]).view(2, 4, 5)
    torch.testing.assert_close(found.map_Bhw, expected)
    torch.testing.assert_close(found.score_B, image)


def test_equal_directions_give_a_constant_map_of_windows(windowed):
    windowed.states_2D[1] = windowed.states_2D[0]
    found = windowed.predict(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(found.map_Bhw, torch.full((2, 4, 4), 0.5))


@pytest.mark.parametrize("dense", ["vv", "windows"])
def test_an_image_is_scored_alike_at_every_place_of_a_batch(tiny_backbone, dense):
    method = WinCLIP(WinCLIPConfig(dense=dense), tiny_backbone, Subject())
    knowing = WinCLIP(method.config, tiny_backbone, Subject(), method.remember([tiny_model.pixels(2, 32, 32, seed=3)]))
    pixels = tiny_model.pixels(5, 32, 32)
    for m in (method, knowing):
        found = m.predict(pixels)
        for shift in range(1, 5):
            moved = m.predict(pixels.roll(shift, dims=0))
            assert torch.equal(moved.score_B.roll(-shift), found.score_B)
            assert torch.equal(moved.map_Bhw.roll(-shift, dims=0), found.map_Bhw)


@pytest.mark.parametrize("dense", ["vv", "windows"])
def test_a_remembered_image_adds_nothing_to_half_its_zero_shot_answer(tiny_backbone, dense):
    """One normal image, asked again: M is 0 everywhere, so score and map are halved."""
    zero_shot = WinCLIP(WinCLIPConfig(dense=dense), tiny_backbone, Subject())
    pixels = tiny_model.pixels(1, 32, 32)
    knowing = WinCLIP(zero_shot.config, tiny_backbone, Subject(), zero_shot.remember([pixels]))
    plain, found = zero_shot.predict(pixels), knowing.predict(pixels)
    torch.testing.assert_close(found.map_Bhw, plain.map_Bhw / 2, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.score_B, plain.score_B / 2, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dense", ["vv", "windows"])
def test_another_image_adds_half_its_novelty(tiny_backbone, dense):
    zero_shot = WinCLIP(WinCLIPConfig(dense=dense), tiny_backbone, Subject())
    tensors = zero_shot.remember([tiny_model.pixels(2, 32, 32, seed=1), tiny_model.pixels(1, 32, 32, seed=2)])
    assert tensors["memory.patches"].shape == (3 * 16, 32)
    assert set(tensors) == {"memory.patches"} | (
        {"memory.windows_2x2", "memory.windows_3x3"} if dense != "vv" else set()
    )
    pixels = tiny_model.pixels(2, 32, 32, seed=5)
    knowing = WinCLIP(zero_shot.config, tiny_backbone, Subject(), tensors)
    features, windows = encode(tiny_backbone, pixels, sizes=(2, 3) if dense == "windows" else ())
    novelty = memory.novelty(tensors, features, windows)
    assert novelty.min() > 1e-3
    plain, found = zero_shot.predict(pixels), knowing.predict(pixels)
    torch.testing.assert_close(found.map_Bhw, (plain.map_Bhw + novelty.view(2, 4, 4)) / 2)
    torch.testing.assert_close(found.score_B, (plain.score_B + novelty.amax(dim=1)) / 2)
    assert dict(knowing.tensors).keys() == tensors.keys()


def test_quick_gelu_is_the_towers_own():
    """The same weights with another activation give other windows."""
    maps = []
    for quick in (False, True):
        backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick)))
        maps.append(WinCLIP(WinCLIPConfig(dense="windows"), backbone, Subject()).predict(tiny_model.pixels(1, 32, 32)))
    assert (maps[0].map_Bhw - maps[1].map_Bhw).abs().max() > 1e-4


def test_windows_need_a_grid_that_holds_them(windowed):
    with pytest.raises(ConfigError, match="3 x 3 patches do not fit on a grid of 2 x 4"):
        windowed.predict(tiny_model.pixels(1, 16, 32))


def test_braces_in_the_object_name_are_ordinary_characters(tiny_backbone):
    plain, braced = (
        WinCLIP(WinCLIPConfig(), tiny_backbone, Subject(object_name=name)).states_2D for name in ("cable", "{0} {x} {}")
    )
    assert not torch.equal(plain, braced)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dense": "dense"}, "dense is 'dense'; choose 'vv' or 'windows'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.1}, "temperature is 1.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"map_weight": -0.1}, "map_weight is -0.1"),
        ({"map_weight": 1.1}, "map_weight is 1.1"),
        ({"top_patches": 0}, "top_patches is 0"),
        ({"contrast": -1.0}, "contrast is -1.0"),
        ({"contrast": float("inf")}, "contrast is inf"),
        ({"contrast": 1.0, "dense": "windows"}, "give dense=vv, or contrast=0"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        WinCLIPConfig(**settings)


def test_the_method_is_registered():
    from zsad.bundle import METHOD_NAMES

    assert METHODS["winclip"] == (WinCLIP, WinCLIPConfig)
    assert set(METHOD_NAMES) == set(METHODS)
