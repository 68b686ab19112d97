"""FAPrompt against its formulas by hand, and against a slow second writing that runs every prompt in full."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone.load import build
from zsad.bundle import METHOD_NAMES
from zsad.detector import Detector, load_detector
from zsad.errors import ConfigError, ModelError
from zsad.methods import METHODS, FAPrompt, FAPromptConfig, faprompt
from zsad.methods.base import Subject

LN3 = math.log(3)  # the sigmoid of it is 3/4
SMALL = FAPromptConfig(num_prompts=3, num_selected=4)

# Layouts of real models at tiny widths; the joint width differs from both towers' widths.
LAYOUTS = {
    "ViT-B-16-plus-240": tiny_model.model_cfg(
        embed_dim=40, vision={"image_size": 240, "patch_size": 16}, text={"layers": 3}
    ),
    "ViT-L-14-336": tiny_model.model_cfg(
        embed_dim=48, quick_gelu=True, vision={"image_size": 336, "patch_size": 14}, text={"layers": 4, "width": 64}
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return tiny_model.backbone_of(tiny_model.random_model(LAYOUTS[request.param]))


def learned(config, backbone, seed=0):
    """Initial tensors, prompt vectors so large that random towers answer distinctly."""
    tensors = faprompt.initial_tensors(config, backbone, seed)
    return {name: tensor if name.startswith("prior") else 25 * tensor for name, tensor in tensors.items()}


def method_over(backbone, config=SMALL, tensors=None, name="object"):
    tensors = learned(config, backbone) if tensors is None else tensors
    return FAPrompt(config, backbone, Subject(object_name=name), tensors)


# The method a second time: one image at a time, every prompt on the full context through open_clip's own blocks.


def slow_text(model, x_TW, end, deep):
    x = F.pad(x_TW, (0, 0, 0, 77 - len(x_TW)))[None] + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            x = x.clone()
            x[0, 1 : 1 + deep.shape[1]] = deep[number - 1]
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x[0, end]) @ model.text_projection


def slow_prompts(backbone, tensors, bias=0.0):
    """Normal direction, mean abnormal direction."""
    model = backbone.model
    start, damaged, thing, dot, end = model.token_embedding(backbone.tokenizer(["damaged object."])[0, :5])
    normal, rows = torch.stack([start, *tensors["normal_context"], thing, dot, end]), []
    for context in tensors["abnormal_context"]:
        x = torch.stack([start, *tensors["normal_context"], *(context + bias), damaged, thing, dot, end])
        rows.append(slow_text(model, x, len(x) - 1, tensors["deep_prompts"]))
    normal = slow_text(model, normal, len(normal) - 1, tensors["deep_prompts"])
    return F.normalize(normal, dim=0), F.normalize(torch.stack(rows).mean(dim=0), dim=0)


def slow_predict(backbone, tensors, pixels_HWC, num_selected):
    """Score and map of one image."""
    visual = backbone.model.visual
    features = backbone.encode_image(pixels_HWC[None])
    patches = features.patches_BPD[0]
    image = F.normalize(class_token(backbone, pixels_HWC) @ visual.proj, dim=0)
    normal, shared = slow_prompts(backbone, tensors)

    def abnormal(x, own):
        return torch.softmax(torch.stack([x @ normal, x @ own], dim=-1) / 0.07, dim=-1)[..., 1]

    first = abnormal(patches, shared)
    best = first.topk(num_selected).indices
    hidden = F.relu(tensors["prior.linear1.weight"] @ patches[best].flatten() + tensors["prior.linear1.bias"])
    bias = tensors["prior.linear2.weight"] @ hidden + tensors["prior.linear2.bias"]
    _, own = slow_prompts(backbone, tensors, bias)
    second = abnormal(patches, own)
    score = 0.5 * (abnormal(image, own) + (2 * first.max() + second.max()) / 3)
    return score, ((first + second) / 2).view(features.grid)


def class_token(backbone, pixels_HWC):
    """The class token of the ordinary stream as it leaves the last block."""
    visual = backbone.model.visual
    x = backbone.normalise(pixels_HWC[None])
    x = visual.conv1(x).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], dim=1)
    grid = backbone.grid(pixels_HWC[None])
    positions = visual.positional_embedding[1:].T.view(1, -1, *visual.grid_size)
    positions = F.interpolate(positions, size=grid, mode="bilinear", align_corners=False).flatten(2)[0].T
    x = visual.ln_pre(x + torch.cat([visual.positional_embedding[:1], positions]))
    return visual.transformer(x)[0, 0]


@pytest.mark.parametrize("sides", [(17, 13), (15, 15)], ids=["odd grid", "square grid"])
def test_it_is_the_plain_formula(layout, sides):
    """Neither grid is the native one of both layouts; the first is odd, oblong and interpolated for both."""
    tensors = learned(SMALL, layout)
    images = tiny_model.pixels(2, *(side * layout.patch_size for side in sides))
    found = method_over(layout, tensors=tensors).predict(images)
    assert found.map_Bhw.shape == (2, *sides)
    for row, image in enumerate(images):
        score, expected = slow_predict(layout, tensors, image, SMALL.num_selected)
        torch.testing.assert_close(found.score_B[row], score, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.map_Bhw[row], expected, atol=1e-5, rtol=0)
    assert found.map_Bhw.max() - found.map_Bhw.min() > 0.1


def test_a_batch_is_its_images_one_by_one(tiny_backbone):
    method, images = method_over(tiny_backbone), tiny_model.pixels(5, 32, 48)
    together = method.predict(images)
    alone = [method.predict(image[None]) for image in images]
    torch.testing.assert_close(together.score_B, torch.cat([one.score_B for one in alone]), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.map_Bhw, torch.cat([one.map_Bhw for one in alone]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_prompts", [1, 10])
def test_bits_do_not_depend_on_an_images_place(tiny_backbone, num_prompts):
    method, images = method_over(tiny_backbone, replace(SMALL, num_prompts=num_prompts)), tiny_model.pixels(5, 32, 32)
    whole = method.predict(images)
    for shift in range(1, 5):
        found = method.predict(images.roll(shift, dims=0))
        assert torch.equal(found.score_B.roll(-shift), whole.score_B)
        assert torch.equal(found.map_Bhw.roll(-shift, dims=0), whole.map_Bhw)


def test_the_products_name_plays_no_part(tiny_backbone):
    images = tiny_model.pixels(1, 32, 32)
    scores = [method_over(tiny_backbone, name=name).predict(images).score_B for name in ("cable", "metal nut")]
    assert torch.equal(*scores)


def test_bf16_stays_close_to_fp32(tiny_network, tiny_backbone):
    tensors, images = learned(SMALL, tiny_backbone), tiny_model.pixels(2, 32, 32)
    half = method_over(tiny_model.backbone_of(tiny_network, precision="bf16"), tensors=tensors).predict(images)
    full = method_over(tiny_backbone, tensors=tensors).predict(images)
    assert half.score_B.dtype == half.map_Bhw.dtype == torch.float32
    torch.testing.assert_close(half.map_Bhw, full.map_Bhw, atol=0.05, rtol=0)
    torch.testing.assert_close(half.score_B, full.score_B, atol=0.05, rtol=0)


# The two passes with directions set by hand: D = W = 2, normal along the first axis.


class StubEncoder:
    """Every image's own abnormal direction is the same."""

    def __init__(self, own, config):
        self.own, self.config = torch.tensor(own), config

    def with_prior(self, tensors, prefix, prior_BW):  # noqa: D102
        return self.own.expand(len(prior_BW), 1, -1)


