"""Fitting PromptAD: prompts against slow ones, losses by hand, training on a tiny tower."""

import math
from dataclasses import replace

import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone.load import weights_sha256
from zsad.backbone.prompted_text import encode_embeddings, word_vectors
from zsad.errors import ConfigError, ModelError
from zsad.learn.promptad import (
    PromptADTraining,
    PromptLearner,
    TextFeatures,
    fit,
    learning_rate,
    losses,
    new_learner,
    new_optimiser,
    step,
)
from zsad.methods import Subject
from zsad.methods.promptad import PromptAD, PromptADConfig
from zsad.prompts.class_states import class_states

SHORT = PromptADTraining(epochs=3)
CABLE = Subject(object_name="cable")
LOGIT_SCALE = math.log(100)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_prompt(backbone, vectors_TW, text):
    """Embedding of start, learned vectors, the words of "text ." and end, in full sequences of 77 tokens."""
    tokens = backbone.tokenizer([f"{text} ."])[0]
    end = int(tokens.argmax())
    words = word_vectors(backbone.model, tokens[: end + 1])
    sequence = F.pad(torch.cat([words[:1], vectors_TW, words[1:]]), (0, 0, 0, 76 - end - len(vectors_TW)))
    assert len(sequence) == 77
    return encode_embeddings(backbone.model, sequence[None], torch.tensor([end + len(vectors_TW)]))[0]


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(("num_contexts", "lengths"), [(1, (4, 1)), (2, (3, 2)), (3, (4, 1))])
def test_every_prompt_is_the_one_written_out(quick_gelu, num_contexts, lengths):
    """States are state-major; row j of the learned ones joins context j mod N with abnormal vector j mod 4."""
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu)))
    contexts, abnormal = normal(num_contexts, lengths[0], 32), normal(4, lengths[1], 32, seed=1)
    states = ["damaged hot cable", "hot cable with a very long scratch", "hot cable with cut"]
    found = PromptLearner(backbone, "hot cable", states, contexts, abnormal)()
    learned = [
        one_prompt(backbone, torch.cat([contexts[j % num_contexts], abnormal[j % 4]]), "hot cable")
        for j in range(4 * num_contexts)
    ]
    expected = {
        "normal_ND": [one_prompt(backbone, context, "hot cable") for context in contexts],
        "manual_RD": [one_prompt(backbone, context, state) for state in states for context in contexts],
        "learned_RD": learned,
    }
    for name, rows in expected.items():
        torch.testing.assert_close(getattr(found, name), torch.stack(rows), atol=2e-5, rtol=1e-5)
    assert found.counts_R.tolist() == [1.0] * 3 * num_contexts


def test_a_state_listed_twice_counts_twice_and_is_encoded_once(tiny_backbone):
    """Against the same learner's distinct rows, written out with the repeated one twice."""
    contexts, abnormal = normal(3, 4, 32), normal(4, 1, 32, seed=1)
    found = PromptLearner(tiny_backbone, "cable", ["worn cable", "cut cable", "worn cable"], contexts, abnormal)()
    assert found.counts_R.tolist() == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert len(found.manual_RD) == 6
    repeated = torch.cat([found.manual_RD, found.manual_RD[:3]])
    written = TextFeatures(found.normal_ND, repeated, found.learned_RD, torch.ones(9))
    torch.testing.assert_close(found.directions(), written.directions())
    anchors = F.normalize(normal(2, 5, 32, seed=2), dim=-1)
    for compat in ("zsad", "released"):
        counted, plain = (losses(texts, anchors, logit_scale=4.6, compat=compat) for texts in (found, written))
        for name in ("contrastive", "margin", "align"):
            torch.testing.assert_close(counted[name], plain[name])


def texts_of(normal_ND, manual_RD, learned_RD, counts_R=None):
    manual = torch.tensor(manual_RD)
    counts = torch.ones(len(manual)) if counts_R is None else torch.tensor(counts_R)
    return TextFeatures(torch.tensor(normal_ND), manual, torch.tensor(learned_RD), counts)


def test_directions_are_means_of_raw_rows():
    """Normal (2, 0) + (0, 2) point to (1, 1); abnormal 3 (0, 1) + (0, 0) + (3, 0), of 5 rows, point to (1, 1)."""
    found = texts_of([[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0]], [[0.0, 0.0], [3.0, 0.0]], [3.0]).directions()
    torch.testing.assert_close(found, torch.full((2, 2), math.sqrt(0.5)))


