"""FAPrompt against tensors of the released code on a tiny random CLIP, inference and one training step, fp32.

The arrays lie beside the project in ../shared/golden/faprompt; where that folder is absent, the tests are skipped.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from zsad.backbone import Backbone, vision
from zsad.backbone.load import Loaded, build
from zsad.backbone.prompted_text import word_vectors
from zsad.learn import faprompt as learn
from zsad.learn.step import take_step
from zsad.methods import faprompt
from zsad.methods.maps import published_map

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "faprompt"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the golden tensors in ../shared/golden/faprompt")

RELATIVE = 1e-5
VARIANTS = {"released": {"compat": "released"}, "topk": {"dap_select": "topk"}}
OWN_NAMES = {
    "patch_meta_net.linear1.weight": "prior.linear1.weight",
    "patch_meta_net.linear1.bias": "prior.linear1.bias",
    "patch_meta_net.linear2.weight": "prior.linear2.weight",
    "patch_meta_net.linear2.bias": "prior.linear2.bias",
}


def same(found, expected, relative=RELATIVE):
    """Equal within a share of the array's largest value."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.abs().max()))


def golden_model(clip):
    """An open_clip model with the golden weights; rows of tokens that no prompt holds stay zero."""
    vision_cfg = {"image_size": clip["image_resolution"], "layers": clip["vision_layers"], "head_width": 64}
    vision_cfg |= {"width": clip["vision_width"], "patch_size": clip["vision_patch_size"]}
    text_cfg = {"width": clip["transformer_width"], "heads": clip["transformer_heads"]}
    text_cfg |= {"layers": clip["transformer_layers"]}
    text_cfg |= {key: clip[key] for key in ("context_length", "vocab_size")}
    model = build({"embed_dim": clip["embed_dim"], "quick_gelu": True, "vision_cfg": vision_cfg, "text_cfg": text_cfg})
    weights = {key: tensor.float() for key, tensor in load_file(GOLDEN / "clip_weights_fp16.safetensors").items()}
    embedding = torch.zeros(clip["vocab_size"], clip["transformer_width"])
    embedding[weights.pop("token_embedding.ids").long()] = weights.pop("token_embedding.rows")
    model.load_state_dict(weights | {"token_embedding.weight": embedding})
    return model.eval().requires_grad_(False)


def own_tensors():
    stored = {key: tensor.float() for key, tensor in load_file(GOLDEN / "prompt_params_fp16.safetensors").items()}
    deep = [stored[f"compound_prompts_text.{index}"] for index in range(3)]
    return {
        "normal_context": stored["ctx_pos"][0, 0],
        "abnormal_context": stored["ctx_neg"][0],
        "deep_prompts": torch.stack(deep),
    } | {own: stored[name] for name, own in OWN_NAMES.items()}


@pytest.fixture(scope="module")
def golden():
    """Backbone, config, learned tensors, the arrays, and the image features our towers give."""
    facts = json.loads((GOLDEN / "config.json").read_text())
    loaded = Loaded(golden_model(facts["clip"]), SimpleTokenizer(), (0.5,) * 3, (0.5,) * 3, "bicubic")
    backbone = Backbone("golden", loaded, device=torch.device("cpu"), precision="fp32")
    dual_blocks = facts["dpam_layer_arg"] - 1
    config = faprompt.FAPromptConfig(
        vv_start=facts["clip"]["vision_layers"] - dual_blocks, temperature=facts["temperature"]
    )
    arrays = {key: torch.from_numpy(array) for key, array in np.load(GOLDEN / "inference.npz").items()}
    visual = backbone.model.visual
    x_BNW = vision.embed(visual, arrays["image"])
    streams = vision.run_blocks(visual, x_BNW, vv_start=config.vv_start)
    return SimpleNamespace(
        facts=facts,
        backbone=backbone,
        config=config,
        tensors=faprompt.check_tensors(own_tensors(), config, backbone),
        arrays=arrays,
        streams=streams,
        image_BD=vision.class_to_joint(visual, streams.h_BNW, ln_post=False),
        patches_BPD=vision.to_joint(visual, streams.z_BNW[:, 1:]),
        size=(facts["image_size"],) * 2,
    )


def scored(golden, variant):
    config = replace(golden.config, **VARIANTS[variant])
    encoder = faprompt.PromptEncoder(config, golden.backbone)
    static = encoder.static(golden.tensors)
    passes = faprompt.run_passes(encoder, golden.tensors, static, golden.image_BD, golden.patches_BPD)
    return encoder, static, passes


