"""`zsad.http.engine.Engine` over the handles of Ray Serve: a decoder gives pixels, a scorer gives the finding.

Inspecting an image twice does no harm, so a call whose replica died is made once more, at another replica.
"""

import asyncio
import logging
import time
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from zsad.distributed.serving_replicas import Pixels, Scored, Stale
from zsad.errors import ImageError
from zsad.http.answers import at_threshold
from zsad.http.engine import Description, DetectorKey, Inspected, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.serve_config import ServeConfig

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 5.0
READY_FOR_S = 1.0
MAX_VERSIONS = 3
MAX_KNOWN = 1024
TRIES = 2


class ServeEngine:
    """The engine of one ingress replica."""

    def __init__(self, config: ServeConfig, decoders: Any, scorers: Any) -> None:
        self._config, self._decoders, self._scorers = config, decoders, scorers
        self._described: dict[DetectorKey, tuple[float, Description]] = {}
        self._ready_until_s = 0.0

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

        Raises:
            Problem: the image or the detector can't be used, or nobody has time.
        """
        for _ in range(MAX_VERSIONS):
            pixels = _image_of(await self._decoder(image, await self.describe(key)))
            scored: Scored | Stale = await self._scorer("score", key, pixels)
            if isinstance(scored, Stale):
                self._know(key, scored.description)
                continue
            finding = scored.finding
            if isinstance(finding, ImageError):
                raise Problem(finding.code.value, finding.message)
            return Inspected(
                finding=at_threshold(finding, threshold or scored.description.threshold),
                detector=scored.description,
                decode_ms=pixels.decode_ms,
                model_ms=scored.model_ms,
            )
        raise Problem("unavailable", "the detector is being replaced; try again")

    def _know(self, key: DetectorKey, description: Description) -> None:
        if len(self._described) >= MAX_KNOWN:
            self._described.clear()
        self._described[key] = (time.monotonic(), description)

    async def _decoder(self, image: Upload | StoredImage, description: Description) -> Any:
        return await _called(self._decoders.decode, image, description.preprocess)

    async def _scorer(self, method: str, key: DetectorKey, *arguments: Any) -> Any:
        """Call a scorer, one that has the detector in memory if there is one."""
        handle = self._scorers
        if key != DetectorKey(self._config.default):
            handle = handle.options(multiplexed_model_id=str(key))
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
        except RayActorError as error:
            log.warning("a replica died during a call (attempt %d): %s", attempt + 1, type(error).__name__)
            continue
        if isinstance(result, Problem):
            raise result
        return result
    raise Problem("unavailable", "the replicas that had this image died; try again")


def _image_of(outcome: Pixels | ImageError) -> Pixels:
    if isinstance(outcome, ImageError):
        raise Problem(outcome.code.value, outcome.message)
    return outcome
