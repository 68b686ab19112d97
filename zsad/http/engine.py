"""What the HTTP layer needs of whatever scores images behind it: `Engine`. The graph of Ray Serve is one.

Everything here crosses process borders, so it is small, frozen and free of tensors.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from zsad.finding import Finding
from zsad.images import Preprocess


@dataclass(frozen=True, slots=True)
class DetectorKey:
    """One loaded detector: its name on this endpoint, and the object's word if a request names another."""

    name: str
    object_name: str = ""

    def __str__(self) -> str:
        return f"{self.name}|{self.object_name}" if self.object_name else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What clients may know of a detector, and how images must be brought to it.

    `config_hash` is "" where the detector was only read about: its tensors are not known then.
    """

    name: str
    backbone: str
    method: str
    object_name: str
    defect_words: tuple[str, ...]
    threshold: float
    explains: bool
    config_hash: str
    preprocess: Preprocess

    def public(self) -> dict[str, Any]:
        """As `GET /v1/detectors` lists it."""
        return {
            "name": self.name,
            "backbone": self.backbone,
            "method": self.method,
            "object": self.object_name,
            "defect_words": list(self.defect_words),
            "threshold": self.threshold,
            "explains": self.explains,
        }


@dataclass(frozen=True, slots=True)
class Upload:
    """An image that came with the request."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An object of a configured bucket; both parts are checked."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A finding at the asked threshold, by which detector, and how long its parts took, ms."""

    finding: Finding
    detector: Description
    decode_ms: float
    model_ms: float


class Engine(Protocol):
    """Decodes and scores; every method raises `Problem` for what a client should be told."""

    async def describe(self, key: DetectorKey) -> Description:
        """The detector, read about or loaded."""
        ...

    async def inspect(self, image: Upload | StoredImage, key: DetectorKey, threshold: float | None) -> Inspected:
        """The finding of one image; `threshold` None: the detector's own."""
        ...

    async def check_ready(self) -> None:
        """Return when the default detector can answer; a Problem says why not."""
        ...
