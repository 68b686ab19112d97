"""`Detector`: backbone + method + calibration, from uint8 images to findings.

One class serves the batch job, the notebook and the HTTP endpoint, so all give the same numbers. Batches always have
the same shape (the last one is padded), because matrix kernels may round differently for other shapes.

Legend: B images of a batch, S side px of the square an image is brought to (the model's input, or larger where it is
cut into tiles), (h, w) patch grid, P = h * w.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from zsad import calibration, few_shot, regions
from zsad.backbone import load_backbone
from zsad.bundle import (
    BundleRef,
    DetectorConfig,
    ModelRef,
    check_words,
    parse_ref,
    read_config,
    read_tensors,
    write_bundle,
)
from zsad.datasets.normals import procedural_normals
from zsad.defect_types import OwnTyping, SharedTyping, Typing, encode_words, split_seen
from zsad.errors import ConfigError, ModelError
from zsad.finding import Finding
from zsad.images import Preprocess
from zsad.methods import METHODS, FewShot, Method, Prediction, Subject
from zsad.methods.memory import is_remembered
from zsad.prompts.bank import read_bank
from zsad.prompts.ensemble import DEFECT_WORDS
from zsad.regions import Region
from zsad.settings import with_bank, with_settings
from zsad.tiling import check_patches, retiled, tiled

__all__ = ["Detector", "Finding", "load_detector", "procedural_normals"]

log = logging.getLogger(__name__)

BATCH_SIZE = 16
PEAK_SHARE = 0.3  # of the map's peak: what names an image without regions; one patch alone names a quarter fewer right


class Detector:
    """A loaded detector; made by `load_detector`."""

    def __init__(
        self, config: DetectorConfig, tensors: dict[str, Any], *, device: str = "cpu", batch_size: int = BATCH_SIZE
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        self.config = config
        self.batch_size = batch_size
        self.backbone = load_backbone(config.backbone, device, _precision(config.precision))
        if config.backbone_sha256 != self.backbone.sha256:
            raise ModelError(
                f"the bundle was made for {config.backbone} with weights {config.backbone_sha256[:12]}..., but those "
                f"found are {self.backbone.sha256[:12]}...; install the same ones or make the bundle anew"
            )
        try:
            check_patches(config.preprocess, self.backbone.patch_size)
        except ConfigError as error:
            raise ModelError(f"the bundle does not fit its backbone: {error}") from error
        self.defect_words, self.unseen_words = split_seen(self.backbone, config.defect_words)
        self.method = self._made(tensors)
        self.defect_types = encode_words(self.backbone, self.defect_words)

    def inspect(self, images: Sequence[NDArray[np.uint8]]) -> list[Finding]:
        """Findings for uint8 RGB images (H, W, 3) of any sizes, in the same order.

        Raises:
            ConfigError: if an array is not uint8 (H, W, 3), or the detector is not calibrated.
        """
        findings: list[Finding] = []
        for chunk in _chunks(images, self.batch_size):
            pixels = [self._prepare(image) for image in chunk]
            findings += self.inspect_pixels(np.stack(pixels), [(i.shape[1], i.shape[0]) for i in chunk])
        return findings

    def inspect_pixels(self, pixels_BSSC: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[Finding]:
        """Findings for at most `batch_size` images already brought to the preprocessing's size.

        Args:
            pixels_BSSC: uint8 (B, S, S, 3).
            sizes: (width, height) of each original image, px.

        Raises:
            ConfigError: if the detector is not calibrated.
        """
        if self.config.calibration is None:
            raise ConfigError("this detector has no calibration; fit one with `calibrated`")
        prediction = self._predict(pixels_BSSC)
        return [self._finding(prediction, row, size) for row, size in enumerate(sizes)]

    def calibrated(self, images: Iterable[NDArray[np.uint8]], *, source: str) -> "Detector":
        """A copy whose thresholds let 1 % of images like these normal ones through as anomalies.

        Args:
            images: normal uint8 RGB images, at least 8.
            source: named in the calibration and in errors.

        Raises:
            ConfigError: with too few images.
        """
        scores, peaks = self._raw(self._prepare(image) for image in images)
        return self._with(calibration=calibration.fit(scores, peaks, source=source))

    def with_normals(self, images: Iterable[NDArray[np.uint8]], *, source: str) -> "Detector":
        """A copy that knows these normal images: a few-shot method remembers them, and they set the thresholds.

        No image is judged by a memory that holds it; `zsad.few_shot` says how, and how many are used.

        Args:
            images: normal uint8 RGB images: at least 1 for a few-shot method, 8 for any other.
            source: named in the calibration and in errors.

        Raises:
            ConfigError: with too few images.
        """
        if not isinstance(self.method, FewShot):
            return self.calibrated(images, source=source)
        pixels = few_shot.thinned(self._prepare(image) for image in images)
        scores, peaks = [], []
        for split in few_shot.splits(pixels):
            found = self._remembering(split.remembered)._raw(split.judged)
            scores += found[0]
            peaks += found[1]
        known = few_shot.support(pixels)
        log.info("%s: %d of them are remembered, %d set the thresholds", source, len(known), len(pixels))
        if few_shot.is_approximate(len(pixels)):
            source += ", judged in all their orientations"
            log.warning(
                "%s: thresholds from %d images are rough; give %d or more", source, len(pixels), few_shot.ENOUGH
            )
        fitted = replace(calibration.fit(scores, peaks, source=source), num_normals=len(pixels))
        return self._remembering(known)._with(calibration=fitted)

    def with_threshold(self, threshold: float) -> "Detector":
        """A copy with another calibrated decision threshold.

        Raises:
            ConfigError: outside (0, 1), or without a calibration.
        """
        if self.config.calibration is None:
            raise ConfigError("a threshold needs a calibrated detector")
        return self._with(calibration=replace(self.config.calibration, threshold=threshold))

    def save(self, url: str) -> None:
        """Write the bundle to `url`, any storage."""
        write_bundle(url, self.config, self.tensors())

    def tensors(self) -> bytes:
        """The method's learned tensors as a safetensors file."""
        return bytes(safetensors.torch.save(dict(self.method.tensors)))

    def _made(self, tensors: dict[str, Any]) -> Method:
        """The method of this detector's description over `tensors`, with tiles where it says so."""
        config, patch_size = self.config, self.backbone.patch_size
        method_class, settings_class = METHODS[config.method]
        try:
            settings = settings_class(**config.settings)
        except TypeError as error:
            raise ModelError(f"settings of method {config.method}: {error}") from error
        words = self.defect_words or config.defect_words  # DAPO scores against some words, even if none can name a type
        subject = Subject(object_name=config.object_name, defect_words=words)
        method: Method = method_class(settings, self.backbone, subject, tensors)
        if not config.preprocess.tiling:
            return method
        return tiled(method, config.preprocess, patch_size=patch_size, batch_size=self.batch_size)

    def _remembering(self, pixels: Sequence[NDArray[np.uint8]]) -> "Detector":
        """This detector with the memory of normal squares (S, S, 3) instead of its own."""
        assert isinstance(self.method, FewShot)  # noqa: S101 - checked by the caller; for the type checker
        batches = (torch.from_numpy(np.stack(chunk)) for chunk in _chunks(pixels, self.batch_size))
        knowing = copy.copy(self)
        knowing.method = self._made(self.method.remember(batches))
        return knowing

    def _raw(self, pixels: Iterable[NDArray[np.uint8]]) -> tuple[list[float], list[float]]:
        """Raw image score and highest map value of each square (S, S, 3)."""
        scores, peaks = [], []
        for chunk in _chunks(pixels, self.batch_size):
            prediction = self._predict(np.stack(chunk))
            scores += prediction.score_B[: len(chunk)].tolist()
            peaks += prediction.map_Bhw[: len(chunk)].amax(dim=(1, 2)).tolist()
        return scores, peaks

    def _with(self, **changes: Any) -> "Detector":
        tensors = dict(self.method.tensors)
        config = replace(self.config, **changes)
        return Detector(config, tensors, device=str(self.backbone.device), batch_size=self.batch_size)

    def _prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ConfigError(f"an image must be uint8 RGB (H, W, 3), not {image.dtype} {image.shape}")
        return self.config.preprocess.apply(image)

    def _predict(self, pixels_BSSC: NDArray[np.uint8]) -> Prediction:
        """Predict on the fixed batch shape: rows beyond the given ones repeat the first (tiles are padded later)."""
        if len(pixels_BSSC) > self.batch_size:
            raise ConfigError(f"{len(pixels_BSSC)} images are more than the batch size {self.batch_size}")
        missing = 0 if self.config.preprocess.tiling else self.batch_size - len(pixels_BSSC)
        padded = np.concatenate([pixels_BSSC, np.repeat(pixels_BSSC[:1], missing, axis=0)])
        prediction = self.method.predict(torch.from_numpy(padded))
        types = prediction.type_map_BKhw
        return Prediction(
            score_B=prediction.score_B.float().cpu(),
            map_Bhw=prediction.map_Bhw.float().cpu(),
            patches_BPD=prediction.patches_BPD.float().cpu(),
            type_map_BKhw=None if types is None else types.float().cpu(),
            explanation=prediction.explanation,
        )

    def _finding(self, prediction: Prediction, row: int, size: tuple[int, int]) -> Finding:
        scales = self.config.calibration
        assert scales is not None  # noqa: S101 - checked by the caller; for the type checker
        raw = float(prediction.score_B[row])
        score = float(scales.image.apply(raw))
        raw_map = prediction.map_Bhw[row].numpy()
        anomaly_map = scales.map.apply(raw_map)
        is_anomaly = score >= scales.threshold
        typing = self._typing(prediction, row)
        found, type_scores = self._regions(anomaly_map, typing, size) if is_anomaly else ([], {})
        return Finding(
            score=score,
            raw_score=raw,
            threshold=scales.threshold,
            defect_type=typing.name(type_scores) if is_anomaly else None,
            defect_scores=type_scores,
            anomaly_map=anomaly_map,
            raw_map=raw_map,
            regions=found,
            width=size[0],
            height=size[1],
            explanation=list(prediction.explanation[row]) if prediction.explanation else [],
        )

    def _typing(self, prediction: Prediction, row: int) -> Typing:
        """What names the defects of one image: the method's own types, or the shared classifier."""
        if prediction.type_map_BKhw is None or not self.defect_words:
            return SharedTyping(self.defect_types, prediction.patches_BPD[row].numpy())
        return OwnTyping(self.defect_words, prediction.type_map_BKhw[row].flatten(1).numpy())

    def _regions(
        self, anomaly_map: NDArray[np.float32], typing: Typing, size: tuple[int, int]
    ) -> tuple[list[Region], dict[str, float]]:
        """Regions with their types, and the type scores of the image (of the map's peak if there are no regions)."""
        scales = self.config.calibration
        assert scales is not None  # noqa: S101 - checked by the caller; for the type checker
        grid = (anomaly_map.shape[0], anomaly_map.shape[1])
        min_area = round(self.config.min_region_patches * self.backbone.patch_size**2)
        parts = regions.components(
            anomaly_map, size=self.config.preprocess.size, threshold=scales.map_threshold, min_area_px=min_area
        )
        weights = [regions.patch_weights(part, grid).ravel() for part in parts]
        types = [typing.name(typing.of_area(weight)) for weight in weights]
        found = [
            regions.to_region(part, width=size[0], height=size[1], defect_type=word)
            for part, word in zip(parts, types, strict=True)
        ]
        peak = (anomaly_map >= PEAK_SHARE * anomaly_map.max()).ravel().astype(np.float32)
        return found, typing.of_image(weights or [peak])


