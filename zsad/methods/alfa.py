"""ALFA: prompts chosen anew for every image, and text carried from the image to its patches, all without training.

ALFA is reconstructed from the paper's abstract; the formulas of contextual scoring and of the aligner are ours.

Units are state phrases ("flawless cable", "cable with a nick in the jacket"): the ensemble's own and those of a prompt
bank. Each is the mean of its wordings in all templates. Per image,

1. `zsad.methods.contextual` chooses the units that fit the image, which gives its normal and abnormal direction;
2. the image score is the probability of "abnormal" between them; where units were dropped, the margin is multiplied by
   the share of those kept, because a choice made on the same similarities sharpens the answer;
3. the map compares patches with those directions: `patch_only` takes value-value tokens, which lie in the joint space
   already; `ridge` and `transport` run windows, carry the directions to the space of the ordinary patch tokens
   (`zsad.methods.aligner`), and mix that map half and half with the harmonic mean of image score and window scores;
4. image score and the map's peak are mixed as in zsad's WinCLIP; the paper's own fusion is unknown.

Phrases of a bank with words that the tower was never taught get no vote. The units that judged, the three most similar
of each side, are the explanation. Normal images, where given, are remembered as WinCLIP does it.

Legend: B images, P patches, (h, w) patch grid, M windows of one size, N units, D joint width.
Cost: one pass of the tower (`patch_only`), or the tokens of 14 passes; N * 16 short texts once per detector.
Source: ALFA (arXiv 2404.09654), abstract only; windows and few-shot after WinCLIP (arXiv 2303.14814).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone, ImageFeatures
from zsad.backbone.similarity import probability, similarity
from zsad.errors import ConfigError
from zsad.methods import aligner, contextual, memory, windows
from zsad.methods.base import Kept, Prediction, Subject
from zsad.methods.contextual import Choice, Mode
from zsad.methods.winclip import fused, with_novelty
from zsad.prompts.bank import MAX_CHARS, MAX_PHRASES, check_distinct, check_text
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, encode_units, fill

log = logging.getLogger(__name__)

Aligner = Literal["ridge", "transport", "patch_only"]
EXPLAINED = 3
"""Prompts of each side in an explanation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlfaConfig:
    """Settings of ALFA.

    Attributes:
        normal: looks of a good item, as a prompt bank words them; beside the ensemble's own states.
        abnormal: looks of a faulty item.
        mode: of contextual scoring: "none", "interval", "topk" or "soft".
        aligner: "patch_only", or windows with "ridge" or "transport".
        temperature: of image and window probabilities, in (0, 1].
        local_temperature: of patch probabilities, in (0, 1].
        ridge: lambda of the ridge map as a share of the pairs' mean square length, above 0.
        beta: share of the patch map, the rest is the windows'; [0, 1]; `patch_only` has no windows.
        map_weight: share of the map's peak in the image score, [0, 1].
        top_patches: the peak is the mean of this many highest patches.
        vv_start: first block of the value-value path; None: the backbone's default.
    """

    normal: tuple[str, ...] = ()
    abnormal: tuple[str, ...] = ()
    mode: Mode = "none"
    aligner: Aligner = "patch_only"
    temperature: float = 0.01
    local_temperature: float = 0.07
    ridge: float = 0.1
    beta: float = 0.5
    map_weight: float = 0.5
    top_patches: int = 3
    vv_start: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings; lists, as JSON has them, become tuples."""
        for name, known in (("mode", get_args(Mode)), ("aligner", get_args(Aligner))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose {', '.join(known)}")
        for name in ("temperature", "local_temperature"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in (0, 1]")
        for name in ("beta", "map_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if not 0 < self.ridge <= 1e6:
            raise ConfigError(f"ridge is {self.ridge}; it must be above 0 and at most 1,000,000")
        if self.top_patches < 1:
            raise ConfigError(f"top_patches is {self.top_patches}; it must be at least 1")
        for name in ("normal", "abnormal"):
            object.__setattr__(self, name, _phrases(getattr(self, name), name))
        check_distinct([*self.normal, *self.abnormal])


class Alfa:
    """ALFA over one backbone, for one object name."""

    def __init__(
        self, config: AlfaConfig, backbone: Backbone, subject: Subject, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        looks = (_seen(backbone, config.normal), _seen(backbone, config.abnormal))
        sides = (_units(NORMAL_STATES, looks[0]), _units(ABNORMAL_STATES, looks[1]))
        self.prompts = [fill(state, subject.object_name) for side in sides for state in side]
        self.is_abnormal_N = np.repeat([False, True], [len(side) for side in sides])
        self.units_ND = encode_units(backbone, [state for side in sides for state in side], subject.object_name)
        self._sizes = () if config.aligner == "patch_only" else windows.SIZES
        width, device = self.units_ND.shape[1], self.units_ND.device
        self._memory = memory.restore(tensors, self._sizes, width=width, device=device)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What is remembered of normal images; nothing is learned."""
        return self._memory

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores and maps are probabilities in (0, 1)."""
        return self.judge(*self.encode(pixels_BHWC))

    @torch.inference_mode()
    def judge(self, features: ImageFeatures, seen: Mapping[int, Tensor], local_BPD: Tensor) -> Prediction:
        """Score a batch that is encoded already; the arguments are what `encode` returns."""
        similarity_BN = similarity(features.image_BD, self.units_ND).double().cpu().numpy()
        choices = [contextual.choose(row_N, self.is_abnormal_N, self.config.mode) for row_N in similarity_BN]
        states_B2D = torch.stack([self._states(choice) for choice in choices])
        image_B = self._image_scores(features.image_BD, states_B2D, choices)
        map_BP = self._map(features, seen, local_BPD, states_B2D, image_B)
        score_B = fused(image_B, map_BP, self.config.map_weight, self.config.top_patches)
        if self._memory:
            score_B, map_BP = with_novelty(score_B, map_BP, memory.novelty(self._memory, features, seen))
        return Prediction(
            score_B=score_B,
            map_Bhw=map_BP.view(-1, *features.grid),
            patches_BPD=features.patches_BPD,
            explanation=tuple(self._explain(*pair) for pair in zip(similarity_BN, choices, strict=True)),
        )

    def remember(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """The tensors of a method that knows these normal images; see `FewShot.remember`."""
        return memory.collect(self._windows(pixels_BHWC) for pixels_BHWC in batches)

    def encode(self, pixels_BHWC: Tensor) -> tuple[ImageFeatures, dict[int, Tensor], Tensor]:
        """Features of whole images, those of windows, and the patch tokens (B, P, D) that this aligner compares."""
        features, seen = self._windows(pixels_BHWC)
        return features, seen, windows.ordinary_tokens(self.backbone, pixels_BHWC) if seen else features.patches_BPD

    def _windows(self, pixels_BHWC: Tensor) -> tuple[ImageFeatures, dict[int, Tensor]]:
        return windows.encode(self.backbone, pixels_BHWC, sizes=self._sizes, vv_start=self.config.vv_start)

    def _states(self, choice: Choice) -> Tensor:
        """Unit-length normal and abnormal direction (2, D) of one image."""
        weight_N1 = torch.from_numpy(choice.weight_N).to(self.units_ND)[:, None]
        weighted_ND = weight_N1 * self.units_ND
        num_normal = int((~self.is_abnormal_N).sum())
        return F.normalize(torch.stack([side.sum(dim=0) for side in _split(weighted_ND, num_normal)]), dim=-1)

    def _image_scores(self, image_BD: Tensor, states_B2D: Tensor, choices: Sequence[Choice]) -> Tensor:
        share_B = torch.tensor([choice.share for choice in choices], device=image_BD.device)
        return probability(share_B * _margin(image_BD, states_B2D) / self.config.temperature)

    def _map(
        self,
        features: ImageFeatures,
        seen: Mapping[int, Tensor],
        local_BPD: Tensor,
        states_B2D: Tensor,
        image_B: Tensor,
    ) -> Tensor:
        """The zero-shot map (B, P)."""
        carried = [self._carried(features, seen, local_BPD, *row) for row in enumerate(states_B2D)]
        margin_BP = _margin(local_BPD, torch.stack(carried)[:, None])
        patches_BP = probability(margin_BP / self.config.local_temperature)
        if not seen:
            return patches_BP
        scales = [image_B[:, None].expand_as(patches_BP)]
        for size, windows_BMD in seen.items():
            margin_BM = _margin(windows_BMD, states_B2D[:, None])
            scores_BM = probability(margin_BM / self.config.temperature)
            scales.append(windows.harmonic_map(scores_BM, features.grid, size))
        beta = self.config.beta
        return (1 - beta) * windows.harmonic_mean(scales) + beta * patches_BP

    def _carried(
        self, features: ImageFeatures, seen: Mapping[int, Tensor], local_BPD: Tensor, row: int, states_2D: Tensor
    ) -> Tensor:
        """One image's directions in the space of its patch tokens, (2, D)."""
        if not seen:
            return states_2D
        own = {size: windows_BMD[row] for size, windows_BMD in seen.items()}
        sides = aligner.pairs(features.image_BD[row], own, local_BPD[row], features.grid)
        if self.config.aligner == "transport":
            return aligner.transport(states_2D, *sides)
        return aligner.ridge(states_2D, *sides, share=self.config.ridge)

    def _explain(self, similarity_N: contextual.Floats, choice: Choice) -> tuple[Kept, ...]:
        """The most similar kept prompts: normal ones first, then abnormal ones, each by falling similarity."""
        kept: list[Kept] = []
        for side, is_abnormal in (("normal", False), ("abnormal", True)):
            members = np.flatnonzero((choice.weight_N > 0) & (self.is_abnormal_N == is_abnormal))
            best = members[np.argsort(-similarity_N[members], kind="stable")][:EXPLAINED]
            kept += [(self.prompts[n], side, float(similarity_N[n])) for n in best]
        return tuple(kept)


