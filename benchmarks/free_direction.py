"""How well FAPrompt's losses can rank over nano at all: one direction learned freely, without a text tower.

OMP_NUM_THREADS=1 python benchmarks/free_direction.py [--images 1600] [--epochs 6]

FAPrompt's first pass compares features with the difference of two text embeddings. Here that difference is itself what
is learned, from the ensemble's and from a random start, on the same drawn images, by FAPrompt's losses with and without
dice, and judged on left-out styles as `learned_prompts.py` does. Prompts reach no direction that this one can't: what
it does not gain by these losses is not for want of better prompts. FAPrompt's second pass, by an image's own patches,
is not part of it, and other losses might find other directions.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from learned_prompts import drawn_cases, measured
from torch import Tensor
from tqdm import tqdm

from zsad.backbone import Backbone, load_backbone
from zsad.backbone.similarity import probability
from zsad.datasets.synthetic import generate
from zsad.learn.faprompt import frozen_features, upsampled
from zsad.learn.losses import dice_loss, focal_of_map
from zsad.learn.prepare import DRAWN_SEED
from zsad.learn.styles import training_styles
from zsad.methods import FAPromptConfig, Subject, WinCLIP, WinCLIPConfig
from zsad.methods.base import Prediction

CONFIG = FAPromptConfig()
BATCH, RATE = 32, 3e-3
Learned = tuple[Tensor, Tensor, Tensor]
"""Features of images (N, D) and patches (N, P, D), and masks (N, S, S), 1.0 where defective."""


class Direction:
    """Scores along one direction, by FAPrompt's temperature and half-half rule."""

    def __init__(self, backbone: Backbone, direction_D: Tensor) -> None:
        self.backbone = backbone
        self.direction_D = direction_D

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch."""
        image_BD, patches_BPD, grid = frozen_features(self.backbone, CONFIG, pixels_BHWC)
        map_BP = probability(patches_BPD @ self.direction_D / CONFIG.temperature)
        image_B = probability(image_BD @ self.direction_D / CONFIG.temperature)
        return Prediction(
            score_B=(image_B + map_BP.amax(dim=1)) / 2, map_Bhw=map_BP.view(-1, *grid), patches_BPD=patches_BPD
        )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=1600, help="drawn images to learn from")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    backbone = load_backbone("nano", "cpu")
    cases = drawn_cases(400, backbone.image_size)
    ensemble = WinCLIP(WinCLIPConfig(), backbone, Subject())
    start_D = ensemble.states_2D[1] - ensemble.states_2D[0]
    print("| direction | image AUROC | pixel AUROC |\n|---|---|---|")
    print(measured([ensemble], cases).row("winclip (its peak: three patches)"))
    print(measured([Direction(backbone, start_D)], cases).row("the ensemble's"), flush=True)
    torch.manual_seed(0)
    starts = {"the ensemble": start_D, "random": 0.3 * start_D.norm() * F.normalize(torch.randn_like(start_D), dim=0)}
    learned = encoded(backbone, arguments.images)
    for name, first_D in starts.items():
        for dice in (1.0, 0.0):
            for epoch, direction_D in enumerate(directions(learned, first_D, arguments.epochs, dice), start=1):
                if epoch in (1, arguments.epochs):
                    what = f"learned from {name}, {'with' if dice else 'without'} dice, epoch {epoch}"
                    print(measured([Direction(backbone, direction_D)], cases).row(what), flush=True)


def encoded(backbone: Backbone, count: int) -> Learned:
    """Drawn images of the styles that training draws."""
    parts, styles = [], training_styles(backbone.image_size)
    for start in tqdm(range(0, count, BATCH), unit="batch", disable=None):
        samples = [generate(DRAWN_SEED, index, styles) for index in range(start, min(start + BATCH, count))]
        pixels_BHWC = torch.from_numpy(np.stack([sample.image for sample in samples]))
        masks = torch.from_numpy(np.stack([sample.mask for sample in samples])).float()
        parts.append((*frozen_features(backbone, CONFIG, pixels_BHWC)[:2], masks))
    image_ND, patches_NPD, masks_NSS = (torch.cat(some) for some in zip(*parts, strict=True))
    return image_ND, patches_NPD, masks_NSS


def directions(learned: Learned, first_D: Tensor, epochs: int, dice: float) -> Iterator[Tensor]:
    """The direction after each epoch."""
    image_ND, patches_NPD, masks_NSS = learned
    direction_D = first_D.clone().requires_grad_()
    optimiser = torch.optim.Adam([direction_D], lr=RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(image_ND)).split(BATCH):
            loss = loss_of(direction_D, image_ND[rows], patches_NPD[rows], masks_NSS[rows], dice)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        yield direction_D.detach().clone()


def loss_of(direction_D: Tensor, image_BD: Tensor, patches_BPD: Tensor, masks_BSS: Tensor, dice: float) -> Tensor:
    """FAPrompt's dense losses of one pass and its cross-entropy of the image."""
    side = round(patches_BPD.shape[1] ** 0.5)
    map_Bhw = probability(patches_BPD @ direction_D / CONFIG.temperature).view(-1, side, side)
    map_BSS = upsampled(map_Bhw, masks_BSS.shape[1:])
    both_dice = dice_loss(map_BSS, masks_BSS) + dice_loss(1 - map_BSS, 1 - masks_BSS)
    is_bad_B = masks_BSS.flatten(1).amax(dim=1)
    margin_B = image_BD @ direction_D / CONFIG.temperature
    image_loss = F.binary_cross_entropy_with_logits(margin_B, is_bad_B)
    return focal_of_map(map_BSS, masks_BSS) + dice * both_dice + image_loss


if __name__ == "__main__":
    main()