def passes_by_hand(patches, *, shared, own, image=(0.0, 0.0), **settings):
    config = FAPromptConfig(num_selected=1, **settings)
    static = SimpleNamespace(normal_D=torch.tensor([2.0, 0.0]), abnormal_KD=torch.tensor(shared), prefix=None)
    tensors = {
        "prior.linear1.weight": torch.eye(2),
        "prior.linear1.bias": torch.zeros(2),
        "prior.linear2.weight": torch.tensor([[0.0, 2.0], [1.0, 0.0]]),
        "prior.linear2.bias": torch.tensor([0.5, 0.0]),
    }
    features = torch.tensor([image]), torch.tensor([patches])
    return faprompt.run_passes(StubEncoder(own, config), tensors, static, *features)


def test_passes_map_and_score_by_hand():
    """Margins along (-1, 1): ln 3 is 3/4, 0 is 1/2; the image's own direction (-1, 0) doubles the first one's."""
    patches = [[-0.07 * LN3, 0.0], [0.0, 0.0], [0.0, 0.07 * LN3]]
    found = passes_by_hand(patches, shared=[[0.0, 3.0]], own=[-5.0, 0.0], image=(-0.035 * LN3, 0.7))
    torch.testing.assert_close(found.first_BP, torch.tensor([[0.75, 0.5, 0.75]]))
    torch.testing.assert_close(found.second_BP, torch.tensor([[0.9, 0.5, 0.5]]))
    torch.testing.assert_close(found.anomaly_map, torch.tensor([[0.825, 0.5, 0.625]]))
    torch.testing.assert_close(found.score, torch.tensor([0.5 * (0.75 + (2 * 0.75 + 0.9) / 3)]))


