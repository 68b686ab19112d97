"""FAPrompt's losses by hand, and what one training step may and may not change."""

import math

import pytest
import tiny_model
import torch

from zsad.learn import faprompt as learn
from zsad.methods.base import Subject
from zsad.methods.faprompt import FAPrompt, FAPromptConfig, PromptEncoder, initial_tensors

LN2 = math.log(2)
CONFIG = FAPromptConfig(num_prompts=3, num_selected=4)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, torch.tensor(float(expected)), atol=tolerance, rtol=0)


def test_the_score_is_taken_as_a_logit():
    """A score of 0 is the probability 1/2: (1/2)^2 ln 2, whatever the label."""
    close(learn.focal_bce(torch.zeros(2), torch.tensor([0.0, 1.0])), LN2 / 4)
    right = 1 / (1 + math.exp(-1))
    close(learn.focal_bce(torch.ones(1), torch.ones(1)), -((1 - right) ** 2) * math.log(right))


def test_overlap_sums_the_absolute_cosine_of_every_pair_once():
    close(learn.overlap(torch.eye(4)), 0)
    close(learn.overlap(torch.ones(4, 3)), 6)
    close(learn.overlap(torch.tensor([[2.0, 0.0], [-3.0, 0.0], [0.6, 0.8]])), 1 + 0.6 + 0.6)


def test_the_prior_is_to_vanish_for_normal_images_only():
    """Mean squares 5/2, 50 and 8, of which the second belongs to a defective image; the sum, not the mean."""
    prior = torch.tensor([[1.0, 2.0], [6.0, 8.0], [4.0, 0.0]])
    close(learn.prior_size(prior, torch.tensor([0.0, 1.0, 0.0])), 2.5 + 8)


def test_the_total_is_weighted():
    names = list(learn.WEIGHTS)
    weights = [1, 1, 1, 0.5, 0.5, 0.5, 1, 1, 0.1, 1]
    terms = {name: torch.tensor(10.0**number) for number, name in enumerate(names)}
    expected = sum(weight * 10.0**number for number, weight in enumerate(weights))
    assert float(learn.total(terms)) == pytest.approx(expected)


# A step over the tiny towers


@pytest.fixture(scope="module")
def encoder(tiny_backbone):
    return PromptEncoder(CONFIG, tiny_backbone)


@pytest.fixture
def leaves(tiny_backbone):
    return learn.trainable(initial_tensors(CONFIG, tiny_backbone, 0))


@pytest.fixture(scope="module")
def batch(tiny_backbone):
    """Two images of 4 x 6 patches, the second one defective in its upper half."""
    image_BD, patches_BPD, grid = learn.frozen_features(tiny_backbone, CONFIG, tiny_model.pixels(2, 32, 48))
    masks = torch.zeros(2, 32, 48, dtype=torch.uint8)
    masks[1, :16] = 1
    return learn.Batch(image_BD, patches_BPD, grid, masks, torch.tensor([False, True]))


def part(batch, rows):
    return learn.Batch(
        batch.image_BD[rows], batch.patches_BPD[rows], batch.grid, batch.masks_BHW[rows], batch.is_bad_B[rows]
    )


def test_features_are_those_of_prediction(tiny_backbone, batch):
    method = FAPrompt(CONFIG, tiny_backbone, Subject(), initial_tensors(CONFIG, tiny_backbone, 0))
    assert torch.equal(method.predict(tiny_model.pixels(2, 32, 48)).patches_BPD, batch.patches_BPD)
    assert batch.grid == (4, 6)


def test_image_features_skip_the_last_norm(tiny_backbone, batch):
    with_norm = tiny_backbone.encode_image(tiny_model.pixels(2, 32, 48)).image_BD
    assert (with_norm - batch.image_BD).abs().max() > 1e-2
    torch.testing.assert_close(batch.image_BD.norm(dim=-1), torch.ones(2))


def test_every_learned_tensor_and_nothing_else_gets_a_gradient(tiny_backbone, encoder, leaves, batch):
    learn.total(learn.loss_terms(encoder, leaves, batch)).backward()
    assert all(float(leaf.grad.abs().max()) > 0 for leaf in leaves.values())
    assert all(parameter.grad is None for parameter in tiny_backbone.model.parameters())


