"""Learned prompts over nano: what training on drawn images gives, and what four good tiles give.

OMP_NUM_THREADS=1 python benchmarks/learned_prompts.py [--data ../shared/data/magnetic_tile] [--images 400]

Run `make bundles` first: DAPO's figures are of the shipped bundle, and so are FAPrompt's of its first seed. Two more
seeds, which change drawn images, start and order, are trained here by the same recipe (zsad/nano/bundles/*.toml).

- left-out styles (`zsad.learn.styles`): image AUROC over all images, pixel AUROC over all their pixels;
- magnetic tiles: image AUROC as the mean over defect types where `matched` is 1 (equal lighting), pixel AUROC over all
  test images at 256 px.

PromptAD is fitted to four of the twenty train normals, drawn five times; the last step counts. Nothing is chosen by a
figure of the tiles. Maps are compared raw, without the Gaussian that published figures are of.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zsad.backbone import Backbone, load_backbone
from zsad.cli import read_toml
from zsad.datasets.synthetic import generate
from zsad.detector import load_detector
from zsad.errors import ModelError
from zsad.evaluation.truth import at_size
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.learn.alone import train_alone
from zsad.learn.promptad import PromptADTraining, fit
from zsad.learn.ship import HELD_OUT_SEED
from zsad.learn.styles import left_out_styles
from zsad.methods import FAPrompt, FAPromptConfig, Method, PromptAD, PromptADConfig, Subject, WinCLIP, WinCLIPConfig
from zsad.metrics import auroc
from zsad.metrics.streaming import PixelTally, empty_tally, pixel_auroc, tally_image
from zsad.regions import upsample
from zsad.train_config import TrainConfig

RECIPES = Path(__file__).parents[1] / "zsad" / "nano" / "bundles"
BATCH, SEEDS, DRAWS, SHOTS, SIDE_PX = 16, 3, 5, 4, 256
TILE = Subject(object_name="magnetic tile")
BIN_UNITS = 20  # logits times this spread over the histogram's finest bins; AUROC depends on ranks only


@dataclass(frozen=True, slots=True)
class Case:
    """One image at the model's size, its mask at the size compared at, and whether and how it is defective."""

    pixels_SSC: np.ndarray
    mask: np.ndarray
    defect_type: str
    is_matched: bool = True


@dataclass(slots=True)
class Figures:
    """Image and pixel AUROC of several runs."""

    image: list[float] = field(default_factory=list)
    pixel: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        """Mean and range."""
        parts = [
            f"{np.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")
            for values in (self.image, self.pixel)
        ]
        return f"| {name} | {' | '.join(parts)} |"


def main() -> None:
    """Print one table a set of images."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, help="folder of the magnetic tiles; without: drawn images only")
    parser.add_argument("--images", type=int, default=400, help="left-out images")
    arguments = parser.parse_args()
    began, backbone = time.monotonic(), load_backbone("nano", "cpu")
    sets = {"left-out styles": drawn_cases(arguments.images, backbone.image_size)}
    if arguments.data:
        sets["magnetic tiles"] = list(tile_cases(arguments.data, backbone, "test"))
    methods = {"winclip (text ensemble, untrained)": [WinCLIP(WinCLIPConfig(), backbone, Subject())]}
    methods[f"faprompt, {SEEDS} seeds"] = faprompts(backbone)
    methods["dapo, the shipped bundle"] = shipped("dapo")
    methods["nano's own detector: the ensemble with contrast in its map"] = shipped("winclip")
    for name, cases in sets.items():
        print(f"\n{name}, {len(cases)} images\n| | image AUROC | pixel AUROC |\n|---|---|---|", flush=True)
        for method, made in methods.items():
            if made:
                print(measured(made, cases).row(method), flush=True)
        if name == "magnetic tiles":
            print(promptad(arguments.data, backbone, cases), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


def drawn_cases(count: int, size: int) -> list[Case]:
    """Left-out styles of a seed that no training draws."""
    samples = (generate(HELD_OUT_SEED, index, left_out_styles(size)) for index in range(count))
    return [Case(sample.image, sample.mask, sample.defect_type) for sample in samples]


def tile_cases(data: Path, backbone: Backbone, split: str) -> Iterator[Case]:
    """The tiles of a split; masks by the nearest pixel."""
    preprocess = Preprocess(size=backbone.image_size, interpolation=backbone.interpolation)
    with (data / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    for row in rows:
        pixels = preprocess.apply(decode_image((data / row["path"]).read_bytes(), DecodeLimits()))
        mask = np.zeros((SIDE_PX, SIDE_PX), bool)
        if row["mask_path"]:
            mask = at_size(np.asarray(Image.open(data / row["mask_path"])) > 0, SIDE_PX, SIDE_PX)
        yield Case(pixels, mask, row["defect_type"], row["matched"] == "1")


def faprompts(backbone: Backbone) -> list[Method]:
    """FAPrompt by the shipped recipe: the shipped bundle, of seed 0, and two more seeds with images of their own."""
    recipe = TrainConfig(**read_toml(TrainConfig, RECIPES / "faprompt.toml"))
    made = shipped("faprompt")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, SEEDS):
            config = replace(recipe, seed=seed, output=f"{folder}/{seed}", work=f"{folder}/{seed}")
            _, tensors = train_alone(config, backbone)
            made.append(FAPrompt(FAPromptConfig(), backbone, Subject(), tensors))
    return made


def shipped(method: str) -> list[Method]:
    """The shipped bundle's method; none, with a reason, if it is of other weights."""
    try:
        return [load_detector(f"nano:{method}", device="cpu").method]
    except ModelError as error:
        print(f"nano:{method} is left out: {error}")
        return []