@pytest.mark.parametrize(("count", "expected"), [(1.0, math.log(2)), (2.0, math.log(2.5))])
def test_contrastive_term_by_hand(count, expected):
    """The right logit's exponential is 2, that of `count` + 1 wrong ones 1 each: the share is 2 / (3 + count)."""
    texts = texts_of([[5.0, 0.0]], [[0.0, 3.0]], [[0.0, 0.1]], [count])
    for anchors in (torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])):
        found = losses(texts, anchors, logit_scale=math.log(2))["contrastive"]
        torch.testing.assert_close(found, torch.tensor(expected))


def test_margin_of_images_by_hand():
    """Squared distances 0 and 2, then 2 and 0: relu gives 0 and 2, mean 1."""
    texts = texts_of([[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]])
    found = losses(texts, torch.eye(2), logit_scale=1.0)["margin"]
    torch.testing.assert_close(found, torch.tensor(1.0))
    assert losses(texts, torch.eye(2)[:1], logit_scale=1.0)["margin"].item() == 0
    assert losses(texts, torch.eye(2), logit_scale=1.0, compat="released")["margin"].item() == 1


@pytest.mark.parametrize(("compat", "expected"), [("zsad", 2 / 3), ("released", 0.0)])
def test_margin_of_patches_by_hand(compat, expected):
    """Two patches like the normal axis, one like the abnormal.

    Per patch: 0, 0, 2, mean 2/3. Over patches, channel 1: 0 + 0 + 1 to normal and 1 + 1 + 0 to abnormal; channel 2 the
    same: never positive.
    """
    texts = texts_of([[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]])
    anchors = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    found = losses(texts, anchors, logit_scale=1.0, compat=compat)["margin"]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_alignment_by_hand():
    """Unit rows: manual mean (3/4, 1/4) with counts 3 and 1, learned mean (0, 1): 9/16 + 9/16."""
    texts = texts_of([[1.0, 0.0]], [[4.0, 0.0], [0.0, 0.2]], [[0.0, 7.0]], [3.0, 1.0])
    torch.testing.assert_close(losses(texts, torch.eye(2), logit_scale=1.0)["align"], torch.tensor(9 / 8))


def test_the_learning_rate_is_a_cosine():
    config = PromptADTraining()
    rates = [learning_rate(config, epoch) for epoch in (0, 50, 100)]
    assert rates == pytest.approx([0.002, (0.002 + 1e-5) / 2, 1e-5])


def test_a_step_weighs_the_terms_and_moves_only_the_contexts(tiny_backbone):
    config = PromptADTraining(align_weight=0.5, momentum=0.0, weight_decay=0.0)
    before = weights_sha256(tiny_backbone.model)
    learner = new_learner(config, tiny_backbone, "cable", class_states("cable"), "seg")
    start = {name: value.detach().clone() for name, value in learner.named_parameters()}
    assert set(start) == {"normal_NCW", "abnormal_ACW"}
    found = step(
        learner, new_optimiser(config, learner), F.normalize(normal(2, 6, 32), dim=-1), config, logit_scale=LOGIT_SCALE
    )
    assert found["total"] == pytest.approx(found["contrastive"] + found["margin"] + 0.5 * found["align"], rel=1e-6)
    for name, value in learner.named_parameters():
        assert value.grad.abs().max() > 0
        torch.testing.assert_close(value.detach(), start[name] - 0.002 * value.grad)
    assert weights_sha256(tiny_backbone.model) == before


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_training_lowers_the_loss(tiny_backbone, task):
    config = PromptADTraining()
    anchors = F.normalize(normal(*((2, 32) if task == "cls" else (2, 16, 32))), dim=-1)
    learner = new_learner(config, tiny_backbone, "cable", class_states("cable"), task)
    optimiser = new_optimiser(config, learner)
    totals = [step(learner, optimiser, anchors, config, LOGIT_SCALE)["total"] for _ in range(15)]
    assert totals[-1] < totals[0]


def test_a_fit_gives_what_a_detector_needs(tiny_backbone):
    normals = tiny_model.pixels(2, 32, 32)
    before = weights_sha256(tiny_backbone.model)
    tensors = fit(SHORT, tiny_backbone, CABLE, [normals])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "object_name": (5,),
        "memory.1": (32, 64),
        "memory.2": (32, 64),
        "cls.text": (2, 32),
        "cls.normal_context": (3, 4, 32),
        "cls.abnormal_context": (4, 1, 32),
        "seg.text": (2, 32),
        "seg.normal_context": (1, 4, 32),
        "seg.abnormal_context": (4, 1, 32),
    }
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors.values())
    method = PromptAD(PromptADConfig(), tiny_backbone, CABLE, tensors)
    assert method.predict(normals).map_Bhw.max() < 1e-6
    assert weights_sha256(tiny_backbone.model) == before
    contexts = tensors["cls.normal_context"], tensors["cls.abnormal_context"]
    again = PromptLearner(tiny_backbone, "cable", class_states("cable"), *contexts)()
    torch.testing.assert_close(again.directions().detach(), tensors["cls.text"])


