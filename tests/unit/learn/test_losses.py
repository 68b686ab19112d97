"""Focal and dice losses worked out by hand."""

import math

import pytest
import torch

from zsad.learn.losses import dice_loss, focal_loss, focal_of_map


def test_focal_loss_by_hand():
    """Two pixels: the true class has 1/2 and 1/4; -(1/2)^2 ln(1/2) and -(3/4)^2 ln(1/4), up to the smoothing."""
    probabilities = torch.tensor([[[[0.5, 0.25]], [[0.3, 0.25]], [[0.2, 0.5]]]])
    found = focal_loss(probabilities, torch.tensor([[[0, 1]]]))
    assert found.item() == pytest.approx((0.25 * math.log(2) + 0.5625 * math.log(4)) / 2, abs=1e-4)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_focal_loss_smooths_the_labels(num_classes):
    """Sure of the wrong class: p = s / (C - 1) + s; sure of the right one: p = 1, no loss."""
    wrong = torch.zeros(1, num_classes, 1, 1)
    wrong[:, 1] = 1
    p = 1e-5 / (num_classes - 1) + 1e-5
    found = focal_loss(wrong, torch.zeros(1, 1, 1, dtype=torch.long))
    assert found.item() == pytest.approx(-((1 - p) ** 2) * math.log(p), rel=1e-5)
    assert focal_loss(wrong, torch.ones(1, 1, 1, dtype=torch.long)).item() == pytest.approx(0, abs=1e-12)


def test_focal_loss_weighs_hard_pixels_more():
    """Twice as far from 1 is four times the weight beside the logarithm."""
    losses = [
        focal_loss(torch.tensor([[[[p]], [[1 - p]]]]), torch.zeros(1, 1, 1, dtype=torch.long)) for p in (0.8, 0.9)
    ]
    assert (losses[0] / losses[1]).item() == pytest.approx(4 * math.log(0.8) / math.log(0.9), rel=1e-3)


def test_dice_loss_by_hand():
    """First image: 2 * 0.75 + 1 over 1 + 1 + 1; second, nothing to find and nothing found: 1 over 1."""
    probability = torch.tensor([[[0.75, 0.25], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[True, False], [False, False]], [[False, False], [False, False]]])
    expected = 1 - (2.5 / 3 + 1) / 2
    assert dice_loss(probability, target).item() == pytest.approx(expected)


def test_dice_loss_is_zero_only_for_the_mask_itself():
    target = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    assert dice_loss(target.float(), target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss((~target).float(), target).item() > 0.8


def test_the_focal_loss_of_a_map_is_that_of_its_two_classes_and_so_is_its_gradient():
    generator = torch.Generator().manual_seed(0)
    map_BRQ = torch.rand(2, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    is_bad_BRQ = torch.rand(2, 5, 7, generator=generator) > 0.5
    expected = focal_loss(torch.stack([1 - map_BRQ, map_BRQ], dim=1), is_bad_BRQ.long())
    found = focal_of_map(map_BRQ, is_bad_BRQ.to(map_BRQ.dtype))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    (expected_gradient,) = torch.autograd.grad(3 * expected, map_BRQ)
    (gradient,) = torch.autograd.grad(3 * found, map_BRQ)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_the_focal_loss_of_a_map_is_finite_where_the_map_is_certain_and_wrong():
    map_BRQ = torch.tensor([[[0.0, 1.0]]]).requires_grad_()
    loss = focal_of_map(map_BRQ, torch.tensor([[[1.0, 0.0]]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(map_BRQ.grad).all()
