"""`Backbone`: a frozen open_clip ViT that gives image, patch and text embeddings.

Legend: B images, P patches, W tower width, D joint width, S strings. Pixels are uint8 (B, H, W, 3) and are normalised
on the device, so that a quarter of the bytes travel. fp32 on a CPU; bf16 on a GPU with norms, softmax and outputs in
fp32.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zsad.backbone import text, vision
from zsad.backbone.load import Loaded, load_open_clip, weights_sha256
from zsad.errors import ModelError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Features of one batch.

    Attributes:
        image_BD: unit-length image embeddings.
        patches_BPD: unit-length patch tokens of the value-value stream, raster order.
        grid: (rows, columns) of patches.
        taps: block -> (B, P, W) post-attention states of the ordinary stream, class token dropped.
    """

    image_BD: Tensor
    patches_BPD: Tensor
    grid: tuple[int, int]
    taps: dict[int, Tensor]


class Backbone:
    """Frozen towers on one device; made by `load_backbone`."""

    def __init__(self, name: str, loaded: Loaded, *, device: torch.device, precision: Precision) -> None:
        self.name = name
        self.sha256 = weights_sha256(loaded.model)
        self.device = device
        self.precision: Precision = precision
        self.interpolation: Literal["bicubic", "bilinear"] = (
            "bilinear" if loaded.interpolation == "bilinear" else "bicubic"
        )
        self.model: Any = _cast(loaded.model, precision).to(device)
        self.declared_vv_start: int | None = loaded.vv_start  # by a tower that was trained with one
        self.vv_start: int = vision.default_vv_start(self.num_layers) if loaded.vv_start is None else loaded.vv_start
        self.tokenizer = loaded.tokenizer
        self._words = loaded.words
        self._mean = torch.tensor(loaded.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(loaded.std, device=device).view(1, 3, 1, 1) * 255

    @property
    def image_size(self) -> int:
        """Side of the square image the tower was trained on, px."""
        return int(self.model.visual.image_size[0])

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return int(self.model.visual.patch_size[0])

    @property
    def num_layers(self) -> int:
        """Blocks of the vision tower."""
        return len(self.model.visual.transformer.resblocks)

    @property
    def embed_dim(self) -> int:
        """Joint width D."""
        return int(self.model.visual.proj.shape[1])

    @torch.inference_mode()
    def encode_image(
        self,
        pixels_BHWC: Tensor,
        *,
        vv_start: int | None = None,
        taps: Collection[int] = (),
        image_ln_post: bool = True,
    ) -> ImageFeatures:
        """Embeddings of uint8 RGB images.

        Args:
            pixels_BHWC: uint8; both sides multiples of the patch size, any such size.
            vv_start: first block of the value-value stream; None: the backbone's own `vv_start`.
            taps: blocks to keep.
            image_ln_post: whether the image embedding passes `ln_post`, as CLIP's does; patches always do.

        Raises:
            ModelError: if a side is not a multiple of the patch size, or a tap or the start is not a block.
        """
        grid = self.grid(pixels_BHWC)
        start = self.vv_start if vv_start is None else vv_start
        self._check_vv_start(start)
        if any(not 0 <= tap < self.num_layers for tap in taps):
            raise ModelError(f"taps {sorted(taps)}: {self.name} has blocks 0 to {self.num_layers - 1}")
        visual = self.model.visual
        x_BNW = vision.embed(visual, self.normalise(pixels_BHWC))
        streams = vision.run_blocks(visual, x_BNW, vv_start=start, taps=taps)
        return ImageFeatures(
            image_BD=vision.class_to_joint(visual, streams.h_BNW, ln_post=image_ln_post),
            patches_BPD=vision.to_joint(visual, streams.z_BNW[:, 1:]),
            grid=grid,
            taps={tap: state[:, 1:].float() for tap, state in streams.taps.items()},
        )

    def _check_vv_start(self, vv_start: int) -> None:
        """Refuse a value-value stream that begins at no block; the number of blocks switches it off.

        Raises:
            ModelError: if it is not a whole number from 0 to the number of blocks.
        """
        if type(vv_start) is not int or not 0 <= vv_start <= self.num_layers:
            raise ModelError(
                f"vv_start is {vv_start!r}; {self.name} can start at blocks 0 to {self.num_layers - 1}, and "
                f"{self.num_layers} switches the value-value stream off"
            )

    def encode_text(self, strings: list[str]) -> Tensor:
        """Unit-length embeddings (S, D) of prompts.

        Raises:
            ModelError: if there are no strings.
        """
        if not strings:
            raise ModelError("no prompts to encode: give at least one string")
        return text.encode_strings(self.model, self.tokenizer, strings, self.device)

    def grid(self, pixels_BHWC: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches in images of this size.

        Raises:
            ModelError: if a side is not a multiple of the patch size.
        """
        height, width = pixels_BHWC.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ModelError(f"images of {width} x {height} px do not divide into patches of {self.patch_size} px")
        return height // self.patch_size, width // self.patch_size

    def unseen(self, phrase: str) -> tuple[str, ...]:
        """The words of `phrase` that this model's text tower was never taught, so that their embeddings are noise.

        Always empty for models that do not say what they were taught, as those trained on the web's captions.
        """
        if self._words is None:
            return ()
        return tuple(word for word in re.findall(r"[^\W\d_]+", phrase.lower()) if word not in self._words)

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """The vision tower's input (B, 3, H, W) of uint8 RGB images, on its device and in its precision."""
        pixels_BCHW = pixels_BHWC.to(self.device).permute(0, 3, 1, 2).float()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return ((pixels_BCHW - self._mean) / self._std).to(dtype)


def _cast(model: Any, precision: Precision) -> nn.Module:
    """The vision tower in `precision`, its norms in fp32; the text tower runs once per detector and stays in fp32."""
    if precision == "bf16":
        model.visual.to(torch.bfloat16)
        for module in model.visual.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
    return cast(nn.Module, model)


def load_backbone(name: str, device: str = "cpu", precision: Precision | None = None) -> Backbone:
    """Load a backbone once per name, device and precision; every detector of the process shares it.

    Args:
        name: `nano`, a folder, or open_clip's `NAME/PRETRAINED`.
        device: a torch device.
        precision: None: bf16 on a GPU, fp32 elsewhere.

    Raises:
        ModelError: if it can't be loaded.
    """
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is not a torch device: {error}") from error
    if torch_device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but this process sees no GPU")
    return _load(name, torch_device, precision or ("bf16" if torch_device.type == "cuda" else "fp32"))


@lru_cache(maxsize=4)
def _load(name: str, device: torch.device, precision: Precision) -> Backbone:
    return Backbone(name, load_open_clip(name), device=device, precision=precision)
