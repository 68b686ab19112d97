"""Windows: which patches they hold, what reaches them, and how their answers become a map."""

import pytest
import tiny_model
import torch

from zsad.backbone import vision
from zsad.errors import ConfigError
from zsad.methods.windows import (
    SIZES,
    encode,
    harmonic_map,
    harmonic_mean,
    num_tokens,
    ordinary_tokens,
    window_embeddings,
    window_patches,
)


def embeddings(backbone, pixels, size):
    """Window embeddings (B, M, D) of images."""
    tokens = vision.embed(backbone.model.visual, backbone.normalise(pixels))
    return window_embeddings(backbone, tokens, backbone.grid(pixels), size)


def test_windows_of_a_3_by_4_grid():
    """Patches are numbered 0 1 2 3 / 4 5 6 7 / 8 9 10 11."""
    assert window_patches((3, 4), 2).tolist() == [
        [0, 1, 4, 5],
        [1, 2, 5, 6],
        [2, 3, 6, 7],
        [4, 5, 8, 9],
        [5, 6, 9, 10],
        [6, 7, 10, 11],
    ]
    assert window_patches((3, 4), 3).tolist() == [[0, 1, 2, 4, 5, 6, 8, 9, 10], [1, 2, 3, 5, 6, 7, 9, 10, 11]]


@pytest.mark.parametrize("grid", [(2, 5), (5, 2)])
def test_windows_larger_than_the_grid_are_refused(grid):
    with pytest.raises(ConfigError, match=f"3 x 3 patches do not fit on a grid of {grid[0]} x {grid[1]}"):
        window_patches(grid, 3)


@pytest.mark.parametrize(("grid", "tokens"), [((15, 15), 2896), ((3, 4), 13 + 6 * 5 + 2 * 10), ((3, 3), 10 + 20 + 10)])
def test_the_number_of_tokens(grid, tokens):
    """226 + 196 * 5 + 169 * 10 on the published 15 x 15 grid."""
    assert num_tokens(grid) == tokens
    held = sum(window_patches(grid, size).numel() + len(window_patches(grid, size)) for size in SIZES)
    assert held + 1 + grid[0] * grid[1] == tokens


def test_harmonic_aggregation_by_hand():
    """Four 2 x 2 windows on a 3 x 3 grid score 1, 1/2, 1/4, 1/8: the centre is 4 / (1 + 2 + 4 + 8), edges are pairs."""
    found = harmonic_map(torch.tensor([[1.0, 1 / 2, 1 / 4, 1 / 8]]), (3, 3), 2)
    expected = [1, 2 / 3, 1 / 2, 2 / 5, 4 / 15, 2 / 10, 1 / 4, 2 / 12, 1 / 8]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_a_window_as_large_as_the_grid_gives_every_patch_its_value():
    torch.testing.assert_close(
        harmonic_map(torch.tensor([[0.3], [0.7]]), (3, 3), 3), torch.tensor([[0.3], [0.7]]).expand(2, 9)
    )


def test_harmonic_aggregation_over_an_oblong_grid_equals_a_loop():
    grid, size = (4, 6), 3
    values = torch.rand(2, 2 * 4, generator=torch.Generator().manual_seed(0))
    covering = [[m for m, patches in enumerate(window_patches(grid, size).tolist()) if p in patches] for p in range(24)]
    expected = torch.stack([len(ms) / sum(1 / values[:, m] for m in ms) for ms in covering], dim=1)
    torch.testing.assert_close(harmonic_map(values, grid, size), expected)


@pytest.mark.parametrize("size", SIZES)
def test_an_images_harmonic_map_does_not_depend_on_its_place(size):
    """To the last bit, on a grid whose maps do not fill the processor's vectors."""
    grid = (5, 7)
    values = torch.rand(16, (6 - size) * (8 - size), generator=torch.Generator().manual_seed(0))
    for shift in range(1, 16):
        moved = harmonic_map(values.roll(shift, dims=0), grid, size).roll(-shift, dims=0)
        assert torch.equal(moved, harmonic_map(values, grid, size))


