"""PromptAD against tensors that the reference code computed with a tiny random CLIP.

The states of the metal nut are read back from the reference's own token ids: zsad's words differ.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from zsad.backbone import Backbone, vision
from zsad.backbone.load import Loaded, build
from zsad.backbone.prompted_text import word_vectors
from zsad.learn.promptad import PromptADTraining, PromptLearner, losses, new_optimiser, step
from zsad.methods import Subject
from zsad.methods.maps import published_map
from zsad.methods.memory import distance
from zsad.methods.promptad import (
    PromptAD,
    PromptADConfig,
    fuse,
    name_tensor,
    peak,
)

FOLDER = Path(__file__).parents[3] / "shared" / "golden" / "promptad"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/golden/promptad beside the project")

TOKENIZER = SimpleTokenizer()
NUM_CONTEXT, RESOLUTION, SIGMA = 4, 100, 4.0
SIZE = (RESOLUTION, RESOLUTION)
MODEL_CFG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 80, "layers": 12, "width": 128, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
}
# ln 100 as the reference's weights hold it, rounded to half precision; the true one moves probabilities by 8e-6
CONFIG = PromptADConfig(resolution=RESOLUTION, logit_scale=4.60546875)


def load(name):
    from safetensors.torch import load_file

    return {key: tensor.float() for key, tensor in load_file(FOLDER / name).items()}


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "golden_fp32.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def backbone():
    """The reference's network; it takes normalised pixels here, through `features_of`."""
    model = build(MODEL_CFG).eval().requires_grad_(False)
    tensors = load("clip_weights_fp16.safetensors")
    embedding = torch.zeros(49408, 64)
    embedding[tensors.pop("token_embedding.ids").long()] = tensors.pop("token_embedding.rows")
    missing = model.load_state_dict(tensors | {"token_embedding.weight": embedding}, strict=True)
    assert not missing.missing_keys
    loaded = Loaded(model, TOKENIZER, (0.5,) * 3, (0.5,) * 3, "bicubic")
    return Backbone("golden", loaded, device=torch.device("cpu"), precision="fp32")


def streams_of(backbone, pixels_BCHW):
    visual = backbone.model.visual
    taps = CONFIG.taps(backbone.num_layers)
    return vision.run_blocks(visual, vision.embed(visual, pixels_BCHW), vv_start=0, taps=taps)


@pytest.fixture(scope="module")
def features_of(backbone):
    """Arrays "cls", "patch", "mid1", "mid2" of normalised pixels."""

    def features(pixels_BCHW):
        streams = streams_of(backbone, pixels_BCHW)
        visual = backbone.model.visual
        mids = [F.normalize(streams.taps[tap][:, 1:], dim=-1) for tap in CONFIG.taps(12)]
        return {
            "cls": vision.class_to_joint(visual, streams.h_BNW),
            "patch": vision.to_joint(visual, streams.z_BNW[:, 1:]),
            "mid1": mids[0],
            "mid2": mids[1],
        }

    return features


@pytest.fixture(scope="module")
def states(golden):
    """Abnormal texts behind the reference's ids of the pixel task: one context, so one row a state."""
    return [words(row) for row in golden["seg/tok_map"]]


def words(ids_T):
    """Text between the context and the full stop."""
    end = int(ids_T.argmax())
    return TOKENIZER.decode(ids_T[1 + NUM_CONTEXT : end - 1].tolist()).strip()


@pytest.fixture
def learner_of(backbone, states):
    def learner(task):
        parameters = load("prompt_params_fp16.safetensors")
        contexts = parameters[f"{task}.normal_ctx"], parameters[f"{task}.abnormal_ctx"]
        return PromptLearner(backbone, "metal nut", states, *contexts)

    return learner


