"""Where nano's vision tower starts from: positions as sines, attention that compares like with like.

A ViT trained from scratch on a few hundred thousand images spends many of them on learning that neighbours matter. That
can be given: the position embedding starts at sines and cosines, and every attention block starts out comparing each
token with similar ones and subtracting a part of their mean. What is left of a token is what its surroundings do not
explain, which is nearly the definition of an anomaly.

Source: mimetic initialisation (arXiv 2305.09828), simplified: exact identities in place of their noisy ones.
"""

from typing import Any

import torch
from torch import Tensor, nn

LIKENESS = 0.5  # how much a token looks at tokens like itself
SUBTRACTED = 0.5  # how much of what it sees is taken off
POSITION = 0.5  # size of the position embedding


def initialise_vision(visual: Any) -> None:
    """Set the starting weights of an open_clip vision transformer in place, from torch's generator."""
    with torch.no_grad():
        visual.positional_embedding.copy_(POSITION * _sines(visual.positional_embedding, visual.grid_size[0]))
        for block in visual.transformer.resblocks:
            _compare_and_subtract(block.attn)


def make_identity(block: Any) -> None:
    """Set what an attention block and its MLP add to a token to zero, in place; what they read it with stays."""
    with torch.no_grad():
        for layer in (block.attn.out_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()


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
