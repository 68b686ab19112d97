"""Zero-shot anomaly detection from words alone: normal against abnormal prompt ensembles; few-shot with normal images.

The image embedding is compared with the mean direction of many normal and many abnormal prompts. Where in the image
something is wrong, one of two dense features says:

- `vv` (default): every patch token of the value-value path against the same directions, in the same single pass. The
  image score is the mean of both answers, because a defect of a few pixels barely moves the image embedding but
  dominates its own patch.
- `windows`: the published form. Windows of 2 x 2 and 3 x 3 patches are embedded as small images; the map is the
  harmonic mean of the image score and both scales. `PUBLISHED` holds the published settings.

With `contrast` the map also says which patches are unlike the rest of their own image (`own_reference`). The score does
not: something stands out in every image. `nano` uses it; for other backbones it is off, for it was not measured there.

Normal images, where given, are remembered (`remember`): the map and the score then are the mean of the zero-shot answer
and of the distance to the nearest remembered feature. With `vv` those features are value-value patch tokens alone,
with `windows` window embeddings of both sizes too.

Legend: B images, P patches, (h, w) patch grid, M windows of one size, D joint width.
Cost: one pass of the tower (`vv`), or the tokens of 13 passes (`windows`); prompts are encoded once, when the method is
made.
Source: WinCLIP (arXiv 2303.14814), sections 4.1-4.3; dense value-value tokens instead of windows, and the fused image
score, are ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zsad.backbone import Backbone, ImageFeatures
from zsad.backbone.similarity import probability, similarity
from zsad.errors import ConfigError
from zsad.methods import memory, windows
from zsad.methods.base import Prediction, Subject
from zsad.methods.own_reference import unlikeness
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, direction


@dataclass(frozen=True, slots=True, kw_only=True)
class WinCLIPConfig:
    """Settings of the text-ensemble baseline.

    Attributes:
        dense: where the map comes from: "vv" or "windows".
        temperature: of the softmax between normal and abnormal, in (0, 1]; 0.07 keeps scores away from 0 and 1.
        map_weight: share of the map's peak in the image score, [0, 1]; 0 is the published image score.
        top_patches: the peak is the mean of this many highest patches.
        vv_start: first block of the value-value path; None: the backbone's default.
        contrast: what a patch's unlikeness to its own image adds to its margin between the states in the map, both in
            cosines; for `vv` only, 0: off.
    """

    dense: Literal["vv", "windows"] = "vv"
    temperature: float = 0.07
    map_weight: float = 0.5
    top_patches: int = 3
    vv_start: int | None = None
    contrast: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if self.dense not in ("vv", "windows"):
            raise ConfigError(f"dense is {self.dense!r}; choose 'vv' or 'windows'")
        if not 0 < self.temperature <= 1:
            raise ConfigError(f"temperature is {self.temperature}; it must lie in (0, 1]")
        if not 0 <= self.map_weight <= 1:
            raise ConfigError(f"map_weight is {self.map_weight}; it must lie in [0, 1]")
        if self.top_patches < 1:
            raise ConfigError(f"top_patches is {self.top_patches}; it must be at least 1")
        if not 0 <= self.contrast < float("inf"):
            raise ConfigError(f"contrast is {self.contrast}; it must be 0 (off) or more")
        if self.contrast and self.dense == "windows":
            raise ConfigError("contrast compares patches of the value-value map; give dense=vv, or contrast=0")


PUBLISHED = WinCLIPConfig(dense="windows", temperature=0.01, map_weight=0.0)
"""The paper's settings; its figures are for ViT-B/16-plus-240 at 240 px."""


class WinCLIP:
    """The baseline over one backbone, for one object name."""

    def __init__(
        self, config: WinCLIPConfig, backbone: Backbone, subject: Subject, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        self.states_2D = torch.stack(
            [direction(backbone, states, subject.object_name) for states in (NORMAL_STATES, ABNORMAL_STATES)]
        )
        self._sizes = windows.SIZES if config.dense == "windows" else ()
        width, device = self.states_2D.shape[1], self.states_2D.device
        self._memory = memory.restore(tensors, self._sizes, width=width, device=device)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What is remembered of normal images; nothing is learned."""
        return self._memory

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores and maps are probabilities in (0, 1)."""
        features, seen = self._encode(pixels_BHWC)
        image_B = self._probability(features.image_BD)
        map_BP = self._map(features, seen, image_B)
        score_B = fused(image_B, map_BP, self.config.map_weight, self.config.top_patches)
        if self.config.contrast:
            map_BP = self._contrasted_map(features)
        if self._memory:
            score_B, map_BP = with_novelty(score_B, map_BP, memory.novelty(self._memory, features, seen))
        return Prediction(score_B=score_B, map_Bhw=map_BP.view(-1, *features.grid), patches_BPD=features.patches_BPD)

    def remember(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """The tensors of a method that knows these normal images; see `FewShot.remember`."""
        return memory.collect(self._encode(pixels_BHWC) for pixels_BHWC in batches)

    def _encode(self, pixels_BHWC: Tensor) -> tuple[ImageFeatures, dict[int, Tensor]]:
        taps = (self.backbone.num_layers - 1,) if self.config.contrast else ()
        return windows.encode(self.backbone, pixels_BHWC, sizes=self._sizes, vv_start=self.config.vv_start, taps=taps)

    def _map(self, features: ImageFeatures, seen: Mapping[int, Tensor], image_B: Tensor) -> Tensor:
        """The zero-shot map (B, P)."""
        if not seen:
            return self._probability(features.patches_BPD)
        scales = [windows.harmonic_map(self._probability(x), features.grid, size) for size, x in seen.items()]
        return windows.harmonic_mean([image_B[:, None].expand_as(scales[0]), *scales])

    def _contrasted_map(self, features: ImageFeatures) -> Tensor:
        """The value-value map (B, P) with what each patch stands out by."""
        unlikeness_BP = unlikeness(features.taps[self.backbone.num_layers - 1])
        margins_BP = margin(features.patches_BPD, self.states_2D) + self.config.contrast * unlikeness_BP
        return probability(margins_BP / self.config.temperature)

    def _probability(self, features: Tensor) -> Tensor:
        return abnormal_probability(features, self.states_2D, self.config.temperature)


def abnormal_probability(features: Tensor, states_2D: Tensor, temperature: float) -> Tensor:
    """Softmax share of the abnormal state.

    Args:
        features: (..., D) unit-length embeddings of images, windows or patches.
        states_2D: unit-length directions, row 0 normal, row 1 abnormal.
        temperature: of the softmax.

    Returns:
        (...) in (0, 1).
    """
    return probability(margin(features, states_2D) / temperature)


def margin(features: Tensor, states_2D: Tensor) -> Tensor:
    """By how much features (..., D) are nearer to the abnormal direction than to the normal one, a difference (...)."""
    cosines = similarity(features, states_2D)
    return cosines[..., 1] - cosines[..., 0]


def fused(image_B: Tensor, map_BP: Tensor, map_weight: float, top_patches: int) -> Tensor:
    """Image scores (B,) mixed with the peak of the map: the mean of its `top_patches` highest patches."""
    peak_B = map_BP.topk(min(top_patches, map_BP.shape[1]), dim=1).values.mean(dim=1)
    return (1 - map_weight) * image_B + map_weight * peak_B


def with_novelty(score_B: Tensor, map_BP: Tensor, novelty_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-shot score and map averaged with the novelty's largest value and the novelty (WinCLIP+)."""
    return (score_B + novelty_BP.amax(dim=1)) / 2, (map_BP + novelty_BP) / 2
