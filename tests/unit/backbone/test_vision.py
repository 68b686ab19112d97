"""Both streams of the vision tower against open_clip's own forward and slow loops."""

import math

import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone import vision
from zsad.errors import ModelError


def looped_attention(q_BNW, k_BNW, v_BNW, attn):
    """W_o softmax(q k^T / sqrt(d)) v + b_o, one image and head at a time."""
    heads = attn.num_heads
    d = q_BNW.shape[-1] // heads
    out = torch.zeros_like(q_BNW)
    for b in range(len(q_BNW)):
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            q, k, v = q_BNW[b, :, part], k_BNW[b, :, part], v_BNW[b, :, part]
            out[b, :, part] = torch.softmax(q @ k.T / math.sqrt(d), dim=-1) @ v
    return out @ attn.out_proj.weight.T + attn.out_proj.bias


def looped_streams(visual, x_BNW, vv_start):
    """The module's two formulas; returns h, z and the states between attention and MLP."""
    h, z, between = x_BNW, None, []
    for index, block in enumerate(visual.transformer.resblocks):
        if index == vv_start:
            z = h
        q, k, v = (block.ln_1(h) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(h.shape[-1], dim=-1)
        if z is not None:
            z = z + looped_attention(v, v, v, block.attn)
        h = h + looped_attention(q, k, v, block.attn)
        between.append(h)
        h = h + block.mlp(block.ln_2(h))
    return h, h if z is None else z, between


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_ordinary_stream_is_open_clips_forward(quick_gelu):
    model = tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu))
    x = inputs(3, 3, 32, 32)
    streams = vision.run_blocks(model.visual, vision.embed(model.visual, x), vv_start=1)
    found = vision.to_joint(model.visual, streams.h_BNW[:, 0])
    torch.testing.assert_close(found, model.encode_image(x, normalize=True), atol=1e-5, rtol=0)


def test_quick_gelu_and_gelu_differ():
    plain, quick = (tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick)).visual for quick in (False, True))
    x = inputs(1, 3, 32, 32)
    ends = [vision.run_blocks(v, vision.embed(v, x), vv_start=3).h_BNW for v in (plain, quick)]
    assert (ends[0] - ends[1]).abs().max() > 1e-3


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("vv_start", [0, 1, 2, 3])
def test_streams_and_taps_equal_slow_loops(quick_gelu, vv_start):
    visual = tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu)).visual
    x_BNW = vision.embed(visual, inputs(2, 3, 32, 32))
    found = vision.run_blocks(visual, x_BNW, vv_start=vv_start, taps=(0, 2))
    h, z, between = looped_streams(visual, x_BNW, vv_start)
    torch.testing.assert_close(found.h_BNW, h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.z_BNW, z, atol=1e-5, rtol=1e-5)
    assert set(found.taps) == {0, 2}
    for tap, state in found.taps.items():
        torch.testing.assert_close(state, between[tap], atol=1e-5, rtol=1e-5)


def test_layer_scale_belongs_to_both_streams():
    visual = tiny_model.random_model(tiny_model.model_cfg(vision={"layers": 1, "ls_init_value": 0.3})).visual
    x_BNW = vision.embed(visual, inputs(2, 3, 32, 32))
    found = vision.run_blocks(visual, x_BNW, vv_start=0)
    block = visual.transformer.resblocks[0]
    v = (block.ln_1(x_BNW) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias)[..., 128:]
    expected = x_BNW + block.ls_1.gamma * looped_attention(v, v, v, block.attn)
    torch.testing.assert_close(found.z_BNW, expected, atol=1e-5, rtol=1e-5)


def test_without_value_value_blocks_both_streams_are_one(tiny_network):
    x_BNW = vision.embed(tiny_network.visual, inputs(2, 3, 32, 32))
    streams = vision.run_blocks(tiny_network.visual, x_BNW, vv_start=3)
    assert torch.equal(streams.h_BNW, streams.z_BNW)
    assert streams.taps == {}


@pytest.mark.parametrize(("num_layers", "start"), [(24, 5), (12, 2), (6, 1), (32, 7), (3, 1)])
def test_the_default_start_is_block_5_of_24_in_proportion(num_layers, start):
    assert vision.default_vv_start(num_layers) == start


def test_the_native_grid_uses_the_stored_positions(tiny_network):
    assert vision.position_embedding(tiny_network.visual, (4, 4)) is tiny_network.visual.positional_embedding