def _units(states: Sequence[str], looks: Sequence[str]) -> list[str]:
    """States of one side with the object left open, each once, in an order that depends on the words alone."""
    return sorted({*states, *("{} with " + look for look in looks)})


def _seen(backbone: Backbone, looks: Sequence[str]) -> tuple[str, ...]:
    """Looks without those whose words the tower was never taught: their embeddings are noise, and get no vote."""
    seen = tuple(look for look in looks if not backbone.unseen(look))
    if missing := len(looks) - len(seen):
        log.warning("%d of %d phrases have words that %s was never taught; no vote", missing, len(looks), backbone.name)
    return seen


def _phrases(stored: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(stored, str) or len(stored) > MAX_PHRASES:
        raise ConfigError(f"{name} must be a list of at most {MAX_PHRASES} phrases")
    for phrase in stored:
        check_text(phrase, f"a phrase of {name}", MAX_CHARS)
    return tuple(stored)


def _split(rows_ND: Tensor, num_normal: int) -> tuple[Tensor, Tensor]:
    return rows_ND[:num_normal], rows_ND[num_normal:]


def _margin(features: Tensor, states: Tensor) -> Tensor:
    """Similarity to the abnormal minus that to the normal direction: (..., D) and (..., 2, D) -> (...)."""
    normal, abnormal = ((features * states[..., side, :]).sum(dim=-1) for side in (0, 1))
    return abnormal - normal
