"""Text embeddings from strings or token ids, on the shortest context that holds them.

open_clip runs its text tower on all 77 positions, although a prompt fills about ten and the causal mask makes the rest
irrelevant. Cutting the context to the longest prompt of the batch gives the same embedding at a seventh of the cost.

Legend: S strings, T tokens, W text width, D joint width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone.vision import layer_norm

_BATCH = 256


def is_causal(model: Any) -> bool:
    """Whether the text tower has the causal CLIP form (mask, pooled at the end token), so that cutting is exact."""
    tower = text_tower(model)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    return getattr(tower, "attn_mask", None) is not None and pool == "argmax"


def text_tower(model: Any) -> Any:
    """The module that holds the text parameters: open_clip keeps them on the model itself or under `.text`."""
    return getattr(model, "text", model)


def encode_tokens(model: Any, tokens_ST: Tensor) -> Tensor:
    """Embeddings (S, D), not normalised, of token ids (S, T) whose end token has the largest id of its row.

    Differentiable; T may be any length up to the tower's context.
    """
    tower = text_tower(model)
    length = int(tokens_ST.argmax(dim=-1).max()) + 1
    tokens_ST = tokens_ST[:, :length]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens_ST).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    end = x[torch.arange(len(x), device=x.device), tokens_ST.argmax(dim=-1)]
    return to_joint(tower, end)


def to_joint(tower: Any, pooled: Tensor) -> Tensor:
    """`ln_final` and projection of pooled states into the joint space, not normalised: (..., W) -> (..., D)."""
    pooled = layer_norm(tower.ln_final, pooled)
    projection = tower.text_projection
    if projection is None:
        return pooled
    joint: Tensor = projection(pooled) if isinstance(projection, torch.nn.Module) else pooled @ projection
    return joint


@torch.inference_mode()
def encode_strings(model: Any, tokenizer: Any, strings: list[str], device: torch.device) -> Tensor:
    """Unit-length fp32 embeddings (S, D) of strings; a string longer than the context is cut by the tokenizer."""
    encode = encode_tokens if is_causal(model) else lambda m, t: m.encode_text(t)
    chunks = [strings[i : i + _BATCH] for i in range(0, len(strings), _BATCH)]
    rows = [encode(model, tokenizer(chunk).to(device)).float() for chunk in chunks]
    return F.normalize(torch.cat(rows), dim=-1)
