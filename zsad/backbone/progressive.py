"""Both towers with learned tokens inserted at every block, which carry a little of what they gathered to the next.

    block 1:      x <- block([x_0 ; P_1 ; x_1 x_2 ...])
    block l > 1:  the inserted places become  carry * (what block l - 1 made of them) + (1 - carry) * P_l

x_0 is the class token or the start token. Inserted tokens have no position embedding. In the causal text tower they sit
before the words, so that every word sees them; the end token moves back by their number.

Legend: B sequences, N tokens of the plain tower, n inserted tokens, M = N + n, L blocks, P patches, W tower width,
D joint width. Levels count blocks from 1: level l is the state after block l.
Cost: n more tokens, 4 beside 1,370 for ViT-L/14 at 518 px. States differ from block 1 on, so nothing of a plain pass
can be reused; a training step runs the whole tower forward and backward.
Source: DAPO (arXiv 2512.09446), progressive tuning; end token moved and causal mask kept are ours.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zsad.backbone import text, vision
from zsad.backbone.model import Backbone
from zsad.errors import ModelError


@dataclass(frozen=True, slots=True)
class ProgressiveFeatures:
    """Features of one batch, fp32.

    Attributes:
        image_BD: unit-length image embeddings.
        states: per level asked for, in that order, (B, P, W) patch states without class and inserted tokens.
        grid: (rows, columns) of patches.
    """

    image_BD: Tensor
    states: tuple[Tensor, ...]
    grid: tuple[int, int]


def run_blocks(
    blocks: Any,
    x_BNW: Tensor,
    tokens_LnW: Tensor,
    *,
    carry: float,
    is_causal: bool = False,
    levels: Collection[int] = (),
    checkpointing: bool = False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Sequences through all blocks, with `tokens_LnW` inserted after each first token.

    Args:
        blocks: L residual attention blocks.
        x_BNW: what enters block 1 of the plain tower.
        tokens_LnW: P_1 to P_L.
        carry: share of the propagated tokens, [0, 1]; 1 uses P_1 alone.
        is_causal: whether a token sees only itself and those before it.
        levels: states to keep.
        checkpointing: compute each block again in the backward pass instead of keeping what is inside it.

    Returns:
        The end (B, M, W), and per level its state (B, M, W).
    """
    n = tokens_LnW.shape[1]
    x, kept = x_BNW, {}
    for level, (block, tokens_nW) in enumerate(zip(blocks, tokens_LnW.to(x.dtype), strict=True), start=1):
        placed = tokens_nW.expand(len(x), -1, -1)
        if level > 1:
            placed = carry * x[:, 1 : 1 + n] + (1 - carry) * placed
        x = torch.cat([x[:, :1], placed, x[:, 1 if level == 1 else 1 + n :]], dim=1)
        x = (
            checkpoint(_block, block, x, is_causal, use_reentrant=False)
            if checkpointing
            else _block(block, x, is_causal)
        )
        if level in levels:
            kept[level] = x
    return x, kept


def _block(block: Any, x: Tensor, is_causal: bool) -> Tensor:
    u = vision.layer_norm(block.ln_1, x)
    q, k, v = F.linear(u, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    x = x + block.ls_1(vision.attend(block.attn, q, k, v, is_causal=is_causal))
    finished: Tensor = x + block.ls_2(block.mlp(vision.layer_norm(block.ln_2, x)))
    return finished


def encode_image(
    backbone: Backbone,
    pixels_BHWC: Tensor,
    tokens_LnW: Tensor,
    *,
    carry: float,
    levels: Sequence[int],
    checkpointing: bool = False,
) -> ProgressiveFeatures:
    """Image embeddings and patch states of uint8 RGB images; differentiable in the tokens.

    Args:
        backbone: its vision tower is used.
        pixels_BHWC: uint8; both sides multiples of the patch size, any such size.
        tokens_LnW: inserted after the class token, behind position embedding and `ln_pre`.
        carry: see `run_blocks`.
        levels: states to return, each from 1 to L; one may come more than once.
        checkpointing: see `run_blocks`.

    Raises:
        ModelError: if a side is not a multiple of the patch size, or a level is no block.
    """
    grid = backbone.grid(pixels_BHWC)
    if any(not 1 <= level <= backbone.num_layers for level in levels):
        raise ModelError(f"levels {list(levels)}: the vision tower of {backbone.name} has 1 to {backbone.num_layers}")
    visual = backbone.model.visual
    x_BNW = vision.embed(visual, backbone.normalise(pixels_BHWC))
    x_BMW, kept = run_blocks(
        visual.transformer.resblocks, x_BNW, tokens_LnW, carry=carry, levels=levels, checkpointing=checkpointing
    )
    patches = slice(1 + tokens_LnW.shape[1], None)
    return ProgressiveFeatures(
        image_BD=vision.class_to_joint(visual, x_BMW),
        states=tuple(kept[level][:, patches].float() for level in levels),
        grid=grid,
    )


def encode_text(
    model: Any,
    x_SNW: Tensor,
    end_S: Tensor,
    tokens_LnW: Tensor,
    *,
    carry: float,
    as_published: bool = False,
    checkpointing: bool = False,
) -> Tensor:
    """Embeddings (S, D), not normalised, of sequences of input vectors; differentiable in vectors and tokens.

    Args:
        model: an open_clip model whose text tower has the plain causal form.
        x_SNW: vectors before the position embedding, start token first, at most the tower's context.
        end_S: place of each end token in `x_SNW`; with the causal mask nothing behind it counts.
        tokens_LnW: inserted after the start token.
        carry: see `run_blocks`.
        as_published: no causal mask, and the state at `end_S` of the longer sequence, n tokens before the end token, as
            the published code has it.
        checkpointing: see `run_blocks`.
    """
    tower = text.text_tower(model)
    x_SNW = x_SNW + tower.positional_embedding[: x_SNW.shape[1]]
    x_SMW, _ = run_blocks(
        tower.transformer.resblocks,
        x_SNW,
        tokens_LnW,
        carry=carry,
        is_causal=not as_published,
        checkpointing=checkpointing,
    )
    pooled = end_S if as_published else end_S + tokens_LnW.shape[1]
    return text.to_joint(tower, x_SMW[torch.arange(len(x_SMW), device=x_SMW.device), pooled])