def test_a_step_leaves_the_towers_alone_and_moves_every_tensor(tiny_backbone, encoder, leaves, batch):
    """Adam's first step is at most the learning rate, and the learning rate where a gradient is not tiny."""
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    frozen = [parameter.clone() for parameter in tiny_backbone.model.parameters()]
    terms = learn.train_step(encoder, leaves, learn.make_optimiser(leaves), batch)
    assert set(terms) == set(learn.WEIGHTS)
    for name, leaf in leaves.items():
        moved = float((leaf.detach() - before[name]).abs().max())
        assert moved == pytest.approx(learn.LEARNING_RATE, rel=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(frozen, tiny_backbone.model.parameters(), strict=True))


def test_steps_lower_the_loss(encoder, leaves, batch):
    optimiser = learn.make_optimiser(leaves)

    def loss():
        with torch.no_grad():
            return float(learn.total(learn.loss_terms(encoder, leaves, batch)))

    first = loss()
    for _ in range(20):
        learn.train_step(encoder, leaves, optimiser, batch)
    assert loss() < first - 0.1


def test_a_batch_of_one_image_is_no_special_case(encoder, leaves, batch):
    """Terms that are means over images are the mean of both images' own; the prior's is their sum."""
    with torch.no_grad():
        whole = learn.loss_terms(encoder, leaves, batch)
        single = [learn.loss_terms(encoder, leaves, part(batch, slice(row, row + 1))) for row in range(2)]
    for name in learn.WEIGHTS:
        terms = torch.stack([terms[name] for terms in single])
        expected = terms.sum() if name == "prior" else terms.mean()
        torch.testing.assert_close(whole[name], expected, atol=1e-5, rtol=1e-5)


def test_dense_terms_hold_each_side_of_the_map_against_its_side_of_the_mask(encoder, leaves, batch):
    """All N pixels defective, the map's sum S: dice 1 - 1 / (N - S + 1) for normal, 1 - (2 S + 1) / (S + N + 1)."""
    masks = torch.ones_like(batch.masks_BHW[:1])
    one = learn.Batch(batch.image_BD[:1], batch.patches_BPD[:1], batch.grid, masks, torch.ones(1, dtype=torch.bool))
    terms = {name: float(term.detach()) for name, term in learn.loss_terms(encoder, leaves, one).items()}
    count = masks.numel()
    for number in "12":
        found = count + 1 - 1 / (1 - terms[f"dice_normal_{number}"])
        assert 0.01 < found / count < 0.99
        assert terms[f"dice_abnormal_{number}"] == pytest.approx(1 - (2 * found + 1) / (found + count + 1), abs=1e-4)


def test_masks_may_be_boolean(encoder, leaves, batch):
    as_bool = learn.Batch(batch.image_BD, batch.patches_BPD, batch.grid, batch.masks_BHW.bool(), batch.is_bad_B)
    with torch.no_grad():
        expected, found = (learn.loss_terms(encoder, leaves, b) for b in (batch, as_bool))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_trained_tensors_make_a_method(tiny_backbone, encoder, leaves, batch):
    images = tiny_model.pixels(2, 32, 48)
    learn.train_step(encoder, leaves, learn.make_optimiser(leaves), batch)
    method = FAPrompt(CONFIG, tiny_backbone, Subject(), leaves)
    assert not any(tensor.requires_grad for tensor in method.tensors.values())
    untrained = FAPrompt(CONFIG, tiny_backbone, Subject(), initial_tensors(CONFIG, tiny_backbone, 0))
    assert not torch.equal(method.predict(images).score_B, untrained.predict(images).score_B)


def test_the_weights_that_may_be_chosen_scale_their_own_terms_alone(encoder, leaves, batch):
    published = learn.FAPromptLearner.start(encoder, leaves).terms(batch, 1.0)
    chosen = learn.FAPromptLearner.start(encoder, leaves, overlap_weight=0.05, dice_weight=0.25).terms(batch, 1.0)
    factors = {name: float((chosen[name] / published[name]).detach()) for name in published}
    expected = {name: 0.25 if name.startswith("dice_") else 1.0 for name in published} | {"orthogonal": 0.5}
    assert factors == pytest.approx(expected)
