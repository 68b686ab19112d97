"""The replicas behind the ingress: decoders, whose children can be killed, and scorers, which hold the detectors.

What is wrong with a request comes back as a value, an `ImageError` or a `Problem`: exceptions that cross Ray's borders
arrive wrapped, and are left for what nobody expected.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from ray import serve as ray_serve

from zsad.decode_child import DecodeChild
from zsad.distributed.serving_metrics import ScorerMetrics
from zsad.errors import ConfigError, ErrorCode, ImageError, ModelError, StorageError, ZsadError
from zsad.finding import Finding
from zsad.http.batcher import Batcher
from zsad.http.engine import Description, DetectorKey, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.priority import give_way
from zsad.serve_config import ServeConfig
from zsad.storage import open_store

if TYPE_CHECKING:  # decoders and the ingress never import torch
    from zsad.http.loaded import Loaded, LoadedDetectors

log = logging.getLogger(__name__)

MAX_LOADS = 4
ROUTING_HINTS = 256


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded image on its way to a scorer: uint8 (S, S, 3), and the size of the upright original, px."""

    pixels_SSC: NDArray[np.uint8]
    width: int
    height: int
    preprocess: Preprocess
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says of one image, by which version of the detector."""

    finding: Finding | ImageError
    description: Description
    model_ms: float


@dataclass(frozen=True, slots=True)
class Stale:
    """The pixels were made for another version of the detector; `description` is that of the present one."""

    description: Description


class Decoder:
    """Fetches and decodes images, as many at a time as it has children."""

    def __init__(self, config: ServeConfig) -> None:
        give_way()
        self._config = config
        self._all = [DecodeChild() for _ in range(config.decode_children)]
        # Of its own, as the scorer's: in asyncio's shared pool, what hangs on storage would hold up everything else.
        self._threads = ThreadPoolExecutor(config.decode_children, "decode")
        self._free: asyncio.Queue[DecodeChild] = asyncio.Queue()
        for child in self._all:
            self._free.put_nowait(child)

    async def decode(self, image: Upload | StoredImage, preprocess: Preprocess) -> Pixels | ImageError:
        """The image's pixels at the model's size, or why there are none."""
        child = await self._free.get()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._decoded, child, image, preprocess)
        work.add_done_callback(lambda _: self._free.put_nowait(child))  # not before it is free, even if nobody waits
        return await asyncio.shield(work)

    def __del__(self) -> None:
        self._threads.shutdown(wait=False)
        for child in self._all:
            child.close()

    def _decoded(self, child: DecodeChild, image: Upload | StoredImage, preprocess: Preprocess) -> Pixels | ImageError:
        began = time.perf_counter()
        try:
            data = image.data if isinstance(image, Upload) else self._fetched(image)
            decoded = child.decode(data, self._config.decode, preprocess)
        except ImageError as error:
            return error
        except StorageError as error:
            log.warning("bucket %s: %s", image.bucket if isinstance(image, StoredImage) else "-", error)
            return ImageError(error.code, _STORAGE_WORDS.get(error.code, "the object can't be read; try again"))
        decode_ms = (time.perf_counter() - began) * 1000
        return Pixels(decoded.pixels, decoded.width, decoded.height, preprocess, decode_ms)

    def _fetched(self, image: StoredImage) -> bytes:
        """Content of a stored image; what it says when that fails names addresses, and stays in the log."""
        store = open_store(self._config.bucket_urls[image.bucket])
        return store.get(image.key, max_bytes=self._config.decode.max_bytes)


_STORAGE_WORDS = {
    ErrorCode.MISSING: "there is no such object in this bucket",
    ErrorCode.FORBIDDEN: "this object may not be read",
    ErrorCode.READ_TIMEOUT: "the bucket did not answer in time; try again",
}


class Scorer:
    """Loads detectors, takes newer versions of stored ones over, and scores batches one at a time."""

    def __init__(self, config: ServeConfig, make_detectors: "Callable[[ServeConfig], LoadedDetectors]") -> None:
        self._config = config
        self._loaded = make_detectors(config)
        self._metrics = ScorerMetrics()
        self._load_thread = ThreadPoolExecutor(1, "load")
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._loading = asyncio.Lock()
        self._loads: dict[DetectorKey, asyncio.Task[Loaded | Problem]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._batcher: Batcher[Pixels, Scored | Stale | Problem] = Batcher(
            self._scored,
            max_items=config.batch_size,
            max_size=config.batch_bytes,
            wait_s=config.batch_wait_ms / 1000,
        )
        self._warm_up()

    async def describe(self, key: DetectorKey) -> Description | Problem:
        """The detector as it is in memory, else as its bundle says; loaded only where there is no bundle to ask."""
        if self._loaded.peek(key) is None:
            try:
                stored = await asyncio.to_thread(self._loaded.describe, key)
            except ZsadError as error:
                log.warning("detector %s can't be described: %s", key, error)
                return _load_problem(key, error)
            if stored is not None:
                return stored
        found = await self._have(key)
        return found if isinstance(found, Problem) else found.description

    async def score(self, key: DetectorKey, pixels: Pixels) -> Scored | Stale | Problem:
        """The finding of one image at the lowest threshold."""
        found = await self._have(key)
        if isinstance(found, Problem):
            return found
        if found.description.preprocess != pixels.preprocess:
            return Stale(found.description)
        return await self._batcher.submit(key, pixels, size=pixels.pixels_SSC.nbytes)

    @ray_serve.multiplexed(max_num_models_per_replica=ROUTING_HINTS)
    async def _hint(self, model_id: str) -> str:
        """Tells Ray Serve's routers which detectors were loaded here; what is in memory `_loaded` decides.

        `model_id` is the name alone: Ray Serve makes a series of its metrics of each id, so clients may not choose it.
        """
        return model_id

    def _warm_up(self) -> None:
        """Load the default detector and run it once; until then Ray Serve sends nothing here."""
        key = DetectorKey(self._config.default)
        loaded = self._loaded.load(key)
        size = loaded.description.preprocess.size
        loaded.detector.inspect_pixels(np.zeros((1, size, size, 3), np.uint8), [(size, size)])
        self._loaded.keep(key, loaded)

    async def _have(self, key: DetectorKey) -> "Loaded | Problem":
        if self._config.reload_s and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(self._renew_for_ever())
        if loaded := self._loaded.get(key):
            return loaded
        if key not in self._loads:
            if len(self._loads) >= MAX_LOADS:
                return Problem("unavailable", "other detectors are being loaded; try again", retry_after_s=5)
            self._loads[key] = asyncio.create_task(self._load_for_all(key))
        return await asyncio.shield(self._loads[key])  # whoever leaves, the detector is kept for those who come back

    async def _load_for_all(self, key: DetectorKey) -> "Loaded | Problem":
        """Load a detector for everybody who waits for it, and tell routers that it is here."""
        try:
            async with self._loading:
                outcome = self._loaded.get(key) or await self._load(key)
            if not isinstance(outcome, Problem):
                await self._hint(key.name)
            return outcome
        finally:
            del self._loads[key]

    async def _load(self, key: DetectorKey) -> "Loaded | Problem":
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._load_thread, self._loaded.load, key)
        except ZsadError as error:
            log.warning("detector %s can't be loaded: %s", key, error)
            self._metrics.load(key.name, "failed", len(self._loaded.names()))
            return _load_problem(key, error)
        for dropped in self._loaded.keep(key, loaded):
            log.info("detector %s was dropped to make room for %s", dropped, key)
        self._metrics.load(key.name, "ok", len(self._loaded.names()))
        return loaded

    async def _renew_for_ever(self) -> None:
        """Look at the stored bundles from time to time, and take newer versions over while the old ones answer."""
        while True:
            await asyncio.sleep(self._config.reload_s)
            for key in self._loaded.names():
                await self._renew(key)

    async def _renew(self, key: DetectorKey) -> None:
        try:
            version = await asyncio.to_thread(self._loaded.version, key)
        except ZsadError as error:
            log.warning("detector %s: can't look for a newer version: %s", key, error)
            return
        held = self._loaded.peek(key)
        if held is None or held.version == version:
            return
        async with self._loading:
            outcome = await self._load(key)
        if isinstance(outcome, Problem):
            log.warning("detector %s: the newer version is refused, the old one stays", key)
            if outcome.code == "no_detector":  # it will not get better; a failure of storage may
                held.version = version
        else:
            log.info("detector %s: newer version taken", key)

    async def _scored(self, key: Hashable, batch: list[Pixels]) -> list[Scored | Stale | Problem]:
        """Outcomes of a batch; images that were made for a version replaced meanwhile have to be made anew."""
        found = await self._have(cast(DetectorKey, key))
        if isinstance(found, Problem):
            return [found] * len(batch)
        outcomes: list[Scored | Stale | Problem] = [Stale(found.description)] * len(batch)
        wanted = found.description.preprocess
        if fitting := [place for place, pixels in enumerate(batch) if pixels.preprocess == wanted]:
            self._metrics.batch(len(fitting))
            chosen = [batch[place] for place in fitting]
            scored = await asyncio.get_running_loop().run_in_executor(self._model_thread, _score, found, chosen)
            for place, outcome in zip(fitting, scored, strict=True):
                outcomes[place] = outcome
        return outcomes


def _score(loaded: "Loaded", batch: list[Pixels]) -> list[Scored]:
    from zsad.scoring import inspect_each

    began = time.perf_counter()
    pixels_BSSC = np.stack([pixels.pixels_SSC for pixels in batch])
    found = inspect_each(loaded.detector, pixels_BSSC, [(pixels.width, pixels.height) for pixels in batch])
    model_ms = (time.perf_counter() - began) * 1000
    return [Scored(finding, loaded.description, model_ms) for finding in found]


def load_detectors(config: ServeConfig) -> "LoadedDetectors":
    """The detectors of a scorer: on a GPU where it has one, else on one CPU thread, as the batch job runs them."""
    import torch

    from zsad.http.loaded import LoadedDetectors

    if not config.num_gpus_per_scorer:
        torch.set_num_threads(1)
    device = "cuda" if config.num_gpus_per_scorer else "cpu"
    return LoadedDetectors(config.refs, device=device, batch_size=config.batch_size, max_bytes=config.cache_bytes)


def _load_problem(key: DetectorKey, error: ZsadError) -> Problem:
    """What a client is told; the error itself names places and stays in the log."""
    if isinstance(error, ModelError) or (isinstance(error, StorageError) and error.code == ErrorCode.MISSING):
        return Problem("no_detector", f"the detector {key.name!r} can't be loaded; the operator's log says why")
    if isinstance(error, ConfigError):
        return Problem("invalid_parameter", f"the detector {key.name!r} can't be used in this way; ask for no object")
    return Problem("unavailable", "the storage of detectors does not answer; try again", retry_after_s=5)
