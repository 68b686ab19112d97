"""What ALFA's choices are worth: image and pixel AUROC of every mode with and without windows, beside WinCLIP.

python benchmarks/alfa_modes.py [--backbone nano] [--images 200] [--data ../shared/data/magnetic_tile]

Two sets: procedural images of seeds that no training drew (half of them anomalous), and, with --data, magnetic tiles of
equal lighting (`matched` is 1), evenly spaced over the list. The object is "object", no phrases beside the ensemble's.
A setting may be chosen on the procedural set only; the tiles are for reporting. Settings share one encoding of each
image; maps are up-sampled to the image's size at the model, pixels of all images pooled.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.special import logit

from zsad.backbone import Backbone, load_backbone
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.methods import Alfa, AlfaConfig, Prediction, WinCLIP, WinCLIPConfig
from zsad.methods.base import Subject
from zsad.metrics import auroc
from zsad.metrics.streaming import empty_tally, pixel_auroc, tally_image
from zsad.regions import upsample

BATCH = 16
HELD_OUT_SEED = 30_000
MODES = ("none", "interval", "topk", "soft")
ALIGNERS = ("patch_only", "ridge", "transport")
TEMPERATURES = (0.01, 0.07)


@dataclass
class Score:
    """What one setting has said so far."""

    scores: list
    tally: object


def main() -> None:
    """Print one table per set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--aligners", nargs="+", choices=ALIGNERS, default=["patch_only", "ridge"])
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    measure("procedural", procedural(arguments.images, backbone.image_size), backbone, arguments.aligners)
    if arguments.data:
        measure("magnetic tiles", tiles(arguments.data, arguments.images), backbone, arguments.aligners)


def measure(name: str, samples: Iterator[tuple], backbone: Backbone, aligners: list[str]) -> None:
    """Score every sample in every setting and print the table."""
    methods = make_methods(backbone, aligners)
    preprocess = Preprocess(size=backbone.image_size, interpolation=backbone.interpolation)
    found = {setting: Score([], empty_tally()) for setting in methods}
    labels, began = [], time.monotonic()
    for images, masks in batches(samples):
        labels += [mask.any() for mask in masks]
        pixels = torch.from_numpy(np.stack([preprocess.apply(image) for image in images]))
        for setting, prediction in judged(methods, pixels).items():
            add(found[setting], prediction, [resized(mask, preprocess.size) for mask in masks])
    print(f"\n{name}: {len(labels)} images, {sum(labels)} anomalous; {time.monotonic() - began:.0f} s")
    print(f"{'method':<8} {'dense':<11} {'mode':<9} {'temp.':>5}  image AUROC  pixel AUROC")
    for setting, score in found.items():
        method, dense, mode, temperature = setting
        pixel = pixel_auroc(score.tally).value
        image = auroc(labels, score.scores)
        print(f"{method:<8} {dense:<11} {mode:<9} {temperature:>5}  {image:11.3f}  {pixel:11.3f}", flush=True)


def make_methods(backbone: Backbone, aligners: list[str]) -> dict:
    """(method, dense, mode, temperature) -> method."""
    subject = Subject()
    methods = {
        ("winclip", dense, "-", 0.07): WinCLIP(WinCLIPConfig(dense=dense), backbone, subject)
        for dense in ("vv", "windows")
        if dense == "vv" or set(aligners) != {"patch_only"}
    }
    for aligner in aligners:
        for temperature in TEMPERATURES:
            for mode in MODES:
                config = AlfaConfig(mode=mode, aligner=aligner, temperature=temperature)
                methods["alfa", aligner, mode, temperature] = Alfa(config, backbone, subject)
    return methods


def judged(methods: dict, pixels: torch.Tensor) -> dict[tuple, Prediction]:
    """Every method's answer; ALFA's share one encoding per aligner."""
    encoded: dict[bool, tuple] = {}
    answers = {}
    for setting, method in methods.items():
        if isinstance(method, WinCLIP):
            answers[setting] = method.predict(pixels)
            continue
        has_windows = method.config.aligner != "patch_only"
        if has_windows not in encoded:
            encoded[has_windows] = method.encode(pixels)
        answers[setting] = method.judge(*encoded[has_windows])
    return answers


def add(score: Score, prediction: Prediction, masks: list[np.ndarray]) -> None:
    """Count one batch."""
    score.scores += prediction.score_B.tolist()
    for anomaly_map, mask in zip(prediction.map_Bhw.numpy(), masks, strict=True):
        fine = upsample(anomaly_map, *mask.shape)
        score.tally += tally_image(logit(np.clip(fine.astype(np.float64), 1e-7, 1 - 1e-7)), mask)


def procedural(count: int, size: int) -> Iterator[tuple]:
    """Images and masks that no training has drawn."""
    from zsad.datasets.synthetic import SyntheticConfig, generate

    samples = (generate(HELD_OUT_SEED, index, SyntheticConfig(size=size)) for index in range(count))
    return ((sample.image, sample.mask) for sample in samples)


def tiles(data: Path, count: int) -> Iterator[tuple]:
    """Images and masks of the matched test part, `count` of them evenly spaced."""
    with (data / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["matched"] == "1"]
    step = max(1, len(rows) / count)
    for row in (rows[int(n * step)] for n in range(min(count, len(rows)))):
        image = decode_image((data / row["path"]).read_bytes(), DecodeLimits())
        mask = (
            np.asarray(Image.open(data / row["mask_path"])) > 0 if row["mask_path"] else np.zeros(image.shape[:2], bool)
        )
        yield image, mask


def batches(samples: Iterator[tuple]) -> Iterator[tuple[list, list]]:
    """Images and masks, 16 at a time."""
    kept: list[tuple] = []
    for sample in samples:
        kept.append(sample)
        if len(kept) == BATCH:
            yield tuple(map(list, zip(*kept, strict=True)))
            kept = []
    if kept:
        yield tuple(map(list, zip(*kept, strict=True)))


def resized(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask at the model's size; thin defects stay, because any covered pixel counts."""
    if mask.shape == (size, size):
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)) > 0


if __name__ == "__main__":
    main()
