"""Text embeddings on a short context against open_clip's full one."""

import pytest
import tiny_model
import torch

from zsad.backbone import text
from zsad.errors import ModelError

STRINGS = ["a", "a photo of a damaged metal plate", "scratch", "a close-up photo of the flawless leather at night"]


def test_short_context_equals_open_clip_on_77_tokens(tiny_backbone):
    model, tokens = tiny_backbone.model, tiny_backbone.tokenizer(STRINGS)
    assert tokens.shape == (4, 77)
    torch.testing.assert_close(text.encode_tokens(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)
    normal = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(tiny_backbone.encode_text(STRINGS), normal, atol=1e-5, rtol=0)


def test_a_text_longer_than_the_context_is_cut(tiny_backbone):
    found = tiny_backbone.encode_text(["scratch " * 200])
    tokens = tiny_backbone.tokenizer(["scratch " * 200])
    torch.testing.assert_close(found, tiny_backbone.model.encode_text(tokens, normalize=True), atol=1e-5, rtol=0)


def test_order_and_batching_do_not_matter(tiny_backbone, monkeypatch):
    whole = tiny_backbone.encode_text(STRINGS)
    torch.testing.assert_close(tiny_backbone.encode_text(STRINGS[::-1]).flip(0), whole, atol=1e-6, rtol=0)
    alone = torch.cat([tiny_backbone.encode_text([string]) for string in STRINGS])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)
    monkeypatch.setattr(text, "_BATCH", 3)
    torch.testing.assert_close(tiny_backbone.encode_text(STRINGS), whole, atol=1e-6, rtol=0)


def test_gradients_reach_the_token_embeddings_of_the_prompt_only():
    model = tiny_model.random_model().requires_grad_(True)
    tokens = tiny_model.SimpleTokenizer()(["scratch"])
    text.encode_tokens(model, tokens).sum().backward()
    touched = model.token_embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == sorted(tokens[0, :3].tolist())  # start, the word, end; nothing of the 74 positions of padding


def test_a_tower_without_causal_mask_runs_on_the_full_context():
    cfg = tiny_model.model_cfg(custom_text=True, text={"no_causal_mask": True})
    backbone = tiny_model.backbone_of(tiny_model.random_model(cfg))
    assert not text.is_causal(backbone.model)
    expected = backbone.model.encode_text(backbone.tokenizer(STRINGS), normalize=True)
    torch.testing.assert_close(backbone.encode_text(STRINGS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("projection", [{}, {"proj_type": "none"}, {"proj_bias": True}])
def test_every_form_of_projection(projection):
    width = 32  # text width and joint width are equal, so that no projection is possible
    model = tiny_model.random_model(tiny_model.model_cfg(custom_text=True, text={"width": width, **projection}))
    assert text.is_causal(model)
    tokens = tiny_model.SimpleTokenizer()(STRINGS)
    torch.testing.assert_close(text.encode_tokens(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_no_strings_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match="at least one string"):
        tiny_backbone.encode_text([])


def test_bf16_stays_close_to_fp32(tiny_network, tiny_backbone):
    half = tiny_model.backbone_of(tiny_network, precision="bf16").encode_text(STRINGS)
    assert half.dtype == torch.float32
    assert (half * tiny_backbone.encode_text(STRINGS)).sum(dim=-1).min() > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_on_a_gpu_stays_close_to_fp32(tiny_folder, tiny_backbone):
    from zsad.backbone import load_backbone

    half = load_backbone(str(tiny_folder), "cuda").encode_text(STRINGS).cpu()
    assert (half * tiny_backbone.encode_text(STRINGS)).sum(dim=-1).min() > 0.99
