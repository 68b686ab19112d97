"""DAPO against a slow second writing of its forward pass, and the properties its word lists must have."""

import gc
import math
import weakref

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.bundle import METHOD_NAMES
from zsad.errors import ConfigError, ModelError
from zsad.methods import METHODS, dapo
from zsad.methods.base import Subject
from zsad.methods.dapo import DAPO, DAPOConfig, TowerSizes, default_levels, initial_tensors, sizes_of, tensor_shapes

WORDS = ("scratch", "missing part", "discoloration")
CONFIG = DAPOConfig(num_groups=2)
VIT_L_14 = TowerSizes(vision_layers=24, vision_width=1024, text_layers=12, text_width=768, joint_width=768)


def learned(config, backbone, seed=0):
    """Initial tensors, scaled so that random towers answer distinctly."""
    tensors = initial_tensors(config, backbone, seed)
    scales = {"text_tokens": 3.0, "vision_tokens": 5.0, "abnormal_vectors": 3.0, "normal_vectors": 3.0}
    return {name: tensor * scales.get(name, 1.0) for name, tensor in tensors.items()}


def method(backbone, words=WORDS, config=CONFIG, tensors=None):
    tensors = learned(config, backbone) if tensors is None else tensors
    return DAPO(config, backbone, Subject(object_name="ignored", defect_words=words), tensors)


# The forward pass a second time: open_clip's blocks and PyTorch's attention, one prompt and one image at a time.


def slow_block(block, x, mask):
    u = block.ln_1(x)[None]
    x = x + block.attn(u, u, u, need_weights=False, attn_mask=mask)[0][0]
    return x + block.mlp(block.ln_2(x))


def slow_tower(blocks, x, tokens, carry, mask=None):
    """States of one sequence after every block."""
    states, n = [], tokens.shape[1]
    for number, block in enumerate(blocks):
        inserted = tokens[number]
        if number:
            inserted = carry * x[1 : 1 + n] + (1 - carry) * inserted
            x = torch.cat([x[:1], x[1 + n :]])
        x = slow_block(block, torch.cat([x[:1], inserted, x[1:]]), mask)
        states.append(x)
    return states


def slow_text(model, tokenizer, config, tensors, words):
    """Directions of normal and every word."""
    n, rows = config.num_tokens, []
    for index, string in enumerate(["flawless object", *(f"{word} anomaly object" for word in words)]):
        ids = [token for token in tokenizer([string])[0].tolist() if token]
        vectors = tensors["abnormal_vectors" if index else "normal_vectors"]
        embeddings = []
        for vector in vectors:
            before, after = model.token_embedding(torch.tensor(ids[:1])), model.token_embedding(torch.tensor(ids[1:]))
            padding = model.token_embedding(torch.zeros(77 - len(ids) - len(vector), dtype=torch.long))
            x = torch.cat([before, vector, after, padding]) + model.positional_embedding
            end = len(ids) + len(vector) - 1
            mask = None if config.compat == "published" else torch.full((77 + n, 77 + n), -torch.inf).triu(1)
            x = slow_tower(model.transformer.resblocks, x, tensors["text_tokens"], config.carry, mask)[-1]
            taken = x[end] if config.compat == "published" else x[end + n]
            embeddings.append(model.ln_final(taken) @ model.text_projection)
        rows.append(F.normalize(torch.stack(embeddings).mean(dim=0), dim=0))
    return rows


