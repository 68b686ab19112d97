"""Zero-shot anomaly detection from words alone: normal against abnormal prompt ensembles.

The image embedding is compared with the mean direction of many normal and many abnormal prompts; so is every patch
token of the value-value path, which gives the anomaly map in the same single pass. The image score is the mean of the
two answers, because a defect of a few pixels barely moves the image embedding but dominates its own patch.

Legend: B images, P patches, (h, w) patch grid, D joint width.
Cost: one pass of the tower; prompts are encoded once, when the method is made.
Source: WinCLIP (arXiv 2303.14814), sections 4.1-4.2, for ensembles and image score; dense value-value tokens instead of
windows, and the fused image score, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zsad.backbone import Backbone
from zsad.backbone.similarity import similarity
from zsad.errors import ConfigError
from zsad.methods.base import Prediction, Subject
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, direction


@dataclass(frozen=True, slots=True, kw_only=True)
class WinCLIPConfig:
    """Settings of the text-ensemble baseline.

    Attributes:
        temperature: of the softmax between normal and abnormal, in (0, 1]; 0.07 keeps scores away from 0 and 1.
        map_weight: share of the map's peak in the image score, [0, 1]; 0 is the published image score.
        top_patches: the peak is the mean of this many highest patches.
        vv_start: first block of the value-value path; None: the backbone's default.
    """

    temperature: float = 0.07
    map_weight: float = 0.5
    top_patches: int = 3
    vv_start: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if not 0 < self.temperature <= 1:
            raise ConfigError(f"temperature is {self.temperature}; it must lie in (0, 1]")
        if not 0 <= self.map_weight <= 1:
            raise ConfigError(f"map_weight is {self.map_weight}; it must lie in [0, 1]")
        if self.top_patches < 1:
            raise ConfigError(f"top_patches is {self.top_patches}; it must be at least 1")


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

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing is learned."""
        return {}

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores and maps are probabilities in (0, 1)."""
        features = self.backbone.encode_image(pixels_BHWC, vv_start=self.config.vv_start)
        patches_BP = abnormal_probability(features.patches_BPD, self.states_2D, self.config.temperature)
        image_B = abnormal_probability(features.image_BD, self.states_2D, self.config.temperature)
        peak_B = patches_BP.topk(min(self.config.top_patches, patches_BP.shape[1]), dim=1).values.mean(dim=1)
        weight = self.config.map_weight
        return Prediction(
            score_B=(1 - weight) * image_B + weight * peak_B,
            map_Bhw=patches_BP.view(-1, *features.grid),
            patches_BPD=features.patches_BPD,
        )


def abnormal_probability(features: Tensor, states_2D: Tensor, temperature: float) -> Tensor:
    """Softmax share of the abnormal state.

    Args:
        features: (..., D) unit-length embeddings of images or patches.
        states_2D: unit-length directions, row 0 normal, row 1 abnormal.
        temperature: of the softmax.

    Returns:
        (...) in (0, 1).
    """
    logits = similarity(features, states_2D) / temperature
    return (logits[..., 1] - logits[..., 0]).sigmoid()
