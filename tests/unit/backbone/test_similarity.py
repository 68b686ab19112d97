import math

import torch

from zsad.backbone.similarity import probability, similarity, total


def test_dot_products_with_every_direction():
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    directions = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert torch.allclose(similarity(features, directions), torch.tensor([[0.0, 1.0, -1.0], [0.8, 0.6, -0.6]]))


def test_a_rows_bits_do_not_depend_on_its_place():
    generator = torch.Generator().manual_seed(0)
    features, directions = torch.randn(4, 32, generator=generator), torch.randn(2, 32, generator=generator)
    whole = similarity(features, directions)
    for shift in range(1, 4):
        assert torch.equal(similarity(features.roll(shift, dims=0), directions).roll(-shift, dims=0), whole)


def test_probability_is_the_sigmoid():
    margins = torch.tensor([[0.0, math.log(3)], [-math.log(3), math.log(9)]])
    assert torch.allclose(probability(margins), torch.tensor([[0.5, 0.75], [0.25, 0.9]]))


def test_a_probabilitys_bits_do_not_depend_on_its_place():
    """Counts from below one vector of the processor to more than two, with a remainder."""
    for value in torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist():
        assert all(len(probability(torch.full((count,), value)).unique()) == 1 for count in (5, 33, 80, 1000))


def test_a_sums_bits_do_not_depend_on_its_place():
    """More terms than four, and lengths with and without a remainder."""
    terms = torch.randn(9, generator=torch.Generator().manual_seed(0)).tolist()
    expected = total([torch.tensor(term) for term in terms])
    for count in (5, 33, 80, 1000):
        assert (total([torch.full((count,), term) for term in terms]) == expected).all()