def check(found, expected, tolerance=1e-5):
    """Equal to `tolerance` of the array's own scale."""
    scale = float(expected.abs().max()) or 1.0
    torch.testing.assert_close(found.detach().float(), expected.float(), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", ["cls", "patch", "mid1", "mid2"])
def test_image_features(golden, features_of, part, name):
    check(features_of(golden[f"{part}_images"])[name], golden[f"{part}_feat_{name}"])


def test_taps_are_states_between_attention_and_mlp(golden, backbone):
    taps = streams_of(backbone, golden["test_images"]).taps
    assert set(taps) == {3, 8}
    check(taps[3][:, 1:], golden["mid1_unnormalised"])
    check(taps[8][:, 1:], golden["mid2_unnormalised"])


@pytest.mark.parametrize("block", [2, 7])
def test_clean_block_outputs_are_something_else(golden, backbone, block):
    """What the published code means to remember: the end of a tower that stops there."""
    visual = backbone.model.visual
    stopped = SimpleNamespace(transformer=SimpleNamespace(resblocks=visual.transformer.resblocks[: block + 1]))
    h_BNW = vision.run_blocks(stopped, vision.embed(visual, golden["test_images"]), vv_start=0).h_BNW
    check(h_BNW[:, 1:], golden[f"block{block}_out_clean"])
    held = golden["mid1_unnormalised" if block == 2 else "mid2_unnormalised"]
    assert (h_BNW[:, 1:] - held).abs().max() > 1


@pytest.mark.parametrize("layer", [1, 2])
def test_memory_is_every_patch_of_the_normal_images(golden, features_of, layer):
    check(features_of(golden["train_images"])[f"mid{layer}"].flatten(0, 1), golden[f"gallery{layer}"])


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_tokens_are_the_references_without_its_placeholders(golden, learner_of, states, task):
    learner = learner_of(task)
    num = len(learner.normal_NCW)
    assert len(states) == 12
    assert [words(row) for row in golden[f"{task}/tok_map"]] == [state for state in states for _ in range(num)]
    rows = [golden[f"{task}/tok_normal"][0], *golden[f"{task}/tok_map"][::num]]
    for found, expected in zip(learner.tokens_UT, rows, strict=True):
        end = int(expected.argmax())
        kept = [int(expected[0]), *expected[1 + NUM_CONTEXT : end + 1].tolist()]
        assert found[: len(kept)].tolist() == kept
    assert (golden[f"{task}/tok_lap"][:, 6:9] == golden[f"{task}/tok_normal"][0, 5:8]).all()


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_normal_prompts_before_the_position_embedding(golden, backbone, learner_of, task):
    learner = learner_of(task)
    num, end = len(learner.normal_NCW), int(learner.end_U[0])
    vectors = word_vectors(backbone.model, learner.tokens_UT[:1, : end + 1]).expand(num, -1, -1)
    padding = word_vectors(backbone.model, torch.zeros(num, 77 - NUM_CONTEXT - end - 1, dtype=torch.long))
    check(torch.cat([vectors[:, :1], learner.normal_NCW, vectors[:, 1:], padding], 1), golden[f"{task}/normal_prompts"])


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_text_features(golden, learner_of, task):
    found = learner_of(task)()
    check(found.normal_ND, golden[f"{task}/text_normal_raw"])
    check(found.manual_RD, golden[f"{task}/text_map_raw"])
    check(found.learned_RD, golden[f"{task}/text_lap_raw"])
    check(found.directions(), golden[f"{task}/text_features"])


@pytest.fixture
def method(golden, backbone, learner_of):
    tensors = {"object_name": name_tensor("metal nut")}
    tensors |= {f"memory.{layer}": golden[f"gallery{layer}"] for layer in (1, 2)}
    for task in ("cls", "seg"):
        learner = learner_of(task)
        tensors[f"{task}.text"] = learner().directions().detach()
        tensors[f"{task}.normal_context"] = learner.normal_NCW.detach()
        tensors[f"{task}.abnormal_context"] = learner.abnormal_ACW.detach()
    return PromptAD(CONFIG, backbone, Subject(object_name="metal nut"), tensors)


def test_image_score(golden, features_of, method):
    found = features_of(golden["test_images"])
    text_B = method.text_probability("cls", found["cls"])
    check(text_B, golden["cls/textual_score"])
    visual_Bhw = visual_map(golden, found)
    check(visual_Bhw, golden["cls/visual_map_grid"][:, 0])
    check(published_map(visual_Bhw, SIZE, 0), golden["cls/visual_map_up"])
    check(peak(visual_Bhw, RESOLUTION), golden["cls/visual_map_up"].amax(dim=(1, 2)))
    check(fuse(peak(visual_Bhw, RESOLUTION), text_B), golden["cls/image_score"])


def test_anomaly_map(golden, features_of, method):
    found = features_of(golden["test_images"])
    text_Bhw = method.text_probability("seg", found["patch"]).view(2, 5, 5)
    check(text_Bhw, golden["seg/textual_map_grid"][:, 0])
    visual_Bhw = visual_map(golden, found)
    check(visual_Bhw, golden["seg/visual_map_grid"][:, 0])
    check(published_map(fuse(text_Bhw, visual_Bhw), SIZE, SIGMA / RESOLUTION), golden["seg/anomaly_map"])


def visual_map(golden, found):
    distances = [distance(found[f"mid{layer}"], golden[f"gallery{layer}"]) for layer in (1, 2)]
    return (sum(distances) / 2).view(2, 5, 5)


def test_predict_joins_the_same_steps(golden, backbone, method, monkeypatch):
    """`predict` normalises uint8 itself; here it is handed the reference's normalised images."""
    monkeypatch.setattr(backbone, "normalise", lambda pixels_BHWC: golden["test_images"])
    found = method.predict(torch.zeros(2, 80, 80, 3, dtype=torch.uint8))
    check(found.score_B, golden["cls/image_score"])
    check(published_map(found.map_Bhw, SIZE, SIGMA / RESOLUTION), golden["seg/anomaly_map"])
    check(found.patches_BPD, golden["test_feat_patch"])


def test_three_training_steps(golden, learner_of):
    """Losses of every step, gradients of the first and contexts after the third, to 1e-4."""
    config = PromptADTraining(compat="released")
    learner, logit_scale = learner_of("cls"), CONFIG.logit_scale
    optimiser = new_optimiser(config, learner)
    for index, expected in enumerate(golden["cls/train_losses"]):
        found = step(learner, optimiser, golden["train_feat_cls"], config, logit_scale)
        check(torch.tensor([found[name] for name in ("contrastive", "margin", "align", "total")]), expected, 1e-4)
        if index == 0:
            check(learner.normal_NCW.grad, golden["cls/grad_normal_ctx"], 1e-4)
            check(learner.abnormal_ACW.grad, golden["cls/grad_abnormal_ctx"], 1e-4)
    check(learner.normal_NCW, golden["cls/normal_ctx_after3"], 1e-4)
    check(learner.abnormal_ACW, golden["cls/abnormal_ctx_after3"], 1e-4)


@pytest.mark.parametrize(("compat", "margin"), [("released", 0.1779), ("zsad", 0.0540)])
def test_pixel_margin_of_both_forms(golden, learner_of, compat, margin):
    """The two numbers that were measured with the reference's tensors, to the four digits they were noted with."""
    texts = learner_of("seg")()
    found = losses(texts, golden["train_feat_patch"], logit_scale=CONFIG.logit_scale, compat=compat)
    assert found["margin"].item() == pytest.approx(margin, abs=6e-5)
