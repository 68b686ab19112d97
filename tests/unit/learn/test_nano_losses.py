"""Loss terms of nano's pre-training, by hand."""

import math

import numpy as np
import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.learn import nano_losses, wording
from zsad.learn.nano_losses import Prototypes
from zsad.learn.pool import Batch
from zsad.learn.styles import TRAINED_DEFECTS

KINDS = [("wood", "surface"), ("glass", "disc"), ("wood", "surface"), ("glass", "disc")]


def test_contrastive_loss_by_hand():
    """Logits (a, b; c, d) with only the diagonal positive: mean of four cross-entropies."""
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    soft = [math.log(1 + math.exp(-x)) for x in (1, 3, 2, 2)]  # rows 2-1, 3-0; columns 2-0, 3-1
    found = nano_losses.contrastive_loss(logits, torch.eye(2, dtype=torch.bool))
    assert float(found) == pytest.approx(sum(soft) / 4)
    assert float(nano_losses.contrastive_loss(logits, torch.ones(2, 2, dtype=torch.bool))) == pytest.approx(0, abs=1e-6)


def test_state_loss_by_hand():
    """One image on the abnormal axis: margin 1 / 0.07 for the right and the wrong answer."""
    image, states = torch.tensor([[0.0, 1.0]]), torch.eye(2)[None, None]
    margin = 1 / 0.07
    right, wrong = (float(nano_losses.state_loss(image, states, torch.tensor([bad]))) for bad in (True, False))
    assert right == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    assert wrong == pytest.approx(margin + math.log1p(math.exp(-margin)), rel=1e-6)


def test_dense_loss_by_hand():
    """Patches with probability 1/2: one defective (weight 5), one clean (1), one sliver (0)."""
    patches = torch.zeros(1, 3, 2)
    found = nano_losses.dense_loss(patches, torch.eye(2)[None, None], torch.tensor([[0.5, 0.0, 0.04]]))
    dice = 1 - (2 * 0.5 + 1) / (1.0 + 1.0 + 1)
    assert float(found) == pytest.approx(math.log(2) + dice)


def test_type_loss_by_hand():
    """The covered patches lie on the word's own axis; slivers, normal images and other axes do not count."""
    words = torch.eye(len(TRAINED_DEFECTS))
    patches = F.one_hot(torch.tensor([[0, 0, 1], [2, 2, 2]]), len(TRAINED_DEFECTS)).float()
    coverage = torch.tensor([[1.0, 0.5, 0.04], [1.0, 1.0, 1.0]])
    batch = Batch(torch.zeros(0), coverage, [("a", "b")] * 2, [TRAINED_DEFECTS[0], "good"])
    expected = math.log(1 + (len(TRAINED_DEFECTS) - 1) * math.exp(-1 / 0.07))
    assert float(nano_losses.type_loss(patches, words, batch)) == pytest.approx(expected, abs=1e-6)
    nothing = Batch(torch.zeros(0), coverage, [("a", "b")] * 2, ["good", "good"])
    assert float(nano_losses.type_loss(patches, words, nothing)) == 0


def batch_of(defects, coverage=0.5):
    """Twins with two patches each, the first of the defective ones covered."""
    covered = torch.tensor([[coverage if name != "good" else 0.0, 0.0] for name in defects])
    return Batch(torch.zeros(0), covered, KINDS[: len(defects)], defects)


def test_prototypes_of_defects_lean_towards_abnormal():
    torch.manual_seed(0)
    states, defects = Prototypes(32).directions()
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(defects.norm(dim=-1), torch.ones(len(TRAINED_DEFECTS)))
    assert torch.all(defects @ states[1] > 0.5)


def test_vision_asks_for_abnormal_and_for_the_defect_of_the_pair():
    """Prototypes on axes of their own: what sits on its axis costs nothing, the twin is asked for the same defect."""
    count = len(TRAINED_DEFECTS)
    axes = torch.eye(2 + count)
    directions = (axes[:2], axes[2:])
    second = TRAINED_DEFECTS.index("hole")
    batch = batch_of(["hole", "dent", "good", "good"])
    bad = F.normalize(axes[1] + axes[2 + second], dim=0)
    image = torch.stack([bad, F.normalize(axes[1] + axes[2 + TRAINED_DEFECTS.index("dent")], dim=0), axes[0], axes[0]])
    patches = torch.stack([torch.stack([row, axes[0]]) for row in image])
    found = nano_losses.vision_losses(image, patches, directions, batch)
    margin = math.log1p(math.exp(-1 / math.sqrt(2) / 0.07)), math.log1p(math.exp(-1 / 0.07))
    assert float(found["state"]) == pytest.approx((margin[0] + margin[1]) / 2, abs=1e-7)
    assert float(found["type"]) == pytest.approx(
        0.5 * math.log1p((count - 1) * math.exp(-1 / math.sqrt(2) / 0.07)), abs=1e-7
    )
    tripled = nano_losses.vision_losses(image, patches, directions, batch, type_weight=1.5)
    assert float(tripled["type"]) == pytest.approx(3 * float(found["type"]))
    wrong = nano_losses.vision_losses(image.flip(0), patches.flip(0), directions, batch)
    assert float(wrong["state"]) > 100 * float(found["state"])
    assert float(wrong["dense"]) > float(found["dense"])


def words(defects):
    return wording.write(np.random.default_rng(0), KINDS[: len(defects)], defects, np.array(["river"]))


def test_sentences_that_point_at_their_prototype_cost_nothing(monkeypatch):
    """Texts are replaced by the very directions they mean."""
    defects = ["hole", "dent", "good", "good"]
    said = words(defects)
    axes = torch.eye(2 + len(TRAINED_DEFECTS))
    meant = torch.zeros(len(said.texts), len(axes))
    meant[:4] = axes[[2 + TRAINED_DEFECTS.index("hole"), 2 + TRAINED_DEFECTS.index("dent"), 0, 0]]
    for group in (*said.shared, *said.own.values()):
        meant[group.normal], meant[group.abnormal] = axes[0], axes[1]
    for k, rows in enumerate(said.defects):
        meant[rows] = axes[2 + k]
    monkeypatch.setattr(nano_losses, "encode_texts", lambda *_: meant)
    found = nano_losses.text_losses(None, (axes[:2], axes[2:]), said, defects)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"sentences": 0, "ensembles": 0}, abs=1e-6
    )
    monkeypatch.setattr(nano_losses, "encode_texts", lambda *_: -meant)
    found = nano_losses.text_losses(None, (axes[:2], axes[2:]), said, defects)
    assert {name: float(value) for name, value in found.items()} == pytest.approx({"sentences": 2, "ensembles": 2})


def test_both_towers_get_gradients_from_sentences(tiny_network):
    from zsad.learn.pretrain import encode_pixels

    model = tiny_model.copy.deepcopy(tiny_network).requires_grad_()
    defects = ["hole", "good"]
    batch = batch_of(defects, coverage=1.0)
    image, patches = encode_pixels(model, tiny_model.pixels(2, 32, 32))
    batch = Batch(batch.pixels_BHWC, torch.cat([batch.coverage_BP, torch.zeros(2, 14)], dim=1), batch.kinds, defects)
    terms = nano_losses.joint_losses(model, image, patches, batch, words(defects))
    assert set(terms) == {"captions", "state", "dense", "type"}
    sum(terms.values()).backward()
    for parameter in (model.visual.conv1.weight, model.visual.proj, model.text_projection, model.logit_scale):
        assert float(parameter.grad.abs().sum()) > 0