def test_a_zero_counts_as_a_millionth():
    torch.testing.assert_close(harmonic_map(torch.zeros(1, 1), (2, 2), 2), torch.full((1, 4), 1e-6))
    torch.testing.assert_close(harmonic_mean([torch.tensor([0.0]), torch.tensor([1e-6])]), torch.tensor([1e-6]))


def test_harmonic_mean_by_hand():
    """3 / (1 + 2 + 3) and equal values."""
    found = harmonic_mean([torch.tensor([1.0, 0.5]), torch.tensor([1 / 2, 0.5]), torch.tensor([1 / 3, 0.5])])
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_window_embedding_is_the_tower_run_on_its_tokens(quick_gelu, size):
    """open_clip's own blocks on the class token and the window's tokens, one window at a time."""
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu)))
    pixels, visual = tiny_model.pixels(2, 32, 40), backbone.model.visual
    found = embeddings(backbone, pixels, size)
    tokens = vision.embed(visual, backbone.normalise(pixels))
    for number, patches in enumerate(window_patches((4, 5), size).tolist()):
        chosen = tokens[:, [0, *(p + 1 for p in patches)]]
        pooled = visual.ln_post(visual.transformer(chosen)[:, 0]) @ visual.proj
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        torch.testing.assert_close(found[:, number], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_outside_a_window_do_not_reach_it(tiny_backbone, size):
    before = tiny_model.pixels(1, 32, 32)
    after = before.clone()
    after[:, 24:, 24:] = 255 - after[:, 24:, 24:]  # patch 15, the last one
    holds = torch.tensor([15 in patches for patches in window_patches((4, 4), size).tolist()])
    moved = (embeddings(tiny_backbone, before, size) - embeddings(tiny_backbone, after, size)).abs().amax(dim=-1)[0]
    assert holds.sum() == 1
    assert (moved[~holds] == 0).all()
    assert (moved[holds] > 1e-3).all()


def test_position_embeddings_are_kept(tiny_backbone):
    """All patches alike: only their positions tell the windows apart."""
    grey = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    found = embeddings(tiny_backbone, grey, 2)[0]
    assert ((found[1:] - found[0]).abs().amax(dim=-1) > 1e-3).all()


def test_an_image_has_the_same_windows_alone_and_in_a_batch(tiny_backbone):
    pixels = tiny_model.pixels(5, 32, 32)
    for size in SIZES:
        batch = embeddings(tiny_backbone, pixels, size)
        assert torch.equal(batch, torch.cat([embeddings(tiny_backbone, image[None], size) for image in pixels]))


def test_embeddings_have_unit_length_and_the_joint_width(tiny_backbone):
    features, windows = encode(tiny_backbone, tiny_model.pixels(2, 32, 40), sizes=SIZES)
    assert features.grid == (4, 5)
    assert {size: tuple(x.shape) for size, x in windows.items()} == {2: (2, 12, 32), 3: (2, 6, 32)}
    for x in windows.values():
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(x.shape[:2]))


def test_ordinary_tokens_are_open_clips_own(tiny_backbone):
    """Its blocks, `ln_post` and the projection, without the class token."""
    pixels, visual = tiny_model.pixels(2, 32, 32), tiny_backbone.model.visual
    ends = visual.ln_post(visual.transformer(vision.embed(visual, tiny_backbone.normalise(pixels)))[:, 1:])
    expected = torch.nn.functional.normalize(ends @ visual.proj, dim=-1)
    torch.testing.assert_close(ordinary_tokens(tiny_backbone, pixels), expected, atol=1e-5, rtol=0)


def test_without_windows_the_tower_runs_once(tiny_backbone):
    pixels = tiny_model.pixels(2, 32, 32)
    features, windows = encode(tiny_backbone, pixels, sizes=(), vv_start=2)
    assert windows == {}
    assert torch.equal(features.patches_BPD, tiny_backbone.encode_image(pixels, vv_start=2).patches_BPD)
