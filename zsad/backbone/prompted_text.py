"""Text embeddings from learned vectors instead of token ids: short contexts, deep prompts, a shared prefix.

Learned prompts replace word vectors, so a method hands over vectors. Deep prompts overwrite (never append) positions
1, 2, ... of the sequence again before later blocks. Where many prompts begin alike, the keys and values of the shared
beginning are computed once, after overwriting, and every prompt runs only the tokens that differ; the causal mask
makes this exact. The last block runs for the end tokens alone. All functions are differentiable.

Legend: S sequences, T tokens of a sequence, N deep positions, W text width, D joint width, H heads.
Cost: ten prompts of 12 tokens that share 6 cost half of the short context and a twenty-fifth of twice eleven full ones.
Source: deep prompts by overwriting as in FAPrompt (arXiv 2410.10289, released code); the shared prefix is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone.text import is_causal, text_tower, to_joint
from zsad.backbone.vision import enough_rows, layer_norm
from zsad.errors import ModelError


@dataclass(frozen=True, slots=True)
class Prefix:
    """A shared beginning of prompts: per block its keys and values (1, H, T, W / H)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens it spans."""
        return int(self.keys[0].shape[2])


_NOTHING = Prefix((), ())


def text_width(model: Any) -> int:
    """Width W of the vectors a prompt consists of."""
    return int(text_tower(model).positional_embedding.shape[1])


def num_text_layers(model: Any) -> int:
    """Blocks of the text tower.

    Raises:
        ModelError: if the tower has not the causal CLIP form.
    """
    return len(_plain_tower(model).transformer.resblocks)


def word_vectors(model: Any, token_ids: Tensor) -> Tensor:
    """Frozen input vectors (..., W) of token ids, before the position embedding."""
    vectors: Tensor = text_tower(model).token_embedding(token_ids)
    return vectors


def encode_embeddings(model: Any, x_STW: Tensor, end_S: Tensor, *, deep: Sequence[Tensor] = ()) -> Tensor:
    """Embeddings (S, D), not normalised, of sequences of input vectors.

    Args:
        model: an open_clip model.
        x_STW: vectors before the position embedding, start token first; T may be any length up to the context.
        end_S: position of each end token; what comes after it is ignored.
        deep: matrix (N, W) number i overwrites positions 1..N before block i + 1.

    Raises:
        ModelError: if the tower has not the causal CLIP form, the sequences are too long for it, or there are more
            deep prompts, or larger ones, than it has room for.
    """
    tower = _plain_tower(model)
    _check(tower, x_STW.shape[1], 0, deep)
    return _run(tower, x_STW, end_S, deep, _NOTHING)


def encode_prefix(model: Any, x_TW: Tensor, *, deep: Sequence[Tensor] = ()) -> Prefix:
    """The shared beginning of prompts, start token first; arguments and errors as in `encode_embeddings`."""
    tower = _plain_tower(model)
    _check(tower, len(x_TW), 0, deep)
    x_1TW = (x_TW + tower.positional_embedding[: len(x_TW)])[None]
    mask_TT = _causal(len(x_TW), 0, x_TW.device)
    keys, values = [], []
    for index, block in enumerate(tower.transformer.resblocks):
        x_1TW = _overwrite(x_1TW, deep, index)
        u_1TW = layer_norm(block.ln_1, x_1TW)
        k, v = _keys_values(block.attn, u_1TW)
        keys.append(k)
        values.append(v)
        x_1TW = _finish(block, x_1TW, _attend(block.attn, u_1TW, k, v, mask_TT))
    return Prefix(tuple(keys), tuple(values))


def encode_after(model: Any, prefix: Prefix, x_STW: Tensor, end_S: Tensor) -> Tensor:
    """Embeddings (S, D), not normalised, of prompts that go on after a shared beginning.

    Args:
        model: an open_clip model.
        prefix: made by `encode_prefix` with the same model; deep prompts are already in it.
        x_STW: vectors of the tokens after the prefix.
        end_S: place of each end token in `x_STW`.

    Raises:
        ModelError: as `encode_embeddings`.
    """
    tower = _plain_tower(model)
    _check(tower, x_STW.shape[1], prefix.length, ())
    return _run(tower, x_STW, end_S, (), prefix)


def _plain_tower(model: Any) -> Any:
    from open_clip.transformer import ResidualAttentionBlock

    tower = text_tower(model)
    if not is_causal(model) or getattr(tower, "cls_emb", None) is not None:
        raise ModelError("learned prompts need a causal CLIP text tower pooled at the end token; use another backbone")
    if not all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks):
        raise ModelError("the text tower's attention blocks are of a custom kind; learned prompts need plain ones")
    return tower


def _check(tower: Any, length: int, start: int, deep: Sequence[Tensor]) -> None:
    """Refuse what the tower has no room for: `length` tokens from position `start` on, and deep prompts."""
    context, num_layers = len(tower.positional_embedding), len(tower.transformer.resblocks)
    if start + length > context:
        raise ModelError(f"prompts of {start + length} tokens do not fit into the text tower's context of {context}")
    if len(deep) >= num_layers:
        raise ModelError(f"{len(deep)} deep prompts need {len(deep) + 1} blocks; the text tower has {num_layers}")
    longest = max((len(matrix) for matrix in deep), default=0)
    if longest >= length:
        raise ModelError(f"deep prompts of {longest} vectors overwrite positions 1 to {longest} of only {length}")


def _run(tower: Any, x_STW: Tensor, end_S: Tensor, deep: Sequence[Tensor], past: Prefix) -> Tensor:
    """All blocks, the last one for the end tokens alone, then `ln_final` and the projection."""
    blocks = tower.transformer.resblocks
    start = past.length if past.keys else 0
    num, length = x_STW.shape[:2]
    x = x_STW + tower.positional_embedding[start : start + length]
    mask = _causal(length, start, x.device)
    for index, block in enumerate(blocks):
        x = _overwrite(x, deep, index)
        if index == len(blocks) - 1:
            x, end_S = enough_rows(x), enough_rows(end_S)
        u = layer_norm(block.ln_1, x)
        k, v = _keys_values(block.attn, u, past, index)
        if index == len(blocks) - 1:
            rows = torch.arange(len(x), device=x.device)
            x, u, mask = x[rows, end_S, None], u[rows, end_S, None], mask[end_S][:, None, None]
        x = _finish(block, x, _attend(block.attn, u, k, v, mask))
    return to_joint(tower, x[:, 0])[:num]


def _causal(length: int, start: int, device: torch.device) -> Tensor:
    """Who may look at whom: token `start` + i at every token up to itself, (length, start + length)."""
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)


def _overwrite(x_STW: Tensor, deep: Sequence[Tensor], index: int) -> Tensor:
    if not 1 <= index <= len(deep):
        return x_STW
    deep_SNW = deep[index - 1].expand(len(x_STW), -1, -1)
    return torch.cat([x_STW[:, :1], deep_SNW, x_STW[:, 1 + deep_SNW.shape[1] :]], dim=1)


def _heads(attn: Any, x_STW: Tensor) -> Tensor:
    return x_STW.reshape(*x_STW.shape[:2], attn.num_heads, -1).transpose(1, 2)


def _keys_values(attn: Any, u_STW: Tensor, past: Prefix = _NOTHING, index: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (S, H, T, W / H) of all tokens, those of the prefix first."""
    width = u_STW.shape[-1]
    both = F.linear(u_STW, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
    k, v = (_heads(attn, part) for part in both.chunk(2, dim=-1))
    if not past.keys:
        return k, v
    earlier = (kept[index].expand(len(u_STW), -1, -1, -1) for kept in (past.keys, past.values))
    return torch.cat([next(earlier), k], dim=2), torch.cat([next(earlier), v], dim=2)


def _attend(attn: Any, u_STW: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    width = u_STW.shape[-1]
    q = _heads(attn, F.linear(u_STW, attn.in_proj_weight[:width], attn.in_proj_bias[:width]))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    return F.linear(out, attn.out_proj.weight, attn.out_proj.bias)


def _finish(block: Any, x_STW: Tensor, attended_STW: Tensor) -> Tensor:
    """The rest of a block once its attention is known."""
    x_STW = x_STW + block.ls_1(attended_STW)
    finished: Tensor = x_STW + block.ls_2(block.mlp(layer_norm(block.ln_2, x_STW)))
    return finished