def both_channels(probability):
    return torch.stack([1 - probability, probability], dim=-1)


def test_image_tower(golden):
    visual, arrays = golden.backbone.model.visual, golden.arrays
    same(vision.position_embedding(visual, (7, 7)), arrays["pos_embed_interpolated"])
    same(vision.project(visual, golden.streams.h_BNW[:, 0], ln_post=False), arrays["image_feature_raw"])
    same(vision.project(visual, golden.streams.z_BNW), arrays["patch_feature_raw"])
    same(golden.image_BD, F.normalize(arrays["image_feature_raw"], dim=-1))


def test_words_and_input_vectors(golden):
    """Ours end with the end token; what the reference has after it is padding that no token sees."""
    encoder, tensors = faprompt.PromptEncoder(golden.config, golden.backbone), golden.tensors
    padding = word_vectors(golden.backbone.model, torch.tensor(0))
    beginning = torch.cat([encoder.start_1W, tensors["normal_context"]])
    normal = torch.cat([beginning, encoder.normal_TW])
    abnormal = torch.cat(
        [beginning.expand(10, -1, -1), tensors["abnormal_context"], encoder.abnormal_TW.expand(10, -1, -1)], dim=1
    )
    for ours, name in ((normal[None], "prompts_pos"), (abnormal, "prompts_neg")):
        expected = golden.arrays[name]
        same(torch.cat([ours, padding.expand(len(ours), 77 - ours.shape[1], -1)], dim=1), expected)


def test_token_ids(golden):
    tokens = golden.backbone.tokenizer([faprompt.NORMAL_WORDS, faprompt.ABNORMAL_WORDS])
    normal, abnormal = golden.arrays["tokenized_pos"], golden.arrays["tokenized_neg"]
    assert normal[0, :9].tolist() == [49406, *[333] * 5, *tokens[0, 1:4].tolist()]
    assert not normal[0, 9:].any()
    for row in abnormal:
        assert row[:12].tolist() == [49406, *[333] * 5, *[320] * 2, *tokens[1, 1:5].tolist()]
        assert not row[12:].any()


def test_rules_give_the_depth_of_the_reference(golden):
    depth = golden.facts["design"]["learnabel_text_embedding_depth"]
    assert len(golden.tensors["deep_prompts"]) == depth - 1


def test_static_pass(golden):
    _, static, passes = scored(golden, "topk")
    arrays = golden.arrays
    same(static.normal_D[None], arrays["text_pos_raw"])
    same(static.abnormal_KD, arrays["text_neg_raw"])
    pair = torch.stack([F.normalize(static.normal_D, dim=0), F.normalize(static.abnormal_KD.mean(dim=0), dim=0)])
    same(pair, arrays["text_static"])
    same(both_channels(passes.first_BP), arrays["patch_prob1"])
    same(passes.first_BP.amax(dim=1), arrays["max1"])
    same(up_sampled(golden, passes.first_BP), arrays["map1"])


def up_sampled(golden, probability_BP):
    plane = published_map(probability_BP.view(-1, 7, 7), golden.size, 0)
    return torch.stack([1 - plane, plane], dim=1)


