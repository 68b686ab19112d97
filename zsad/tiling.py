"""Large images and small defects: any method sees overlapping tiles and the whole image, and its answers are merged.

A model of 224 px sees a camera image of 2,000 px shrunk nine times, and a scratch of five pixels is gone. Here the
image is stretched to a larger square, cut into n x n tiles of the model's own input size, and shown once more as a
whole: tiles find what is small, the whole view what is out of place. For the rest of the pipeline only the square's
size differs, and the method does not know that it sees tiles.

    map, types   half the whole view's, up-sampled, and half the tiles', blended
    score        half the whole view's, and half the highest tile's
    patches      the tiles', blended, unit length again
    explanation  the whole view's

Score and map never fall when a view's answer rises. The highest of n * n scores of a normal image is larger than one
score of it, so scales and thresholds are fitted on the merged score and map: another tiling needs another calibration.
Tiles start on multiples of the patch size, so their grids coincide; where two overlap, the weight moves linearly from
one to the other and always sums to 1, so no seam shows and nothing has to be divided.

Legend: B images, L side of the square px, S side of a tile px, T = n * n tiles, (g, g) patch grid of a tile, (G, G) of
the square, C channels, D joint width, K defect words.
Cost: n * n + 1 passes an image. Views run in chunks of the batch size whatever B is; beside the chunk, memory holds the
merged patches, twice for a moment: B * G * G * D * 4 bytes (2 * 16 images * 3.0 MB for 3 x 3 tiles of ViT-B/16).
Source: sliding windows are common practice; the blending and both rules are ours.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.errors import ConfigError
from zsad.images import Preprocess, Tiling
from zsad.methods import FewShot, Method, Prediction

WHOLE_SHARE = 0.5
_OVERLAP_SHARE = 1 / 8


class Tiled:
    """A method over tiles; made by `tiled`."""

    def __init__(self, inner: Method, preprocess: Preprocess, *, patch_size: int, batch_size: int) -> None:
        """Wrap `inner`.

        Args:
            inner: the method; sees squares of `preprocess.tiling.tile_px`.
            preprocess: with a tiling.
            patch_size: of the backbone, px.
            batch_size: views per call of `inner`, always exactly so many.

        Raises:
            ConfigError: without a tiling, or if tiles or overlap do not divide into patches.
        """
        if preprocess.tiling is None:
            raise ConfigError("the preprocessing has no tiling; use the method itself")
        check_patches(preprocess, patch_size)
        self.inner = inner
        self.config: Any = inner.config
        self.tiling = preprocess.tiling
        self._whole = Preprocess(size=self.tiling.tile_px, interpolation=preprocess.interpolation)
        self._batch_size = batch_size
        self._overlap = self.tiling.overlap_px // patch_size
        self._ramps_ng = ramps(self.tiling.per_side, self.tiling.tile_px // patch_size, self._overlap)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The inner method's."""
        return self.inner.tensors

    @property
    def map_sigma(self) -> float:
        """The inner method's filter, so that it spans the same share of a tile; 0: none."""
        return float(getattr(self.inner, "map_sigma", 0.0)) * self.tiling.tile_px / self.tiling.size

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score any number of squares (B, L, L, 3), at least one, by the rules of this module."""
        seen = self._seen(pixels_BHWC)
        per_image = self.tiling.per_side**2 + 1
        return _stacked([self._merged(list(islice(seen, per_image))) for _ in pixels_BHWC])

    def _seen(self, pixels_BLLC: Tensor) -> Iterator[Prediction]:
        """The inner method's answer to every view of every image, one at a time."""
        for chunk in self._chunks(pixels_BLLC):
            padding = chunk[:1].expand(self._batch_size - len(chunk), -1, -1, -1)
            found = self.inner.predict(torch.cat([chunk, padding]))
            for row in range(len(chunk)):
                yield _row(found, row)

    def _chunks(self, pixels_BLLC: Tensor) -> Iterator[Tensor]:
        """All views of all images, `batch_size` at a time; the last chunk may be smaller."""
        all_views = (view for image in pixels_BLLC for view in views(image, self.tiling, self._whole))
        while chunk := list(islice(all_views, self._batch_size)):
            yield torch.stack(chunk)

    def _merged(self, seen: list[Prediction]) -> Prediction:
        """One image's answer from those to its tiles, in raster order, and to the whole."""
        *tiles, whole = seen
        score_T = torch.cat([tile.score_B for tile in tiles])
        fine_map = self._blended([tile.map_Bhw[0].unsqueeze(-1) for tile in tiles])
        return Prediction(
            score_B=_mixed(whole.score_B, score_T.amax().view(1)),
            map_Bhw=_mixed(_upsampled(whole.map_Bhw, len(fine_map)), fine_map.squeeze(-1)[None]),
            patches_BPD=F.normalize(self._blended([_on_grid(tile) for tile in tiles]), dim=-1).flatten(0, 1)[None],
            type_map_BKhw=self._types(tiles, whole),
            explanation=whole.explanation,
        )

    def _types(self, tiles: list[Prediction], whole: Prediction) -> Tensor | None:
        if whole.type_map_BKhw is None:
            return None
        own = [tile.type_map_BKhw[0].permute(1, 2, 0) for tile in tiles if tile.type_map_BKhw is not None]
        fine_GGK = self._blended(own)
        return _mixed(_upsampled(whole.type_map_BKhw[0], len(fine_GGK)), fine_GGK.permute(2, 0, 1))[None]

    def _blended(self, values_TggC: list[Tensor]) -> Tensor:
        return blend(values_TggC, self._ramps_ng.to(values_TggC[0].device), self._overlap)


