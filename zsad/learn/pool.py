"""A pool of procedural images on disk, drawn as twins, and augmented batches from it.

Drawing an image costs more than a training step on it, so a pool is drawn once, on all cores, into memory-mapped
arrays, and every step takes random windows of it: flips, quarter turns, scale, gain, gamma, grey. Each scene is there
twice, with its defect and without, and both twins enter the batch through the same window and the same camera: all that
differs within a pair is the defect, which is worth several times as many unpaired images. Shards already on disk are
kept, so an interrupted draw goes on.

Legend: B images, P patches. Cost on disk: 350 KB per scene of 224 px (two images and a mask).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from zsad.datasets.synthetic import SyntheticConfig, generate_pair

SHARD = 500
Kind = tuple[str, str]
MIN_DEFECT_PX = 6
SURFACE = "surface"


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
    """Memory-mapped images and their clean twins (N, S, S, 3), masks (N, S, S) and their names."""

    images: list[NDArray[np.uint8]]
    twins: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    kinds: list[Kind]
    defects: list[str]

    def __len__(self) -> int:
        return len(self.kinds)

    def item(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Scene number `index`: with its defect, without, and where it is."""
        shard, row = divmod(index, SHARD)
        return self.images[shard][row], self.twins[shard][row], self.masks[shard][row]


