"""Name the type of a defect: by the method's own type map, or by the classifier shared by those that have none.

Shared: the mean patch token of an area is compared with one text direction per defect word, and the most anomalous
region names the image. Own: an area's type is told by its clearest patches, and all regions together name the image.
An image without regions is one area, of all patches near the map's peak (`zsad.detector.PEAK_SHARE`).
Where no word stands out, the answer is "unknown" rather than a guess, and words that the backbone was never taught (it
lists them, if it knows) have no vote.

Legend: P patches, D joint width, K defect words.
Source: zsad's own; the words' prompts follow WinCLIP's ensemble (arXiv 2303.14814, section 4.1), own types are those of
DAPO (arXiv 2512.09446).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from zsad.backbone import Backbone
from zsad.prompts.ensemble import defect_states, direction

UNKNOWN = "unknown"
GENERIC_OBJECT = "object"
CLEAREST_SHARE = 0.01
# Detectors of many products share a backbone and most words; encoding these is nearly all that loading one takes.
_directions: WeakKeyDictionary[Backbone, dict[str, torch.Tensor]] = WeakKeyDictionary()


class Typing(Protocol):
    """What names the defects of one image; an area is given as weights (P,) of the patches it covers."""

    def of_area(self, weights_P: NDArray[np.float32]) -> dict[str, float]:
        """Probability of each word for one area, which is not empty."""
        ...

    def of_image(self, areas: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """Probability of each word for an image with these areas, at least one, the most anomalous first."""
        ...

    def name(self, scores: dict[str, float]) -> str:
        """The best word, or "unknown"."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectTypes:
    """A fitted classifier; made by `encode_words`.

    Attributes:
        words: K defect words; with none, every answer is "unknown".
        directions_KD: unit-length text directions.
        temperature: of the softmax over words.
        unknown_below: a best probability under this gives "unknown".
    """

    words: tuple[str, ...]
    directions_KD: NDArray[np.float32]
    temperature: float = 0.07
    unknown_below: float = 0.3

    def classify(self, patches_PD: NDArray[np.float32], weights_P: NDArray[np.float32]) -> dict[str, float]:
        """Probability of each word for the weighted mean of patch tokens; weights are not all zero."""
        if not self.words:
            return {}
        mean_D = weights_P @ patches_PD
        mean_D = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
        logits_K = self.directions_KD @ mean_D / self.temperature
        shares_K = np.exp(logits_K - logits_K.max())
        shares_K /= shares_K.sum()
        return {word: float(share) for word, share in zip(self.words, shares_K, strict=True)}

    def name(self, scores: dict[str, float]) -> str:
        """The best word, or "unknown"."""
        return named(scores, unknown_below=self.unknown_below)


@dataclass(frozen=True, slots=True)
class SharedTyping:
    """The shared classifier on the patch tokens (P, D) of one image."""

    types: DefectTypes
    patches_PD: NDArray[np.float32]

    def of_area(self, weights_P: NDArray[np.float32]) -> dict[str, float]:
        """See `DefectTypes.classify`."""
        return self.types.classify(self.patches_PD, weights_P)

    def of_image(self, areas: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """That of the first area."""
        return self.of_area(areas[0])

    def name(self, scores: dict[str, float]) -> str:
        """See `DefectTypes.name`."""
        return self.types.name(scores)


@dataclass(frozen=True, slots=True)
class OwnTyping:
    """A method's own probabilities (K, P) of the words at each patch of one image; what they leave is normal.

    Attributes:
        words: K defect words.
        types_KP: probabilities, > 0.
        unknown_below: a best share under this gives "unknown".
        unknown_margin: so does a best share that is less than this above the second.
    """

    words: tuple[str, ...]
    types_KP: NDArray[np.float32]
    unknown_below: float = 0.4
    unknown_margin: float = 0.1

    def of_area(self, weights_P: NDArray[np.float32]) -> dict[str, float]:
        """Each word's mean over its highest patches in the area (1 % of the image's), as a share of all words'."""
        count = max(1, round(CLEAREST_SHARE * len(weights_P)))
        clearest_K = np.sort(self.types_KP[:, weights_P > 0], axis=1)[:, -count:].mean(axis=1)
        shares_K = clearest_K / clearest_K.sum()
        return {word: float(share) for word, share in zip(self.words, shares_K, strict=True)}

    def of_image(self, areas: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """That of all areas taken as one."""
        return self.of_area(np.max(areas, axis=0))

    def name(self, scores: dict[str, float]) -> str:
        """The best word, or "unknown"."""
        return named(scores, unknown_below=self.unknown_below, unknown_margin=self.unknown_margin)


def named(scores: dict[str, float], *, unknown_below: float, unknown_margin: float = 0.0) -> str:
    """The word of the highest score (the first of equals); "unknown" if that is too low or too near the second.

    No scores, no word: "unknown".
    """
    if not scores:
        return UNKNOWN
    best, *others = sorted(scores, key=lambda word: scores[word], reverse=True)
    second = scores[others[0]] if others else 0.0
    clear = scores[best] >= unknown_below and scores[best] - second >= unknown_margin
    return best if clear else UNKNOWN


def split_seen(backbone: Backbone, words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Defect words that `backbone` was taught, and those whose embedding would be noise, which get no vote."""
    seen = tuple(word for word in words if not backbone.unseen(word))
    return seen, tuple(word for word in words if word not in seen)


def encode_words(backbone: Backbone, words: Sequence[str]) -> DefectTypes:
    """Classifier over `words` for patch tokens of `backbone`; what it has encoded once is not encoded again."""
    if not words:
        return DefectTypes(words=(), directions_KD=np.zeros((0, backbone.embed_dim), np.float32))
    known = _directions.setdefault(backbone, {})
    for word in words:
        if word not in known:
            known[word] = direction(backbone, defect_states(word), GENERIC_OBJECT)
    rows = [known[word] for word in words]
    return DefectTypes(words=tuple(words), directions_KD=torch.stack(rows).cpu().numpy())