def test_the_abnormal_direction_is_the_mean_of_raw_embeddings():
    """(0, 6) and (8, 0) have the mean (4, 3), so the direction (0.8, 0.6) and the difference (-0.2, 0.6)."""
    found = passes_by_hand([[0.0, 0.07 * LN3 / 0.6]], shared=[[0.0, 6.0], [8.0, 0.0]], own=[0.0, 1.0])
    torch.testing.assert_close(found.first_BP, torch.tensor([[0.75]]))


def test_the_prior_is_two_layers_on_the_chosen_patches():
    """The most abnormal patch (-0.6, 0.8) becomes (0, 0.8) behind the ReLU, then (2 * 0.8 + 0.5, 0)."""
    found = passes_by_hand([[1.0, 0.0], [-0.6, 0.8]], shared=[[0.0, 1.0]], own=[0.0, 1.0])
    torch.testing.assert_close(found.selected_BMD, torch.tensor([[[-0.6, 0.8]]]))
    torch.testing.assert_close(found.prior_BW, torch.tensor([[2.1, 0.0]]))


def test_equal_directions_give_a_constant_map():
    patches = [[0.3, 0.8], [-0.9, 0.1], [0.0, 1.0]]
    found = passes_by_hand(patches, shared=[[2.0, 0.0], [2.0, 0.0]], own=[3.0, 0.0], image=(0.6, -0.8))
    assert found.anomaly_map.tolist() == [[0.5, 0.5, 0.5]]
    assert found.score.tolist() == [0.5]


