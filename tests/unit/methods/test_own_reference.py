"""An image as its own reference, by hand."""

import pytest
import torch

from zsad.methods.own_reference import unlikeness


def test_the_odd_one_out_stands_out_by_its_distance_to_the_nearest():
    """x, x, y: nearest of the others at distance 0, 0 and 1; less their mean 1/3. Lengths do not matter."""
    found = unlikeness(torch.tensor([[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]]))
    torch.testing.assert_close(found, torch.tensor([[-1 / 3, -1 / 3, 2 / 3]]))


def test_the_nearest_tenth_of_the_others_counts():
    """21 patches: the two nearest of twenty. A pair of odd ones has one equal partner and one at distance 1."""
    tokens = torch.tensor([[1.0, 0.0]] * 19 + [[0.0, 1.0]] * 2)
    found = unlikeness(tokens[None])[0]
    mean = 2 * 0.5 / 21
    torch.testing.assert_close(found, torch.tensor([-mean] * 19 + [0.5 - mean] * 2))


def test_a_defect_that_is_everywhere_stands_out_nowhere():
    assert unlikeness(torch.ones(1, 9, 4)).abs().max() < 1e-6


def test_one_patch_has_nothing_to_be_compared_with():
    assert unlikeness(torch.ones(2, 1, 4)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("place", [0, 2])
def test_an_image_does_not_depend_on_its_batch(place):
    tokens = torch.randn(3, 196, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unlikeness(tokens)[place], unlikeness(tokens[place : place + 1])[0])
