"""Dense features from an open_clip vision transformer: the ordinary stream, the value-value stream, and taps.

CLIP's patch tokens are trained only through the class token, so they describe their surroundings more than themselves.
Replacing query-key attention by value-value attention in a second, residual-only stream keeps each token about its own
place. Both streams share every weight:

    h <- h + Attn(LN1 h) ; h <- h + MLP(LN2 h)                    the ordinary CLIP stream
    z <- z + VV(LN1 h)   for blocks >= vv_start, z = h before it   the value-value stream, no MLP, no norm of its own

Legend: B images, N = 1 + P tokens, P patches, W tower width, D joint width.
Cost: the second stream adds one attention and one output projection per block, about 20 % of a plain pass.
Source: CLIP Surgery (arXiv 2304.05653); start block as in AnomalyCLIP (arXiv 2310.18961), generalised to L layers.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STABLE_ROWS = 12  # from this many rows on, no difference between places or thread counts was seen


@dataclass(frozen=True, slots=True)
class Streams:
    """What one pass through the tower gives.

    `h_BNW` and `z_BNW` are the ends of the two streams before `ln_post`; `taps` maps a 0-based block to the ordinary
    stream after that block's attention and before its MLP, (B, N, W).
    """

    h_BNW: Tensor
    z_BNW: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)


def default_vv_start(num_layers: int) -> int:
    """First block of the value-value stream: block 5 of 24, and the same share of any other depth."""
    return round(5 * num_layers / 24)


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm` of `x` computed in fp32 whatever the precision of `x`; identity modules pass through."""
    if not isinstance(norm, nn.LayerNorm):
        return x
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


def position_embedding(visual: Any, grid: tuple[int, int]) -> Tensor:
    """Position embedding (1 + rows * columns, W) for a grid of patches; bilinear, from the stored grid every time.

    The class slot is kept. The stored parameter is never overwritten, so sizes can alternate.
    """
    stored: Tensor = visual.positional_embedding
    rows, columns = visual.grid_size
    if grid == (rows, columns):
        return stored
    spatial_1WHW = stored[1:].float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(spatial_1WHW, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([stored[:1].float(), resized.flatten(2).permute(0, 2, 1)[0]]).to(stored.dtype)


def embed(visual: Any, pixels_BCHW: Tensor) -> Tensor:
    """Tokens (B, N, W) that enter block 0: patch embedding, class token, positions, `ln_pre`."""
    x_BWhw = visual.conv1(pixels_BCHW)
    grid = (x_BWhw.shape[2], x_BWhw.shape[3])
    x_BPW = x_BWhw.flatten(2).permute(0, 2, 1)
    class_B1W = visual.class_embedding.to(x_BPW.dtype).expand(len(x_BPW), 1, -1)
    x_BNW = torch.cat([class_B1W, x_BPW], dim=1) + position_embedding(visual, grid).to(x_BPW.dtype)
    return layer_norm(visual.ln_pre, x_BNW)


def attend(attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> Tensor:
    """Output projection of softmax(q k^T / sqrt(d)) v; PyTorch's fused kernels keep the softmax in fp32."""
    batch, tokens, width = q.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, tokens, attn.num_heads, -1).transpose(1, 2)

    out = F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=is_causal)
    return F.linear(out.transpose(1, 2).reshape(batch, tokens, width), attn.out_proj.weight, attn.out_proj.bias)


def run_blocks(visual: Any, x_BNW: Tensor, *, vv_start: int, taps: Collection[int] = ()) -> Streams:
    """Both streams through all blocks.

    Args:
        visual: an open_clip `VisionTransformer`.
        x_BNW: what `embed` returns.
        vv_start: 0-based block at which the value-value stream begins; the number of blocks switches it off (z = h).
        taps: 0-based blocks whose post-attention state to keep.
    """
    blocks = visual.transformer.resblocks
    h = z = x_BNW
    kept: dict[int, Tensor] = {}
    for index, block in enumerate(blocks):
        u = layer_norm(block.ln_1, h)
        q, k, v = F.linear(u, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        if index >= vv_start:
            z = z + block.ls_1(attend(block.attn, v, v, v))
        h = h + block.ls_1(attend(block.attn, q, k, v))
        if index in taps:
            kept[index] = h
        h = h + block.ls_2(block.mlp(layer_norm(block.ln_2, h)))
        if index < vv_start:
            z = h
    return Streams(h, z, kept)


def enough_rows(x: Tensor) -> Tensor:
    """`x` with its rows repeated until there are `STABLE_ROWS`, where it has fewer; the first are those of `x`.

    CPU matrix kernels round rows of very small products by their place, and an image's score must not depend on its
    place in the batch.
    """
    return x if len(x) >= STABLE_ROWS else x[torch.arange(STABLE_ROWS, device=x.device) % len(x)]


def class_to_joint(visual: Any, h_BNW: Tensor, *, ln_post: bool = True) -> Tensor:
    """Image embedding (B, D) of the class token; without `ln_post` as methods after AnomalyCLIP take it.

    Every row is projected `STABLE_ROWS` times over: CPU matrix kernels round rows of very small products by their
    place, and an image's score must not depend on its place in the batch.
    """
    return to_joint(visual, h_BNW[:, :1].expand(-1, STABLE_ROWS, -1), ln_post=ln_post)[:, 0]


def to_joint(visual: Any, x: Tensor, *, ln_post: bool = True) -> Tensor:
    """`project`, then unit length: (..., W) -> (..., D)."""
    return F.normalize(project(visual, x, ln_post=ln_post), dim=-1)


def project(visual: Any, x: Tensor, *, ln_post: bool = True) -> Tensor:
    """`ln_post` (unless switched off) and projection into the joint space, in fp32: (..., W) -> (..., D)."""
    normed = layer_norm(visual.ln_post, x) if ln_post else x
    joint: Tensor = normed @ visual.proj.to(x.dtype)
    return joint.float()
