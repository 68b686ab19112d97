"""What a method is: a frozen config, learned tensors (maybe none), and `predict` from pixels to scores and maps.

A method holds no calibration, thresholds or regions: those are the detector's, the same for all methods. It is made as
`method_class(config, backbone, subject, tensors)` and never changes afterwards.

Legend: B images, P patches, (h, w) the patch grid, D joint width, K defect words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Kept = tuple[str, str, float]
"""A prompt that decided: (text, "normal" | "abnormal", cosine similarity to the image)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is inspected, in words.

    Attributes:
        object_name: the product, as prompts name it.
        defect_words: K words a defect may be called by.
    """

    object_name: str = "object"
    defect_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """Raw output for one batch, fp32.

    Attributes:
        score_B: image scores on the method's own scale, larger = more anomalous.
        map_Bhw: anomaly maps on the patch grid, same direction.
        patches_BPD: unit-length patch tokens in the joint space, for the shared defect-type classifier.
        type_map_BKhw: probability of each defect word at each patch, what they leave being normal; None: the method has
            no types of its own, and the shared classifier names them.
        explanation: per image the prompts that decided; empty unless the method keeps prompts.
    """

    score_B: Tensor
    map_Bhw: Tensor
    patches_BPD: Tensor
    type_map_BKhw: Tensor | None = None
    explanation: tuple[tuple[Kept, ...], ...] = ()


class Method(Protocol):
    """A detector's heart.

    `config` is the method's frozen dataclass, `tensors` what must be stored beside it to rebuild the method. If scores,
    not only types, change with the list of defect words, the class says `scores_depend_on_words = True`: a calibration
    of it holds for one list. If its published figures are of filtered maps, `map_sigma` is the Gaussian's sigma as a
    share of the map's side; it is applied where figures are taken, not in `predict`.
    """

    config: Any

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Learned tensors for the bundle; empty for training-free methods."""
        ...

    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch of uint8 RGB images (B, H, W, 3) whose sides are multiples of the patch size."""
        ...


@runtime_checkable
class FewShot(Protocol):
    """A method that can compare with normal images."""

    def remember(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """The tensors of a method that knows these normal images, given as batches of uint8 (B, H, W, 3)."""
        ...
