"""`zsad.http.engine.Engine` over the handles of Ray Serve: a decoder gives pixels, a scorer gives the finding.

Inspecting an image twice does no harm, so a call whose replica died is made once more, at another replica.
"""

import asyncio
import logging
import time
from typing import Any

from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from zsad.distributed.serving_replicas import Pixels, Scored, Stale
from zsad.errors import ImageError
from zsad.http.answers import at_threshold
from zsad.http.engine import Description, DetectorKey, Inspected, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.serve_config import ServeConfig

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 5.0
READY_FOR_S = 1.0
STALE_PAUSE_S = 0.01
MAX_KNOWN = 1024
TRIES = 2
DECODES_AHEAD = 2  # calls per decoder beyond what its children work on, so that none of them waits for the next


class ServeEngine:
    """The engine of one ingress replica."""

    def __init__(self, config: ServeConfig, decoders: Any, scorers: Any) -> None:
        self._config, self._decoders, self._scorers = config, decoders, scorers
        self._described: dict[DetectorKey, tuple[float, Description]] = {}
        self._ready_until_s = 0.0
        num_calls = config.num_decoders * (config.decode_children + DECODES_AHEAD)
        self._decoding = asyncio.Semaphore(num_calls)  # a call copies its body, several times; others wait uncopied

    async def describe(self, key: DetectorKey) -> Description:
        """The detector, loaded if need be; known for as long as a scorer takes to notice a newer version.

        Raises:
            Problem: it can't be had.
        """
        known_s, description = self._described.get(key, (0.0, None))
        is_fresh = not self._config.reload_s or time.monotonic() - known_s < self._config.reload_s
        if description is not None and is_fresh:
            return description
        found: Description = await self._scorer("describe", key)
        self._know(key, found)
        return found

    async def check_ready(self) -> None:
        """Return when a scorer answers for the default detector, now or a second ago.

        Raises:
            Problem: none does.
        """
        if time.monotonic() < self._ready_until_s:
            return
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._scorer("describe", DetectorKey(self._config.default))
        except TimeoutError as error:
            raise Problem("unavailable", f"no scorer answered within {READY_TIMEOUT_S:g} s") from error
        self._ready_until_s = time.monotonic() + READY_FOR_S

    async def inspect(self, image: Upload | StoredImage, key: DetectorKey, threshold: float | None) -> Inspected:
        """The finding of one image; decoded again where the detector changed its input meanwhile.

        While a bundle of another input is taken over, one scorer may want the old pixels and the next one the new, any
        number of times: both are kept, and only the caller's time limit ends it.

        Raises:
            Problem: the image or the detector can't be used, or nobody has time.
        """
        decoded: dict[Preprocess, Pixels] = {}
        description = await self.describe(key)
        while True:
            if description.preprocess not in decoded:
                decoded[description.preprocess] = _image_of(await self._decoder(image, description))
            pixels = decoded[description.preprocess]
            scored: Scored | Stale = await self._scorer("score", key, pixels)
            if isinstance(scored, Scored):
                return _inspected(scored, pixels, threshold)
            description = scored.description
            self._know(key, description)
            await asyncio.sleep(STALE_PAUSE_S)

    def _know(self, key: DetectorKey, description: Description) -> None:
        if len(self._described) >= MAX_KNOWN:
            self._described.clear()
        self._described[key] = (time.monotonic(), description)

    async def _decoder(self, image: Upload | StoredImage, description: Description) -> Any:
        async with self._decoding:
            return await _called(self._decoders.decode, image, description.preprocess)

    async def _scorer(self, method: str, key: DetectorKey, *arguments: Any) -> Any:
        """Call a scorer, one that has loaded the detector before if there is one.

        The object is no part of the id: what clients write would become series of Ray Serve's metrics.
        """
        handle = self._scorers
        if key != DetectorKey(self._config.default):
            handle = handle.options(multiplexed_model_id=key.name)
        return await _called(getattr(handle, method), key, *arguments)


async def _called(method: Any, *arguments: Any) -> Any:
    """The result of a call on a handle; cancelled there when it is cancelled here.

    Raises:
        Problem: the replica said so, its queue is full, or two replicas died over it.
    """
    for attempt in range(TRIES):
        response = method.remote(*arguments)
        try:
            result = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise Problem("unavailable", "too many images wait; try again") from error
        except DeploymentUnavailableError as error:
            raise Problem("unavailable", "a part of the server did not start; try again later") from error
        except (RayActorError, AioRpcError) as error:
            log.warning("a replica died or was out of reach in a call (attempt %d): %s", attempt + 1, _words(error))
            continue
        if isinstance(result, Problem):
            raise result
        return result
    raise Problem("unavailable", "the replicas that had this image died; try again")


def _words(error: RayActorError | AioRpcError) -> str:
    """What the log says of a call that came to nothing."""
    return f"{error.code().name}: {error.details()}" if isinstance(error, AioRpcError) else type(error).__name__


def _inspected(scored: Scored, pixels: Pixels, threshold: float | None) -> Inspected:
    if isinstance(scored.finding, ImageError):
        raise Problem(scored.finding.code.value, scored.finding.message)
    return Inspected(
        finding=at_threshold(scored.finding, threshold or scored.description.threshold),
        detector=scored.description,
        decode_ms=pixels.decode_ms,
        model_ms=scored.model_ms,
    )


def _image_of(outcome: Pixels | ImageError) -> Pixels:
    if isinstance(outcome, ImageError):
        raise Problem(outcome.code.value, outcome.message)
    return outcome
