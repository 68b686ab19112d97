"""Detector references and bundles: what is stored of a detector, readable without torch.

A bundle is a folder at any URL with `detector.json` (settings, calibration, provenance) and `tensors.safetensors`
(learned tensors). A reference (REF) names either a bundle or `BACKBONE[:METHOD]`. Only JSON and safetensors are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zsad.calibration import Calibration
from zsad.errors import ConfigError, ModelError, StorageError
from zsad.images import Preprocess
from zsad.report.ledger import config_hash
from zsad.storage import open_store

FORMAT_VERSION = 1
CONFIG_FILE = "detector.json"
TENSORS_FILE = "tensors.safetensors"
SHIPPED = Path(__file__).parent / "nano"
METHOD_NAMES = ("winclip", "alfa", "faprompt", "dapo", "promptad")
DEFAULT_METHOD = "winclip"
_MAX_BYTES = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Everything that decides a detector's output, and where it came from.

    Attributes:
        backbone: `nano`, a folder, or open_clip's NAME/PRETRAINED.
        backbone_sha256: of its weights; a mismatch at load time is a ModelError.
        precision: "fp32" or "bf16".
        method, settings: name and fields of the method's config.
        preprocess: how an image becomes the model's input.
        object_name: the word used in prompts.
        defect_words: the types a defect can be given.
        min_region_patches: connected areas smaller than this many patches are no regions.
        calibration: None until fitted.
        provenance: data, code version, seed; does not change results.
    """

    backbone: str
    backbone_sha256: str
    precision: str
    method: str
    settings: dict[str, Any]
    preprocess: Preprocess
    object_name: str
    defect_words: tuple[str, ...]
    min_region_patches: float = 1.0
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the format's version."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["preprocess"] = self.preprocess.to_dict()
        plain["defect_words"] = list(self.defect_words)
        plain["calibration"] = asdict(self.calibration) if self.calibration else None
        return {"format_version": FORMAT_VERSION, **plain}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], source: str) -> "DetectorConfig":
        """Inverse of `to_dict`; `source` is named in errors.

        Raises:
            ModelError: for another format version, or missing, unknown or wrong fields.
        """
        plain = dict(stored)
        version = plain.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ModelError(f"{source}: format version {version}; this zsad reads version {FORMAT_VERSION}")
        try:
            plain["preprocess"] = Preprocess.from_dict(plain["preprocess"])
            plain["defect_words"] = _words(plain["defect_words"])
            plain["calibration"] = Calibration.from_dict(plain["calibration"]) if plain["calibration"] else None
            return cls(**plain)
        except (KeyError, TypeError, ConfigError) as error:
            raise ModelError(f"{source}: not a detector description ({error})") from error

    def fingerprint(self) -> str:
        """SHA-256 of all that changes results."""
        stored = self.to_dict()
        stored.pop("provenance")
        return config_hash(stored)


def _words(stored: Any) -> tuple[str, ...]:
    if not isinstance(stored, list) or not all(isinstance(word, str) for word in stored):
        raise TypeError(f"defect_words must be a list of words, not {stored!r}")
    return check_words(stored)


def check_words(words: Sequence[str]) -> tuple[str, ...]:
    """A list of defect words as it is stored.

    Raises:
        ConfigError: if there is none, one is empty, or one comes twice.
    """
    if not words or not all(word.strip() for word in words):
        raise ConfigError(f"the defect words {list(words)} can't be used: give at least one, and none of them empty")
    twice = next((word for index, word in enumerate(words) if word in words[:index]), None)
    if twice is not None:
        raise ConfigError(f"the defect word {twice!r} is given twice; give every word once")
    return tuple(words)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """REF of the form BACKBONE[:METHOD] that has no bundle yet."""

    backbone: str
    method: str


@dataclass(frozen=True, slots=True)
class BundleRef:
    """REF that names a stored bundle."""

    url: str


def parse_ref(ref: str) -> ModelRef | BundleRef:
    """Read a detector reference.

    Args:
        ref: a bundle URL or folder, or `BACKBONE[:METHOD]`; `nano` alone is the bundle shipped with zsad.

    Raises:
        ConfigError: if it is empty or names an unknown method.
    """
    if not ref.strip():
        raise ConfigError("the detector reference is empty; try 'nano'")
    if "://" in ref or (Path(ref) / CONFIG_FILE).is_file():
        return BundleRef(ref)
    backbone, colon, method = ref.rpartition(":")
    backbone, method = (backbone, method) if colon else (ref, DEFAULT_METHOD)
    if backbone == "nano":
        for folder in (SHIPPED / method, SHIPPED / "bundles" / method):
            if (folder / CONFIG_FILE).is_file():
                return BundleRef(str(folder))
    if method not in METHOD_NAMES:
        raise ConfigError(f"detector {ref!r}: unknown method {method!r}; zsad has {', '.join(METHOD_NAMES)}")
    return ModelRef(backbone, method)


def read_config(url: str) -> DetectorConfig:
    """Read the `detector.json` of the bundle at `url`.

    Raises:
        ModelError: if it is missing or not valid.
        StorageError: if storage fails.
    """
    text = _read(url, CONFIG_FILE)
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{url}/{CONFIG_FILE}: not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{url}/{CONFIG_FILE}: holds a {type(stored).__name__}, not an object")
    return DetectorConfig.from_dict(stored, f"{url}/{CONFIG_FILE}")


def read_tensors(url: str) -> bytes:
    """Read the bundle's `tensors.safetensors` as it is; `zsad.detector` parses it.

    Raises:
        ModelError: if the file is missing.
        StorageError: if storage fails.
    """
    return _read(url, TENSORS_FILE)


def write_bundle(url: str, config: DetectorConfig, tensors: bytes) -> None:
    """Write a bundle; the description goes last, so that a bundle with one is whole.

    Raises:
        StorageError: if storage fails.
    """
    store = open_store(url)
    store.put(TENSORS_FILE, tensors)
    store.put(CONFIG_FILE, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def _read(url: str, name: str) -> bytes:
    try:
        return open_store(url).get(name, max_bytes=_MAX_BYTES)
    except StorageError as error:
        if error.code == "missing":
            raise ModelError(f"{url}: no {name} there, so no detector bundle; check the reference") from error
        raise
