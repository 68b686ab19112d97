"""PromptAD: learned prompts and a memory of a few normal images, fitted to one product.

Two answers meet in every patch. The text answer compares the patch with one normal and one abnormal direction, learned
from prompts that share their context words. The visual answer is the distance to the nearest patch of one to four
normal images, seen in two layers of the tower. Both must agree: they are fused as 1 / (1 / a + 1 / b), half the
harmonic mean, which is small as soon as one of them is. The image score fuses the image's own text answer with the peak
of the visual map. Image and pixel task are learned apart but kept in one bundle and answered by one pass of the tower.

Raw scores and maps therefore lie in [0, 0.5], not [0, 1]: the half of the harmonic mean is kept as published.
Calibration works on logits, which are as monotone on (0, 0.5) as on (0, 1), so nothing has to be rescaled for it.

The memory holds the tower's state after a block's attention and before its MLP: the published code means to keep block
outputs, but its hooks keep a view to which the next block adds, and its figures come from that.

Legend: B images, P patches, (h, w) patch grid, D joint width, W tower width, M remembered patches.
Cost: one pass of the tower, and 2 * 2 * B * P * M * W FLOP for the search: 0.7 GFLOP an image for four normal images
in ViT-B/16 at 240 px, against 61 for the tower. Memory 4 * W bytes a patch and layer: 6.5 MB there.
Source: PromptAD (arXiv 2404.05231) and its code; the layers generalised to towers of any depth.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone, ImageFeatures
from zsad.backbone.similarity import probability, similarity
from zsad.errors import ConfigError, ModelError
from zsad.methods.base import Prediction, Subject
from zsad.methods.memory import distance

TASKS = ("cls", "seg")
TEXT = "text"  # (2, D): the normal and the abnormal direction of a task
NORMAL_CONTEXT, ABNORMAL_CONTEXT = "normal_context", "abnormal_context"
MEMORY = ("memory.1", "memory.2")
OBJECT_NAME = "object_name"  # UTF-8 bytes: the product these tensors were learned for
_NAMES = {f"{task}.{part}" for task in TASKS for part in (TEXT, NORMAL_CONTEXT, ABNORMAL_CONTEXT)}
_NAMES |= {*MEMORY, OBJECT_NAME}
_UNIT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptADConfig:
    """Settings that prompts are learned for and images are scored with.

    Attributes:
        logit_scale: factor on cosine similarities; the published code multiplies by the logarithm that CLIP stores,
            ln 100 = 4.6, and never by 100 itself.
        resolution: side in px of the up-sampled visual map whose peak enters the image score.
        vv_start: first block of the value-value path; None: the one that the tower was trained with where its folder
            names one, else 0 as published.
        first_tap, second_tap: blocks whose post-attention states are remembered; None: 3/12 and 8/12 of the tower.
    """

    logit_scale: float = math.log(100)
    resolution: int = 400
    vv_start: int | None = None
    first_tap: int | None = None
    second_tap: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if not 0 < self.logit_scale <= 100:
            raise ConfigError(f"logit_scale is {self.logit_scale}; it must lie in (0, 100], as published ln 100 = 4.6")
        if self.resolution < 1:
            raise ConfigError(f"resolution is {self.resolution} px; it must be at least 1")
        for name in ("vv_start", "first_tap", "second_tap"):
            block = getattr(self, name)
            if block is not None and block < 0:
                raise ConfigError(f"{name} is {block}; blocks are counted from 0")

    def taps(self, num_layers: int) -> tuple[int, int]:
        """The two remembered blocks of a tower of `num_layers`."""
        default = [min(round(share * num_layers / 12), num_layers - 1) for share in (3, 8)]
        first, second = (
            default[i] if given is None else given for i, given in enumerate((self.first_tap, self.second_tap))
        )
        return first, second


class PromptAD:
    """Fitted to one product; `zsad.learn.promptad.fit` makes the tensors."""

    map_sigma = 4 / 400  # published figures are of maps of 400 px, filtered with a sigma of 4 px

    def __init__(
        self, config: PromptADConfig, backbone: Backbone, subject: Subject, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        self._tensors = {name: _on(backbone.device, tensor) for name, tensor in (tensors or {}).items()}
        _check(self._tensors, backbone, subject.object_name)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Per task the text directions and the contexts they came from; the memory; the product's name."""
        return self._tensors

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores and maps lie in [0, 0.5]."""
        features = encode(self.backbone, self.config, pixels_BHWC)
        visual_Bhw = self.visual_map(features)
        text_Bhw = self.text_probability("seg", features.patches_BPD).view(-1, *features.grid)
        image_B = self.text_probability("cls", features.image_BD)
        return Prediction(
            score_B=fuse(peak(visual_Bhw, self.config.resolution), image_B),
            map_Bhw=fuse(text_Bhw, visual_Bhw),
            patches_BPD=features.patches_BPD,
        )

    def text_probability(self, task: str, features: Tensor) -> Tensor:
        """Abnormal share (...) in (0, 1) of unit-length `features` (..., D) under the directions of "cls" or "seg"."""
        cosines = similarity(features, self._tensors[f"{task}.{TEXT}"])
        return probability(self.config.logit_scale * (cosines[..., 1] - cosines[..., 0]))

    def visual_map(self, features: ImageFeatures) -> Tensor:
        """Mean over both layers of the distance to the nearest remembered patch, (B, h, w) in [0, 1]."""
        taps = self.config.taps(self.backbone.num_layers)
        distances = [
            distance(F.normalize(features.taps[tap], dim=-1), self._tensors[name])
            for tap, name in zip(taps, MEMORY, strict=True)
        ]
        return (0.5 * (distances[0] + distances[1])).view(-1, *features.grid)

    def remember(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """These tensors with the memory of other normal images of the same product; see `FewShot`.

        Raises:
            ConfigError: if there are no images.
        """
        features = [encode(self.backbone, self.config, batch) for batch in batches]
        return {**self._tensors, **remembered(features, self.config.taps(self.backbone.num_layers))}


def encode(backbone: Backbone, config: PromptADConfig, pixels_BHWC: Tensor) -> ImageFeatures:
    """What PromptAD looks at in uint8 images (B, H, W, 3).

    Raises:
        ModelError: if the configured taps are not blocks of the tower, or the sides do not divide into patches.
    """
    return backbone.encode_image(
        pixels_BHWC, vv_start=used_vv_start(backbone, config), taps=config.taps(backbone.num_layers)
    )


def used_vv_start(backbone: Backbone, config: PromptADConfig) -> int:
    """First block of the value-value path, see `PromptADConfig.vv_start`."""
    return (backbone.declared_vv_start or 0) if config.vv_start is None else config.vv_start


def remembered(features: Iterable[ImageFeatures], taps: tuple[int, int]) -> dict[str, Tensor]:
    """Every patch of normal images as a unit-length row (M, W), one tensor per tap.

    Raises:
        ConfigError: if there are no images.
    """
    kept = list(features)
    if not kept:
        raise ConfigError("no normal images were given; PromptAD remembers one to four of them, so give at least one")
    return {
        name: torch.cat([F.normalize(batch.taps[tap], dim=-1).flatten(0, 1) for batch in kept])
        for name, tap in zip(MEMORY, taps, strict=True)
    }


def fuse(first: Tensor, second: Tensor) -> Tensor:
    """1 / (1 / first + 1 / second), elementwise: half the harmonic mean of two answers in [0, 1]; 0 where one is 0."""
    return 1 / (1 / first + 1 / second)


def peak(map_Bhw: Tensor, resolution: int) -> Tensor:
    """Largest value (B,) of each map up-sampled bilinearly to `resolution` px a side."""
    size = (resolution, resolution)
    return F.interpolate(map_Bhw[:, None], size=size, mode="bilinear", align_corners=False).amax(dim=(1, 2, 3))


def name_tensor(object_name: str) -> Tensor:
    """A product's name as the tensor `object_name`."""
    return torch.tensor(list(object_name.encode()), dtype=torch.uint8)


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    """`tensor` where it is used, numbers in fp32 whatever they were stored in; the name's bytes as they are."""
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)


