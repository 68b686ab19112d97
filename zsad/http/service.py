"""What all routes of one replica share: who may ask, how many images wait, and the way of one image to its answer."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from zsad.http.answers import inspection
from zsad.http.auth import RateLimiter, authorised
from zsad.http.engine import Description, DetectorKey, Engine, Inspected, StoredImage, Upload
from zsad.http.journal import Observer, Record, record_of
from zsad.http.limits import Waiting
from zsad.http.problems import UNEXPECTED, Problem
from zsad.http.requests import InspectOptions
from zsad.serve_config import ServeConfig

log = logging.getLogger(__name__)

Image = Upload | StoredImage
_DRAWN_AT_ONCE = 2


class Service:
    """One replica's state.

    Attributes:
        is_draining: answers go on, but health says not ready, so that balancers send nothing new.
    """

    def __init__(self, config: ServeConfig, engine: Engine, *, tokens: Mapping[str, str], observer: Observer) -> None:
        self.config, self.engine = config, engine
        self._tokens, self._observer = tokens, observer
        self._rates = RateLimiter(rate=config.token_rate, burst=config.token_burst)
        self._waiting = Waiting(config.max_waiting)
        self._drawing = asyncio.Semaphore(_DRAWN_AT_ONCE)
        self.is_draining = False

    async def authorise(self, request: Request) -> None:
        """Note whose request it is; a dependency of every route that costs anything.

        Raises:
            Problem: nobody's that is known.
        """
        record_of(request).client = authorised(request.headers.get("authorization"), self._tokens)

    async def check_ready(self) -> None:
        """Return when requests can be answered.

        Raises:
            Problem: this replica drains, or no scorer answers.
        """
        if self.is_draining:
            raise Problem("unavailable", "this replica is about to stop")
        await self.engine.check_ready()

    async def on_offer(self) -> list[dict[str, Any]]:
        """The detectors that can be described, in the order of the settings; one that is broken hides no other.

        Raises:
            Problem: not even the default can be, or it takes too long.
        """
        # One after the other: a scorer refuses to have more than a few loads wait at a time.
        async with self._in_time():
            found = [await self._described(DetectorKey(name)) for name in self.config.refs]
        if isinstance(found[0], Problem):
            raise found[0]
        return [description.public() for description in found if isinstance(description, Description)]

    async def describe(self, key: DetectorKey) -> Description:
        """One detector, loaded if it can't be described else.

        Raises:
            Problem: it can't be had, or it takes too long.
        """
        async with self._in_time():
            return await self.engine.describe(key)

    async def _described(self, key: DetectorKey) -> Description | Problem:
        try:
            return await self.engine.describe(key)
        except Problem as problem:
            return problem

    async def inspect_one(self, request: Request, image: Image, key: DetectorKey, options: InspectOptions) -> Any:
        """The answer to a request with one image, as JSON-ready dict.

        Raises:
            Problem: whatever is wrong with it.
        """
        record = self._accept(request, key, 1)
        with self._waiting.room_for(1):
            return (await self.inspected(record, image, key, options))[1]

    async def inspect_many(
        self, request: Request, images: list[Image | Problem], key: DetectorKey, options: InspectOptions
    ) -> list[tuple[Inspected, dict[str, Any]] | Problem]:
        """Finding and answer, or problem, of each image.

        Raises:
            Problem: the request as a whole is too much.
        """
        record = self._accept(request, key, len(images))
        with self._waiting.room_for(len(images)):
            return list(await asyncio.gather(*(self._outcome(record, image, key, options) for image in images)))

    async def inspected(
        self, record: Record, image: Image, key: DetectorKey, options: InspectOptions
    ) -> tuple[Inspected, dict[str, Any]]:
        """Finding and answer of one image that has its place.

        Raises:
            Problem: whatever is wrong with it.
        """
        began = time.perf_counter()
        try:
            async with self._in_time():
                found = await self.engine.inspect(image, key, options.threshold)
        except Problem:
            record.num_failed += 1
            raise
        total_ms = (time.perf_counter() - began) * 1000
        record.num_anomalies += found.finding.is_anomaly
        self._observer.image(found, max(0.0, total_ms - found.decode_ms - found.model_ms))
        answered = partial(inspection, found, options, request_id=record.request_id, total_ms=total_ms)
        if options.mask != "png":
            return found, answered()
        async with self._drawing:  # a mask is drawn at the image's size: a byte a pixel while it lasts
            return found, await run_in_threadpool(answered)

    async def _outcome(
        self, record: Record, image: Image | Problem, key: DetectorKey, options: InspectOptions
    ) -> tuple[Inspected, dict[str, Any]] | Problem:
        if isinstance(image, Problem):
            record.num_failed += 1
            return image
        try:
            return await self.inspected(record, image, key, options)
        except Problem as problem:
            return problem
        except Exception as error:  # it costs this image's place, never those of the others
            log.exception("request %s: unexpected %s", record.request_id, type(error).__name__)
            record.num_failed += 1
            return Problem("internal", UNEXPECTED)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Give what is inside the time of one request.

        Raises:
            Problem: it was not enough.
        """
        limit_s = self.config.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise Problem("timeout", f"no answer within {limit_s:g} s; try again when the load is lower") from error

    def _accept(self, request: Request, key: DetectorKey, num_images: int) -> Record:
        record = record_of(request)
        record.detector, record.num_images = key.name, num_images
        self._rates.take(record.client, num_images)
        return record
