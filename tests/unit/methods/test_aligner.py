"""The maps from global to local space, where their answer is known."""

import pytest
import torch
import torch.nn.functional as F

from zsad.methods.aligner import pairs, ridge, transport


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("num_pairs", [5, 40])
def test_equal_sides_leave_directions_of_their_span_alone(num_pairs):
    """L = G and lambda -> 0: fewer and more pairs than dimensions."""
    global_MD = unit(num_pairs, 16)
    text_SD = F.normalize(unit(2, num_pairs, seed=1) @ global_MD, dim=-1)
    torch.testing.assert_close(ridge(text_SD, global_MD, global_MD, 1e-10), text_SD, atol=1e-5, rtol=0)


def test_a_rotation_between_the_spaces_is_found():
    global_MD, turn = unit(366, 64), torch.linalg.qr(unit(64, 64, seed=1)).Q
    text_SD = unit(2, 64, seed=2)
    found = ridge(text_SD, global_MD, global_MD @ turn, 0.1)
    assert ((found * (text_SD @ turn)).sum(dim=-1) > 0.99).all()


def test_ridge_is_the_formula_written_out():
    global_MD, local_MD, text_SD = unit(7, 4), unit(7, 4, seed=1), unit(2, 4, seed=2)
    gram = global_MD @ global_MD.T
    strength = 0.3 * gram.trace() / 7
    full = global_MD.T @ torch.linalg.inv(gram + strength * torch.eye(7)) @ local_MD
    torch.testing.assert_close(ridge(text_SD, global_MD, local_MD, 0.3), F.normalize(text_SD @ full, dim=-1))


def test_identical_pairs_are_no_trouble():
    """A blank image: every window is the same, the Gram matrix has rank 1."""
    global_MD = unit(1, 8).expand(20, 8).float()
    found = ridge(unit(2, 8, seed=1).float(), global_MD, global_MD, 0.1)
    assert found.isfinite().all()


def test_transport_by_hand():
    """Similarities 0 and 0.05 ln 3 to the two globals: a quarter of the first local, three quarters of the second."""
    global_MD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text_SD = torch.tensor([[0.0, 0.05 * 1.0986123]])
    found = transport(text_SD, global_MD, torch.eye(2))
    torch.testing.assert_close(found, torch.tensor([[1.0, 3.0]]) / 10**0.5)


def test_pairs_are_the_image_and_every_window_with_the_mean_of_its_tokens():
    tokens_PD = unit(6, 4)  # a grid of 2 x 3
    windows = {2: unit(2, 4, seed=1)}
    image_D = unit(4, seed=2)
    global_MD, local_MD = pairs(image_D, windows, tokens_PD, (2, 3))
    torch.testing.assert_close(global_MD, torch.stack([image_D, *windows[2]]))
    expected = [tokens_PD.mean(dim=0), tokens_PD[[0, 1, 3, 4]].mean(dim=0), tokens_PD[[1, 2, 4, 5]].mean(dim=0)]
    torch.testing.assert_close(local_MD, torch.stack(expected))
