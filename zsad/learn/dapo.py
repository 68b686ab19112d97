"""Train DAPO's vectors, inserted tokens and adapters on images with typed masks: losses and one step.

    L = CE([u z_N, u z_A] / tau, is anomalous)
        + 4 sum over levels [ focal(S, types) + dice(S_normal, 1 - M) + dice(sum of S_defect, M) ]

with S the class probabilities of a level brought to the losses' size, M the mask of all types. CLIP is frozen, yet
tokens sit at every block, so gradients run through both towers.

Memory: S at the losses' size is a large tensor (8 images of 259 px, 21 classes: 45 MB a level). So losses are taken at
half the input's side, and `checkpointing` computes levels and blocks again in the backward pass instead of keeping what
is inside them.

Legend: B images, (H, W) px of the input, (R, Q) px of the losses, (h, w) patch grid, K defect words, C = 1 + K classes
with "normal" first, P patches, D joint width.
Cost: towers forward and backward, for B images and (1 + K) E texts a step. Over nano at 224 px, 8 images and 19 words:
0.64 s and 260 MB on one core, 0.85 s and 116 MB with checkpointing.
Source: DAPO (arXiv 2512.09446), losses and optimiser; size of the losses and checkpointing are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zsad.backbone import Backbone
from zsad.backbone.similarity import similarity
from zsad.errors import ConfigError
from zsad.learn.losses import dice_loss, focal_loss
from zsad.learn.step import take_step
from zsad.methods.dapo import (
    DAPOConfig,
    binary_pair,
    encode_classes,
    encode_pixels,
    initial_tensors,
    levels_of,
    probabilities,
)

PIXEL_WEIGHT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DAPOTraining:
    """How one step learns.

    Attributes:
        learning_rate: of Adam, no schedule.
        betas: of Adam.
        loss_scale: side of the pixel losses as a share of the input's, (0, 1].
        checkpointing: trade a forward pass for the memory of blocks and levels.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    loss_scale: float = 0.5
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must lie in (0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; both must lie in [0, 1)")
        if not 0 < self.loss_scale <= 1:
            raise ConfigError(f"loss_scale is {self.loss_scale}; it must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class TypedBatch:
    """Labelled images.

    Attributes:
        pixels_BHWC: uint8 RGB; sides are multiples of the patch size.
        types_BHW: int64; per pixel 0 for normal, k for the k-th defect word, counted from 1.
    """

    pixels_BHWC: Tensor
    types_BHW: Tensor


class DAPOTrainer:
    """Learned tensors in training and their optimiser; the backbone stays as it is."""

    def __init__(
        self, config: DAPOConfig, training: DAPOTraining, backbone: Backbone, words: tuple[str, ...], *, seed: int
    ) -> None:
        self.config = config
        self.training = training
        self.backbone = backbone
        self.words = words
        start = initial_tensors(config, backbone, seed)
        self.tensors = {name: tensor.to(backbone.device).requires_grad_() for name, tensor in start.items()}
        self.optimiser = torch.optim.Adam(self.tensors.values(), lr=training.learning_rate, betas=training.betas)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the loss terms."""
        return ("image", *(f"level_{index}" for index in range(len(levels_of(self.config, self.backbone)))))

    def terms(self, batch: TypedBatch, share: float) -> dict[str, Tensor]:
        """See `Learner.terms`; all are means over images.

        Raises:
            ConfigError: if a pixel's type is no defect word.
        """
        found = losses_of(self.config, self.training, self.backbone, self.tensors, self.words, batch)
        return {name: share * term for name, term in found.items()}

    def step(self, batch: TypedBatch) -> dict[str, float]:
        """One optimiser step of a single worker; returns the loss terms before it, weights applied.

        Raises:
            ConfigError: if a pixel's type is no defect word.
            ModelError: if a term is not finite.
        """
        return take_step(self, batch)

    def learned(self) -> dict[str, Tensor]:
        """A copy of the tensors as a bundle stores them."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def losses_of(
    config: DAPOConfig,
    training: DAPOTraining,
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    words: Sequence[str],
    batch: TypedBatch,
) -> dict[str, Tensor]:
    """The loss terms of one batch, each a scalar with its weight applied.

    Raises:
        ConfigError: if a pixel's type is no defect word.
    """
    types_BHW = batch.types_BHW.to(backbone.device)
    least, largest = (int(end) for end in types_BHW.aminmax())
    if least < 0 or largest > len(words):
        raise ConfigError(
            f"pixel types go from {least} to {largest}; with {len(words)} defect words: 0 to {len(words)}"
        )
    checkpointing = training.checkpointing
    directions_CD = encode_classes(config, backbone, tensors, words, checkpointing=checkpointing)
    image_BD, patches, grid = encode_pixels(config, backbone, tensors, batch.pixels_BHWC, checkpointing=checkpointing)
    logits_B2 = similarity(image_BD, binary_pair(directions_CD)) / config.temperature
    types_BRQ = shrink_types(types_BHW, training.loss_scale)
    terms = {"image": F.cross_entropy(logits_B2, types_BHW.flatten(1).amax(dim=1).clamp(max=1))}
    for index, patches_BPD in enumerate(patches):
        arguments = (patches_BPD, directions_CD, types_BRQ, grid, config.temperature)
        level = checkpoint(level_loss, *arguments, use_reentrant=False) if checkpointing else level_loss(*arguments)
        terms[f"level_{index}"] = PIXEL_WEIGHT * level
    return terms


def shrink_types(types_BHW: Tensor, scale: float) -> Tensor:
    """Types (B, R, Q) on sides `scale` times as long; a defective pixel stays, of two types the later word."""
    size = tuple(max(1, round(side * scale)) for side in types_BHW.shape[1:])
    return F.adaptive_max_pool2d(types_BHW[:, None].float(), size)[:, 0].long()


def level_loss(
    patches_BPD: Tensor, directions_CD: Tensor, types_BRQ: Tensor, grid: tuple[int, int], temperature: float
) -> Tensor:
    """Focal loss over all classes plus dice of "normal" and of "any defect", on maps up-sampled to `types_BRQ`."""
    coarse_BPC = probabilities(patches_BPD, directions_CD, temperature)
    coarse_BChw = coarse_BPC.transpose(1, 2).reshape(len(coarse_BPC), -1, *grid)
    size = types_BRQ.shape[1:]
    classes_BCRQ = F.interpolate(coarse_BChw, size=size, mode="bilinear", align_corners=True)
    is_normal_BRQ = types_BRQ == 0
    return (
        focal_loss(classes_BCRQ, types_BRQ)
        + dice_loss(classes_BCRQ[:, 0], is_normal_BRQ)
        + dice_loss(classes_BCRQ[:, 1:].sum(dim=1), ~is_normal_BRQ)
    )
