"""From a map on the patch grid to the published form of it: bilinear up-sampling, then a Gaussian.

Both steps are linear and separable, so each axis is one small matrix and the whole is two matrix products; nothing of
image size is filtered. A method predicts on the patch grid, where nothing is lost yet, and calibration and regions use
that; evaluation measures this form, as papers do, for methods that have one (`map_sigma`, see `zsad.methods.base`).

Legend: B images, (h, w) patch grid, (H, W) output px.
Cost: about H * W * h multiplications per image.
Source: the filter is SciPy's `gaussian_filter` with its defaults (cut at 4 sigma, half-sample symmetric border), which
the released code of AnomalyCLIP, FAPrompt and PromptAD uses.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_CUT = 4.0  # the kernel ends here, in sigma


def published_map(map_Bhw: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Maps (B, H, W), up-sampled and filtered.

    Args:
        map_Bhw: on the patch grid.
        size: (H, W), px.
        sigma: of the Gaussian, as a share of each side, for the method saw a square; 0: none.
    """
    rows_Hh = _axis(map_Bhw.shape[1], size[0], sigma * size[0]).to(map_Bhw)
    columns_Ww = _axis(map_Bhw.shape[2], size[1], sigma * size[1]).to(map_Bhw)
    return rows_Hh @ map_Bhw @ columns_Ww.T


@lru_cache(maxsize=16)
def _axis(length: int, size: int, sigma_px: float) -> Tensor:
    """Matrix (size, length) that up-samples and filters one axis, float64."""
    identity = torch.eye(length, dtype=torch.float64)[None]
    upsample_SL = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T
    return _gaussian(size, sigma_px) @ upsample_SL if sigma_px > 0 else upsample_SL


def _gaussian(size: int, sigma_px: float) -> Tensor:
    """Matrix (size, size) of the filter; positions beyond the border are those mirrored at it, again if need be."""
    radius = int(_CUT * sigma_px + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma_px) ** 2)
    reached = (torch.arange(size)[:, None] + offsets) % (2 * size)
    inside = torch.where(reached < size, reached, 2 * size - 1 - reached)
    filter_SS = torch.zeros(size, size, dtype=torch.float64)
    return filter_SS.scatter_add_(1, inside, (weights / weights.sum()).expand(size, -1))
