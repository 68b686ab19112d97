"""The convolutional stem: whose statistics normalise what, and that it is a patch embedding."""

import pytest
import torch

from zsad.backbone.stem import ConvStem, MixedNorm, Residual


def pixels(rows, side=16):
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_first_channels_are_normalised_by_the_image_alone():
    """Two images at other levels and contrasts: -1 and 1 in both, as (x - mean) / spread."""
    x = torch.tensor([[0.0, 2.0], [100.0, 160.0]]).reshape(2, 1, 1, 2).expand(2, 2, 1, 2)
    for training in (True, False):
        found = MixedNorm(2, num_instance=1).train(training)(x)[:, 0]
        torch.testing.assert_close(found.flatten(1), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), atol=1e-4, rtol=0)


def test_the_other_channels_are_normalised_by_what_training_saw():
    """Mean 4 and variance 9 from training: 10 becomes 2, then times 5 plus 1."""
    norm = MixedNorm(1, num_instance=0).eval()
    norm.running_mean.fill_(4)
    norm.running_var.fill_(9)
    with torch.no_grad():
        norm.weight.fill_(5)
        norm.bias.fill_(1)
    assert float(norm(torch.full((1, 1, 1, 1), 10.0)).detach()) == pytest.approx(11, abs=1e-4)


def test_training_averages_the_statistics_of_its_batches():
    """A batch of 0 and 20: mean 10, variance 100; a tenth of each is taken over from the start at 0 and 1."""
    norm = MixedNorm(1, num_instance=0).train()
    found = norm(torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0]))
    assert float(norm.running_mean) == pytest.approx(1.0)
    assert float(norm.running_var) == pytest.approx(0.9 + 10.0)


def test_the_mixed_statistics_keep_their_channels():
    """One channel of its own, one shared: only the second knows that image 1 is ten times brighter."""
    x = torch.tensor([[1.0, 3.0], [10.0, 30.0]]).reshape(2, 1, 1, 2).expand(2, 2, 1, 2)
    found = MixedNorm(2, num_instance=1).eval()(x)
    torch.testing.assert_close(found[:, 0].flatten(1), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 1], x[:, 1], atol=1e-3, rtol=1e-4)


def test_a_new_residual_changes_nothing():
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(Residual(8)(x), x)


def test_it_is_a_patch_embedding_of_the_given_width():
    stem = ConvStem((4, 6, 10)).eval()
    assert stem.out_channels == 10
    assert stem(pixels(2, 32)).shape == (2, 10, 4, 4)  # three halvings: patches of 8 px
    assert stem(pixels(1, 16)).shape == (1, 10, 2, 2)


def test_an_image_is_embedded_alike_in_any_batch():
    stem = ConvStem((4, 8)).eval()
    with torch.no_grad():
        torch.testing.assert_close(stem(pixels(5))[3:4], stem(pixels(5)[3:4]), atol=1e-6, rtol=0)
