"""PromptAD's fusion, memory and bundle, worked out by hand and on tiny towers."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone import ImageFeatures
from zsad.errors import ConfigError, ModelError
from zsad.methods import METHODS, FewShot, Subject
from zsad.methods.promptad import PromptAD, PromptADConfig, fuse, name_tensor, peak

CABLE = Subject(object_name="cable")
TASKS = ("cls", "seg")


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tensors_for(backbone, images=None, *, name="cable", config=None):
    """Random directions and contexts, and the memory of `images`; without any, a random memory."""
    width = backbone.model.visual.conv1.out_channels
    tensors = {"object_name": name_tensor(name)}
    for seed, task in enumerate(TASKS):
        tensors[f"{task}.text"] = unit(2, backbone.embed_dim, seed=seed)
        tensors[f"{task}.normal_context"] = torch.zeros(1, 4, 8)
        tensors[f"{task}.abnormal_context"] = torch.zeros(4, 1, 8)
    tensors |= {f"memory.{layer}": unit(3, width, seed=10 + layer) for layer in (1, 2)}
    if images is None:
        return tensors
    return PromptAD(config or PromptADConfig(), backbone, Subject(object_name=name), tensors).remember([images])


def fitted(backbone, images=None, **settings):
    config = PromptADConfig(**settings)
    return PromptAD(config, backbone, CABLE, tensors_for(backbone, images, config=config))


class StubBackbone:
    """Twelve blocks of width 2; features are given."""

    num_layers, embed_dim, device, declared_vv_start = 12, 2, torch.device("cpu"), None
    model = SimpleNamespace(visual=SimpleNamespace(conv1=torch.nn.Conv2d(3, 2, 1)))

    def __init__(self, image, patches, taps, grid):
        self.features = ImageFeatures(
            image_BD=torch.tensor([image]),
            patches_BPD=torch.tensor([patches]),
            grid=grid,
            taps={block: torch.tensor([state]) for block, state in taps.items()},
        )

    def encode_image(self, pixels, *, vv_start, taps):  # noqa: D102
        self.asked = vv_start, tuple(taps)
        return self.features


def stub_tensors(memory_1, memory_2):
    axes = {f"{task}.text": torch.eye(2) for task in TASKS}  # normal along the first axis, abnormal along the second
    contexts = {f"{task}.{side}_context": torch.zeros(1, 1, 2) for task in TASKS for side in ("normal", "abnormal")}
    memory = {"memory.1": torch.tensor(memory_1), "memory.2": torch.tensor(memory_2)}
    return axes | contexts | memory | {"object_name": name_tensor("cable")}


def test_score_and_map_by_hand():
    """Text odds are 100 ** margin.

    Image: margin 1/2, odds 10, probability 10/11. Patch 1: margin 0, 1/2; patch 2: margin 1, 100/101.
    Memory 1 holds the first axis, memory 2 both. Patch 1 lies on the second axis in tap 3 (distance 1/2) and on the
    first in tap 8 (0): visual 1/4. Patch 2 opposes the first axis in tap 3 (1) and lies between the axes' negatives
    in tap 8 ((1 + 1/sqrt(2)) / 2).
    """
    half = -math.sqrt(0.5)
    taps = {3: [[0.0, 5.0], [-2.0, 0.0]], 8: [[3.0, 0.0], [half, half]]}
    backbone = StubBackbone([0.0, 0.5], [[0.3, 0.3], [0.0, 1.0]], taps, (1, 2))
    method = PromptAD(PromptADConfig(), backbone, CABLE, stub_tensors([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]))
    found = method.predict(torch.zeros(1, 16, 32, 3, dtype=torch.uint8))
    first, second = 1 / 4, (1 + (1 - half) / 2) / 2
    expected = [1 / (1 / first + 2), 1 / (1 / second + 101 / 100)]
    torch.testing.assert_close(found.map_Bhw, torch.tensor([[expected]]))
    torch.testing.assert_close(found.score_B, torch.tensor([1 / (1 / second + 11 / 10)]))
    assert backbone.asked == (0, (3, 8))
    torch.testing.assert_close(found.patches_BPD, backbone.features.patches_BPD)


@pytest.mark.parametrize(
    ("first", "second", "fused"),
    [(0.5, 0.5, 0.25), (1.0, 1.0, 0.5), (1 / 3, 1 / 4, 1 / 7), (1.0, 0.25, 0.2), (0.0, 0.7, 0.0), (0.0, 0.0, 0.0)],
)
def test_fusion_is_half_the_harmonic_mean(first, second, fused):
    found = [fuse(torch.tensor(a), torch.tensor(b)) for a, b in ((first, second), (second, first))]
    torch.testing.assert_close(torch.stack(found), torch.tensor([fused, fused]))


@pytest.mark.parametrize(("resolution", "expected"), [(1, 0.5), (2, 1.0), (4, 1.0), (3, 1.0), (400, 1.0)])
def test_the_peak_is_taken_after_up_sampling(resolution, expected):
    """One output pixel lies in the middle of (0, 1); from two on the last one lies at or beyond the second centre."""
    torch.testing.assert_close(peak(torch.tensor([[[0.0, 1.0]]]), resolution), torch.tensor([expected]))


def test_a_peak_between_output_pixels_is_lower():
    """Three patches on four pixels: the middle ones lie 3/8 of a patch beside the middle patch's centre."""
    torch.testing.assert_close(peak(torch.tensor([[[0.0, 1.0, 0.0]]]), 4), torch.tensor([0.625]))


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (24, 56), (8, 40)])
def test_a_remembered_image_is_not_novel(quick_gelu, size):
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu)))
    assert backbone.embed_dim != backbone.model.visual.conv1.out_channels
    known, other = tiny_model.pixels(1, *size), tiny_model.pixels(1, *size, seed=1)
    found = fitted(backbone, known).predict(torch.cat([known, other]))
    assert found.map_Bhw.shape == (2, size[0] // 8, size[1] // 8)
    assert found.map_Bhw[0].max() < 1e-6
    assert found.score_B[0] < 1e-6
    assert found.map_Bhw[1].min() > 1e-3
    assert found.score_B[1] > 1e-3


def test_the_visual_map_is_the_slow_search(tiny_backbone):
    """Both layers: after attention and before the MLP of blocks round(3/4) = 1 and 2; the nearest of all rows."""
    known, images = tiny_model.pixels(2, 32, 32), tiny_model.pixels(2, 24, 32, seed=1)
    method = fitted(tiny_backbone, known)
    found = method.visual_map(tiny_backbone.encode_image(images, taps=(1, 2)))
    expected = torch.zeros(2, 12)
    for tap in (1, 2):
        rows = tiny_backbone.encode_image(known, taps=(tap,)).taps[tap].flatten(0, 1)
        for b, image in enumerate(tiny_backbone.encode_image(images, taps=(tap,)).taps[tap]):
            for p, patch in enumerate(image):
                expected[b, p] += min((1 - torch.cosine_similarity(patch, row, dim=0)) / 4 for row in rows)
    torch.testing.assert_close(found, expected.view(2, 3, 4), atol=1e-6, rtol=0)


def test_scores_and_maps_keep_the_range_of_half_the_harmonic_mean(tiny_backbone):
    found = fitted(tiny_backbone, tiny_model.pixels(1, 32, 32)).predict(tiny_model.pixels(8, 32, 32, seed=2))
    for raw in (found.score_B, found.map_Bhw):
        assert raw.min() >= 0
        assert raw.max() <= 0.5


def test_a_batch_gives_what_single_images_give_wherever_they_stand(tiny_backbone):
    method, images = fitted(tiny_backbone, tiny_model.pixels(2, 32, 32)), tiny_model.pixels(5, 24, 32, seed=3)
    found = method.predict(images)
    turned = method.predict(images.flip(0))
    alone = [method.predict(image[None]) for image in images]
    for name in ("score_B", "map_Bhw", "patches_BPD"):
        assert torch.equal(getattr(turned, name).flip(0), getattr(found, name))
        singles = torch.cat([getattr(single, name) for single in alone])
        torch.testing.assert_close(singles, getattr(found, name), atol=1e-5, rtol=0)


def test_remembering_replaces_the_memory_and_nothing_else(tiny_backbone):
    method = fitted(tiny_backbone, tiny_model.pixels(1, 32, 32))
    images = tiny_model.pixels(3, 32, 32, seed=4)
    found = method.remember([images[:2], images[2:]])
    assert isinstance(method, FewShot)
    assert {name: tuple(found[name].shape) for name in ("memory.1", "memory.2")} == {
        "memory.1": (48, 64),
        "memory.2": (48, 64),
    }
    for name in set(found) - {"memory.1", "memory.2"}:
        assert torch.equal(found[name], method.tensors[name])
    knowing = PromptAD(PromptADConfig(), tiny_backbone, CABLE, found)
    assert knowing.predict(images).map_Bhw.max() < 1e-6


def test_nothing_to_remember_is_refused(tiny_backbone):
    with pytest.raises(ConfigError, match="no normal images"):
        fitted(tiny_backbone).remember([])


@pytest.mark.parametrize(
    ("settings", "layers", "taps"),
    [
        ({}, 12, (3, 8)),
        ({}, 24, (6, 16)),
        ({}, 6, (2, 4)),
        ({}, 3, (1, 2)),
        ({}, 1, (0, 0)),
        ({"first_tap": 0}, 12, (0, 8)),
        ({"second_tap": 11}, 12, (3, 11)),
    ],
)
def test_taps_follow_the_depth_of_the_tower(settings, layers, taps):
    assert PromptADConfig(**settings).taps(layers) == taps


@pytest.mark.parametrize(("declared", "given", "start"), [(None, None, 0), (2, None, 2), (0, None, 0), (2, 1, 1)])
def test_the_value_value_path_starts_where_the_tower_was_trained_to(tiny_network, declared, given, start):
    backbone = tiny_model.backbone_of(tiny_network, vv_start=declared)
    images = tiny_model.pixels(1, 32, 32)
    found = fitted(backbone, images, vv_start=given).predict(images).patches_BPD
    patches = [backbone.encode_image(images, vv_start=block).patches_BPD for block in range(3)]
    assert [torch.equal(found, expected) for expected in patches] == [block == start for block in range(3)]


def test_a_tap_beyond_the_tower_is_refused(tiny_backbone):
    with pytest.raises(ModelError, match="has blocks 0 to 2"):
        fitted(tiny_backbone, second_tap=3).predict(tiny_model.pixels(1, 32, 32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logit_scale": 0.0}, "logit_scale is 0.0"),
        ({"logit_scale": 101.0}, "logit_scale is 101.0"),
        ({"logit_scale": math.nan}, "logit_scale is nan"),
        ({"resolution": 0}, "resolution is 0"),
        ({"vv_start": -1}, "vv_start is -1"),
        ({"first_tap": -2}, "first_tap is -2"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PromptADConfig(**settings)


def test_a_bundle_in_half_precision_is_read_in_fp32(tiny_backbone):
    """Within what the rounding itself costs; kept as it was, the search would fail over two types."""
    whole = tensors_for(tiny_backbone, tiny_model.pixels(1, 32, 32))
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in whole.items()}
    images = tiny_model.pixels(2, 32, 32, seed=3)
    found, expected = (PromptAD(PromptADConfig(), tiny_backbone, CABLE, t).predict(images) for t in (half, whole))
    torch.testing.assert_close(found.map_Bhw, expected.map_Bhw, atol=1e-3, rtol=0)


@pytest.mark.parametrize("tensors", [None, {}])
def test_an_unfitted_method_says_how_to_fit_it(tiny_backbone, tensors):
    with pytest.raises(ModelError, match=r"learns from one to four normal images.*promptad\.fit"):
        PromptAD(PromptADConfig(), tiny_backbone, CABLE, tensors)


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("memory.2"), "misses 1 tensors, such as memory.2"),
        (without("cls.normal_context"), "misses 1 tensors, such as cls.normal_context"),
        (lambda tensors: tensors | {"memory.3": torch.zeros(1)}, "unexpected 1 tensors, such as memory.3"),
        (changed("cls.text", lambda t: t[:1]), r"cls.text has shape \(1, 32\).*\(2, 32\)"),
        (changed("seg.text", lambda t: t[:, :-1]), r"seg.text has shape \(2, 31\)"),
        (changed("memory.1", lambda t: t[:, :32]), r"memory.1 has shape \(3, 32\).*\(any, 64\)"),
        (changed("memory.1", lambda t: t[:0]), r"memory.1 has shape \(0, 64\)"),
        (changed("memory.2", lambda t: t[0, 0]), r"memory.2 has shape \(\)"),
        (changed("memory.2", lambda t: t * 1.01), "memory.2 holds rows that are not of unit length"),
        (changed("seg.text", lambda t: t * math.nan), "seg.text holds rows that are not of unit length"),
        (changed("object_name", lambda t: t.float()), "object_name must be bytes"),
        (changed("object_name", lambda t: name_tensor("bottle")), "fitted to 'bottle' and can't judge 'cable'"),
        (changed("object_name", lambda t: torch.tensor([255], dtype=torch.uint8)), "can't judge 'cable'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tiny_backbone, change, words):
    with pytest.raises(ModelError, match=words):
        PromptAD(PromptADConfig(), tiny_backbone, CABLE, change(tensors_for(tiny_backbone)))


@pytest.fixture(scope="module")
def saved(tiny_config, tiny_backbone, tmp_path_factory):
    """A calibrated detector for an object with an unusual name, and the folder it was saved to."""
    from zsad.detector import Detector

    name = "{cable} ö 100 %"
    images = np.random.default_rng(5).integers(0, 256, (12, 40, 48, 3), dtype=np.uint8)
    config = replace(tiny_config, method="promptad", settings={"resolution": 64}, object_name=name)
    tensors = tensors_for(tiny_backbone, tiny_model.pixels(2, 32, 32), name=name)
    detector = Detector(config, tensors, batch_size=4).calibrated(images, source="random images")
    url = str(tmp_path_factory.mktemp("bundle") / "promptad")
    detector.save(url)
    return detector, url


def test_a_bundle_comes_back_the_same(saved):
    from zsad.detector import load_detector

    detector, url = saved
    loaded = load_detector(url, device="cpu", batch_size=4)
    assert loaded.config == detector.config
    images = np.random.default_rng(6).integers(0, 256, (5, 30, 50, 3), dtype=np.uint8)
    for found, expected in zip(loaded.inspect(images), detector.inspect(images), strict=True):
        assert (found.raw_score, found.score) == (expected.raw_score, expected.score)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_calibration_takes_raw_scores_below_one_half_to_the_whole_range(saved):
    """The same rule as for other methods: order is kept, and a raw score near 1/2 is a sure anomaly."""
    scales = saved[0].config.calibration
    raw = np.linspace(1e-4, 0.4999, 200)
    for scale in (scales.image, scales.map):
        calibrated = scale.apply(raw)
        assert (np.diff(calibrated) > 0).all()
        assert calibrated[0] < 0.01
        assert calibrated[-1] > 0.5


def test_a_bundle_judges_no_other_object(saved):
    from zsad.detector import load_detector

    with pytest.raises(ModelError, match="can't judge 'bottle'"):
        load_detector(saved[1], device="cpu", object_name="bottle")


def test_a_reference_without_a_bundle_says_how_to_fit_one(tiny_folder):
    from zsad.detector import load_detector

    with pytest.raises(ModelError, match="before it is fitted"):
        load_detector(f"{tiny_folder}:promptad", device="cpu")


def test_published_figures_are_of_maps_of_400_px_filtered_with_4():
    assert PromptAD.map_sigma * 400 == pytest.approx(4)


def test_the_method_is_registered():
    from zsad.bundle import METHOD_NAMES

    assert METHODS["promptad"] == (PromptAD, PromptADConfig)
    assert "promptad" in METHOD_NAMES
