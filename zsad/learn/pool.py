"""A pool of procedural images on disk, and augmented batches drawn from it.

Drawing an image costs more than a training step on it, so a pool is drawn once, on all cores, into memory-mapped
arrays, and every step takes random windows of it: flips, quarter turns, scale, gain, gamma, grey. A window that
misses the defect is a normal sample, the hardest kind there is. Shards already on disk are kept, so an interrupted
draw goes on.

Legend: B images, P patches. Cost on disk: 200 KB per 224 px image (pixels and mask).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from zsad.datasets.synthetic import SyntheticConfig, generate

SHARD = 500
Kind = tuple[str, str]
MIN_DEFECT_PX = 6


@dataclass(frozen=True, slots=True)
class Batch:
    """Augmented samples.

    Attributes:
        pixels_BHWC: uint8 RGB.
        coverage_BP: share of each patch that is defective, [0, 1].
        kinds: (material, shape) of each.
        defects: a name each; "good" for a normal sample.
    """

    pixels_BHWC: Tensor
    coverage_BP: Tensor
    kinds: list[Kind]
    defects: list[str]


@dataclass(frozen=True, slots=True)
class Pool:
    """Memory-mapped images (N, S, S, 3), masks (N, S, S) and their names."""

    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    kinds: list[Kind]
    defects: list[str]

    def __len__(self) -> int:
        return len(self.kinds)

    def item(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image and mask number `index`."""
        shard, row = divmod(index, SHARD)
        return self.images[shard][row], self.masks[shard][row]


def open_pool(folder: Path, *, num_images: int, seed: int, config: SyntheticConfig) -> Pool:
    """Open the pool in `folder`, drawing what is missing.

    Args:
        folder: one folder per (seed, config); shards in it are taken as they are.
        num_images: rounded up to whole shards of 500.
        seed: given to `zsad.datasets.synthetic.generate`.
        config: likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-num_images // SHARD))
    missing = [shard for shard in shards if not (folder / f"{shard:05d}.json").exists()]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as workers:
        drawn = workers.map(partial(_draw_shard, folder, seed, config), missing)
        list(tqdm(drawn, total=len(missing), desc="drawing", unit="shard", disable=not missing))
    words = [json.loads((folder / f"{shard:05d}.json").read_text()) for shard in shards]
    return Pool(
        images=[np.load(folder / f"{shard:05d}.images.npy", mmap_mode="r") for shard in shards],
        masks=[np.load(folder / f"{shard:05d}.masks.npy", mmap_mode="r") for shard in shards],
        kinds=[(kind[0], kind[1]) for shard in words for kind in shard["kinds"]],
        defects=[word for shard in words for word in shard["defects"]],
    )


def _draw_shard(folder: Path, seed: int, config: SyntheticConfig, shard: int) -> None:
    samples = [generate(seed, shard * SHARD + row, config) for row in range(SHARD)]
    np.save(folder / f"{shard:05d}.images.npy", np.stack([sample.image for sample in samples]))
    np.save(folder / f"{shard:05d}.masks.npy", np.stack([sample.mask for sample in samples]))
    words = {
        "kinds": [(sample.material, sample.shape) for sample in samples],
        "defects": [sample.defect_type for sample in samples],
    }
    (folder / f"{shard:05d}.json").write_text(json.dumps(words))


def draw_batch(
    pool: Pool, rng: np.random.Generator, *, batch_size: int, size: int, windows: tuple[int, int], patch_size: int
) -> Batch:
    """A batch of random windows.

    Args:
        pool: where from.
        rng: decides everything.
        batch_size: B.
        size: side of the output, px.
        windows: least and greatest side of the window that is cut out and resized to `size`, px.
        patch_size: side of a patch, px.
    """
    indices = rng.integers(len(pool), size=batch_size)
    cuts = [_window(*pool.item(int(index)), rng, windows) for index in indices]
    pixels = torch.stack([_resize(window, size) for window, _ in cuts])
    coverage = torch.stack([_coverage(mask, size // patch_size) for _, mask in cuts])
    has_defect = [int(mask.sum()) >= MIN_DEFECT_PX for _, mask in cuts]
    return Batch(
        pixels_BHWC=_photometric(pixels, rng),
        coverage_BP=coverage,
        kinds=[pool.kinds[index] for index in indices],
        defects=[pool.defects[i] if bad else "good" for i, bad in zip(indices, has_defect, strict=True)],
    )


def _window(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], rng: np.random.Generator, windows: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    side = int(rng.integers(windows[0], windows[1] + 1))
    y, x = rng.integers(image.shape[0] - side + 1, size=2)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))

    def cut(array: NDArray[np.uint8] | NDArray[np.bool_]) -> Tensor:
        part = np.rot90(array[y : y + side, x : x + side], turns)
        return torch.from_numpy(np.array(part[:, ::-1] if flip else part))

    return cut(image), cut(mask)


def _resize(pixels_HWC: Tensor, size: int) -> Tensor:
    if pixels_HWC.shape[0] == size:
        return pixels_HWC.float()
    planes = pixels_HWC.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)


def _coverage(mask_HW: Tensor, grid: int) -> Tensor:
    return F.adaptive_avg_pool2d(mask_HW[None, None].float(), grid).flatten()


def _photometric(pixels_BHWC: Tensor, rng: np.random.Generator) -> Tensor:
    batch = len(pixels_BHWC)

    def per_image(low: float, high: float, width: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, size=(batch, 1, 1, width)).astype(np.float32))

    x = (pixels_BHWC / 255).clamp(1e-3, 1) ** per_image(0.7, 1.4)
    x = (x - 0.5) * per_image(0.6, 1.25) + 0.5 + per_image(-0.12, 0.12) + per_image(-0.04, 0.04, 3)
    grey = per_image(0, 1) < 0.3
    x = torch.where(grey, x.mean(dim=-1, keepdim=True).expand_as(x), x)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
