"""Where nano's vision tower starts from: patches as principal components, attention that compares like with like.

A ViT trained from scratch on a few hundred thousand images spends most of them on learning what a patch is and that
neighbours matter. Both can be given: the patch embedding starts at whitened principal components of real patches, the
position embedding at sines and cosines, and every attention block starts out comparing each token with similar ones and
subtracting a part of their mean. What is left of a token is what its surroundings do not explain, which is nearly the
definition of an anomaly. Measured on patch AUROC after 160 steps of 64 windows:
0.58 with the patches alone, 0.70 with all.

Source: mimetic initialisation (arXiv 2305.09828), simplified: exact identities in place of their noisy ones.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zsad.learn.pool import Pool

PCA_PATCHES = 8000
WHITENED = 96
LIKENESS = 0.5  # how much a token looks at tokens like itself
SUBTRACTED = 0.5  # how much of what it sees is taken off
POSITION = 0.5  # size of the position embedding


def initialise_vision(visual: Any, pool: Pool, rng: np.random.Generator) -> None:
    """Set the starting weights of an open_clip vision transformer in place.

    Args:
        visual: the tower; its random parts come from torch's own generator.
        pool: images to take patches from.
        rng: chooses the patches.
    """
    with torch.no_grad():
        visual.conv1.weight.copy_(_principal_patches(visual.conv1.weight, pool, rng))
        visual.positional_embedding.copy_(POSITION * _sines(visual.positional_embedding, visual.grid_size[0]))
        for block in visual.transformer.resblocks:
            _compare_and_subtract(block.attn)


def _principal_patches(weight: Tensor, pool: Pool, rng: np.random.Generator) -> Tensor:
    """Principal components as filters; those after the first `WHITENED` stay small, and so does noise."""
    width, _, patch, _ = weight.shape
    draws = [_patch(pool, rng, patch) for _ in range(PCA_PATCHES)]
    patches_NF = (torch.from_numpy(np.stack(draws)).float() / 255 - 0.5) / 0.25
    _, singular, components_FF = torch.linalg.svd(patches_NF - patches_NF.mean(dim=0), full_matrices=False)
    variances = singular[:width] ** 2 / PCA_PATCHES
    filters: Tensor = components_FF[:width] / (variances + variances[WHITENED]).sqrt()[:, None]
    return filters.reshape(width, patch, patch, 3).permute(0, 3, 1, 2)


def _patch(pool: Pool, rng: np.random.Generator, patch: int) -> NDArray[np.uint8]:
    image, _, _ = pool.item(int(rng.integers(len(pool))))
    y, x = rng.integers(image.shape[0] - patch + 1, size=2)
    return image[y : y + patch, x : x + patch].ravel()


def _sines(positional_embedding: Tensor, grid: int) -> Tensor:
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    return torch.from_numpy(get_2d_sincos_pos_embed(positional_embedding.shape[1], grid, cls_token=True)).float()


def _compare_and_subtract(attn: nn.MultiheadAttention) -> None:
    width = attn.embed_dim
    queries = nn.init.orthogonal_(torch.empty(width, width)) * LIKENESS**0.5
    values = nn.init.orthogonal_(torch.empty(width, width))
    attn.in_proj_weight.copy_(torch.cat([queries, queries, values]))
    attn.out_proj.weight.copy_(-SUBTRACTED * values.T)
    attn.in_proj_bias.zero_()
    attn.out_proj.bias.zero_()
