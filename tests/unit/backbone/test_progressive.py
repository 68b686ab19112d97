"""Inserted tokens against slow loops over open_clip's own blocks, and against cases worked out by hand."""

import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone import progressive, text, vision
from zsad.errors import ModelError

NUM_TOKENS = 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looped(blocks, x_BNW, tokens_LnW, carry, *, is_causal=False):
    """The module's formula, one sequence at a time, with PyTorch's attention module; states after every block."""
    n, ends = tokens_LnW.shape[1], []
    for sequence in x_BNW:
        states, x = [], sequence
        for number, block in enumerate(blocks):
            inserted = tokens_LnW[number]
            if number == 0:
                x = torch.cat([x[:1], inserted, x[1:]])
            else:
                x = torch.cat([x[:1], carry * x[1 : 1 + n] + (1 - carry) * inserted, x[1 + n :]])
            mask = torch.full((len(x), len(x)), -torch.inf).triu(1) if is_causal else None
            u = block.ln_1(x)[None]
            x = x + block.ls_1(block.attn(u, u, u, need_weights=False, attn_mask=mask)[0][0])
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            states.append(x)
        ends.append(torch.stack(states))
    return torch.stack(ends, dim=1)  # (L, B, M, W)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("quick_gelu", "scale"), [(False, None), (True, None), (False, 0.3)])
