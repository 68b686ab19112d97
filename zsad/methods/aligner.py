"""Carry text directions from the space of whole images to that of patch tokens, from one image and without training.

CLIP aligns text with image embeddings, not with patch tokens. Every window of an image gives a pair: its embedding as a
small image (global, where text fits) and the mean of its patch tokens (local; the ordinary stream's, for value-value
tokens lie in the joint space already). From those pairs

- `ridge` fits the linear map W = G^T (G G^T + lambda I)^-1 L with lambda = `share` * trace(G G^T) / M and moves a text
  direction to t W. With L = G and lambda -> 0 it leaves every direction in the span of G as it is;
- `transport` takes the local sides of the windows that are most like the text: softmax(G t / 0.05) L.

Legend: M pairs of one image (all windows and the image itself), D joint width, S text directions.
Cost: one M x M Cholesky factor; 366 pairs of a 15 x 15 grid need 16 MFLOP and M * D * S more, nothing beside the tower.
Source: "alignment is carried from global to local, without training" is ALFA's (arXiv 2404.09654), of which only the
abstract was at hand; both formulas are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.methods.windows import window_patches

TRANSPORT_TEMPERATURE = 0.05


def pairs(
    image_D: Tensor, windows: dict[int, Tensor], tokens_PD: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Global and local sides (M, D) of one image.

    Args:
        image_D: embedding of the whole image.
        windows: side of a window in patches -> (M_size, D) embeddings.
        tokens_PD: unit-length patch tokens.
        grid: (rows, columns) of patches.
    """
    local = [tokens_PD[window_patches(grid, size).to(tokens_PD.device)].mean(dim=1) for size in windows]
    return torch.cat([image_D[None], *windows.values()]), torch.cat([tokens_PD.mean(dim=0)[None], *local])


def ridge(text_SD: Tensor, global_MD: Tensor, local_MD: Tensor, share: float) -> Tensor:
    """Unit-length local directions (S, D) by the ridge map; `share` scales lambda."""
    gram_MM = global_MD @ global_MD.T
    strength = share * gram_MM.diagonal().mean()
    factor = torch.linalg.cholesky(gram_MM + strength * torch.eye(len(gram_MM), device=gram_MM.device))
    weight_MS = torch.cholesky_solve(global_MD @ text_SD.T, factor)
    return F.normalize(weight_MS.T @ local_MD, dim=-1)


def transport(text_SD: Tensor, global_MD: Tensor, local_MD: Tensor) -> Tensor:
    """Unit-length local directions (S, D): the local sides of the windows that fit the text."""
    share_SM = (text_SD @ global_MD.T / TRANSPORT_TEMPERATURE).softmax(dim=-1)
    return F.normalize(share_SM @ local_MD, dim=-1)
