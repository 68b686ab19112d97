"""Measure a freshly trained `nano` on held-out procedural images and make the bundle that is shipped over it.

Two held-out sets, both of seeds that training never drew: trained styles (other scenes of materials and defects that it
knows) and left-out styles (`zsad.learn.styles`), on which recipes are chosen.
"""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from zsad import __version__
from zsad.backbone import load_backbone
from zsad.bundle import SHIPPED
from zsad.datasets.synthetic import Sample, SyntheticConfig, generate
from zsad.defect_types import split_seen
from zsad.detector import Detector, load_detector, procedural_normals
from zsad.metrics import auroc
from zsad.prompts.ensemble import DEFECT_WORDS
from zsad.regions import upsample

HELD_OUT_SEED = 10_000
CALIBRATION_NORMALS = 1000
SHIPPED_WINCLIP = SHIPPED / "winclip"
SHIPPED_REGION_PATCHES = 0.25  # with older weights, 66 of 67 regions on drawn images touched the defect
SHIPPED_SETTINGS = {"contrast": 1.5, "temperature": 0.2, "top_patches": 1}  # chosen on drawn styles: docs/nano.md
_NAME_EVERYTHING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFigures:
    """What a detector reaches on held-out procedural images; shares in [0, 1].

    Attributes:
        num_images: half of them anomalous.
        image_auroc, pixel_auroc: pixel AUROC pools all pixels of all images.
        type_accuracy: of all anomalous images with a defect that was taught, found or not, the share named right.
        num_types: how many defects that were.
        false_alarm_rate, detection_rate: shares of normal and anomalous images at or above the threshold.
    """

    num_images: int
    image_auroc: float
    pixel_auroc: float
    type_accuracy: float
    num_types: int
    false_alarm_rate: float
    detection_rate: float


def make_shipped_bundle() -> Detector:
    """Calibrate the zero-shot detector over the weights in zsad/nano and save it beside them."""
    for stale in SHIPPED_WINCLIP.glob("*"):
        stale.unlink()
    source = f"{CALIBRATION_NORMALS:,} procedural normal images"
    backbone = load_backbone("nano")
    normals = procedural_normals(backbone.image_size, CALIBRATION_NORMALS)
    words, _ = split_seen(backbone, DEFECT_WORDS)
    plain = load_detector("nano:winclip", device="cpu", defect_words=words, settings=SHIPPED_SETTINGS)
    fitted = plain.calibrated(normals, source=source).config
    shipped = replace(fitted, min_region_patches=SHIPPED_REGION_PATCHES, provenance={"code_version": __version__})
    detector = Detector(shipped, {})
    detector.save(str(SHIPPED_WINCLIP))
    return detector


def held_out(num_images: int, styles: SyntheticConfig) -> list[Sample]:
    """Procedural samples of `styles` that training never drew, half of them anomalous."""
    return [generate(HELD_OUT_SEED, index, styles) for index in tqdm(range(num_images), desc="held-out images")]


def measure(detector: Detector, samples: list[Sample]) -> HeldOutFigures:
    """Figures of `detector` on labelled samples."""
    findings = detector.with_threshold(_NAME_EVERYTHING).inspect([sample.image for sample in samples])
    labels = np.array([sample.defect_type != "good" for sample in samples])
    scores = np.array([finding.score for finding in findings])
    maps = [upsample(f.anomaly_map, f.height, f.width) for f in findings]
    calibration = detector.config.calibration
    assert calibration is not None  # noqa: S101 - a shipped detector has one; for the type checker
    flagged = scores >= calibration.threshold
    names = [sample.defect_type.replace("_", " ") for sample in samples]
    taught = [(name, f.defect_type) for name, f in zip(names, findings, strict=True) if name in detector.defect_words]
    return HeldOutFigures(
        num_images=len(samples),
        image_auroc=auroc(labels, scores),
        pixel_auroc=auroc(np.stack([sample.mask for sample in samples]), np.stack(maps)),
        type_accuracy=float(np.mean([true == named for true, named in taught])) if taught else 0.0,
        num_types=len({true for true, _ in taught}),
        false_alarm_rate=float(flagged[~labels].mean()),
        detection_rate=float(flagged[labels].mean()),
    )
