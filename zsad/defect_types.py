"""Name the type of a defect: the shared classifier for methods that have none of their own.

The mean patch token of the most anomalous region is compared with one text direction per defect word. Where no word
stands out, the answer is "unknown" rather than a guess.

Legend: P patches, D joint width, K defect words.
Source: zsad's own; the words' prompts follow WinCLIP's ensemble (arXiv 2303.14814, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zsad.backbone import Backbone
from zsad.prompts.ensemble import defect_states, direction

UNKNOWN = "unknown"
GENERIC_OBJECT = "object"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectTypes:
    """A fitted classifier; made by `encode_words`.

    Attributes:
        words: K defect words.
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
        mean_D = weights_P @ patches_PD
        mean_D = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
        logits_K = self.directions_KD @ mean_D / self.temperature
        shares_K = np.exp(logits_K - logits_K.max())
        shares_K /= shares_K.sum()
        return {word: float(share) for word, share in zip(self.words, shares_K, strict=True)}

    def name(self, scores: dict[str, float]) -> str:
        """The best word, or "unknown"."""
        best = max(scores, key=lambda word: scores[word])
        return best if scores[best] >= self.unknown_below else UNKNOWN


def encode_words(backbone: Backbone, words: Sequence[str]) -> DefectTypes:
    """Classifier over `words` for patch tokens of `backbone`."""
    rows = [direction(backbone, defect_states(word), GENERIC_OBJECT) for word in words]
    return DefectTypes(words=tuple(words), directions_KD=torch.stack(rows).cpu().numpy())
