"""PromptAD on magnetic tiles: fitted to four of the twenty good ones, five times; image and pixel AUROC.

OMP_NUM_THREADS=1 python benchmarks/promptad_tiles.py --data ../shared/data/magnetic_tile [--vv-start 0]

Draws are seeded 0 to 4 and the last epoch counts, so nothing is chosen by its result. Image AUROC is the mean over
defect types, where `matched` is 1 (equal lighting); pixel AUROC pools all test images at their own size, from
histograms, without the published Gaussian. Both are also taken of the text and the memory alone, and of the zero-shot
baseline.
"""

import argparse
import csv
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zsad.backbone import Backbone, load_backbone
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.learn.promptad import PromptADTraining, fit
from zsad.methods import PromptAD, PromptADConfig, Subject, WinCLIP, WinCLIPConfig
from zsad.methods.promptad import encode, fuse, peak
from zsad.metrics import auroc
from zsad.metrics.streaming import PixelTally, empty_tally, pixel_auroc, tally_image
from zsad.regions import upsample

BATCH, DRAWS, SHOTS = 16, 5, 4
SUBJECT = Subject(object_name="magnetic tile")
BIN_UNITS = 20  # logits times this spread over the histogram's finest bins; AUROC depends on ranks only


@dataclass(slots=True)
class Answers:
    """Of one scorer: image scores in the order of the images, and all pixels."""

    scores: list[float] = field(default_factory=list)
    tally: PixelTally = field(default_factory=empty_tally)


def main() -> None:
    """Print one line per draw and scorer, then means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--vv-start", type=int, help="as published 0; without: the tower's own")
    arguments = parser.parse_args()
    config = PromptADConfig(vv_start=arguments.vv_start)
    backbone = load_backbone(arguments.backbone)
    with (arguments.data / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = [row for row in rows if row["split"] == "test"]
    good = [row for row in rows if row["split"] == "train"]
    baseline = WinCLIP(WinCLIPConfig(), backbone, SUBJECT)
    score_of = {"zero-shot": lambda pixels: {"zero-shot": _pair(baseline.predict(pixels))}}
    figures: dict[str, list[tuple[float, float]]] = {}
    for draw in range(DRAWS):
        support = np.random.default_rng(draw).choice(len(good), SHOTS, replace=False)
        normals = pixels_of([good[index] for index in support], arguments.data, backbone)
        began = time.process_time()
        tensors = fit(PromptADTraining(seed=draw), backbone, SUBJECT, [normals], method=config)
        print(
            f"draw {draw}: good tiles {sorted(support.tolist())}, fitted in {time.process_time() - began:.1f} s of CPU"
        )
        score_of["promptad"] = branches(PromptAD(config, backbone, SUBJECT, tensors))
        for name, found in evaluate(score_of, truth, arguments.data, backbone).items():
            image, pixel = image_auroc(truth, found.scores), pixel_auroc(found.tally)
            figures.setdefault(name, []).append((image, pixel.value))
            print(
                f"  {name:<10} image AUROC {image:.3f}, pixel AUROC {pixel.value:.3f} +- {pixel.error:.4f}", flush=True
            )
        score_of.pop("zero-shot", None)  # the same for every draw
    for name, pairs in figures.items():
        (image, pixel), spread = np.mean(pairs, axis=0), np.std(pairs, axis=0)
        print(f"{name:<10} image {image:.3f} (sd {spread[0]:.3f}), pixel {pixel:.3f} (sd {spread[1]:.3f})")


def branches(method: PromptAD):
    """From pixels to {"fused", "text", "memory"} -> (scores, maps)."""

    def answers(pixels: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        features = encode(method.backbone, method.config, pixels)
        visual = method.visual_map(features)
        text = method.text_probability("seg", features.patches_BPD).view(visual.shape)
        image, top = method.text_probability("cls", features.image_BD), peak(visual, method.config.resolution)
        return {"fused": (fuse(top, image), fuse(text, visual)), "text": (image, text), "memory": (top, visual)}

    return answers


def evaluate(score_of: dict, truth: list[dict], data: Path, backbone: Backbone) -> dict[str, Answers]:
    """Every scorer's answers to all test images."""
    answers: dict[str, Answers] = {}
    for start in range(0, len(truth), BATCH):
        rows = truth[start : start + BATCH]
        pixels = pixels_of(rows, data, backbone)
        for name, (scores, maps) in {k: v for score in score_of.values() for k, v in score(pixels).items()}.items():
            found = answers.setdefault(name, Answers())
            found.scores += scores.tolist()
            for row, anomaly_map in zip(rows, maps.cpu().numpy(), strict=True):
                fine = upsample(anomaly_map, int(row["height"]), int(row["width"])).clip(1e-6, 1 - 1e-6)
                found.tally += tally_image(BIN_UNITS * np.log(fine / (1 - fine)), mask_of(row, data))
    return answers


def pixels_of(rows: list[dict], data: Path, backbone: Backbone) -> torch.Tensor:
    """Images at the model's input size, uint8 (B, S, S, 3)."""
    preprocess = Preprocess(size=backbone.image_size, interpolation=backbone.interpolation)
    images = [decode_image((data / row["path"]).read_bytes(), DecodeLimits()) for row in rows]
    return torch.from_numpy(np.stack([preprocess.apply(image) for image in images]))


def mask_of(row: dict, data: Path) -> np.ndarray:
    """Defective pixels, (H, W)."""
    if not row["mask_path"]:
        return np.zeros((int(row["height"]), int(row["width"])), bool)
    return np.asarray(Image.open(data / row["mask_path"])) > 0


def image_auroc(truth: list[dict], scores: list[float]) -> float:
    """Mean over defect types, matched images only."""
    matched = [(row["defect_type"], score) for row, score in zip(truth, scores, strict=True) if row["matched"] == "1"]
    normal = [score for defect, score in matched if defect == "good"]
    values = []
    for wanted in {defect for defect, _ in matched} - {"good"}:
        found = [score for defect, score in matched if defect == wanted]
        values.append(auroc([0] * len(normal) + [1] * len(found), normal + found))
    return float(np.mean(values))


def _pair(prediction) -> tuple[torch.Tensor, torch.Tensor]:
    return prediction.score_B, prediction.map_Bhw


if __name__ == "__main__":
    main()
