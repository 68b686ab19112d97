"""The graph of Ray Serve: ingress (validation, limits) -> decoder (CPU, killable children) -> scorer (model).

`build_graph` binds it; everything but the wiring is `zsad.http`. Only the ingress waits for others: it asks a decoder
for pixels at model size, then a scorer for a finding, so that a request that ends early (its client left, it took too
long) cancels whatever it waits for.
"""

import asyncio
import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve as ray_serve

from zsad.decode_child import DecodeChild, Decoded
from zsad.errors import ImageError, StorageError
from zsad.finding import Finding
from zsad.http.app import make_app
from zsad.http.batcher import Batcher
from zsad.http.engine import Description, DetectorKey, Inspected, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.serve_config import ServeConfig
from zsad.storage import open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stale:
    """The pixels were made for another version of the detector, which `description` replaces."""

    description: Description


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded image on its way to a scorer."""

    pixels_SSC: NDArray[np.uint8]
    width: int
    height: int
    preprocess: Preprocess
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says of one image."""

    finding: Finding | ImageError
    description: Description
    model_ms: float


class Decoder:
    """Fetches and decodes images; as many at a time as it has children."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._children: asyncio.Queue[DecodeChild] = asyncio.Queue()
        for _ in range(config.decode_children):
            self._children.put_nowait(DecodeChild())

    async def decode(self, image: Upload | StoredImage, preprocess: Preprocess) -> Pixels | ImageError:
        """The image's pixels at the model's size, or why there are none."""
        child = await self._children.get()
        try:
            return await asyncio.to_thread(self._decode, child, image, preprocess)
        finally:
            self._children.put_nowait(child)

    def _decode(self, child: DecodeChild, image: Upload | StoredImage, preprocess: Preprocess) -> Pixels | ImageError:
        began = time.perf_counter()
        try:
            data = image.data if isinstance(image, Upload) else self._fetched(image)
            decoded: Decoded = child.decode(data, self._config.decode, preprocess)
        except ImageError as error:
            return error
        except StorageError as error:
            return ImageError(error.code, "the object can't be read" if error.code == "read_error" else str(error.code))
        decode_ms = (time.perf_counter() - began) * 1000
        return Pixels(decoded.pixels, decoded.width, decoded.height, preprocess, decode_ms)

    def _fetched(self, image: StoredImage) -> bytes:
        store = open_store(self._config.bucket_urls[image.bucket])
        return store.get(image.key, max_bytes=self._config.decode.max_bytes)


class Scorer:
    """Loads detectors and scores batches, one at a time, in a thread of its own."""

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from zsad.http.loaded import LoadedDetectors

        if not config.num_gpus_per_scorer:
            torch.set_num_threads(1)
        self._config = config
        self._loaded = LoadedDetectors(
            config.refs,
            device="cuda" if config.num_gpus_per_scorer else "cpu",
            batch_size=config.batch_size,
            max_bytes=config.cache_bytes,
        )
        self._loading = asyncio.Lock()
        self._batcher: Batcher[Pixels, Scored] = Batcher(
            self._score_batch,
            max_items=config.batch_size,
            max_size=config.batch_bytes,
            wait_s=config.batch_wait_ms / 1000,
        )
        self._warm_up()

    def _warm_up(self) -> None:
        """Load the default detector and run it once; until then Ray Serve sends nothing here."""
        key = DetectorKey(self._config.default)
        loaded = self._loaded.load(key)
        size = loaded.description.preprocess.size
        loaded.detector.inspect_pixels(np.zeros((1, size, size, 3), np.uint8), [(size, size)])
        self._loaded.keep(key, loaded)

    async def describe(self, key: DetectorKey) -> Description:
        """The detector, loaded if need be."""
        description: Description = (await self._have(key)).description
        return description

    async def score(self, key: DetectorKey, pixels: Pixels) -> Scored | Stale:
        """The finding of one image at the lowest threshold."""
        loaded = await self._have(key)
        if loaded.description.preprocess != pixels.preprocess:
            return Stale(loaded.description)
        return await self._batcher.submit(key, pixels, size=pixels.pixels_SSC.nbytes)

    async def _have(self, key: DetectorKey) -> Any:
        if loaded := self._loaded.get(key):
            return loaded
        async with self._loading:
            if loaded := self._loaded.get(key):
                return loaded
            loaded = await asyncio.to_thread(self._loaded.load, key)
            self._loaded.keep(key, loaded)
            return loaded

    async def _score_batch(self, key: Hashable, batch: list[Pixels]) -> list[Scored]:
        loaded = self._loaded.get(key)  # type: ignore[arg-type]
        return await asyncio.to_thread(_scored, loaded, batch)


def _scored(loaded: Any, batch: list[Pixels]) -> list[Scored]:
    from zsad.scoring import inspect_each

    began = time.perf_counter()
    found = inspect_each(loaded.detector, np.stack([p.pixels_SSC for p in batch]), [(p.width, p.height) for p in batch])
    model_ms = (time.perf_counter() - began) * 1000
    return [Scored(finding, loaded.description, model_ms) for finding in found]


class ServeEngine:
    """`zsad.http.engine.Engine` over the handles of decoders and scorers."""

    def __init__(self, config: ServeConfig, decoders: Any, scorers: Any) -> None:
        self._config, self._decoders, self._scorers = config, decoders, scorers
        self._described: dict[DetectorKey, Description] = {}

    async def describe(self, key: DetectorKey) -> Description:
        """The detector, loaded if need be."""
        if key not in self._described:
            self._described[key] = await self._scorers.describe.remote(key)
        return self._described[key]

    async def check_ready(self) -> None:
        """Return when the default detector can answer."""
        await self.describe(DetectorKey(self._config.default))

    async def inspect(self, image: Upload | StoredImage, key: DetectorKey, threshold: float | None) -> Inspected:
        """The finding of one image."""
        from zsad.http.loaded import at_threshold

        for _ in range(3):
            description = await self.describe(key)
            pixels = await self._decoders.decode.remote(image, description.preprocess)
            if isinstance(pixels, ImageError):
                raise Problem(pixels.code.value, pixels.message)
            scored = await self._scorers.score.remote(key, pixels)
            if isinstance(scored, Stale):
                self._described[key] = scored.description
                continue
            if isinstance(scored.finding, ImageError):
                raise Problem(scored.finding.code.value, scored.finding.message)
            finding = at_threshold(scored.finding, threshold or scored.description.threshold)
            return Inspected(
                finding=finding,
                detector=scored.description,
                decode_ms=pixels.decode_ms,
                model_ms=scored.model_ms,
            )
        raise Problem("unavailable", "the detector is changing; try again")


@ray_serve.ingress()
class Ingress:
    """Answers HTTP."""

    def __init__(self, config: ServeConfig, page: Mapping[str, bytes], decoders: Any, scorers: Any) -> None:
        self._config, self._page = config, page
        self._engine = ServeEngine(config, decoders, scorers)

    def __serve_build_asgi_app__(self) -> Any:
        """The app of this replica."""
        return make_app(self._config, self._engine, page=self._page)


def build_graph(config: ServeConfig, page: Mapping[str, bytes]) -> Any:
    """The bound graph, for `serve run` and RayService.

    Args:
        config: of the endpoint.
        page: name -> content of the web page's files; they travel with the graph.
    """
    decoders = ray_serve.deployment(Decoder, ray_actor_options={"num_cpus": 0.3}).bind(config)
    scorers = ray_serve.deployment(
        Scorer, max_ongoing_requests=config.max_waiting, ray_actor_options={"num_cpus": 0.5}
    ).bind(config)
    ingress = ray_serve.deployment(
        Ingress, max_ongoing_requests=4 * config.max_waiting, ray_actor_options={"num_cpus": 0.1}
    )
    return ingress.bind(config, page, decoders, scorers)
