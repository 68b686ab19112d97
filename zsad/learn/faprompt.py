"""One training step of FAPrompt on cached features: its losses, and gradients to the learned tensors only.

Towers are frozen and nothing is augmented, so a trainer runs the image tower once per image and keeps
`frozen_features`; a step then costs the text tower alone. The normal prompt and the beginning of all prompts are shared
by both passes: a batch of 8 encodes 91 short sequences where the released code encodes 99 of 77 tokens.

Weights of the terms: see `WEIGHTS`. The prior's term is a sum over images and stays one when workers share a batch; all
others are means over images, or belong to no image. Selection of patches is hard and carries no gradient, and neither
do features.

Legend: B images, P patches, (h, w) patch grid, (H, W) mask, D joint width, K abnormal prompts.
Cost: three times the text tower's forward pass on 10 B + 11 sequences of 6 tokens.
Source: FAPrompt (arXiv 2410.10289), losses, weights and optimiser as in its released code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone
from zsad.learn.losses import FOCUS, dice_of_sums, focal_of_map
from zsad.learn.step import take_step
from zsad.methods.faprompt import FAPromptConfig, PromptEncoder, run_passes

WEIGHTS = {
    "focal_1": 1.0,
    "dice_abnormal_1": 1.0,
    "dice_normal_1": 1.0,
    "focal_2": 0.5,
    "dice_abnormal_2": 0.5,
    "dice_normal_2": 0.5,
    "image_cross_entropy": 1.0,
    "image_focal": 1.0,
    "orthogonal": 0.1,
    "prior": 1.0,
}
SUMS = ("prior",)
LEARNING_RATE = 1e-3
BETAS = (0.5, 0.999)


@dataclass(frozen=True, slots=True)
class Batch:
    """Cached features and labels.

    Attributes:
        image_BD: unit-length class tokens projected without `ln_post`.
        patches_BPD: unit-length value-value patch tokens.
        grid: (h, w).
        masks_BHW: 1 where defective, else 0; all 0 for a normal image.
        is_bad_B: whether an image is defective, bool.
    """

    image_BD: Tensor
    patches_BPD: Tensor
    grid: tuple[int, int]
    masks_BHW: Tensor
    is_bad_B: Tensor


def frozen_features(
    backbone: Backbone, config: FAPromptConfig, pixels_BHWC: Tensor
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """What a `Batch` holds of uint8 images (B, H, W, 3): image_BD, patches_BPD and the grid.

    Raises:
        ModelError: if a side is not a multiple of the patch size.
    """
    features = backbone.encode_image(pixels_BHWC, vv_start=config.vv_start, image_ln_post=False)
    return features.image_BD.clone(), features.patches_BPD.clone(), features.grid  # clones may be saved for backward


def trainable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that collect gradients."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def make_optimiser(tensors: Mapping[str, Tensor], learning_rate: float = LEARNING_RATE) -> torch.optim.Adam:
    """Adam as the method is trained with: no schedule, no weight decay."""
    return torch.optim.Adam(tensors.values(), lr=learning_rate, betas=BETAS)


@dataclass(frozen=True, slots=True)
class FAPromptLearner:
    """Learned tensors and their optimiser, for `zsad.learn.step.take_step`."""

    encoder: PromptEncoder
    tensors: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    overlap_weight: float = WEIGHTS["orthogonal"]
    dice_weight: float = 1.0

    @classmethod
    def start(
        cls,
        encoder: PromptEncoder,
        tensors: Mapping[str, Tensor],
        *,
        learning_rate: float = LEARNING_RATE,
        overlap_weight: float = WEIGHTS["orthogonal"],
        dice_weight: float = 1.0,
    ) -> Self:
        """A learner of copies of `tensors`.

        Args:
            encoder: made with the config that is trained.
            tensors: where training starts.
            learning_rate: of Adam.
            overlap_weight: of the term that pushes abnormal prompts apart.
            dice_weight: factor on the weights of all dice terms.
        """
        leaves = trainable(tensors)
        return cls(encoder, leaves, make_optimiser(leaves, learning_rate), overlap_weight, dice_weight)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the loss terms."""
        return tuple(WEIGHTS)

    def terms(self, batch: Batch, share: float) -> dict[str, Tensor]:
        """See `Learner.terms`."""
        terms = weighted(loss_terms(self.encoder, self.tensors, batch), share)
        factors = {"orthogonal": self.overlap_weight / WEIGHTS["orthogonal"]}
        factors |= {name: self.dice_weight for name in terms if name.startswith("dice_")}
        return {name: factors.get(name, 1.0) * term for name, term in terms.items()}


def train_step(
    encoder: PromptEncoder, tensors: dict[str, Tensor], optimiser: torch.optim.Optimizer, batch: Batch
) -> dict[str, float]:
    """One optimiser step of a single worker on `tensors` in place; returns the loss terms, weights applied.

    Raises:
        ModelError: if a term is not finite.
    """
    return take_step(FAPromptLearner(encoder, tensors, optimiser), batch)


