"""From learned tensors to a calibrated bundle, and no half of one at any time.

The old description goes first, then tensors are written, then the new description: a reader finds a whole bundle or
none. Thresholds come from drawn normal images, as for the bundle shipped with nano.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zsad import __version__
from zsad.backbone import Backbone
from zsad.bundle import CONFIG_FILE, DetectorConfig
from zsad.detector import Detector, procedural_normals
from zsad.images import Preprocess
from zsad.storage import Store


def make_detector(
    backbone: Backbone,
    *,
    method: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    preprocess: Preprocess,
    object_name: str,
    defect_words: tuple[str, ...],
    provenance: Mapping[str, Any],
) -> Detector:
    """A detector over `backbone` that is not calibrated yet.

    Raises:
        ConfigError, ModelError: if tensors, settings and backbone do not go together.
    """
    config = DetectorConfig(
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        precision=backbone.precision,
        method=method,
        settings=dict(settings),
        preprocess=preprocess,
        object_name=object_name,
        defect_words=defect_words,
        provenance={"code_version": __version__, **provenance},
    )
    return Detector(config, dict(tensors), device=str(backbone.device))


def calibrated_on_drawn(detector: Detector, count: int) -> Detector:
    """With thresholds from `count` drawn normal images."""
    normals = procedural_normals(detector.config.preprocess.size, count)
    return detector.calibrated(normals, source=f"{count:,} procedural normal images")


def publish(detector: Detector, store: Store) -> None:
    """Write the bundle over an older one.

    Raises:
        StorageError: if storage fails; then there is no bundle.
    """
    store.delete(CONFIG_FILE)
    detector.save(store.url)
