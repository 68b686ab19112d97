"""What resolution costs and gives: images/s on one core, and AUROC on magnetic tiles, per model input and tiles.

OMP_NUM_THREADS=1 python benchmarks/tiling.py [--detector nano] [--data ../shared/data/magnetic_tile] [--rounds 3]

Rates are of `inspect_pixels` on full batches of noise, per second of CPU time, so that other processes matter less;
median of some rounds taken in turn. Image AUROC is the mean over defect types, where `matched` is 1 (equal lighting);
pixel AUROC pools all images at their own size, from histograms. AUROC depends on ranks only, so all settings keep the
bundle's calibration, which is monotone; a user's is fitted anew.
"""

import argparse
import csv
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image

from zsad.bundle import parse_ref, read_config, read_tensors
from zsad.detector import Detector, Finding
from zsad.images import DecodeLimits, decode_image
from zsad.metrics import auroc
from zsad.metrics.streaming import empty_tally, pixel_auroc, tally_image
from zsad.regions import upsample
from zsad.tiling import retiled

BATCH = 16
SETTINGS = ((224, 1), (224, 2), (224, 3), (320, 1), (448, 1))  # input px, tiles per side


def main() -> None:
    """Print one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--detector", default="nano")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    detectors = {setting: load(arguments.detector, *setting) for setting in SETTINGS}
    rates: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(arguments.rounds):
        for setting, detector in detectors.items():
            rates[setting].append(rate(detector))
    for (size, tiles), detector in detectors.items():
        print(f"{size} px, {tiles} x {tiles}: {statistics.median(rates[size, tiles]):6.2f} images/s", end="")
        print(f"; {figures(detector, arguments.data)}" if arguments.data else "", flush=True)


def load(ref: str, size: int, tiles: int) -> Detector:
    """The stored bundle at another resolution, with its calibration."""
    url = parse_ref(ref).url
    config = read_config(url)
    tensors = safetensors.torch.load(read_tensors(url))
    patch_size = Detector(config, tensors).backbone.patch_size
    preprocess = retiled(config.preprocess, patch_size=patch_size, size=size, tiles=tiles)
    return Detector(replace(config, preprocess=preprocess), tensors, batch_size=BATCH)


def rate(detector: Detector) -> float:
    """Images per second of CPU time over two batches, the first of which is not timed."""
    side = detector.config.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    sizes = [(side, side)] * BATCH
    detector.inspect_pixels(pixels, sizes)
    began = time.process_time()
    detector.inspect_pixels(pixels, sizes)
    return BATCH / (time.process_time() - began)


def figures(detector: Detector, data: Path) -> str:
    """Image and pixel AUROC on the test part of `data`."""
    with (data / "index.csv").open() as file:
        truth = [row for row in csv.DictReader(file) if row["split"] == "test"]
    scores, tally = [], empty_tally()
    for start in range(0, len(truth), BATCH):
        rows = truth[start : start + BATCH]
        findings = detector.inspect([decode_image((data / row["path"]).read_bytes(), DecodeLimits()) for row in rows])
        scores += [finding.score for finding in findings]
        for row, finding in zip(rows, findings, strict=True):
            tally += tally_image(standard_map(detector, finding), mask_of(row, data, finding))
    pixel = pixel_auroc(tally)
    return f"image AUROC {image_auroc(truth, scores)}; pixel AUROC {pixel.value:.3f} +- {pixel.error:.4f}"


def standard_map(detector: Detector, finding: Finding) -> np.ndarray:
    """The method's own map at the image's size, as evaluation compares it, in the units of the histogram's bins."""
    return detector.config.calibration.map.standardise(upsample(finding.raw_map, finding.height, finding.width))


def mask_of(row: dict, data: Path, finding: Finding) -> np.ndarray:
    """Defective pixels, (H, W)."""
    if not row["mask_path"]:
        return np.zeros((finding.height, finding.width), bool)
    return np.asarray(Image.open(data / row["mask_path"])) > 0


def image_auroc(truth: list[dict], scores: list[float]) -> str:
    """Mean over defect types and each type's, matched images only."""
    matched = [(row, score) for row, score in zip(truth, scores, strict=True) if row["matched"] == "1"]
    normal = [score for row, score in matched if row["label"] == "0"]
    values = {}
    for defect in sorted({row["defect_type"] for row, _ in matched} - {"good"}):
        found = [score for row, score in matched if row["defect_type"] == defect]
        values[defect] = auroc([0] * len(normal) + [1] * len(found), normal + found)
    each = ", ".join(f"{defect} {value:.3f}" for defect, value in values.items())
    return f"{np.mean(list(values.values())):.3f} ({each})"


if __name__ == "__main__":
    main()
