import torch

from zsad.backbone.similarity import similarity


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