class TiledFewShot(Tiled):
    """The same over a method that can compare with normal images."""

    def remember(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """What the inner method keeps of all tiles and whole views of normal squares (B, L, L, 3)."""
        if not isinstance(self.inner, FewShot):
            raise TypeError(f"{type(self.inner).__name__} can't remember normal images")
        return self.inner.remember(chunk for pixels_BLLC in batches for chunk in self._chunks(pixels_BLLC))


def tiled(inner: Method, preprocess: Preprocess, *, patch_size: int, batch_size: int) -> Tiled:
    """Wrap a method; the wrapper can `remember` if the method can. Arguments and errors: see `Tiled`."""
    wrapper = TiledFewShot if isinstance(inner, FewShot) else Tiled
    return wrapper(inner, preprocess, patch_size=patch_size, batch_size=batch_size)


def retiled(
    preprocess: Preprocess, *, patch_size: int, size: int | None = None, tiles: int | None = None
) -> Preprocess:
    """The preprocessing for another resolution.

    Args:
        preprocess: as stored.
        patch_size: of the backbone, px.
        size: model input, px; None: as stored.
        tiles: per side, 1 for none; None: as stored. New tiles overlap by about an eighth of their side.

    Raises:
        ConfigError: if the size does not divide into patches or the square would be too large.
    """
    view_px = preprocess.view_px if size is None else size
    per_side = preprocess.tiles_per_side if tiles is None else tiles
    if (view_px, per_side) == (preprocess.view_px, preprocess.tiles_per_side):
        return preprocess
    if per_side < 1:
        raise ConfigError(f"{per_side} tiles per side: give 1 (no tiling) or more")
    if per_side == 1:
        changed = replace(preprocess, size=view_px, tiling=None)
    else:
        overlap_px = max(1, round(view_px * _OVERLAP_SHARE / patch_size)) * patch_size
        tiling = Tiling(per_side=per_side, overlap_px=overlap_px, tile_px=view_px)
        changed = replace(preprocess, size=tiling.size, tiling=tiling)
    check_patches(changed, patch_size)
    return changed


def check_patches(preprocess: Preprocess, patch_size: int) -> None:
    """Refuse sizes that do not divide into patches.

    Raises:
        ConfigError: naming the size and the nearest that would do.
    """
    lengths = {"input size": preprocess.view_px}
    if preprocess.tiling:
        lengths = {"tile size": preprocess.view_px, "tile overlap": preprocess.tiling.overlap_px}
    for name, length in lengths.items():
        below = length - length % patch_size
        if below != length:
            nearest = f"{below} or {below + patch_size}"
            raise ConfigError(f"{name} {length} px is no multiple of the patch size {patch_size} px; take {nearest} px")


def views(pixels_LLC: Tensor, tiling: Tiling, whole: Preprocess) -> Iterator[Tensor]:
    """The T tiles of a square in raster order, then the whole shrunk by `whole`: uint8 (S, S, 3) each."""
    starts = [index * tiling.step_px for index in range(tiling.per_side)]
    for top in starts:
        for left in starts:
            yield pixels_LLC[top : top + tiling.tile_px, left : left + tiling.tile_px]
    yield torch.from_numpy(whole.apply(pixels_LLC.cpu().numpy()).copy()).to(pixels_LLC.device)


def ramps(per_side: int, grid: int, overlap: int) -> Tensor:
    """Weights (n, g) of the tiles of one row along it: linear in overlaps, 1 elsewhere; overlapping ones sum to 1.

    Args:
        per_side: tiles n in the row.
        grid: patches g along a tile.
        overlap: patches that neighbours share, at most g / 2.
    """
    rising = (torch.arange(overlap) + 0.5) / max(overlap, 1)
    weights_ng = torch.ones(per_side, grid)
    weights_ng[1:, :overlap] = rising
    weights_ng[:-1, grid - overlap :] = rising.flip(0)
    return weights_ng


def blend(values_TggC: list[Tensor], ramps_ng: Tensor, overlap: int) -> Tensor:
    """Tiles' values on the patch grid of the square, (G, G, C).

    Args:
        values_TggC: one (g, g, C) per tile, raster order.
        ramps_ng: weights of `ramps`, along rows and columns alike.
        overlap: patches that neighbours share.
    """
    per_side, grid = ramps_ng.shape
    step = grid - overlap
    side = grid + (per_side - 1) * step
    canvas_GGC = values_TggC[0].new_zeros(side, side, values_TggC[0].shape[-1], dtype=torch.float32)
    for index, values_ggC in enumerate(values_TggC):
        row, column = divmod(index, per_side)
        weight_gg1 = (ramps_ng[row, :, None] * ramps_ng[column, None, :]).unsqueeze(-1)
        top, left = row * step, column * step
        canvas_GGC[top : top + grid, left : left + grid] += weight_gg1 * values_ggC
    return canvas_GGC


def _mixed(whole: Tensor, tiles: Tensor) -> Tensor:
    return WHOLE_SHARE * whole + (1 - WHOLE_SHARE) * tiles


def _upsampled(maps_Khw: Tensor, side: int) -> Tensor:
    """Maps (K, h, w) on a finer grid (K, side, side), bilinear."""
    return F.interpolate(maps_Khw.float()[None], size=(side, side), mode="bilinear", align_corners=False)[0]


def _on_grid(tile: Prediction) -> Tensor:
    """Patch tokens (g, g, D) of a tile."""
    rows, columns = tile.map_Bhw.shape[1:]
    return tile.patches_BPD[0].view(rows, columns, -1)


def _row(found: Prediction, row: int) -> Prediction:
    """One image of a batch, as a batch of one."""
    types = found.type_map_BKhw
    return Prediction(
        score_B=found.score_B[row : row + 1],
        map_Bhw=found.map_Bhw[row : row + 1],
        patches_BPD=found.patches_BPD[row : row + 1],
        type_map_BKhw=None if types is None else types[row : row + 1],
        explanation=found.explanation[row : row + 1],
    )


def _stacked(found: list[Prediction]) -> Prediction:
    """Batches of one as one batch."""
    types = [one.type_map_BKhw for one in found if one.type_map_BKhw is not None]
    return Prediction(
        score_B=torch.cat([one.score_B for one in found]),
        map_Bhw=torch.cat([one.map_Bhw for one in found]),
        patches_BPD=torch.cat([one.patches_BPD for one in found]),
        type_map_BKhw=torch.cat(types) if types else None,
        explanation=tuple(kept for one in found for kept in one.explanation),
    )
