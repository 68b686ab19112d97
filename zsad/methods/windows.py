"""Windows: what a CLIP tower says of small parts of an image, and how those answers become one map.

A window of k x k patches is embedded by running the tower on the class token and that window's patch tokens only, their
position embeddings kept. Its embedding is a real image embedding, so it can be compared with text, and nothing outside
the window reaches it. Windows slide by one patch; a patch takes the harmonic mean over the windows that cover it, which
stays low as soon as one of them looks normal.

On a CPU the windows of one image make one pass, so that matrix shapes, and with them the last bits, are the same
whatever the batch; on a GPU as many images share a pass as keep it busy.

Legend: B images, N = 1 + P tokens, P patches, (h, w) patch grid, M windows of one size, T = 1 + k * k tokens of a
window, W tower width, D joint width.
Cost: (1 + k * k) * M tokens a size; 2 x 2 and 3 x 3 on a 15 x 15 grid are 2,670 tokens beside the 226 of a plain pass.
Source: WinCLIP (arXiv 2303.14814), section 4.2.
"""

from collections.abc import Collection, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone, ImageFeatures, vision
from zsad.backbone.similarity import total
from zsad.errors import ConfigError

SIZES = (2, 3)
_FLOOR = 1e-6  # a sigmoid in fp32 reaches 0, and a harmonic mean would stay there
_GPU_SEQUENCES = 8192


def encode(
    backbone: Backbone,
    pixels_BHWC: Tensor,
    *,
    sizes: Sequence[int],
    vv_start: int | None = None,
    taps: Collection[int] = (),
) -> tuple[ImageFeatures, dict[int, Tensor]]:
    """Features of whole images with their taps, and window embeddings (B, M, D) per size.

    Raises:
        ConfigError: if a window is larger than the patch grid.
    """
    features = backbone.encode_image(pixels_BHWC, vv_start=vv_start, taps=taps)
    if not sizes:
        return features, {}
    tokens_BNW = vision.embed(backbone.model.visual, backbone.normalise(pixels_BHWC))
    return features, {size: window_embeddings(backbone, tokens_BNW, features.grid, size) for size in sizes}


@torch.inference_mode()
def ordinary_tokens(backbone: Backbone, pixels_BHWC: Tensor) -> Tensor:
    """Unit-length patch tokens (B, P, D) at the end of the ordinary stream, which text does not fit as they are."""
    visual = backbone.model.visual
    tokens_BNW = vision.embed(visual, backbone.normalise(pixels_BHWC))
    streams = vision.run_blocks(visual, tokens_BNW, vv_start=backbone.num_layers)
    return vision.to_joint(visual, streams.h_BNW[:, 1:])


def window_patches(grid: tuple[int, int], size: int) -> Tensor:
    """Raster numbers (M, size * size) of the patches in every window, windows in raster order.

    Raises:
        ConfigError: if a window is larger than the grid.
    """
    rows, columns = grid
    if min(grid) < size:
        raise ConfigError(
            f"windows of {size} x {size} patches do not fit on a grid of {rows} x {columns}; use a larger input, or "
            "dense value-value tokens instead of windows"
        )
    numbers_hw = torch.arange(rows * columns).view(rows, columns)
    return numbers_hw.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size)


def num_tokens(grid: tuple[int, int], sizes: Sequence[int] = SIZES) -> int:
    """Tokens that pass the tower for one image: the plain pass and all windows."""
    rows, columns = grid
    windows = sum((1 + size * size) * (rows - size + 1) * (columns - size + 1) for size in sizes)
    return 1 + rows * columns + windows


@torch.inference_mode()
def window_embeddings(backbone: Backbone, tokens_BNW: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Unit-length embeddings (B, M, D) of every window.

    Args:
        backbone: whose tower runs.
        tokens_BNW: what `vision.embed` returns for the whole images.
        grid: (rows, columns) of patches.
        size: side of a window in patches.

    Raises:
        ConfigError: if a window is larger than the grid.
    """
    patches = window_patches(grid, size).to(tokens_BNW.device)
    chosen_MT = F.pad(patches + 1, (1, 0))  # token 0 is the class token
    per_pass = 1 if tokens_BNW.device.type == "cpu" else max(1, _GPU_SEQUENCES // len(chosen_MT))
    passes = [_class_embeddings(backbone, chunk, chosen_MT) for chunk in torch.split(tokens_BNW, per_pass)]
    return torch.cat(passes)


def _class_embeddings(backbone: Backbone, tokens_BNW: Tensor, chosen_MT: Tensor) -> Tensor:
    visual = backbone.model.visual
    sequences = tokens_BNW[:, chosen_MT].flatten(0, 1)
    streams = vision.run_blocks(visual, sequences, vv_start=backbone.num_layers)
    return vision.to_joint(visual, streams.h_BNW[:, 0]).view(len(tokens_BNW), len(chosen_MT), -1)


def harmonic_map(values_BM: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Per patch the harmonic mean of the windows that cover it.

    Args:
        values_BM: non-negative values of all windows of one size, raster order; those below 1e-6 count as 1e-6.
        grid: (rows, columns) of patches.
        size: side of a window in patches.

    Returns:
        (B, P), raster order.
    """
    rows, columns = grid
    inverse_BM = 1 / values_BM.clamp(min=_FLOOR)
    inverse, count = (_covering(x, grid, size) for x in (inverse_BM, torch.ones_like(inverse_BM[:1])))
    return (count / inverse).view(-1, rows * columns)


def _covering(values_BM: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Per patch the sum (B, h, w) over the windows that cover it: they begin at most size - 1 patches before it."""
    rows, columns = grid
    starts = values_BM.view(-1, rows - size + 1, columns - size + 1)
    padded = F.pad(starts, [size - 1] * 4)
    shifted = [padded[:, i : i + rows, j : j + columns] for i, j in product(range(size), repeat=2)]
    return total(shifted)


def harmonic_mean(values: Sequence[Tensor]) -> Tensor:
    """Harmonic mean of tensors of one shape; values below 1e-6 count as 1e-6."""
    return len(values) / total([1 / value.clamp(min=_FLOOR) for value in values])