def promptad(data: Path, backbone: Backbone, cases: list[Case]) -> str:
    """Rows of PromptAD and of the zero-shot baseline under the tiles' own name."""
    normals = np.stack([case.pixels_SSC for case in tile_cases(data, backbone, "train")])
    config, fitted = PromptADConfig(), []
    for draw in range(DRAWS):
        support = np.random.default_rng(draw).choice(len(normals), SHOTS, replace=False)
        pixels = torch.from_numpy(normals[np.sort(support)])
        tensors = fit(PromptADTraining(seed=draw), backbone, TILE, [pixels], method=config)
        fitted.append(PromptAD(config, backbone, TILE, tensors))
    zero_shot = WinCLIP(WinCLIPConfig(), backbone, TILE)
    rows = [measured([zero_shot], cases).row('winclip, "magnetic tile"')]
    rows.append(measured(fitted, cases).row(f"promptad, k = {SHOTS}, {DRAWS} draws"))
    return "\n".join(rows)


def measured(methods: Iterable[Method], cases: list[Case]) -> Figures:
    """Figures of each method on all cases."""
    figures = Figures()
    for method in methods:
        scores, tally = answers(method.predict, cases)
        figures.image.append(image_auroc(cases, scores))
        figures.pixel.append(pixel_auroc(tally).value)
    return figures


def answers(predict: Callable, cases: list[Case]) -> tuple[list[float], PixelTally]:
    """Image scores in the order of the cases, and the pixels of all maps."""
    scores, tally = [], empty_tally()
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        prediction = predict(torch.from_numpy(np.stack([case.pixels_SSC for case in some])))
        scores += prediction.score_B.tolist()
        for case, anomaly_map in zip(some, prediction.map_Bhw.numpy(), strict=True):
            # 19 of 20 of DAPO's probabilities are below 1e-6: a bound there would make them equal.
            fine = upsample(anomaly_map, *case.mask.shape).astype(np.float64).clip(1e-30, 1 - 1e-12)
            tally += tally_image(BIN_UNITS * np.log(fine / (1 - fine)), case.mask)
    return scores, tally


def image_auroc(cases: list[Case], scores: list[float]) -> float:
    """All defects against all normal images for drawn ones; the mean over types for tiles, matched images only."""
    pairs = [(case.defect_type, score) for case, score in zip(cases, scores, strict=True) if case.is_matched]
    normal = [score for kind, score in pairs if kind == "good"]
    if all(case.is_matched for case in cases):
        return float(auroc([kind != "good" for kind, _ in pairs], [score for _, score in pairs]))
    values = []
    for wanted in sorted({kind for kind, _ in pairs} - {"good"}):
        found = [score for kind, score in pairs if kind == wanted]
        values.append(auroc([0] * len(normal) + [1] * len(found), normal + found))
    return float(np.mean(values))


if __name__ == "__main__":
    main()