def test_temperature_divides_the_margin():
    found = passes_by_hand([[0.0, 0.5 * LN3]], shared=[[0.0, 1.0]], own=[0.0, 1.0], temperature=0.5)
    torch.testing.assert_close(found.anomaly_map, torch.tensor([[0.75]]))


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, [[4, 1, 2], [5, 0, 1]]),
        ({"dap_select": "raster10"}, [[0, 1, 2], [0, 1, 2]]),
        ({"compat": "released"}, [[0, 1, 2], [0, 1, 2]]),
        ({"compat": "released", "dap_select": "topk"}, [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_which_patches_make_the_prior(settings, chosen):
    """The most abnormal first, equal ones in raster order; or simply the first."""
    first_BP = torch.tensor([[0.1, 0.7, 0.7, 0.3, 0.9, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.3]])
    patches_BPD = torch.arange(12.0).view(2, 6, 1)
    found = faprompt.select_patches(patches_BPD, first_BP, FAPromptConfig(num_selected=3, **settings))
    assert found[..., 0].tolist() == [[float(i) for i in chosen[0]], [float(6 + i) for i in chosen[1]]]


def test_too_few_patches_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match="images of 4 patches are too small: faprompt selects 10"):
        method_over(tiny_backbone, FAPromptConfig()).predict(tiny_model.pixels(1, 16, 16))


def test_released_compatibility_is_raster_order_and_deep_vectors_in_half_precision(tiny_backbone):
    tensors, images = learned(SMALL, tiny_backbone), tiny_model.pixels(2, 32, 32)
    rounded = tensors | {"deep_prompts": tensors["deep_prompts"].half().float()}
    assert not torch.equal(rounded["deep_prompts"], tensors["deep_prompts"])
    found = method_over(tiny_backbone, replace(SMALL, compat="released"), tensors).predict(images)
    raster = replace(SMALL, dap_select="raster10")
    assert torch.equal(found.map_Bhw, method_over(tiny_backbone, raster, rounded).predict(images).map_Bhw)
    assert not torch.equal(found.map_Bhw, method_over(tiny_backbone, raster, tensors).predict(images).map_Bhw)


@pytest.mark.parametrize("start", [0, 2])
def test_an_explicit_start_of_the_value_value_path_wins(tiny_backbone, start):
    images = tiny_model.pixels(1, 32, 32)
    found = method_over(tiny_backbone, replace(SMALL, vv_start=start)).predict(images)
    assert torch.equal(found.patches_BPD, tiny_backbone.encode_image(images, vv_start=start).patches_BPD)
    assert not torch.equal(found.patches_BPD, tiny_backbone.encode_image(images).patches_BPD)


# Learned tensors


def skeleton(text, vision_layers=3, embed_dim=32):
    """What shapes are derived from, without weights."""
    with torch.device("meta"):
        model = build(tiny_model.model_cfg(embed_dim=embed_dim, text=text))
    return SimpleNamespace(model=model, embed_dim=embed_dim, num_layers=vision_layers, name="skeleton")


def test_shapes_over_vit_l_14_are_those_of_the_paper():
    """4,100,064 learned numbers: 3,840 + 15,360 of context, 24,576 deep, 4,056,288 of the prior."""
    backbone = skeleton({"width": 768, "heads": 12, "layers": 12}, vision_layers=24, embed_dim=768)
    shapes = faprompt.expected_shapes(FAPromptConfig(), backbone)
    assert shapes["normal_context"] == (5, 768)
    assert shapes["abnormal_context"] == (10, 2, 768)
    assert shapes["deep_prompts"] == (8, 4, 768)
    assert shapes["prior.linear1.weight"] == (480, 7680)
    assert sum(math.prod(shape) for shape in shapes.values()) == 4_100_064


@pytest.mark.parametrize(("layers", "explicit", "num_deep"), [(12, None, 8), (6, None, 3), (1, None, 0), (6, 6, 5)])
def test_deep_prompts_reach_three_quarters_of_the_text_tower(layers, explicit, num_deep):
    shapes = faprompt.expected_shapes(FAPromptConfig(deep_depth=explicit), skeleton({"layers": layers}))
    assert shapes["deep_prompts"] == (num_deep, 4, 32)


def test_the_prior_goes_from_the_joint_width_to_the_text_width():
    shapes = faprompt.expected_shapes(SMALL, skeleton({"width": 48}, embed_dim=40))
    assert shapes["prior.linear1.weight"] == (10, 160)  # 4 patches of width 40, and a sixteenth of it
    assert shapes["prior.linear2.weight"] == (48, 10)


def test_initial_tensors_follow_the_seed(tiny_backbone):
    first, again, other = (faprompt.initial_tensors(SMALL, tiny_backbone, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert {name: tuple(t.shape) for name, t in first.items()} == faprompt.expected_shapes(SMALL, tiny_backbone)


def test_initial_tensors_have_their_scale(tiny_backbone):
    tensors = faprompt.initial_tensors(FAPromptConfig(num_prompts=200), tiny_backbone, 0)
    assert 0.019 < float(tensors["abnormal_context"].std()) < 0.021
    bound = 1 / math.sqrt(320)  # ten patches of width 32
    assert 0.95 * bound < float(tensors["prior.linear1.weight"].abs().max()) <= bound


def test_a_bundle_gives_the_same_findings(tiny_config, tiny_backbone, tmp_path):
    config = replace(tiny_config, method="faprompt", settings={"num_prompts": 3, "deep_depth": 1})
    tensors = learned(FAPromptConfig(**config.settings), tiny_backbone)
    assert tensors["deep_prompts"].numel() == 0  # depth 1 has none, and an empty tensor must survive
    normals = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    detector = Detector(config, tensors, batch_size=4).calibrated(normals, source="random images")
    detector.save(str(tmp_path / "bundle"))
    loaded = load_detector(str(tmp_path / "bundle"), device="cpu", batch_size=4)
    assert loaded.config == detector.config
    assert {n: t.tolist() for n, t in loaded.method.tensors.items()} == {n: t.tolist() for n, t in tensors.items()}
    for a, b in zip(loaded.inspect(normals), detector.inspect(normals), strict=True):
        assert (a.score, a.raw_score) == (b.score, b.raw_score)
        np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)


def test_the_method_is_registered():
    assert METHODS["faprompt"] == (FAPrompt, FAPromptConfig)
    assert "faprompt" in METHOD_NAMES


# Refusals


def test_without_training_it_says_so(tiny_folder):
    with pytest.raises(ModelError, match="no learned tensors; train it first"):
        load_detector(f"{tiny_folder}:faprompt", device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normal_context": None}, "missing normal_context"),
        ({"stray": torch.zeros(1)}, "unknown stray"),
        (
            {"abnormal_context": torch.zeros(10, 2, 32)},
            r"abnormal_context has shape \(10, 2, 32\), .* need \(3, 2, 32\)",
        ),
        (
            {"prior.linear2.bias": torch.full((32,), float("nan"))},
            "prior.linear2.bias holds values that are not finite",
        ),
    ],
)
def test_wrong_tensors_are_refused(tiny_backbone, change, words):
    tensors = {name: t for name, t in (learned(SMALL, tiny_backbone) | change).items() if t is not None}
    with pytest.raises(ModelError, match=words):
        method_over(tiny_backbone, tensors=tensors)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"normal_length": 0}, "normal_length is 0"),
        ({"abnormal_length": -1}, "abnormal_length is -1"),
        ({"deep_depth": 0}, "deep_depth is 0"),
        ({"deep_length": 0}, "deep_length is 0"),
        ({"num_selected": 0}, "num_selected is 0"),
        ({"deep_length": 6}, "deep_length is 6; .* only 5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.1}, "temperature is 1.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"sigma_px": -1.0}, "sigma_px is -1.0"),
        ({"sigma_px": float("inf")}, "sigma_px is inf"),
        ({"sigma_px": float("nan")}, "sigma_px is nan"),
        ({"dap_select": "first"}, "dap_select is 'first'; it must be one of 'topk', 'raster10'"),
        ({"compat": "paper"}, "compat is 'paper'"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        FAPromptConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deep_depth": 3}, "deep_depth is 3; the text tower of .* has 2 blocks"),
        ({"vv_start": 3}, "vv_start is 3; .* blocks 0 to 2"),
        ({"vv_start": -1}, "vv_start is -1"),
    ],
)
def test_settings_the_backbone_lacks_are_refused(tiny_backbone, settings, words):
    with pytest.raises(ConfigError, match=words):
        faprompt.expected_shapes(FAPromptConfig(**settings), tiny_backbone)