def slow_predict(model, backbone, config, tensors, words, image):
    """Score, map and type maps of one image (H, W, 3)."""
    normal, *defects = slow_text(model, backbone.tokenizer, config, tensors, words)
    visual, tau = model.visual, config.temperature
    x = visual.conv1((image.permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
    rows, columns = x.shape[1:]
    x = torch.cat([visual.class_embedding[None], x.flatten(1).T]) + visual.positional_embedding
    states = slow_tower(visual.transformer.resblocks, visual.ln_pre(x), tensors["vision_tokens"], config.carry)
    u = F.normalize(visual.ln_post(states[-1][0]) @ visual.proj, dim=0)
    abnormal = F.normalize(torch.stack(defects).mean(dim=0), dim=0)
    score = torch.softmax(torch.stack([u @ normal, u @ abnormal]) / tau, dim=0)[1]
    levels = config.levels or default_levels(len(states))
    total = 0
    for number, level in enumerate(levels):
        adapted = states[level - 1][1 + config.num_tokens :] @ tensors["adapter_weights"][number].T
        adapted = F.normalize(adapted + tensors["adapter_biases"][number], dim=1)
        total = total + torch.softmax(adapted @ torch.stack([normal, *defects]).T / tau, dim=1)
    types = (total / len(levels)).T.view(1 + len(words), rows, columns)
    return score, 1 - types[0], types[1:]


@pytest.mark.parametrize("compat", ["zsad", "published"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True, "embed_dim": 48},
        {"vision": {"image_size": [24, 40], "layers": 5, "width": 48, "head_width": 12}, "text": {"layers": 3}},
    ],
)
def test_predictions_equal_slow_loops(changes, compat):
    model = tiny_model.random_model(tiny_model.model_cfg(**changes))
    backbone = tiny_model.backbone_of(model)
    config = DAPOConfig(num_groups=2, num_tokens=3, carry=0.3, compat=compat)
    tensors = learned(config, backbone)
    size = model.visual.image_size
    images = tiny_model.pixels(2, *size)
    found = method(backbone, config=config, tensors=tensors).predict(images)
    for row, image in enumerate(images):
        score, anomaly_map, types = slow_predict(model, backbone, config, tensors, WORDS, image)
        torch.testing.assert_close(found.score_B[row], score, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.map_Bhw[row], anomaly_map, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.type_map_BKhw[row], types, atol=1e-5, rtol=0)
    assert found.map_Bhw.std() > 1e-3  # the towers do answer distinctly


def test_the_two_text_paths_differ(tiny_backbone):
    ours, published = (
        method(tiny_backbone, config=DAPOConfig(num_groups=2, compat=compat)).predict(tiny_model.pixels(1, 32, 32))
        for compat in ("zsad", "published")
    )
    assert (ours.map_Bhw - published.map_Bhw).abs().max() > 1e-3


@pytest.mark.parametrize(("word", "taken"), [("bent", 9), ("discoloration", 12)])
def test_end_tokens_of_the_plain_text(tiny_backbone, word, taken):
    """Start, five vectors, the word's pieces, "anomaly", "object": "bent" ends at 9, four pieces at 12, normal at 8."""
    ids, ends = dapo._prompt_ids(CONFIG, tiny_backbone, [word])
    assert ids.shape == (2, 77)
    assert ends.tolist() == [8, taken]
    assert ids[1, taken] == ids.max()
    assert ids[1, 1:6].tolist() == [0] * 5
    assert ids[1, 6] != 0


@pytest.mark.parametrize(
    ("num_layers", "levels"), [(24, (6, 12, 18, 24)), (12, (3, 6, 9, 12)), (6, (2, 3, 4, 6)), (2, (1, 1, 2, 2))]
)
def test_default_levels_are_the_quarters_of_the_tower(num_layers, levels):
    assert default_levels(num_layers) == levels


def test_given_levels_win(tiny_backbone):
    config = DAPOConfig(num_groups=2, levels=[2])
    assert config.levels == (2,)
    tensors = learned(config, tiny_backbone)
    assert tensors["adapter_weights"].shape == (1, 32, 64)
    found = method(tiny_backbone, config=config, tensors=tensors).predict(tiny_model.pixels(1, 32, 32))
    four = DAPOConfig(num_groups=2, levels=(2, 2, 2, 2))
    same = tensors | {
        name: tensors[name].repeat(4, *[1] * (tensors[name].ndim - 1)) for name in tensors if "ada" in name
    }
    again = method(tiny_backbone, config=four, tensors=same).predict(tiny_model.pixels(1, 32, 32))
    torch.testing.assert_close(found.map_Bhw, again.map_Bhw)


def test_vit_l_14_has_the_published_number_of_parameters():
    count = {name: math.prod(shape) for name, shape in tensor_shapes(DAPOConfig(), VIT_L_14).items()}
    assert count["vision_tokens"] == 98_304
    assert count["abnormal_vectors"] + count["normal_vectors"] + count["text_tokens"] == 113_664
    assert count["adapter_weights"] + count["adapter_biases"] == 3_148_800
    assert sum(count.values()) == 3_360_768


def test_sizes_are_those_of_the_towers(tiny_backbone):
    sizes = sizes_of(tiny_backbone)
    assert (sizes.vision_layers, sizes.vision_width) == (3, 64)
    assert (sizes.text_layers, sizes.text_width, sizes.joint_width) == (2, 32, 32)


def test_initial_tensors_follow_the_token_table(tiny_network):
    backbone = tiny_model.backbone_of(tiny_network)
    table = backbone.model.token_embedding.weight
    table.mul_(torch.linspace(0.5, 2, 32)).add_(torch.linspace(-1, 1, 32))
    config = DAPOConfig(num_groups=400)
    tensors = initial_tensors(config, backbone, 0)
    for name in ("abnormal_vectors", "normal_vectors"):
        rows = tensors[name].flatten(0, 1)  # 2,000 draws a dimension: means within 5 standard errors
        torch.testing.assert_close(rows.std(dim=0), table.std(dim=0), rtol=0.1, atol=0)
        assert ((rows.mean(dim=0) - table.mean(dim=0)).abs() < 5 * table.std(dim=0) / math.sqrt(2000)).all()
    assert not torch.equal(tensors["abnormal_vectors"], tensors["normal_vectors"])
    bounds = {"vision_tokens": math.sqrt(6 / (3 * 64 + 64)), "adapter_weights": 1 / 8, "adapter_biases": 1 / 8}
    for name, bound in bounds.items():
        assert 0.9 * bound < tensors[name].abs().max() <= bound
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(config, sizes_of(backbone))


def test_the_seed_decides_the_initial_tensors(tiny_backbone):
    first, again, other = (initial_tensors(CONFIG, tiny_backbone, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_one_word_is_the_binary_answer(tiny_backbone):
    found = method(tiny_backbone, words=("scratch",)).predict(tiny_model.pixels(2, 32, 32))
    assert torch.equal(found.type_map_BKhw[:, 0], found.map_Bhw)


def test_types_and_normal_share_all_probability(tiny_backbone):
    """Every level's classes sum to 1; so the map, which is what normal leaves, is the sum of the types."""
    tested = method(tiny_backbone)
    _, patches, _ = dapo.encode_pixels(CONFIG, tiny_backbone, tested.tensors, tiny_model.pixels(2, 32, 32))
    for level in patches:
        shares = dapo.probabilities(level, tested._directions_CD, 0.07)
        assert shares.shape == (2, 16, 4)
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 16))
    found = tested.predict(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(found.map_Bhw, found.type_map_BKhw.sum(dim=1))
    assert found.type_map_BKhw.shape == (2, 3, 4, 4)


def test_the_order_of_words_changes_no_bit(tiny_backbone):
    images = tiny_model.pixels(2, 32, 32)
    found, turned = (method(tiny_backbone, words=words).predict(images) for words in (WORDS, WORDS[::-1]))
    assert torch.equal(found.score_B, turned.score_B)
    assert torch.equal(found.map_Bhw, turned.map_Bhw)
    assert torch.equal(found.type_map_BKhw, turned.type_map_BKhw.flip(1))
    assert not torch.equal(found.type_map_BKhw[:, 0], found.type_map_BKhw[:, 2])


def test_a_product_s_words_are_all_words_with_the_others_masked(tiny_backbone):
    """A shorter list is the longer one whose other logits are -inf."""
    images, tensors = tiny_model.pixels(2, 32, 32), learned(CONFIG, tiny_backbone)
    directions = dapo.encode_classes(CONFIG, tiny_backbone, tensors, WORDS)
    _, patches, grid = dapo.encode_pixels(CONFIG, tiny_backbone, tensors, images)
    masked = 0
    for level in patches:
        logits = level @ directions.T / 0.07
        logits[..., 2] = -torch.inf  # no "missing part"
        masked = masked + logits.softmax(dim=-1) / len(patches)
    expected = masked.transpose(1, 2).reshape(2, 4, *grid)
    found = method(tiny_backbone, words=("scratch", "discoloration"), tensors=tensors).predict(images)
    torch.testing.assert_close(found.type_map_BKhw, expected[:, [1, 3]], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.map_Bhw, 1 - expected[:, 0], atol=1e-5, rtol=0)


def test_a_new_word_needs_no_new_tensors(tiny_backbone):
    """Its text joins the others', whose directions stay what they were."""
    tensors = learned(CONFIG, tiny_backbone)
    before, after = (
        dapo.encode_classes(CONFIG, tiny_backbone, tensors, words) for words in (WORDS, (*WORDS, "torn edge"))
    )
    torch.testing.assert_close(after[:4], before, atol=1e-6, rtol=0)
    found = method(tiny_backbone, words=(*WORDS, "torn edge"), tensors=tensors).predict(tiny_model.pixels(1, 32, 32))
    assert found.type_map_BKhw.shape == (1, 4, 4, 4)
    assert all(torch.equal(method(tiny_backbone).tensors[name], tensors[name]) for name in tensors)


def test_more_words_make_everything_look_more_anomalous(tiny_backbone):
    """Why a calibration holds for one list: e^a / (e^a + sum of K) falls with every word."""
    images = tiny_model.pixels(2, 32, 32)
    maps = [method(tiny_backbone, words=WORDS[:count]).predict(images).map_Bhw for count in (1, 2, 3)]
    assert (maps[0] < maps[1]).all()
    assert (maps[1] < maps[2]).all()


def test_groups_are_averaged_before_they_are_normalised(tiny_backbone):
    tensors = learned(CONFIG, tiny_backbone)
    found = dapo.encode_classes(CONFIG, tiny_backbone, tensors, WORDS)
    single = DAPOConfig(num_groups=1)
    rows = []
    for group in range(2):
        own = tensors | {name: tensors[name][group : group + 1] for name in ("abnormal_vectors", "normal_vectors")}
        ids, ends = dapo._prompt_ids(single, tiny_backbone, WORDS)
        x = dapo._fill_in(tiny_backbone, ids, own["normal_vectors"], own["abnormal_vectors"])[:, 0]
        rows.append(
            dapo.progressive.encode_text(tiny_backbone.model, x, ends, tensors["text_tokens"], carry=single.carry)
        )
    torch.testing.assert_close(found, F.normalize((rows[0] + rows[1]) / 2, dim=-1), atol=1e-5, rtol=0)


def test_texts_in_chunks_are_the_same_texts(tiny_backbone, monkeypatch):
    tensors = learned(CONFIG, tiny_backbone)
    whole = dapo.encode_classes(CONFIG, tiny_backbone, tensors, WORDS)
    monkeypatch.setattr(dapo, "_SEQUENCES", 3)
    torch.testing.assert_close(dapo.encode_classes(CONFIG, tiny_backbone, tensors, WORDS), whole, atol=1e-6, rtol=0)


def test_cached_directions_keep_no_backbone_alive(tiny_network):
    backbone = tiny_model.backbone_of(tiny_network)
    method(backbone)
    alive = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert alive() is None


def test_texts_are_encoded_once_per_word_list(tiny_backbone, monkeypatch):
    calls = []
    real = dapo.encode_classes
    monkeypatch.setattr(dapo, "encode_classes", lambda *a, **k: calls.append(a[3]) or real(*a, **k))
    dapo._directions_of.cache_clear()
    tensors = learned(CONFIG, tiny_backbone)
    for words in (WORDS, WORDS, WORDS[::-1], WORDS[:2]):
        method(tiny_backbone, words=words, tensors={name: tensor.clone() for name, tensor in tensors.items()})
    assert calls == [tuple(sorted(WORDS)), tuple(sorted(WORDS[:2]))]
    method(tiny_backbone, tensors=learned(CONFIG, tiny_backbone, seed=1))
    method(tiny_backbone, config=DAPOConfig(num_groups=2, compat="published"))
    assert len(calls) == 4  # other tensors and other settings are other texts


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_peak_s_share_of_the_image_score(tiny_backbone, weight):
    images = tiny_model.pixels(2, 32, 32)
    plain = method(tiny_backbone).predict(images)
    found = method(tiny_backbone, config=DAPOConfig(num_groups=2, map_weight=weight)).predict(images)
    peak = plain.map_Bhw.amax(dim=(1, 2))
    torch.testing.assert_close(found.score_B, (1 - weight) * plain.score_B + weight * peak)
    assert torch.equal(found.map_Bhw, plain.map_Bhw)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 48)])