def test_states_equal_slow_loops(quick_gelu, scale, is_causal):
    cfg = tiny_model.model_cfg(quick_gelu=quick_gelu, vision={"ls_init_value": scale})
    blocks = tiny_model.random_model(cfg).visual.transformer.resblocks
    x, tokens = draw(2, 17, 64), draw(3, NUM_TOKENS, 64, seed=1)
    for carry in (0.0, 0.01, 0.6):
        end, kept = progressive.run_blocks(blocks, x, tokens, carry=carry, is_causal=is_causal, levels=(1, 3))
        expected = looped(blocks, x, tokens, carry, is_causal=is_causal)
        torch.testing.assert_close(end, expected[2], atol=1e-5, rtol=1e-5)
        assert set(kept) == {1, 3}
        torch.testing.assert_close(kept[1], expected[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(kept[3], end)


def test_a_carry_of_one_is_shallow_prompting(tiny_network):
    """With carry 1 only P_1 counts: the tower as it is, on a sequence that is four tokens longer."""
    blocks = tiny_network.visual.transformer.resblocks
    x, tokens = draw(2, 17, 64), draw(3, NUM_TOKENS, 64, seed=1)
    end, _ = progressive.run_blocks(blocks, x, tokens, carry=1.0)
    plain = torch.cat([x[:, :1], tokens[0].expand(2, -1, -1), x[:, 1:]], dim=1)
    torch.testing.assert_close(end, tiny_network.visual.transformer(plain), atol=1e-5, rtol=1e-5)
    others = torch.cat([tokens[:1], draw(2, NUM_TOKENS, 64, seed=2)])
    assert torch.equal(progressive.run_blocks(blocks, x, others, carry=1.0)[0], end)


def test_a_carry_of_zero_forgets_what_was_propagated():
    """Where no token looks at another, the inserted places hold the last block's image of P_L alone."""
    visual = tiny_model.random_model().visual
    for block in visual.transformer.resblocks:
        block.attn.out_proj.weight.zero_()
    blocks, tokens = visual.transformer.resblocks, draw(3, NUM_TOKENS, 64)
    end, _ = progressive.run_blocks(blocks, draw(1, 5, 64, seed=1), tokens, carry=0.0)
    last = tokens[2] + blocks[2].attn.out_proj.bias
    torch.testing.assert_close(end[0, 1:5], last + blocks[2].mlp(blocks[2].ln_2(last)), atol=1e-5, rtol=1e-5)


def identity_blocks(transformer):
    """Blocks that change nothing."""
    for block in transformer.resblocks:
        for layer in (block.attn.out_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()


def test_a_full_context_of_77_becomes_81_and_ends_four_tokens_later():
    model = tiny_model.random_model()
    identity_blocks(model.transformer)
    x, tokens = draw(2, 77, 32), draw(2, NUM_TOKENS, 32, seed=1)
    end, _ = progressive.run_blocks(model.transformer.resblocks, x, tokens, carry=0.01, is_causal=True)
    assert end.shape == (2, 81, 32)
    found = progressive.encode_text(model, x, torch.tensor([9, 76]), tokens, carry=0.01)
    ends = torch.stack([x[0, 9] + model.positional_embedding[9], x[1, 76] + model.positional_embedding[76]])
    torch.testing.assert_close(found, model.ln_final(ends) @ model.text_projection)


def test_as_published_the_state_four_tokens_before_the_end_is_taken():
    """End at 9 of the plain text: place 9 of the longer sequence is token 5; end at 3: the third inserted token."""
    model = tiny_model.random_model()
    identity_blocks(model.transformer)
    x, tokens = draw(2, 77, 32), draw(2, NUM_TOKENS, 32, seed=1)
    found = progressive.encode_text(model, x, torch.tensor([9, 3]), tokens, carry=0.25, as_published=True)
    inserted = 0.25 * tokens[0, 2] + 0.75 * tokens[1, 2]
    taken = torch.stack([x[0, 5] + model.positional_embedding[5], inserted])
    torch.testing.assert_close(found, model.ln_final(taken) @ model.text_projection)


@pytest.mark.parametrize("as_published", [False, True])
def test_texts_equal_slow_loops(as_published):
    model = tiny_model.random_model(tiny_model.model_cfg(embed_dim=24))
    x, ends, tokens = draw(3, 12, 32), torch.tensor([6, 8, 11]), draw(2, NUM_TOKENS, 32, seed=1)
    found = progressive.encode_text(model, x, ends, tokens, carry=0.01, as_published=as_published)
    placed = x + model.positional_embedding[:12]
    states = looped(model.transformer.resblocks, placed, tokens, 0.01, is_causal=not as_published)[-1]
    shift = 0 if as_published else NUM_TOKENS
    taken = torch.stack([state[end + shift] for state, end in zip(states, ends.tolist(), strict=True)])
    torch.testing.assert_close(found, model.ln_final(taken) @ model.text_projection, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("as_published", [False, True])
def test_what_follows_the_end_token_counts_only_as_published(tiny_network, as_published):
    x, tokens = draw(1, 12, 32), draw(2, NUM_TOKENS, 32, seed=1)
    changed = torch.cat([x[:, :7], draw(1, 5, 32, seed=2)], dim=1)
    found = [
        progressive.encode_text(tiny_network, vectors, torch.tensor([6]), tokens, carry=0.01, as_published=as_published)
        for vectors in (x, changed)
    ]
    assert ((found[0] - found[1]).abs().max() > 1e-3) == as_published


@pytest.mark.parametrize("projection", [{"proj_type": "none"}, {"proj_bias": True}])
def test_every_form_of_text_projection(projection):
    model = tiny_model.random_model(tiny_model.model_cfg(custom_text=True, text=projection))
    x, tokens = draw(2, 8, 32), draw(2, NUM_TOKENS, 32, seed=1)
    found = progressive.encode_text(model, x, torch.tensor([7, 7]), tokens, carry=1.0)
    tower = text.text_tower(model)
    placed = x + tower.positional_embedding[:8]
    longer = torch.cat([placed[:, :1], tokens[0].expand(2, -1, -1), placed[:, 1:]], dim=1)
    pooled = tower.ln_final(tower.transformer(longer, attn_mask=tower.attn_mask[:12, :12])[:, -1])
    expected = pooled if tower.text_projection is None else tower.text_projection(pooled)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


LAYOUTS = {
    "tiny": ({}, (32, 32)),
    "odd sizes": ({}, (40, 24)),
    "one row": ({}, (8, 48)),
    "quick GELU, other joint width": ({"quick_gelu": True, "embed_dim": 48}, (32, 32)),
    "like ViT-B/16-plus-240": (
        {"vision": {"image_size": 240, "layers": 4, "width": 56, "head_width": 14, "patch_size": 16}},
        (240, 240),
    ),
    "like ViT-L/14-336": (
        {"quick_gelu": True, "vision": {"image_size": 336, "layers": 4, "patch_size": 14}},
        (336, 336),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_features_equal_slow_loops(layout):
    changes, size = LAYOUTS[layout]
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(**changes)))
    visual = backbone.model.visual
    width = visual.positional_embedding.shape[1]
    tokens = draw(backbone.num_layers, NUM_TOKENS, width)
    images = tiny_model.pixels(2, *size)
    found = progressive.encode_image(backbone, images, tokens, carry=0.01, levels=(1, 3, 3))
    states = looped(visual.transformer.resblocks, vision.embed(visual, backbone.normalise(images)), tokens, 0.01)
    grid = (size[0] // backbone.patch_size, size[1] // backbone.patch_size)
    assert found.grid == grid
    assert [state.shape for state in found.states] == [(2, grid[0] * grid[1], width)] * 3
    for state, level in zip(found.states, (1, 3, 3), strict=True):
        torch.testing.assert_close(state, states[level - 1][:, 5:], atol=1e-5, rtol=1e-5)
    image = F.normalize(visual.ln_post(states[-1][:, 0]) @ visual.proj, dim=-1)
    torch.testing.assert_close(found.image_BD, image, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_images_alone(tiny_backbone):
    images, tokens = tiny_model.pixels(3, 32, 40), draw(3, NUM_TOKENS, 64)
    whole = progressive.encode_image(tiny_backbone, images, tokens, carry=0.01, levels=(2,))
    for row, image in enumerate(images):
        alone = progressive.encode_image(tiny_backbone, image[None], tokens, carry=0.01, levels=(2,))
        torch.testing.assert_close(alone.image_BD[0], whole.image_BD[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.states[0][0], whole.states[0][row], atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_neither_values_nor_gradients(tiny_backbone):
    images = tiny_model.pixels(2, 32, 32)
    found = []
    for checkpointing in (False, True):
        tokens = draw(3, NUM_TOKENS, 64).requires_grad_()
        features = progressive.encode_image(
            tiny_backbone, images, tokens, carry=0.01, levels=(3,), checkpointing=checkpointing
        )
        (features.image_BD[:, 0].sum() + features.states[0][..., 0].sum()).backward()
        found.append((features.image_BD.detach(), tokens.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][1].flatten(1).abs().amax(dim=1).min() > 0  # every block's tokens learn


def test_the_frozen_tower_gets_no_gradient(tiny_network):
    backbone = tiny_model.backbone_of(tiny_network)
    tokens = draw(3, NUM_TOKENS, 64).requires_grad_()
    features = progressive.encode_image(backbone, tiny_model.pixels(1, 32, 32), tokens, carry=0.01, levels=())
    features.image_BD[:, 0].sum().backward()
    assert tokens.grad is not None
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("level", [0, 4])
def test_levels_that_are_no_blocks_are_refused(tiny_backbone, level):
    with pytest.raises(ModelError, match="has 1 to 3"):
        progressive.encode_image(
            tiny_backbone, tiny_model.pixels(1, 32, 32), draw(3, NUM_TOKENS, 64), carry=0.01, levels=(1, level)
        )


def test_sizes_that_do_not_divide_into_patches_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match="33 x 32 px do not divide into patches of 8 px"):
        progressive.encode_image(
            tiny_backbone, tiny_model.pixels(1, 32, 33), draw(3, NUM_TOKENS, 64), carry=0.01, levels=(1,)
        )


def test_bf16_states_stay_close_to_fp32(tiny_network, tiny_backbone):
    half = tiny_model.backbone_of(tiny_network, precision="bf16")
    images, tokens = tiny_model.pixels(2, 32, 32), draw(3, NUM_TOKENS, 64)
    low, full = (
        progressive.encode_image(backbone, images, tokens, carry=0.01, levels=(3,))
        for backbone in (half, tiny_backbone)
    )
    assert {low.image_BD.dtype, low.states[0].dtype} == {torch.float32}
    assert (low.image_BD * full.image_BD).sum(dim=-1).min() > 0.99
    assert F.cosine_similarity(low.states[0], full.states[0], dim=-1).min() > 0.99