def test_a_fit_follows_its_seed_and_not_the_batches(tiny_backbone):
    normals = tiny_model.pixels(3, 24, 32)
    first = fit(SHORT, tiny_backbone, CABLE, [normals])
    second = fit(SHORT, tiny_backbone, CABLE, [normals])
    parts = fit(SHORT, tiny_backbone, CABLE, [normals[:1], normals[1:]])
    other = fit(replace(SHORT, seed=112), tiny_backbone, CABLE, [normals])
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor)
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=0)
    assert (other["cls.normal_context"] - first["cls.normal_context"]).abs().max() > 1e-3


def test_settings_of_the_method_reach_the_fit(tiny_backbone):
    normals = tiny_model.pixels(1, 32, 32)
    plain = fit(SHORT, tiny_backbone, CABLE, [normals])
    tapped = fit(SHORT, tiny_backbone, CABLE, [normals], method=PromptADConfig(first_tap=0))
    assert (tapped["memory.1"] - plain["memory.1"]).abs().max() > 1e-3
    assert torch.equal(tapped["memory.2"], plain["memory.2"])
    sharper = fit(SHORT, tiny_backbone, CABLE, [normals], method=PromptADConfig(logit_scale=50.0))
    assert not torch.equal(sharper["cls.text"], plain["cls.text"])


def test_the_form_of_the_margin_reaches_the_pixel_task_alone(tiny_backbone):
    """Unequal only while the hinge is active, as it is at the start over this tower."""
    normals = tiny_model.pixels(2, 32, 32)
    own = fit(SHORT, tiny_backbone, CABLE, [normals])
    released = fit(replace(SHORT, compat="released"), tiny_backbone, CABLE, [normals])
    assert torch.equal(own["cls.normal_context"], released["cls.normal_context"])
    assert not torch.equal(own["seg.normal_context"], released["seg.normal_context"])


@pytest.mark.parametrize(
    "name", ["{}", "{0} {x!r}", "a {b} c %s", "", "  ", "<end_of_text>", "<start_of_text> x", "螺丝", "two\nlines"]
)
def test_any_object_name_can_be_fitted(tiny_backbone, name):
    subject = Subject(object_name=name)
    normals = tiny_model.pixels(1, 16, 16)
    tensors = fit(replace(SHORT, epochs=1), tiny_backbone, subject, [normals])
    found = PromptAD(PromptADConfig(), tiny_backbone, subject, tensors).predict(tiny_model.pixels(1, 16, 16, seed=1))
    assert torch.isfinite(found.map_Bhw).all()
    assert 0 < found.score_B.item() < 0.5


@pytest.mark.parametrize("num_words", [61, 70, 500])
def test_a_name_that_leaves_no_room_is_refused(tiny_backbone, num_words):
    with pytest.raises(ConfigError, match=r"too long: with 5 learned vectors they pass the text tower's 77 tokens"):
        fit(SHORT, tiny_backbone, Subject(object_name="x " * (num_words + 10)), [tiny_model.pixels(1, 16, 16)])


def test_without_normal_images_nothing_is_fitted(tiny_backbone):
    with pytest.raises(ConfigError, match="no normal images"):
        fit(SHORT, tiny_backbone, CABLE, [])


def test_a_text_tower_without_causal_mask_is_refused():
    cfg = tiny_model.model_cfg(custom_text=True, text={"no_causal_mask": True})
    backbone = tiny_model.backbone_of(tiny_model.random_model(cfg))
    with pytest.raises(ModelError, match="causal"):
        fit(SHORT, backbone, CABLE, [tiny_model.pixels(1, 16, 16)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"num_contexts_cls": 0}, "num_contexts_cls is 0"),
        ({"num_abnormal": -1}, "num_abnormal is -1"),
        ({"learning_rate": 0.0}, "learning rates go from 0.0"),
        ({"final_learning_rate": 0.1}, "learning rates go from 0.002 to 0.1"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"align_weight": math.nan}, "align_weight"),
        ({"compat": "paper"}, "compat is 'paper'"),
    ],
)
def test_impossible_recipes_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PromptADTraining(**settings)
