"""The published form of a map against SciPy and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from zsad.methods.maps import published_map


def random_maps(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("grid", "size", "sigma"),
    [((7, 7), (98, 98), 3 / 98), ((4, 6), (64, 96), 1 / 16), ((3, 3), (24, 24), 10 / 24), ((2, 5), (9, 31), 0.02)],
)
def test_it_is_bilinear_up_sampling_and_scipys_filter(grid, size, sigma):
    """Sigma is a share of each side. The third case reaches beyond the map's width: it is mirrored more than once."""
    maps = random_maps(2, *grid)
    up_sampled = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(plane, (sigma * size[0], sigma * size[1])) for plane in up_sampled])
    np.testing.assert_allclose(published_map(maps, size, sigma).numpy(), expected, atol=1e-6, rtol=0)


def test_without_sigma_it_is_up_sampling_alone():
    maps = random_maps(3, 5, 4)
    expected = F.interpolate(maps[:, None], size=(20, 24), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(published_map(maps, (20, 24), 0.0), expected, atol=1e-6, rtol=0)


def test_up_sampling_by_hand():
    """Half a pixel apart: 0, 1 becomes 0, 0.25, 0.75, 1 along both axes."""
    found = published_map(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (4, 4), 0.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(1, 4, 4))


def test_constant_maps_stay_constant():
    found = published_map(torch.full((1, 3, 4), 0.25), (30, 40), 0.15)
    torch.testing.assert_close(found, torch.full((1, 30, 40), 0.25), atol=1e-6, rtol=0)