def test_prompts_that_do_not_fit_are_refused(tiny_backbone):
    """1 start, 70 + 3 learned, 4 words with the end token: 78 of 77."""
    config = replace(SMALL, normal_length=70, abnormal_length=3)
    with pytest.raises(ModelError, match="78 tokens do not fit"):
        method_over(tiny_backbone, config)


def test_sigma_spans_the_same_share_of_any_input(tiny_backbone):
    assert method_over(tiny_backbone, replace(SMALL, sigma_px=5.0)).map_sigma * 518 == pytest.approx(5)
    assert FAPromptConfig().sigma_px == 10


def test_the_priors_bits_depend_on_neither_threads_nor_batch():
    """Matrix kernels add 1,920 products in another order with two threads, or with 16 rows instead of 2."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "linear1.weight": (120, 1920),
        "linear1.bias": (120,),
        "linear2.weight": (128, 120),
        "linear2.bias": (128,),
    }
    tensors = {f"prior.{name}": torch.randn(*size, generator=generator) for name, size in sizes.items()}
    selected = torch.randn(16, 10, 192, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += [faprompt.prior(tensors, selected), faprompt.prior(tensors, selected[:2])]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(rows[:2], found[0][:2]) for rows in found)
    assert torch.equal(found[0], found[2])
