"""The starting weights of the vision tower."""

import pytest
import tiny_model
import torch

from zsad.learn import initial


@pytest.fixture
def visual():
    torch.manual_seed(0)
    tower = tiny_model.random_model().visual
    initial.initialise_vision(tower)
    return tower


def test_attention_compares_and_subtracts(visual):
    """Queries are keys, so logits are a likeness; values are orthogonal, and half of their mean is taken off."""
    for block in visual.transformer.resblocks:
        q, k, v = block.attn.in_proj_weight.chunk(3)
        assert torch.equal(q, k)
        torch.testing.assert_close(q @ q.T, 0.5 * torch.eye(64), atol=1e-5, rtol=0)
        torch.testing.assert_close(block.attn.out_proj.weight @ v, -0.5 * torch.eye(64), atol=1e-5, rtol=0)
        assert not block.attn.in_proj_bias.any()
        assert not block.attn.out_proj.bias.any()


def test_blocks_differ(visual):
    first, second = (block.attn.in_proj_weight for block in visual.transformer.resblocks[:2])
    assert not torch.equal(first, second)


def test_positions_are_halved_sines(visual):
    positions = visual.positional_embedding
    assert positions.shape == (17, 64)
    assert not positions[0].any()  # the class token has no place
    torch.testing.assert_close((positions[1:] ** 2).sum(dim=1), torch.full((16,), 0.25 * 64 / 2))  # sin^2 + cos^2 = 1


def test_the_seed_decides(visual):
    torch.manual_seed(0)
    again = tiny_model.random_model().visual
    initial.initialise_vision(again)
    assert all(torch.equal(a, b) for a, b in zip(visual.parameters(), again.parameters(), strict=True))
