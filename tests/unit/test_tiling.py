"""Tiles cover the square, meet without seams, and give what the method itself gives where it can be known by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny_model
import torch
from torch.nn.functional import interpolate

from zsad.errors import ConfigError
from zsad.images import Preprocess, Tiling
from zsad.methods import FewShot, Prediction, Subject, WinCLIP, WinCLIPConfig
from zsad.tiling import blend, check_patches, ramps, retiled, tiled, views

PATCH = 8
TILE = 32  # 4 x 4 patches
BATCH = 4


def preprocess(per_side=2, overlap_px=PATCH):
    tiling = Tiling(per_side=per_side, overlap_px=overlap_px, tile_px=TILE)
    return Preprocess(size=tiling.size, tiling=tiling)


def patch_means(pixels_HWC):
    """Mean brightness of every patch, (h, w) float32."""
    rows, columns = (side // PATCH for side in pixels_HWC.shape[:2])
    return pixels_HWC.float().reshape(rows, PATCH, columns, PATCH, 3).mean(dim=(1, 3, 4))


@dataclass
class Brightness:
    """A method that says how bright each patch is, and notes the shapes it was given; its score is the brightest."""

    config: str = "brightness"
    with_types: bool = True

    def __post_init__(self):
        self.shapes = []
        self.tensors = {"bank": torch.ones(1)}

    def predict(self, pixels_BHWC):  # noqa: D102
        self.shapes.append(tuple(pixels_BHWC.shape))
        map_Bhw = torch.stack([patch_means(image) for image in pixels_BHWC])
        share_Bhw = map_Bhw / 255
        tokens_BPD = torch.nn.functional.normalize(
            torch.stack([map_Bhw.flatten(1), 255 - map_Bhw.flatten(1)], 2), dim=2
        )
        return Prediction(
            score_B=map_Bhw.amax(dim=(1, 2)),
            map_Bhw=map_Bhw,
            patches_BPD=tokens_BPD,
            type_map_BKhw=torch.stack([share_Bhw, 1 - share_Bhw], dim=1) if self.with_types else None,
            explanation=tuple((("mean", "normal", image.float().mean().item()),) for image in pixels_BHWC),
        )


class Remembering(Brightness):
    """Its memory is the mean of every picture it was shown."""

    def remember(self, batches):  # noqa: D102
        return {"bank": torch.cat([batch.float().mean(dim=(1, 2, 3)) for batch in batches])}


def wrap(inner, settings):
    return tiled(inner, settings, patch_size=PATCH, batch_size=BATCH)


def images(count, size, seed=0):
    return tiny_model.pixels(count, size, size, seed=seed)


# Geometry


def test_a_published_filter_spans_the_same_share_of_a_tile():
    """Tiles of 3 that overlap by nothing: a third of the square each."""
    inner = Brightness()
    assert wrap(inner, preprocess(3, 0)).map_sigma == 0
    inner.map_sigma = 0.03
    assert wrap(inner, preprocess(3, 0)).map_sigma == pytest.approx(0.01)


@pytest.mark.parametrize(("per_side", "overlap_px"), [(2, 0), (2, 8), (2, 16), (3, 8), (5, 16)])
def test_tiles_cover_every_pixel_and_end_at_the_corner(per_side, overlap_px):
    settings = preprocess(per_side, overlap_px)
    seen = torch.zeros(settings.size, settings.size, 3, dtype=torch.uint8)
    *tiles, whole = views(seen, settings.tiling, Preprocess(size=TILE))
    assert len(tiles) == per_side**2
    assert all(view.shape == (TILE, TILE, 3) for view in [*tiles, whole])
    for tile in tiles:
        tile.add_(1)  # tiles are windows on the square
    assert seen.min() == 1
    assert seen[0, 0, 0] == seen[-1, -1, 0] == seen[0, -1, 0] == 1
    assert seen.max() == (4 if overlap_px else 1)


def test_the_last_view_is_the_whole_as_an_untiled_detector_would_shrink_it():
    settings = preprocess()
    (pixels,) = images(1, settings.size)
    *_, whole = views(pixels, settings.tiling, Preprocess(size=TILE))
    np.testing.assert_array_equal(whole.numpy(), Preprocess(size=TILE).apply(pixels.numpy()))


def test_ramps_by_hand():
    assert ramps(3, 4, 2).tolist() == [[1, 1, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 1, 1]]
    assert ramps(2, 3, 0).tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(("per_side", "overlap"), [(2, 0), (2, 1), (3, 2), (4, 3), (7, 8)])
def test_constant_maps_blend_to_the_constant(per_side, overlap):
    grid = 16
    constant = [torch.full((grid, grid, 2), 0.7)] * per_side**2
    blended = blend(constant, ramps(per_side, grid, overlap), overlap)
    side = per_side * grid - (per_side - 1) * overlap
    assert blended.shape == (side, side, 2)
    torch.testing.assert_close(blended, torch.full((side, side, 2), 0.7), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("per_side", "overlap_px"), [(2, 8), (3, 8), (3, 16)])
def test_tiles_of_patch_means_blend_to_the_patch_means_of_the_square(per_side, overlap_px):
    settings = preprocess(per_side, overlap_px)
    (pixels,) = images(1, settings.size)
    *tiles, _ = views(pixels, settings.tiling, Preprocess(size=TILE))
    overlap = overlap_px // PATCH
    found = blend([patch_means(tile)[..., None] for tile in tiles], ramps(per_side, 4, overlap), overlap)[..., 0]
    expected = patch_means(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    covers = torch.zeros_like(expected)
    for top in range(0, per_side * (4 - overlap), 4 - overlap):
        for left in range(0, per_side * (4 - overlap), 4 - overlap):
            covers[top : top + 4, left : left + 4] += 1
    once = covers == 1
    assert once.sum() >= 4
    assert torch.equal(found[once], expected[once])


def test_a_seam_is_crossed_gradually():
    """Two tiles that disagree: the blend falls in equal steps over the four patches they share."""
    left, right = torch.ones(8, 8, 1), torch.zeros(8, 8, 1)
    row = blend([left, right, left, right], ramps(2, 8, 4), 4)[5, :, 0]
    assert row.tolist() == [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0, 0, 0]


# Merged answers


@pytest.fixture
def bright_spot():
    """A black square of 3 x 3 tiles with one white patch in row 9, column 4, seen by one tile only."""
    settings = preprocess(3, PATCH)
    pixels = torch.zeros(1, settings.size, settings.size, 3, dtype=torch.uint8)
    pixels[0, 72:80, 32:40] = 255
    return settings, pixels


def test_a_defect_in_one_tile_lands_at_its_place(bright_spot):
    settings, pixels = bright_spot
    found = wrap(Brightness(), settings).predict(pixels).map_Bhw[0]
    assert found.shape == (10, 10)
    assert divmod(int(found.argmax()), 10) == (9, 4)


def test_map_and_types_are_half_the_whole_view_and_half_the_tiles():
    settings = preprocess(3, PATCH)
    pixels = images(2, settings.size)
    found = wrap(Brightness(), settings).predict(pixels)
    for row, square in enumerate(pixels):
        whole = torch.from_numpy(Preprocess(size=TILE).apply(square.numpy()).copy())
        coarse = interpolate(patch_means(whole)[None, None], size=(10, 10), mode="bilinear")[0, 0]
        expected = 0.5 * patch_means(square) + 0.5 * coarse
        torch.testing.assert_close(found.map_Bhw[row], expected, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found.type_map_BKhw[row, 0], expected / 255, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.type_map_BKhw.sum(dim=1), torch.ones(2, 10, 10))


def test_the_score_is_half_the_whole_views_and_half_the_highest_tiles(bright_spot):
    settings, pixels = bright_spot
    whole = torch.from_numpy(Preprocess(size=TILE).apply(pixels[0].numpy()).copy())
    expected = 0.5 * patch_means(whole).max() + 0.5 * 255
    assert wrap(Brightness(), settings).predict(pixels).score_B.tolist() == [pytest.approx(float(expected))]


def test_patches_are_the_tiles_of_unit_length():
    settings = preprocess(2, 2 * PATCH)
    pixels = images(1, settings.size)
    found = wrap(Brightness(), settings).predict(pixels).patches_BPD[0]
    means = patch_means(pixels[0]).flatten()
    expected = torch.nn.functional.normalize(torch.stack([means, 255 - means], dim=1), dim=1)
    torch.testing.assert_close(found, expected)  # neighbours agree where they overlap


def test_the_explanation_is_the_whole_views():
    settings = preprocess()
    pixels = images(3, settings.size)
    found = wrap(Brightness(), settings).predict(pixels).explanation
    means = [Preprocess(size=TILE).apply(square.numpy()).mean() for square in pixels]
    assert [kept[0][2] for kept in found] == pytest.approx(means)


def test_methods_without_types_and_explanations_have_none(tiny_backbone):
    inner = WinCLIP(WinCLIPConfig(), tiny_backbone, Subject())
    found = wrap(inner, preprocess()).predict(images(1, 56))
    assert found.type_map_BKhw is None
    assert found.explanation == ()


# Batches


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_views_run_in_chunks_of_one_shape(count):
    settings = preprocess()
    inner = Brightness()
    found = wrap(inner, settings).predict(images(count, settings.size))
    assert len(found.score_B) == len(found.map_Bhw) == len(found.patches_BPD) == len(found.explanation) == count
    assert inner.shapes == [(BATCH, TILE, TILE, 3)] * -(-count * 5 // BATCH)


def test_place_and_neighbours_change_no_bit(tiny_backbone):
    settings = preprocess(3, PATCH)
    method = wrap(WinCLIP(WinCLIPConfig(), tiny_backbone, Subject()), settings)
    pixels = images(5, settings.size)
    together = method.predict(pixels)
    for row in range(5):
        alone = method.predict(pixels[row : row + 1])
        assert torch.equal(alone.score_B[0], together.score_B[row])
        assert torch.equal(alone.map_Bhw[0], together.map_Bhw[row])
        assert torch.equal(alone.patches_BPD[0], together.patches_BPD[row])


def test_config_and_tensors_are_the_methods():
    inner = Brightness()
    method = wrap(inner, preprocess())
    assert (method.config, method.tensors) == (inner.config, inner.tensors)


def test_normals_are_remembered_tile_by_tile():
    settings = preprocess()
    method = wrap(Remembering(), settings)
    pixels = images(3, settings.size)
    bank = method.remember([pixels[:2], pixels[2:]])["bank"]
    whole = Preprocess(size=TILE)
    expected = [view.float().mean() for square in pixels for view in views(square, settings.tiling, whole)]
    assert len(expected) == 15
    torch.testing.assert_close(bank, torch.stack(expected))


def test_only_methods_that_remember_can_remember_tiled():
    assert isinstance(wrap(Remembering(), preprocess()), FewShot)
    assert not isinstance(wrap(Brightness(), preprocess()), FewShot)


# Settings


def test_the_same_resolution_is_the_same_preprocessing():
    stored = preprocess(3, 16)
    assert retiled(stored, patch_size=PATCH) is stored
    assert retiled(stored, patch_size=PATCH, size=TILE, tiles=3) is stored
    plain = Preprocess(size=TILE)
    assert retiled(plain, patch_size=PATCH, tiles=1) is plain


@pytest.mark.parametrize(
    ("view_px", "patch_size", "overlap_px", "size"), [(224, 16, 32, 416), (336, 14, 42, 630), (240, 16, 32, 448)]
)
def test_new_tiles_overlap_by_about_an_eighth(view_px, patch_size, overlap_px, size):
    found = retiled(Preprocess(size=view_px), patch_size=patch_size, tiles=2)
    assert found.tiling == Tiling(per_side=2, overlap_px=overlap_px, tile_px=view_px)
    assert found.size == size


def test_resolution_can_be_changed_and_tiling_dropped():
    stored = replace(preprocess(), interpolation="bilinear")
    assert retiled(stored, patch_size=PATCH, tiles=1) == Preprocess(size=TILE, interpolation="bilinear")
    larger = retiled(stored, patch_size=PATCH, size=64)
    assert larger.tiling == Tiling(per_side=2, overlap_px=8, tile_px=64)
    assert larger.interpolation == "bilinear"
    assert retiled(Preprocess(size=32), patch_size=PATCH, size=48) == Preprocess(size=48)
    assert retiled(Preprocess(size=32, first_px=99), patch_size=PATCH, size=48) == Preprocess(size=48, first_px=99)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 225}, "input size 225 px is no multiple of the patch size 16 px; take 224 or 240 px"),
        ({"size": 225, "tiles": 2}, "tile size 225 px is no multiple"),
        ({"tiles": 0}, "0 tiles per side: give 1"),
        ({"tiles": 22}, r"16 to 4096 px, not 4256 \(smaller or fewer tiles"),
        ({"size": 8192}, "16 to 4096 px, not 8192"),
    ],
)
def test_resolutions_that_can_not_be_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        retiled(Preprocess(size=224), patch_size=16, **change)


def test_an_overlap_between_patches_is_refused():
    with pytest.raises(ConfigError, match="tile overlap 12 px is no multiple of the patch size 8 px; take 8 or 16 px"):
        check_patches(preprocess(2, 12), PATCH)
    with pytest.raises(ConfigError, match="no tiling"):
        wrap(Brightness(), Preprocess(size=TILE))
