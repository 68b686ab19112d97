"""What a method keeps of normal images, and how far a new image is from all of it.

The memory holds the features themselves: patch tokens, and window embeddings where the method has windows. A place of a
new image is as novel as its distance to the nearest remembered feature of its kind, wherever in the image that was.

Legend: B images, P patches, M windows of one size, K remembered features of one kind, D joint width.
Cost: P * K * D multiply-adds an image and kind; 16 images of ViT-B/16 at 240 px keep 3,600 patch tokens (9.2 MB).
Source: WinCLIP (arXiv 2303.14814), section 4.3 (WinCLIP+); zsad remembers value-value patch tokens.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zsad.backbone import ImageFeatures
from zsad.backbone.similarity import total
from zsad.errors import ModelError
from zsad.methods.windows import harmonic_map

PREFIX = "memory."
_PATCHES = PREFIX + "patches"
_ROWS = 16_384

Memory = dict[str, Tensor]
"""Name in the bundle -> (K, D) unit-length features; empty for a method that has seen no normal image."""


def collect(seen: Iterable[tuple[ImageFeatures, Mapping[int, Tensor]]]) -> Memory:
    """The memory of encoded batches, as `windows.encode` returns them."""
    parts: dict[str, list[Tensor]] = {}
    for features, windows in seen:
        for name, rows in {_PATCHES: features.patches_BPD, **_by_name(windows)}.items():
            parts.setdefault(name, []).append(rows.flatten(0, 1))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def is_remembered(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a method's tensors hold features of normal images."""
    return any(name.startswith(PREFIX) for name in tensors)


def restore(tensors: Mapping[str, Tensor] | None, sizes: Sequence[int], *, width: int, device: torch.device) -> Memory:
    """The memory out of a bundle's tensors.

    Args:
        tensors: of the bundle; None or empty: no memory.
        sizes: of the method's windows.
        width: the joint width D.
        device: where it is used.

    Raises:
        ModelError: if a part is missing, unexpected or of another width.
    """
    if not tensors:
        return {}
    expected = {_PATCHES, *(_window_name(size) for size in sizes)}
    if set(tensors) != expected:
        raise ModelError(
            f"the bundle remembers {', '.join(sorted(tensors))}; this method needs {', '.join(sorted(expected))}: give "
            "the normal images anew"
        )
    for name, rows in tensors.items():
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise ModelError(f"the bundle's {name} has shape {tuple(rows.shape)}; it must be (K, {width})")
    return {name: tensors[name].float().to(device) for name in sorted(expected)}


def novelty(memory: Memory, features: ImageFeatures, windows: Mapping[int, Tensor]) -> Tensor:
    """Mean over the kinds of feature of each patch's distance to the nearest remembered one, (B, P) in [0, 1].

    A patch's distance by windows is the harmonic mean over those that cover it.
    """
    maps = [distance(features.patches_BPD, memory[_PATCHES])]
    for size, windows_BMD in windows.items():
        apart_BM = distance(windows_BMD, memory[_window_name(size)])
        maps.append(harmonic_map(apart_BM, features.grid, size))
    return total(maps) / len(maps)


def distance(features_BND: Tensor, memory_KD: Tensor) -> Tensor:
    """(1 - cosine) / 2 to the nearest remembered feature, (B, N) in [0, 1]; one image at a time."""
    nearest = [
        torch.stack([(features_ND @ rows.T).amax(dim=1) for rows in torch.split(memory_KD, _ROWS)]).amax(dim=0)
        for features_ND in features_BND
    ]
    return ((1 - torch.stack(nearest)) / 2).clamp(0, 1)


def _window_name(size: int) -> str:
    return f"{PREFIX}windows_{size}x{size}"


def _by_name(windows: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {_window_name(size): rows for size, rows in windows.items()}