def test_selection_takes_the_same_patches(golden):
    _, _, passes = scored(golden, "topk")
    rows = torch.arange(2)[:, None]
    assert torch.equal(passes.selected_BMD, golden.patches_BPD[rows, golden.arrays["topk_index"]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_prior_and_second_pass(golden, variant):
    encoder, static, passes = scored(golden, variant)
    arrays = {key.partition("/")[2]: array for key, array in golden.arrays.items() if key.startswith(f"{variant}/")}
    same(passes.selected_BMD, arrays["selected_tokens"])
    same(passes.prior_BW, arrays["prior_bias"])
    own_BKD = encoder.with_prior(golden.tensors, static.prefix, passes.prior_BW)
    same(own_BKD, arrays["text_neg_dap_raw"])
    normal_BD = F.normalize(static.normal_D, dim=0).expand(2, -1)
    same(torch.stack([normal_BD, F.normalize(own_BKD.mean(dim=1), dim=-1)], dim=1), arrays["text_dap"])
    same(both_channels(passes.second_BP), arrays["patch_prob2"])
    same(passes.second_BP.amax(dim=1), arrays["max2"])
    same(up_sampled(golden, passes.second_BP), arrays["map2"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_maps(golden, variant):
    _, _, passes = scored(golden, variant)
    same(passes.image_margin_B.sigmoid(), golden.arrays[f"{variant}/text_prob"])
    same(passes.score, golden.arrays[f"{variant}/image_score"])
    maps = passes.anomaly_map.view(2, 7, 7)
    same(published_map(maps, golden.size, 0), golden.arrays[f"{variant}/anomaly_map_raw"])
    sigma = golden.facts["gaussian_sigma"] / golden.size[0]
    same(published_map(maps, golden.size, sigma), golden.arrays[f"{variant}/anomaly_map"])


@pytest.fixture(scope="module")
def step(golden):
    """Loss terms and leaf tensors of our step, and the golden ones."""
    expected = {key.removeprefix("topk/"): array for key, array in np.load(GOLDEN / "train_step.npz").items()}
    encoder = faprompt.PromptEncoder(golden.config, golden.backbone)
    leaves = learn.trainable(golden.tensors)
    batch = learn.Batch(
        image_BD=golden.image_BD,
        patches_BPD=golden.patches_BPD,
        grid=(7, 7),
        masks_BHW=golden.arrays["mask"],
        is_bad_B=golden.arrays["label"] == 1,
    )
    with torch.no_grad():
        terms = learn.loss_terms(encoder, leaves, batch)
    learner = learn.FAPromptLearner(encoder, leaves, learn.make_optimiser(leaves))
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    reported = take_step(learner, batch)  # as the trainer calls it, for one worker with the whole batch
    return SimpleNamespace(expected=expected, terms=terms, leaves=leaves, before=before, reported=reported)


LOSSES = {
    "loss_focal1": "focal_1",
    "loss_dice1a": "dice_abnormal_1",
    "loss_dice1n": "dice_normal_1",
    "loss_focal2": "focal_2",
    "loss_dice2a": "dice_abnormal_2",
    "loss_dice2n": "dice_normal_2",
    "loss_image_ce": "image_cross_entropy",
    "loss_image_focal": "image_focal",
    "loss_orth_sum": "orthogonal",
    "loss_prior": "prior",
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_terms(step, name):
    same(step.terms[LOSSES[name]].detach(), step.expected[name], relative=1e-4)


def test_total_loss(step):
    assert set(step.terms) == set(LOSSES.values())
    same(learn.total(step.terms).detach(), step.expected["loss_total"], relative=1e-4)


def test_the_trainer_reports_weighted_terms_that_sum_to_the_total(step):
    assert sum(step.reported.values()) == pytest.approx(float(step.expected["loss_total"]), rel=1e-4)


@pytest.mark.parametrize("name", ["normal_context", "prior.linear1.weight", "prior.linear2.bias"])
def test_parameters_after_the_optimiser_step(step, name):
    """Adam's first step by hand: each number moves by rate * g / (|g| + 1e-8), moments cancelling their corrections."""
    gradients = {"normal_context": step.expected["grad.ctx_pos"][0, 0]}
    gradients |= {own: step.expected[f"grad.{theirs}"] for theirs, own in OWN_NAMES.items()}
    gradient = torch.as_tensor(gradients[name])
    moved = step.leaves[name].detach() - step.before[name]
    expected = -learn.LEARNING_RATE * gradient / (gradient.abs() + 1e-8)
    clear = gradient.abs() > 1e-4 * gradient.abs().max()  # of smaller ones the sign itself is rounding
    torch.testing.assert_close(moved[clear], expected[clear], rtol=0, atol=1e-2 * learn.LEARNING_RATE)


def test_gradients(step):
    same(step.leaves["normal_context"].grad, step.expected["grad.ctx_pos"][0, 0], relative=1e-4)
    same(step.leaves["abnormal_context"].grad, step.expected["grad.ctx_neg"][0], relative=1e-4)
    for name, own in OWN_NAMES.items():
        same(step.leaves[own].grad, step.expected[f"grad.{name}"], relative=1e-4)


def test_gradients_of_deep_prompts_which_the_reference_rounds_to_half_precision(step):
    for index, gradient in enumerate(step.leaves["deep_prompts"].grad):
        same(gradient, step.expected[f"grad.compound_prompts_text.{index}"], relative=1e-3)
