"""What the endpoint is asked to be: one checked dataclass, read from a TOML file.

Every limit on what strangers send, hold or wait for is a field here, so that docs/http.md can list them all.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zsad.bundle import parse_ref
from zsad.cli import parse
from zsad.errors import ConfigError
from zsad.images import DecodeLimits
from zsad.storage import open_store

CONFIG_VARIABLE = "ZSAD_SERVE_CONFIG"
MAX_BATCH_IMAGES = 32
ANY_OBJECT = "*"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings of the endpoint; times in seconds unless the name says ms, sizes in bytes.

    Attributes:
        detectors: those on offer, as NAME=REF, or a REF that is its own name; the first is the default.
        objects: words that a request may name as the object, besides the bundle's own; "*": any.
        buckets: where keys may be read from, as NAME=URL; none: images come as bytes only.
        tokens_file: bearer tokens, one `NAME sha256:HEX` a line; empty: see `ZSAD_TOKENS`, else no token is asked for.
        token_rate: requests per second and token (an image of a batch counts as one) in the long run, per ingress
            replica; 0: no limit.
        token_burst: as many at once.
        batch_size: images per forward pass; scores are those of a batch job with the same number.
        batch_bytes: pixels per forward pass, if that is less.
        batch_wait_ms: how long an idle scorer waits for a batch to fill.
        num_scorers: scorer replicas at least.
        max_scorers: at most; more than `num_scorers` turns autoscaling on.
        num_gpus_per_scorer: GPUs of each; 0: one CPU thread.
        num_decoders: decoding replicas.
        decode_children: decoding processes of each.
        num_ingress: ingress replicas.
        max_waiting: images that one ingress replica has accepted and not answered; more get 429.
        max_waiting_bytes: bytes of request bodies that one ingress replica holds; more get 503.
        max_body_bytes: of one request.
        max_batch_bytes: of one request to /v1/inspect:batch.
        request_timeout_s: from the end of the body to the answer; longer gets 504.
        body_timeout_s: from the headers to the end of the body; longer gets 408.
        drain_s: how long requests in flight may take when replicas go.
        surge_percent: of the replicas, as many more while a redeployment replaces them: new ones start before old ones
            stop, and need CPUs and GPUs of their own; 0: old ones stop first, and requests wait or fail meanwhile.
        cache_bytes: memory of loaded detectors per scorer, backbones not counted; the longest unused go first.
        reload_s: how often a stored bundle is looked at for a newer version; 0: never.
        decode: limits on each image.

    Raises:
        ConfigError: a value can't be used.
    """

    detectors: tuple[str, ...] = ("nano",)
    objects: tuple[str, ...] = (ANY_OBJECT,)
    buckets: tuple[str, ...] = ()
    tokens_file: str = ""
    token_rate: float = 0.0
    token_burst: int = 64
    batch_size: int = 4
    batch_bytes: int = 64 * _MIB
    batch_wait_ms: float = 5.0
    num_scorers: int = 1
    max_scorers: int = 1
    num_gpus_per_scorer: float = 0.0
    num_decoders: int = 1
    decode_children: int = 2
    num_ingress: int = 1
    max_waiting: int = 64
    max_waiting_bytes: int = 256 * _MIB
    max_body_bytes: int = 20 * _MIB
    max_batch_bytes: int = 64 * _MIB
    request_timeout_s: float = 30.0
    body_timeout_s: float = 20.0
    drain_s: float = 30.0
    surge_percent: int = 100
    cache_bytes: int = 1024 * _MIB
    reload_s: float = 10.0
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Refuse what can't work, naming the field."""
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("num_gpus_per_scorer", "batch_wait_ms", "token_rate", "reload_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.surge_percent <= 100:
            raise ConfigError(f"surge_percent is {self.surge_percent}; it must be between 0 and 100")
        if self.max_scorers < self.num_scorers:
            raise ConfigError(f"max_scorers is {self.max_scorers}, less than num_scorers ({self.num_scorers})")
        if self.max_waiting < MAX_BATCH_IMAGES:
            raise ConfigError(f"max_waiting is {self.max_waiting}; a request may hold {MAX_BATCH_IMAGES} images")
        if not self.detectors:
            raise ConfigError("detectors is empty; name at least one, such as nano")
        for ref in self.refs.values():
            parse_ref(ref)
        for url in self.bucket_urls.values():
            open_store(url)

    @property
    def refs(self) -> dict[str, str]:
        """Name of each detector -> REF; the first is the default."""
        return _named(self.detectors, "detectors")

    @property
    def default(self) -> str:
        """Name of the detector that a request gets without asking."""
        return next(iter(self.refs))

    @property
    def bucket_urls(self) -> dict[str, str]:
        """Name of each bucket -> URL."""
        return _named(self.buckets, "buckets")


_POSITIVE = (
    "token_burst", "batch_size", "batch_bytes", "num_scorers", "num_decoders", "decode_children", "num_ingress",
    "max_waiting_bytes", "max_body_bytes", "max_batch_bytes", "request_timeout_s", "body_timeout_s", "drain_s",
    "cache_bytes",
)  # fmt: skip


def load_serve_config(arguments: Sequence[str] = ()) -> ServeConfig:
    """The settings of the file that `ZSAD_SERVE_CONFIG` names, if it is set, and of command-line `arguments`.

    Raises:
        ConfigError: for an unreadable file, an unknown key or a wrong value.
    """
    path = os.environ.get(CONFIG_VARIABLE, "")
    return parse(ServeConfig, [*(["--config", path] if path else []), *arguments])


def _named(entries: Sequence[str], what: str) -> dict[str, Any]:
    """NAME=VALUE entries as a dict.

    Raises:
        ConfigError: for a name that can't stand in a URL, or comes twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not _NAME.fullmatch(name) or (equals and not value):
            raise ConfigError(
                f"{what}: {entry!r} must be NAME=VALUE with a name of at most 64 letters, digits and any of _ . : -"
            )
        if name in found:
            raise ConfigError(f"{what}: the name {name!r} comes twice")
        found[name] = value if equals else name
    return found