def load_detector(  # noqa: PLR0913 - all but the reference by name; each changes one thing
    ref: str = "nano",
    *,
    device: str | None = None,
    object_name: str | None = None,
    defect_words: Sequence[str] | None = None,
    normals: Iterable[NDArray[np.uint8]] | None = None,
    prompts: str | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    size: int | None = None,
    tiles: int | None = None,
) -> Detector:
    """Load a detector, ready to inspect.

    Args:
        ref: bundle URL or folder, or `BACKBONE[:METHOD]` (`nano`, a folder, open_clip's NAME/PRETRAINED).
        device: torch device; None: the first GPU if there is one, else the CPU.
        object_name: the word for prompts; None: the prompt bank's, the bundle's, or "object".
        defect_words: what a defect may be called; None: the bundle's, or a list of common ones.
        normals: normal images to calibrate on, which few-shot methods remember too (`Detector.with_normals`); None: the
            stored calibration, or procedural images where none fits.
        prompts: URL of a prompt bank (`zsad.prompts.bank`), for methods that read one; None: the bundle's phrases.
        settings: of the method, those that differ from the bundle's.
        batch_size: images per forward pass; the shape is always this, so it can change the last bits of scores.
        size: side of the model's input, px; None: the bundle's. Position embeddings are interpolated.
        tiles: per side of the image (`zsad.tiling`), 1 for none; None: the bundle's.

    Raises:
        ConfigError: if the reference or an argument can't be used.
        ModelError: if the model can't be loaded.
        StorageError: if a bundle can't be read.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    parsed = parse_ref(ref)
    if isinstance(parsed, BundleRef):
        config, tensors = read_config(parsed.url), parse_tensors(read_tensors(parsed.url), parsed.url)
    else:
        config, tensors = _fresh_config(parsed, device), {}
    if config.method not in METHODS:
        raise ModelError(f"{ref}: unknown method {config.method!r}; this zsad has {', '.join(METHODS)}")
    settings_class = METHODS[config.method][1]
    if prompts is not None:
        config = with_bank(config, read_bank(prompts), settings_class)
    if settings:
        config = with_settings(config, settings, settings_class)
    if object_name and object_name != config.object_name:
        config = replace(config, object_name=object_name, calibration=None)
    if defect_words is not None:
        config = _reworded(config, check_words(defect_words))
    if size is not None or tiles is not None:
        config = _resized(config, device, size, tiles)
    detector = Detector(config, tensors, device=device, batch_size=batch_size)
    if detector.unseen_words:
        log.warning(
            "%s was never taught what %s means; such defect words get no vote",
            config.backbone,
            ", ".join(map(repr, detector.unseen_words)),
        )
    if normals is not None:
        return detector.with_normals(normals, source="normal images given by the user")
    if config.calibration is None and is_remembered(tensors):
        raise ConfigError(
            f"{ref} remembers normal images, but what was asked of it (another object, other prompts, settings, size "
            "or tiling) makes its thresholds void; give the normal images anew (--normals)"
        )
    if config.calibration is None:
        log.info("%s: no stored calibration for %r; fitting on procedural images", ref, config.object_name)
        return detector.calibrated(procedural_normals(config.preprocess.size), source="procedural normal images")
    return detector


def _fresh_config(ref: ModelRef, device: str) -> DetectorConfig:
    backbone = load_backbone(ref.backbone, device)
    return DetectorConfig(
        backbone=ref.backbone,
        backbone_sha256=backbone.sha256,
        precision=backbone.precision,
        method=ref.method,
        settings={},
        preprocess=Preprocess(size=backbone.image_size, interpolation=backbone.interpolation),
        object_name="object",
        defect_words=split_seen(backbone, DEFECT_WORDS)[0],
    )


def _reworded(config: DetectorConfig, words: tuple[str, ...]) -> DetectorConfig:
    """`config` with other defect words, uncalibrated if its method's scores change with them (not with their order)."""
    depends = getattr(METHODS[config.method][0], "scores_depend_on_words", False)
    is_valid = not depends or set(words) == set(config.defect_words)
    return replace(config, defect_words=words, calibration=config.calibration if is_valid else None)


def _resized(config: DetectorConfig, device: str, size: int | None, tiles: int | None) -> DetectorConfig:
    """`config` at another resolution, uncalibrated if that changes anything."""
    patch_size = load_backbone(config.backbone, device, _precision(config.precision)).patch_size
    preprocess = retiled(config.preprocess, patch_size=patch_size, size=size, tiles=tiles)
    return config if preprocess == config.preprocess else replace(config, preprocess=preprocess, calibration=None)


def parse_tensors(data: bytes, source: str) -> dict[str, Any]:
    """Tensors by name of a bundle's safetensors file; `source` is named in errors.

    Raises:
        ModelError: if it is no valid file.
    """
    try:
        return dict(safetensors.torch.load(data))
    except safetensors.SafetensorError as error:
        raise ModelError(f"{source}: its tensors are no valid safetensors file ({error})") from error


def _precision(name: str) -> Any:
    if name not in ("fp32", "bf16"):
        raise ModelError(f"precision {name!r}; zsad runs fp32 or bf16")
    return name


def _chunks(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        yield chunk
