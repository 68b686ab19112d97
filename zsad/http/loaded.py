"""Detectors held in memory for an endpoint: loaded on demand, the longest unused dropped, newer bundles taken over.

Backbones are shared by all detectors over them and are not counted. A detector decides at a threshold next to zero, so
that every finding carries its regions and `zsad.http.answers.at_threshold` can apply whatever a request asks for.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from zsad.bundle import BundleRef, DetectorConfig, parse_ref, read_config
from zsad.detector import Detector, load_detector
from zsad.detector_cache import held_bytes
from zsad.http.engine import Description, DetectorKey
from zsad.report.ledger import config_hash
from zsad.storage import open_store

LOWEST_THRESHOLD = 1e-6
_EXPLAINING = ("alfa",)


@dataclass(slots=True, kw_only=True)
class Loaded:
    """One detector in memory; `version` is that of the stored bundle, "" where there is none to change."""

    detector: Detector
    description: Description
    num_bytes: int
    version: str


class LoadedDetectors:
    """The detectors of one process; not thread-safe, but `load` may run in a thread.

    Args:
        refs: name -> REF.
        device: torch device.
        batch_size: images per forward pass.
        max_bytes: memory of all but the last used one.
    """

    def __init__(self, refs: Mapping[str, str], *, device: str, batch_size: int, max_bytes: int) -> None:
        self._refs, self._device, self._batch_size, self._max_bytes = refs, device, batch_size, max_bytes
        self._held: OrderedDict[DetectorKey, Loaded] = OrderedDict()

    def get(self, key: DetectorKey) -> Loaded | None:
        """The detector, if it is in memory; it counts as used."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def peek(self, key: DetectorKey) -> Loaded | None:
        """The same, but it does not count."""
        return self._held.get(key)

    def names(self) -> list[DetectorKey]:
        """Those in memory, the longest unused first."""
        return list(self._held)

    def load(self, key: DetectorKey) -> Loaded:
        """Load a detector; nothing is kept before `keep`.

        Raises:
            ConfigError, ModelError, StorageError: if it can't be had.
        """
        version = self.version(key)
        detector = load_detector(
            self._refs[key.name],
            device=self._device,
            object_name=key.object_name or None,
            batch_size=self._batch_size,
        )
        tensors = detector.tensors()
        identity = config_hash({"detector": detector.config.fingerprint(), "tensors": sha256(tensors).hexdigest()})
        description = _description(key, detector.config, detector.defect_words, identity)
        return Loaded(
            detector=detector.with_threshold(LOWEST_THRESHOLD),
            description=description,
            num_bytes=held_bytes(detector),
            version=version,
        )

    def describe(self, key: DetectorKey) -> Description | None:
        """What the stored bundle says of a detector that is not in memory, whatever its size; None: it must be loaded.

        Raises:
            ModelError, StorageError: if it can't be read.
        """
        parsed = parse_ref(self._refs[key.name])
        if key.object_name or not isinstance(parsed, BundleRef):
            return None
        config = read_config(parsed.url)
        return _description(key, config, config.defect_words, "") if config.calibration else None

    def keep(self, key: DetectorKey, loaded: Loaded) -> list[DetectorKey]:
        """Hold `loaded` in place of an older version; returns what had to go."""
        self._held[key] = loaded
        self._held.move_to_end(key)
        dropped = []
        while len(self._held) > 1 and sum(held.num_bytes for held in self._held.values()) > self._max_bytes:
            dropped.append(self._held.popitem(last=False)[0])
        return dropped

    def version(self, key: DetectorKey) -> str:
        """What changes when the stored bundle does: a digest of its files' etags.

        Raises:
            StorageError: if storage fails.
        """
        parsed = parse_ref(self._refs[key.name])
        if not isinstance(parsed, BundleRef):
            return ""
        listed = sorted((info.key, info.etag) for info in open_store(parsed.url).list() if "/" not in info.key)
        return sha256(repr(listed).encode()).hexdigest()


def _description(key: DetectorKey, config: DetectorConfig, words: tuple[str, ...], identity: str) -> Description:
    assert config.calibration is not None  # noqa: S101 - checked by both callers; for the type checker
    return Description(
        name=key.name,
        backbone=config.backbone,
        method=config.method,
        object_name=config.object_name,
        defect_words=words,
        threshold=config.calibration.threshold,
        explains=config.method in _EXPLAINING,
        config_hash=identity,
        preprocess=config.preprocess,
    )