@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (3, 7), (16, 1)])
def test_other_grids_are_bilinear_without_aligned_corners(tiny_network, grid):
    stored = tiny_network.visual.positional_embedding
    found = vision.position_embedding(tiny_network.visual, grid)
    assert torch.equal(found[0], stored[0])
    planes_1WHW = stored[1:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(planes_1WHW, size=grid, mode="bilinear", align_corners=False)[0]
    for row in range(grid[0]):
        for column in range(grid[1]):
            torch.testing.assert_close(found[1 + row * grid[1] + column], expected[:, row, column])


def test_doubled_positions_by_hand():
    """Half a pixel apart: a row 0, 1 becomes 0, 0.25, 0.75, 1; the class slot stays."""
    visual = tiny_model.random_model(tiny_model.model_cfg(vision={"image_size": [8, 16], "layers": 1})).visual
    assert visual.grid_size == (1, 2)
    visual.positional_embedding.copy_(torch.tensor([9.0, 0.0, 1.0])[:, None].expand(3, 64))
    found = vision.position_embedding(visual, (1, 4))[:, 0]
    torch.testing.assert_close(found, torch.tensor([9.0, 0.0, 0.25, 0.75, 1.0]))


def test_sizes_can_alternate(tiny_network):
    backbone = tiny_model.backbone_of(tiny_network)
    before = backbone.model.visual.positional_embedding.clone()
    first = [backbone.encode_image(tiny_model.pixels(1, side, side)).patches_BPD for side in (32, 64)]
    again = [backbone.encode_image(tiny_model.pixels(1, side, side)).patches_BPD for side in (32, 64)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(backbone.model.visual.positional_embedding, before)


@pytest.mark.parametrize(("height", "width", "grid"), [(32, 64, (4, 8)), (48, 8, (6, 1)), (8, 8, (1, 1))])
def test_any_multiple_of_the_patch_size_is_accepted(tiny_network, height, width, grid):
    found = tiny_model.backbone_of(tiny_network).encode_image(tiny_model.pixels(2, height, width), taps=(1,))
    num_patches = grid[0] * grid[1]
    assert found.grid == grid
    assert found.image_BD.shape == (2, 32)
    assert found.patches_BPD.shape == (2, num_patches, 32)
    assert found.taps[1].shape == (2, num_patches, 64)


def test_patches_come_in_raster_order():
    """Without attention and positions, a patch token depends on its own pixels only: equal pixels, equal tokens."""
    model = tiny_model.random_model()
    model.visual.positional_embedding.zero_()
    for block in model.visual.transformer.resblocks:
        block.attn.out_proj.weight.zero_()
    image = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    image[0, 8:16, 16:24] = 200  # second row, third column of a 2 x 3 grid: patch 5
    patches = tiny_model.backbone_of(model).encode_image(image).patches_BPD[0]
    differs = (patches - patches[0]).abs().amax(dim=-1) > 1e-4
    assert differs.tolist() == [False] * 5 + [True]


def test_features_have_unit_length_and_the_joint_width(tiny_network):
    found = tiny_model.backbone_of(tiny_network).encode_image(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(found.image_BD.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(found.patches_BPD.norm(dim=-1), torch.ones(2, 16))
    assert found.image_BD.shape[-1] == 32  # the tower is 64 wide
    assert found.image_BD.dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(32, 33), (30, 32), (4, 32)])
def test_sizes_that_do_not_divide_into_patches_are_refused(tiny_network, height, width):
    with pytest.raises(ModelError, match=f"{width} x {height} px do not divide into patches of 8 px"):
        tiny_model.backbone_of(tiny_network).encode_image(tiny_model.pixels(1, height, width))


@pytest.mark.parametrize("tap", [-1, 3])
def test_taps_that_are_no_blocks_are_refused(tiny_network, tap):
    with pytest.raises(ModelError, match="blocks 0 to 2"):
        tiny_model.backbone_of(tiny_network).encode_image(tiny_model.pixels(1, 32, 32), taps=(0, tap))


def test_layer_norm_is_computed_in_fp32():
    norm = torch.nn.LayerNorm(64)
    x = (100 + inputs(5, 64)).bfloat16()
    found = vision.layer_norm(norm, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, norm(x.float()).bfloat16())
    identity = torch.nn.Identity()
    assert vision.layer_norm(identity, x) is x