def weighted(terms: Mapping[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
    """Terms with their weights, as this part of a global batch adds to them."""
    return {name: WEIGHTS[name] * (1.0 if name in SUMS else share) * term for name, term in terms.items()}


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum that is minimised."""
    return torch.stack(list(weighted(terms).values())).sum()


def loss_terms(encoder: PromptEncoder, tensors: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Every loss term of a batch as a scalar, before its weight.

    Args:
        encoder: made with the config that is trained.
        tensors: learned ones.
        batch: at least one image.

    Raises:
        ModelError: as `run_passes`.
    """
    static = encoder.static(tensors)
    passes = run_passes(encoder, tensors, static, batch.image_BD, batch.patches_BPD)
    is_bad_B = batch.is_bad_B.float()
    truth = _truth(batch)
    return {
        **_dense_terms(passes.first_BP, truth, "1"),
        **_dense_terms(passes.second_BP, truth, "2"),
        "image_cross_entropy": F.binary_cross_entropy_with_logits(passes.image_margin_B, is_bad_B),
        "image_focal": focal_bce(passes.score, is_bad_B),
        "orthogonal": overlap(static.abnormal_KD),
        "prior": prior_size(passes.prior_BW, is_bad_B),
    }


@dataclass(frozen=True, slots=True)
class _Truth:
    """The masks of a batch as its dense terms ask for them.

    Attributes:
        bad_BHW: 1.0 where defective.
        bad_B: sums of that.
        whole_hw: what each place of the grid counts in the sum of an up-sampled map.
        bad_Bhw: what it counts in that under a mask.
    """

    bad_BHW: Tensor
    bad_B: Tensor
    whole_hw: Tensor
    bad_Bhw: Tensor


@torch.no_grad()
def _truth(batch: Batch) -> _Truth:
    bad_BHW = (batch.masks_BHW > 0).float()
    rows_Hh = _weights(batch.grid[0], bad_BHW.shape[1], bad_BHW.device)
    columns_Ww = _weights(batch.grid[1], bad_BHW.shape[2], bad_BHW.device)
    return _Truth(
        bad_BHW=bad_BHW,
        bad_B=bad_BHW.flatten(1).sum(dim=1),
        whole_hw=torch.outer(rows_Hh.sum(dim=0), columns_Ww.sum(dim=0)),
        bad_Bhw=rows_Hh.T @ bad_BHW @ columns_Ww,
    )


def _dense_terms(probability_BP: Tensor, truth: _Truth, number: str) -> dict[str, Tensor]:
    """Focal loss, and dice of each side, of the map at the mask's size.

    The same numbers as `focal_loss` and `dice_loss` of both channels, in a fraction of the time: these terms were more
    than half of a step on cached features. Up-sampling is a product with two small matrices, R M C. Dice needs sums of
    it alone, and a sum over R M C weighted by a mask is one over M weighted by the mask brought down, so that only the
    focal loss works at the mask's size.
    """
    map_Bhw = probability_BP.view(-1, *truth.whole_hw.shape)
    map_B = (map_Bhw * truth.whole_hw).flatten(1).sum(dim=1)
    overlap_B = (map_Bhw * truth.bad_Bhw).flatten(1).sum(dim=1)
    num_pixels = truth.bad_BHW[0].numel()
    normal_B = num_pixels - truth.bad_B - map_B + overlap_B
    return {
        f"focal_{number}": focal_of_map(upsampled(map_Bhw, truth.bad_BHW.shape[1:]), truth.bad_BHW),
        f"dice_abnormal_{number}": dice_of_sums(overlap_B, map_B + truth.bad_B),
        f"dice_normal_{number}": dice_of_sums(normal_B, 2 * num_pixels - map_B - truth.bad_B),
    }


def upsampled(grids_Bhw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, h, w) to (B, H, W)."""
    height, width = grids_Bhw.shape[1:]
    rows_Hh = _weights(height, size[0], grids_Bhw.device)
    columns_Ww = _weights(width, size[1], grids_Bhw.device)
    return rows_Hh @ (grids_Bhw @ columns_Ww.T)


@lru_cache(maxsize=8)
def _weights(few: int, many: int, device: torch.device) -> Tensor:
    """What each of `many` places takes of each of `few`, (many, few)."""
    with torch.inference_mode(False):
        identity = torch.eye(few, device=device)[None]
        return F.interpolate(identity, size=many, mode="linear", align_corners=False)[0].T.contiguous()


def focal_bce(score_B: Tensor, is_bad_B: Tensor) -> Tensor:
    """Focal binary cross-entropy, gamma 2; the score in [0, 1] is taken as a logit, as the released code does."""
    bce_B = F.binary_cross_entropy_with_logits(score_B, is_bad_B, reduction="none")
    return ((1 - torch.exp(-bce_B)) ** FOCUS * bce_B).mean()


def overlap(abnormal_KD: Tensor) -> Tensor:
    """Sum of the absolute cosines between all pairs of abnormal prompts: each is to name another kind of defect."""
    unit_KD = F.normalize(abnormal_KD, dim=-1)
    return (unit_KD @ unit_KD.T).triu(1).abs().sum()


def prior_size(prior_BW: Tensor, is_bad_B: Tensor) -> Tensor:
    """Mean square of the prior, summed over the normal images: nothing abnormal was selected there."""
    return ((prior_BW**2).mean(dim=1) * (1 - is_bad_B)).sum()