def test_a_batch_equals_its_images_alone(tiny_backbone, size):
    tested, images = method(tiny_backbone), tiny_model.pixels(3, *size)
    whole = tested.predict(images)
    assert whole.map_Bhw.shape == (3, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(whole.patches_BPD.norm(dim=-1), torch.ones(whole.patches_BPD.shape[:2]))
    for row, image in enumerate(images):
        alone = tested.predict(image[None])
        torch.testing.assert_close(alone.score_B[0], whole.score_B[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.map_Bhw[0], whole.map_Bhw[row], atol=1e-5, rtol=0)


def test_an_image_s_values_do_not_depend_on_its_place(tiny_backbone):
    tested, images = method(tiny_backbone), tiny_model.pixels(4, 32, 32)
    found, turned = tested.predict(images), tested.predict(images.flip(0))
    assert torch.equal(found.score_B, turned.score_B.flip(0))
    assert torch.equal(found.map_Bhw, turned.map_Bhw.flip(0))


def test_bf16_maps_follow_fp32(tiny_network, tiny_backbone):
    images = tiny_model.pixels(4, 64, 64)
    full = method(tiny_backbone).predict(images)
    half = method(tiny_model.backbone_of(tiny_network, precision="bf16")).predict(images)
    pair = torch.stack([full.map_Bhw.flatten(), half.map_Bhw.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999
    assert half.map_Bhw.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_maps_on_a_gpu_follow_fp32(tiny_folder, tiny_backbone):
    from zsad.backbone import load_backbone

    images = tiny_model.pixels(4, 64, 64)
    half = method(load_backbone(str(tiny_folder), "cuda"), tensors=learned(CONFIG, tiny_backbone)).predict(images)
    pair = torch.stack([method(tiny_backbone).predict(images).map_Bhw.flatten(), half.map_Bhw.cpu().flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "misses 6 learned tensors, such as abnormal_vectors; it needs a trained bundle"),
        ({"text_tokens": None}, "misses 1 learned tensors, such as text_tokens"),
        ({"memory": torch.ones(1)}, "knows no tensor memory"),
        ({"vision_tokens": torch.ones(3, 5, 64)}, r"vision_tokens has shape \(3, 5, 64\); .* ask \(3, 4, 64\)"),
        ({"adapter_biases": torch.full((4, 32), torch.nan)}, "adapter_biases holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tiny_backbone, change, words):
    tensors = learned(CONFIG, tiny_backbone) | change if change else {}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ModelError, match=words):
        method(tiny_backbone, tensors=tensors)


def test_a_text_tower_without_causal_mask_is_refused():
    cfg = tiny_model.model_cfg(custom_text=True, text={"no_causal_mask": True})
    with pytest.raises(ModelError, match="causal CLIP text tower"):
        initial_tensors(CONFIG, tiny_model.backbone_of(tiny_model.random_model(cfg)), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give at least one"),
        (("dent", "dent"), "none twice"),
        (("dent", "scratch " * 69), "'scratch scratch .* too long"),
    ],
)
def test_word_lists_that_can_not_be_used(tiny_backbone, words, message):
    with pytest.raises(ConfigError, match=message):
        method(tiny_backbone, words=words)


def test_the_longest_word_that_fits(tiny_backbone):
    """77 places: start, 5 vectors, 68 pieces, "anomaly", "object", end."""
    _, ends = dapo._prompt_ids(CONFIG, tiny_backbone, ["scratch " * 68])
    assert ends.tolist() == [8, 76]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"carry": 1.1}, "carry is 1.1"),
        ({"map_weight": -0.1}, "map_weight is -0.1"),
        ({"num_groups": 0}, "num_groups is 0"),
        ({"num_vectors": 0}, "num_vectors is 0"),
        ({"num_tokens": 2.0}, "num_tokens is 2.0"),
        ({"levels": ()}, "levels are "),
        ({"levels": (0,)}, r"levels are \[0\]"),
        ({"compat": "x"}, "compat is 'x'"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        DAPOConfig(**settings)


def test_levels_beyond_the_tower_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match=r"takes levels \[1, 4\]; .* has blocks 1 to 3"):
        method(tiny_backbone, config=DAPOConfig(num_groups=2, levels=(1, 4)))


def test_the_method_is_registered():
    assert METHODS["dapo"] == (DAPO, DAPOConfig)
    assert "dapo" in METHOD_NAMES


@pytest.fixture
def detector(tiny_config, tiny_backbone):
    """Calibrated on 16 random images."""
    from dataclasses import replace

    from zsad.detector import Detector

    config = replace(tiny_config, method="dapo", settings={"num_groups": 2, "levels": [1, 3]}, defect_words=WORDS)
    normals = np.random.default_rng(7).integers(0, 256, (16, 40, 48, 3), dtype=np.uint8)
    tensors = learned(DAPOConfig(num_groups=2, levels=(1, 3)), tiny_backbone)
    return Detector(config, tensors, batch_size=4).calibrated(normals, source="random images")


def test_a_bundle_of_it_finds_the_same_bit_for_bit(detector, tmp_path):
    from zsad.detector import load_detector

    images = list(np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8))
    detector.save(str(tmp_path))
    loaded = load_detector(str(tmp_path), device="cpu", batch_size=4)
    assert loaded.config == detector.config
    for found, expected in zip(loaded.inspect(images), detector.inspect(images), strict=True):
        assert (found.raw_score, found.score) == (expected.raw_score, expected.score)
        assert (found.defect_type, found.defect_scores) == (expected.defect_type, expected.defect_scores)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_a_calibration_holds_for_one_word_list(detector, tmp_path):
    """Another list is calibrated anew; the same in another order is not."""
    from zsad.detector import load_detector

    normals = list(np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    detector.save(str(tmp_path))
    turned = load_detector(str(tmp_path), device="cpu", defect_words=WORDS[::-1])
    assert turned.config.defect_words == WORDS[::-1]
    assert turned.config.calibration == detector.config.calibration
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zsad.detector.procedural_normals", lambda _size: normals)
        other = load_detector(str(tmp_path), device="cpu", defect_words=["hole"])
    assert other.config.calibration.source == "procedural normal images"
    assert other.config.calibration.image != detector.config.calibration.image
    alarmed = other.with_threshold(0.001).inspect(normals[:1])[0]
    assert alarmed.defect_scores == {"hole": 1.0}
    assert alarmed.defect_type == "hole"
