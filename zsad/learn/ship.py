"""Measure a freshly trained `nano` on held-out procedural images and make the bundle that is shipped over it.

Held out means: other seeds of the same generator, so scenes, textures and defects that training never drew.
"""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from zsad import __version__
from zsad.backbone import load_backbone
from zsad.bundle import SHIPPED
from zsad.datasets.synthetic import Sample, SyntheticConfig, generate
from zsad.detector import Detector, load_detector, procedural_normals
from zsad.metrics import auroc
from zsad.regions import upsample

HELD_OUT_SEED = 10_000
CALIBRATION_NORMALS = 1000
SHIPPED_WINCLIP = SHIPPED / "winclip"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFigures:
    """What a detector reaches on held-out procedural images; shares in [0, 1]."""

    num_images: int
    image_auroc: float
    pixel_auroc: float
    type_accuracy: float
    false_alarm_rate: float
    detection_rate: float


def make_shipped_bundle() -> Detector:
    """Calibrate the zero-shot detector over the weights in zsad/nano and save it beside them."""
    for stale in SHIPPED_WINCLIP.glob("*"):
        stale.unlink()
    source = f"{CALIBRATION_NORMALS:,} procedural normal images"
    size = load_backbone("nano").image_size
    bare = load_detector("nano:winclip", device="cpu")  # not its `normals`: those would be remembered
    fitted = bare.calibrated(procedural_normals(size, CALIBRATION_NORMALS), source=source)
    detector = Detector(replace(fitted.config, provenance={"code_version": __version__}), {})
    detector.save(str(SHIPPED_WINCLIP))
    return detector


def held_out(num_images: int, size: int) -> list[Sample]:
    """Procedural samples that training never drew, half of them anomalous."""
    config = SyntheticConfig(size=size)
    return [generate(HELD_OUT_SEED, index, config) for index in tqdm(range(num_images), desc="held-out images")]


def measure(detector: Detector, samples: list[Sample]) -> HeldOutFigures:
    """Figures of `detector` on labelled samples; pixel AUROC pools all pixels of all images."""
    findings = detector.inspect([sample.image for sample in samples])
    labels = np.array([sample.defect_type != "good" for sample in samples])
    scores = np.array([finding.score for finding in findings])
    flagged = np.array([finding.is_anomaly for finding in findings])
    maps = [upsample(f.anomaly_map, f.height, f.width) for f in findings]
    found = [(s, f) for s, f in zip(samples, findings, strict=True) if s.defect_type != "good" and f.is_anomaly]
    right = [finding.defect_type == sample.defect_type.replace("_", " ") for sample, finding in found]
    return HeldOutFigures(
        num_images=len(samples),
        image_auroc=auroc(labels, scores),
        pixel_auroc=auroc(np.stack([sample.mask for sample in samples]), np.stack(maps)),
        type_accuracy=float(np.mean(right)) if right else 0.0,
        false_alarm_rate=float(flagged[~labels].mean()),
        detection_rate=float(flagged[labels].mean()),
    )
