"""What the workers of an evaluation share: its settings, and where each product's detector lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsad.bundle import DetectorConfig
from zsad.evaluation.config import EvaluateConfig
from zsad.storage import Store

if TYPE_CHECKING:
    from zsad.detector import Detector


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Small, for it travels with each task.

    Attributes:
        config: of the evaluation.
        detectors: product -> description.
        bundles: product -> URL of its calibrated bundle in the output.
    """

    config: EvaluateConfig
    detectors: Mapping[str, DetectorConfig]
    bundles: Mapping[str, str]

    @property
    def source(self) -> Store:
        """Images and masks."""
        return self.config.labelled().store

    def open_detector(self, product: str) -> "Detector":
        """The product's detector in this process, on its GPU if it has a share of one, else on one thread of the CPU.

        Raises:
            ModelError, StorageError: if it can't be loaded.
        """
        import torch

        from zsad.detector import load_detector

        num_gpus = self.config.num_gpus_per_scorer
        if not num_gpus:
            torch.set_num_threads(1)
        device = "cuda" if num_gpus else "cpu"
        return load_detector(self.bundles[product], device=device, batch_size=self.config.batch_size)