def open_pool(folder: Path, *, num_scenes: int, seed: int, config: SyntheticConfig) -> Pool:
    """Open the pool in `folder`, drawing what is missing.

    Args:
        folder: one folder per (seed, config); shards in it are taken as they are.
        num_scenes: rounded up to whole shards of 500.
        seed: given to `zsad.datasets.synthetic.generate_pair`.
        config: likewise; every scene gets a defect, whatever its `anomaly_share`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-num_scenes // SHARD))
    missing = [shard for shard in shards if not (folder / f"{shard:05d}.json").exists()]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as workers:
        drawn = workers.map(partial(_draw_shard, folder, seed, replace(config, anomaly_share=1.0)), missing)
        list(tqdm(drawn, total=len(missing), desc="drawing", unit="shard", disable=not missing))
    words = [json.loads((folder / f"{shard:05d}.json").read_text()) for shard in shards]
    return Pool(
        images=[np.load(folder / f"{shard:05d}.images.npy", mmap_mode="r") for shard in shards],
        twins=[np.load(folder / f"{shard:05d}.twins.npy", mmap_mode="r") for shard in shards],
        masks=[np.load(folder / f"{shard:05d}.masks.npy", mmap_mode="r") for shard in shards],
        kinds=[(kind[0], kind[1]) for shard in words for kind in shard["kinds"]],
        defects=[word for shard in words for word in shard["defects"]],
    )


def _draw_shard(folder: Path, seed: int, config: SyntheticConfig, shard: int) -> None:
    pairs = [generate_pair(seed, shard * SHARD + row, config) for row in range(SHARD)]
    samples = [sample for sample, _ in pairs]
    np.save(folder / f"{shard:05d}.images.npy", np.stack([sample.image for sample in samples]))
    np.save(folder / f"{shard:05d}.twins.npy", np.stack([twin for _, twin in pairs]))
    np.save(folder / f"{shard:05d}.masks.npy", np.stack([sample.mask for sample in samples]))
    words = {
        "kinds": [(sample.material, sample.shape) for sample in samples],
        "defects": [sample.defect_type for sample in samples],
    }
    unfinished = folder / f"{shard:05d}.json.tmp"
    unfinished.write_text(json.dumps(words))
    unfinished.replace(folder / f"{shard:05d}.json")


def draw_batch(
    pool: Pool,
    rng: np.random.Generator,
    *,
    batch_size: int,
    size: int,
    windows: tuple[int, int],
    patch_size: int,
    part_share: float | None = None,
) -> Batch:
    """A batch of random windows: the defective ones first, then their clean twins in the same order.

    Args:
        pool: where from.
        rng: decides everything.
        batch_size: B, even: half as many scenes.
        size: side of the output, px.
        windows: least and greatest side of the window that is cut out and resized to `size`, px.
        patch_size: side of a patch, px.
        part_share: share of scenes that show whole parts and not a surface; None: as the pool has them.
    """
    indices = _drawn(pool, rng, batch_size // 2, part_share)
    cuts = [_cut(*pool.item(int(index)), rng, windows) for index in indices]
    pixels = torch.stack([_resize(image, size) for image, _, _ in cuts] + [_resize(twin, size) for _, twin, _ in cuts])
    coverage = torch.stack([_coverage(mask, size // patch_size) for _, _, mask in cuts])
    has_defect = [int(mask.sum()) >= MIN_DEFECT_PX for _, _, mask in cuts]
    kinds = [pool.kinds[index] for index in indices]
    defects = [pool.defects[i] if bad else "good" for i, bad in zip(indices, has_defect, strict=True)]
    return Batch(
        pixels_BHWC=_photometric(pixels, rng),
        coverage_BP=torch.cat([coverage, torch.zeros_like(coverage)]),
        kinds=kinds + kinds,
        defects=defects + ["good"] * len(kinds),
    )


def _drawn(pool: Pool, rng: np.random.Generator, count: int, part_share: float | None) -> NDArray[np.int64]:
    """Numbers of random scenes."""
    if part_share is None:
        return rng.integers(len(pool), size=count)
    is_part = np.array([shape != SURFACE for _, shape in pool.kinds])
    groups = [np.flatnonzero(is_part), np.flatnonzero(~is_part)]
    return np.array([rng.choice(groups[int(rng.random() >= part_share)]) for _ in range(count)])


def _cut(
    image: NDArray[np.uint8],
    twin: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    windows: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """One window through a scene, its twin and its mask; it holds a point of the defect."""
    side = min(int(rng.integers(windows[0], windows[1] + 1)), image.shape[0])
    points = np.argwhere(mask)
    point = points[int(rng.integers(len(points)))]
    room = image.shape[0] - side
    y, x = (int(np.clip(p - rng.integers(side), 0, room)) for p in point)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))

    def cut(array: NDArray[np.uint8] | NDArray[np.bool_]) -> Tensor:
        part = np.rot90(array[y : y + side, x : x + side], turns)
        return torch.from_numpy(np.array(part[:, ::-1] if flip else part))

    return cut(image), cut(twin), cut(mask)


def _resize(pixels_HWC: Tensor, size: int) -> Tensor:
    if pixels_HWC.shape[0] == size:
        return pixels_HWC
    planes = pixels_HWC.permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)


def _coverage(mask_HW: Tensor, grid: int) -> Tensor:
    return F.adaptive_avg_pool2d(mask_HW[None, None].float(), grid).flatten()


def _photometric(pixels_BHWC: Tensor, rng: np.random.Generator) -> Tensor:
    """Gamma, contrast, brightness, tint and loss of colour, the same for both twins of a pair.

    Each is a function of a pixel's value, so a table of 256 values a pair and channel says all but the loss of colour.
    """
    pairs = len(pixels_BHWC) // 2

    def per_pair(low: float, high: float, width: int = 1) -> NDArray[np.float32]:
        return rng.uniform(low, high, size=(pairs, 1, width)).astype(np.float32)

    x = np.linspace(0, 1, 256, dtype=np.float32).clip(1e-3)[:, None] ** per_pair(0.7, 1.4)
    x = (x - 0.5) * per_pair(0.6, 1.25) + 0.5 + per_pair(-0.12, 0.12) + per_pair(-0.04, 0.04, 3)
    tables_N256C = (x.clip(0, 1) * 255).round().astype(np.uint8)
    grey = per_pair(0, 1)[:, 0, 0] < 0.3
    out = np.empty(pixels_BHWC.shape, np.uint8)
    for row, image in enumerate(pixels_BHWC.numpy()):
        for channel in range(3):
            np.take(tables_N256C[row % pairs, :, channel], image[..., channel], out=out[row, ..., channel])
        if grey[row % pairs]:
            out[row] = out[row].mean(axis=-1, keepdims=True).round()
    return torch.from_numpy(out)
