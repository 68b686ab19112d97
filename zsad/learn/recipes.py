"""What a trainer needs of a method that learns from masks: its learner, and how examples become a batch of it.

FAPrompt looks at frozen features only, so its rows hold them and the image tower runs once per image; rows may hold
pixels too, then it runs at every step. DAPO's tokens sit inside the tower: its rows hold pixels always.

The tower always sees `ENCODE_ROWS` images at once, a smaller rest padded, so that features are the same bits whichever
images came together.

Legend: B images, P patches, D joint width, S side px.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsad.backbone import Backbone
from zsad.learn import dapo, faprompt
from zsad.learn.examples import Example, Form, Kept, word_of
from zsad.learn.step import Learner
from zsad.methods.dapo import DAPOConfig
from zsad.methods.faprompt import FAPromptConfig, PromptEncoder, initial_tensors

ENCODE_ROWS = 8


class FAPromptRecipe:
    """FAPrompt over one backbone."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int,
        learning_rate: float,
        overlap_weight: float = 0.1,
        dice_weight: float = 1.0,
    ) -> None:
        self.config = FAPromptConfig()
        self._backbone = backbone
        tensors = initial_tensors(self.config, backbone, seed)
        encoder = PromptEncoder(self.config, backbone)
        self.learner: Learner = faprompt.FAPromptLearner.start(
            encoder, tensors, learning_rate=learning_rate, overlap_weight=overlap_weight, dice_weight=dice_weight
        )

    def form(self, size: int, kept: Kept) -> Form:
        """Rows of images of `size` px."""
        if kept == "pixels":
            return Form(size=size, kept=kept)
        num_patches = (size // self._backbone.patch_size) ** 2
        return Form(size=size, kept=kept, num_patches=num_patches, width=self._backbone.embed_dim)

    def features(self, pixels_BSSC: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """image_BD and patches_BPD of images, by the tower."""
        images, patches = [], []
        for start in range(0, len(pixels_BSSC), ENCODE_ROWS):
            some = pixels_BSSC[start : start + ENCODE_ROWS]
            padded = np.concatenate([some, np.repeat(some[:1], ENCODE_ROWS - len(some), axis=0)])
            image_BD, patches_BPD, _ = faprompt.frozen_features(self._backbone, self.config, torch.from_numpy(padded))
            images.append(image_BD[: len(some)])
            patches.append(patches_BPD[: len(some)])
        return torch.cat(images), torch.cat(patches)

    def batch(self, examples: Sequence[Example]) -> faprompt.Batch:
        """What a step learns from."""
        device = self._backbone.device
        if examples[0].pixels_SSC is None:
            image_BD = _stacked([example.image_D for example in examples]).to(device)
            patches_BPD = _stacked([example.patches_PD for example in examples]).to(device)
        else:
            image_BD, patches_BPD = self.features(np.stack([_given(example.pixels_SSC) for example in examples]))
        masks_BSS = _stacked([example.mask_SS for example in examples]).to(device)
        side = masks_BSS.shape[1] // self._backbone.patch_size
        is_bad_B = torch.tensor([example.label == 1 for example in examples], device=device)
        return faprompt.Batch(image_BD, patches_BPD, (side, side), masks_BSS, is_bad_B)


class DAPORecipe:
    """DAPO over one backbone, for the defect words of one data set."""

    def __init__(
        self, backbone: Backbone, words: tuple[str, ...], *, seed: int, learning_rate: float, checkpointing: bool
    ) -> None:
        self.config = DAPOConfig()
        self._type_of = {word: number for number, word in enumerate(words, start=1)}
        training = dapo.DAPOTraining(learning_rate=learning_rate, checkpointing=checkpointing)
        self.learner: Learner = dapo.DAPOTrainer(self.config, training, backbone, words, seed=seed)

    def form(self, size: int, kept: Kept) -> Form:
        """Rows of images of `size` px: pixels whatever is asked for."""
        return Form(size=size, kept="pixels")

    def batch(self, examples: Sequence[Example]) -> dapo.TypedBatch:
        """What a step learns from; all defective pixels of an image have its type."""
        numbers = [self._type_of[word_of(example.defect_type)] if example.label else 0 for example in examples]
        masks_BSS = _stacked([example.mask_SS for example in examples]).long()
        pixels_BSSC = _stacked([example.pixels_SSC for example in examples])
        return dapo.TypedBatch(pixels_BSSC, masks_BSS * torch.tensor(numbers)[:, None, None])


Recipe = FAPromptRecipe | DAPORecipe


def new_recipe(
    method: str,
    backbone: Backbone,
    *,
    words: tuple[str, ...],
    seed: int,
    learning_rate: float,
    overlap_weight: float = 0.1,
    dice_weight: float = 1.0,
    checkpointing: bool = False,
) -> Recipe:
    """The recipe of "faprompt" or "dapo" at its random start, the same for a seed on every device.

    Raises:
        ConfigError, ModelError: if the backbone can't carry it.
    """
    if method == "faprompt":
        return FAPromptRecipe(
            backbone, seed=seed, learning_rate=learning_rate, overlap_weight=overlap_weight, dice_weight=dice_weight
        )
    return DAPORecipe(backbone, words, seed=seed, learning_rate=learning_rate, checkpointing=checkpointing)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The method's settings as a bundle stores them: those that differ from the defaults."""
    defaults = asdict(type(recipe.config)())
    return {name: value for name, value in asdict(recipe.config).items() if value != defaults[name]}


def _stacked(arrays: Sequence[NDArray[Any] | None]) -> Tensor:
    return torch.from_numpy(np.stack([_given(array) for array in arrays]))


def _given(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None  # noqa: S101 - a row holds what its form says; for the type checker
    return array
