"""Settle the detector of a run before anything is written: resolve the reference, remember normals, set thresholds.

A stored bundle that needs no change is taken as it is, without torch in the driver. Everything else runs in one Ray
task (on a GPU where scorers get one), so that a wrong model name or too few normal images end the job with nothing
written.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

import ray

from zsad.batch_config import BatchConfig
from zsad.bundle import BundleRef, DetectorConfig, parse_ref, read_config, read_tensors
from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError
from zsad.images import DecodeLimits, RgbImage, decode_image
from zsad.report.ledger import config_hash
from zsad.storage import open_store

log = logging.getLogger(__name__)

MAX_NORMALS = 2000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A calibrated detector: its description and its tensors as a safetensors file."""

    config: DetectorConfig
    tensors: bytes

    def fingerprint(self) -> str:
        """SHA-256 of all that decides values: the description, and what was learned or remembered."""
        return config_hash({"detector": self.config.fingerprint(), "tensors": sha256(self.tensors).hexdigest()})


def prepare_detector(config: BatchConfig) -> Prepared:
    """The detector that `config` asks for.

    Raises:
        ConfigError, ModelError, StorageError: if it can't be had.
    """
    ref = parse_ref(config.detector)
    prepared = None
    if isinstance(ref, BundleRef):
        stored = read_config(ref.url)
        changes = config.normals or config.prompts or config.settings
        if stored.calibration and not changes and _is_as_asked(stored, config):
            prepared = Prepared(stored, read_tensors(ref.url))
    if prepared is None:
        log.info("preparing detector %s (prompts, calibration)", config.detector)
        num_gpus = config.num_gpus_per_scorer
        prepared = ray.get(_load_remotely.options(num_cpus=1, num_gpus=num_gpus).remote(config))
    if not config.threshold:
        return prepared
    assert prepared.config.calibration is not None  # noqa: S101 - loading calibrates; for the type checker
    calibration = replace(prepared.config.calibration, threshold=config.threshold)
    return Prepared(replace(prepared.config, calibration=calibration), prepared.tensors)


def _is_as_asked(stored: DetectorConfig, config: BatchConfig) -> bool:
    """Whether a bundle already has the object, the defect words and the resolution of a run."""
    pairs = (
        (config.object, stored.object_name),
        (config.defect_words, stored.defect_words),
        (config.size, stored.preprocess.view_px),
        (config.tiles, stored.preprocess.tiles_per_side),
    )
    return all(not asked or asked == held for asked, held in pairs)


@ray.remote(max_retries=0)
def _load_remotely(config: BatchConfig) -> Prepared:
    from zsad.detector import load_detector

    normals = read_normals(config.normals, config.decode) if config.normals else None
    detector = load_detector(
        config.detector,
        object_name=config.object or None,
        defect_words=config.defect_words or None,
        normals=normals,
        prompts=config.prompts or None,
        settings=config.method_settings(),
        batch_size=config.batch_size,
        size=config.size or None,
        tiles=config.tiles or None,
    )
    return Prepared(detector.config, detector.tensors())


def read_normals(url: str, limits: DecodeLimits) -> Iterator[RgbImage]:
    """Decode the images under `url`, at most 2,000; files that are no images are skipped with a warning.

    Raises:
        ConfigError: if there is nothing under `url`.
        StorageError: if it can't be read.
    """
    store = open_store(url)
    count = 0
    for info in store.list():
        if count == MAX_NORMALS:
            log.warning("--normals %s: only the first %d images are used", url, MAX_NORMALS)
            return
        try:
            image = decode_image(store.get(info.key, max_bytes=limits.max_bytes), limits)
        except ImageError as error:
            log.warning("--normals: %s skipped: %s (%s)", info.uri, error, error.code)
            continue
        except StorageError as error:
            if error.code not in (ErrorCode.MISSING, ErrorCode.FORBIDDEN):
                raise
            log.warning("--normals: %s skipped: %s", info.uri, error)
            continue
        count += 1
        yield image
    if not count:
        raise ConfigError(f"--normals {url}: no usable images there")
