"""Prompts of learned vectors against open_clip's own text tower and its blocks one by one."""

import pytest
import tiny_model
import torch

from zsad.backbone import prompted_text
from zsad.backbone.prompted_text import encode_after, encode_embeddings, encode_prefix, word_vectors
from zsad.errors import ModelError

STRINGS = ["a", "a photo of a damaged metal plate", "scratch"]
SHARED = 4  # tokens that all prompts of `prompts` begin with


def three_layers(**changes):
    return tiny_model.random_model(tiny_model.model_cfg(text={"layers": 3}, **changes))


def tokens_of(strings=STRINGS):
    tokens = tiny_model.SimpleTokenizer()(strings)
    return tokens, tokens.argmax(dim=-1)


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(model, num=3, length=9):
    """Prompts that begin alike; the rest, end token included, is random."""
    width = prompted_text.text_width(model)
    beginning = vectors(SHARED, width, seed=1)
    x_STW = torch.cat([beginning.expand(num, -1, -1), vectors(num, length - SHARED, width, seed=2)], dim=1)
    return x_STW, torch.tensor([SHARED + row % (length - SHARED) for row in range(num)])


def slow(model, x_TW, end, deep=()):
    """One sequence through open_clip's own blocks, deep prompts written over its first positions."""
    x = (x_TW + model.positional_embedding[: len(x_TW)])[None]
    mask = torch.full((len(x_TW), len(x_TW)), float("-inf")).triu(1)
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            x = x.clone()
            x[0, 1 : 1 + len(deep[number - 1])] = deep[number - 1]
        x = block(x, attn_mask=mask)
    return model.ln_final(x[0, end]) @ model.text_projection


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("length", [77, 12])
def test_word_vectors_give_what_open_clip_gives_for_their_tokens(quick_gelu, length):
    model = three_layers(quick_gelu=quick_gelu)
    tokens, ends = tokens_of()
    found = encode_embeddings(model, word_vectors(model, tokens[:, :length]), ends)
    torch.testing.assert_close(found, model.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("projection", [{"proj_type": "none"}, {"proj_bias": True}])
def test_every_form_of_projection(projection):
    model = tiny_model.random_model(tiny_model.model_cfg(custom_text=True, text=projection))
    tokens, ends = tokens_of()
    found = encode_embeddings(model, word_vectors(model, tokens), ends)
    torch.testing.assert_close(found, model.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("num_deep", [0, 1, 2])
def test_deep_prompts_overwrite_the_first_positions_before_later_blocks(quick_gelu, num_deep):
    model = three_layers(quick_gelu=quick_gelu)
    deep = [vectors(3, 32, seed=10 + number) for number in range(num_deep)]
    x_STW, ends = prompts(model)
    expected = torch.stack([slow(model, x, int(end), deep) for x, end in zip(x_STW, ends, strict=True)])
    found = encode_embeddings(model, x_STW, ends, deep=deep)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(deep) == 0 or (found - encode_embeddings(model, x_STW, ends)).abs().max() > 1e-2


@pytest.mark.parametrize("num_deep", [0, 2])
@pytest.mark.parametrize("num", [1, 3, 20])
def test_a_shared_beginning_changes_nothing(num_deep, num):
    model = three_layers()
    deep = [vectors(3, 32, seed=10 + number) for number in range(num_deep)]
    x_STW, ends = prompts(model, num)
    prefix = encode_prefix(model, x_STW[0, :SHARED], deep=deep)
    assert prefix.length == SHARED
    found = encode_after(model, prefix, x_STW[:, SHARED:], ends - SHARED)
    torch.testing.assert_close(found, encode_embeddings(model, x_STW, ends, deep=deep), atol=1e-5, rtol=1e-5)


def test_gradients_through_the_shared_beginning_are_those_of_plain_encoding():
    model = three_layers()
    x_STW, ends = prompts(model, 5)
    beginning, rest = x_STW[0, :SHARED].clone().requires_grad_(), x_STW[:, SHARED:].clone().requires_grad_()
    deep = [vectors(3, 32, seed=10 + number).requires_grad_() for number in range(2)]
    weights = vectors(5, 32, seed=3)
    plain_STW = torch.cat([beginning.expand(5, -1, -1), rest], dim=1)
    leaves = (beginning, rest, *deep)
    plain = torch.autograd.grad((encode_embeddings(model, plain_STW, ends, deep=deep) * weights).sum(), leaves)
    prefix = encode_prefix(model, beginning, deep=deep)
    shared = torch.autograd.grad((encode_after(model, prefix, rest, ends - SHARED) * weights).sum(), leaves)
    for a, b in zip(shared, plain, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_follows_the_end_token_is_ignored():
    model = three_layers()
    x_STW, _ = prompts(model, 1)
    changed = x_STW.clone()
    changed[:, 6:] = 7.0
    end = torch.tensor([5])
    torch.testing.assert_close(encode_embeddings(model, changed, end), encode_embeddings(model, x_STW, end))


@pytest.mark.parametrize("num", [2, 5, 13])
def test_bits_do_not_depend_on_a_prompts_place(num):
    model = three_layers()
    x_STW, ends = prompts(model, num)
    prefix = encode_prefix(model, x_STW[0, :SHARED])
    order = torch.arange(num).roll(1)
    whole = encode_after(model, prefix, x_STW[:, SHARED:], ends - SHARED)
    assert torch.equal(encode_after(model, prefix, x_STW[order, SHARED:], ends[order] - SHARED), whole[order])


def test_sizes_of_the_tower():
    model = tiny_model.random_model(tiny_model.model_cfg(text={"layers": 3, "width": 48}))
    assert (prompted_text.num_text_layers(model), prompted_text.text_width(model)) == (3, 48)


def test_towers_without_causal_mask_are_refused():
    model = tiny_model.random_model(tiny_model.model_cfg(custom_text=True, text={"no_causal_mask": True}))
    with pytest.raises(ModelError, match="causal CLIP text tower"):
        encode_embeddings(model, vectors(1, 5, 32), torch.tensor([4]))


def test_towers_with_other_blocks_are_refused():
    model = tiny_model.random_model(tiny_model.model_cfg(custom_text=True, text={"qk_norm": True}))
    with pytest.raises(ModelError, match="custom kind"):
        prompted_text.num_text_layers(model)


def test_prompts_longer_than_the_context_are_refused():
    model = tiny_model.random_model(tiny_model.model_cfg(text={"context_length": 8}))
    with pytest.raises(ModelError, match="9 tokens do not fit into the text tower's context of 8"):
        encode_embeddings(model, vectors(1, 9, 32), torch.tensor([8]))
    prefix = encode_prefix(model, vectors(4, 32))
    with pytest.raises(ModelError, match="9 tokens do not fit"):
        encode_after(model, prefix, vectors(1, 5, 32), torch.tensor([4]))


def test_deep_prompts_without_room_are_refused():
    model = three_layers()
    with pytest.raises(ModelError, match="3 deep prompts need 4 blocks; the text tower has 3"):
        encode_prefix(model, vectors(5, 32), deep=[vectors(4, 32)] * 3)
    with pytest.raises(ModelError, match="positions 1 to 4 of only 4"):
        encode_prefix(model, vectors(4, 32), deep=[vectors(4, 32)])