def _check(tensors: Mapping[str, Tensor], backbone: Backbone, object_name: str) -> None:
    """Refuse tensors that are no fitted PromptAD of this backbone and product."""
    if not tensors:
        raise ModelError(
            "PromptAD has nothing to answer with before it is fitted: it learns from one to four normal images of one "
            "product; make its tensors with zsad.learn.promptad.fit, or load a bundle that holds them"
        )
    for what, names in (("misses", _NAMES - tensors.keys()), ("has unexpected", tensors.keys() - _NAMES)):
        if names:
            raise ModelError(f"PromptAD {what} {len(names)} tensors, such as {min(names)}; fit the bundle anew")
    for task in TASKS:
        _check_rows(f"{task}.{TEXT}", tensors[f"{task}.{TEXT}"], backbone.embed_dim, num_rows=2)
    for name in MEMORY:
        _check_rows(name, tensors[name], int(backbone.model.visual.conv1.out_channels))
    fitted = _name(tensors[OBJECT_NAME])
    if fitted != object_name:
        raise ModelError(
            f"this PromptAD was fitted to {fitted!r} and can't judge {object_name!r}: its prompts and its memory "
            "belong to one product; leave the object name out, or fit one for this product"
        )


def _check_rows(name: str, rows: Tensor, width: int, num_rows: int | None = None) -> None:
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows) or num_rows not in (None, len(rows)):
        expected = f"({'any' if num_rows is None else num_rows}, {width})"
        raise ModelError(f"PromptAD's {name} has shape {tuple(rows.shape)}; this backbone asks for {expected}")
    if not ((rows.norm(dim=-1) - 1).abs() < _UNIT).all():  # not so either where a value is not finite
        raise ModelError(f"PromptAD's {name} holds rows that are not of unit length; the bundle is damaged")


def _name(stored: Tensor) -> str:
    if stored.dtype != torch.uint8 or stored.ndim != 1:
        raise ModelError(f"PromptAD's {OBJECT_NAME} must be bytes in a row, not {stored.dtype} {tuple(stored.shape)}")
    return bytes(stored.cpu().tolist()).decode(errors="replace")
