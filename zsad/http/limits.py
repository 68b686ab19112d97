"""What one replica takes on: how large a body, how long it may take to arrive, how many images and bytes at once.

`BodyGuard` stands around the whole app and counts bytes as they arrive, whatever the headers say. `Waiting` counts
images from acceptance to answer.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsad.http.journal import answered
from zsad.http.problems import Problem
from zsad.serve_config import ServeConfig


class Waiting:
    """Images that were accepted and not answered yet, at most `max_images`."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self.num_images = 0

    @contextmanager
    def room_for(self, num_images: int) -> Iterator[None]:
        """Hold places for `num_images`.

        Raises:
            Problem: there are not so many free.
        """
        if self.num_images + num_images > self._max_images:
            raise Problem("busy", f"{self.num_images} images wait already, the limit is {self._max_images}; try again")
        self.num_images += num_images
        try:
            yield
        finally:
            self.num_images -= num_images


class BodyGuard:
    """ASGI middleware: refuses bodies that are too large, too slow, or too many at once.

    A body that says it is too large is answered before a byte of it is read. The others are counted while they
    arrive: the app's next read of a body that breaks a limit raises a `Problem`.
    """

    def __init__(self, app: ASGIApp, *, config: ServeConfig) -> None:
        self._app, self._config = app, config
        self.num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a guarded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, receive, max_bytes=max_body_bytes(scope["path"], self._config))
        try:
            body.check_header(scope)
            await self._app(scope, body.receive, send)
        except Problem as problem:  # only those of `check_header`: the app answers its own
            await answered(Request(scope), problem)(scope, receive, send)
        finally:
            self.num_bytes -= body.num_bytes

    def hold(self, num_bytes: int) -> None:
        """Count bytes that one request brought.

        Raises:
            Problem: this replica holds too many.
        """
        self.num_bytes += num_bytes
        if self.num_bytes > self._config.max_waiting_bytes:
            raise Problem("unavailable", "the bodies of other requests fill this server's memory; try again")

    @property
    def body_timeout_s(self) -> float:
        """How long one body may take, s."""
        return self._config.body_timeout_s


class _Body:
    """The body of one request as it arrives."""

    def __init__(self, guard: BodyGuard, receive: Receive, *, max_bytes: int) -> None:
        self._guard, self._receive, self._max_bytes = guard, receive, max_bytes
        self._deadline_s = asyncio.get_running_loop().time() + guard.body_timeout_s
        self._is_whole = False
        self.num_bytes = 0

    def check_header(self, scope: Scope) -> None:
        """Refuse what the headers alone show to be too large, unreadable or unasked for."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        has_body = b"transfer-encoding" in headers or length.strip(b"0")
        if has_body and scope["method"] != "POST":
            raise Problem("bad_request", "only POST takes a body here; send the request without one")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Problem("unsupported_media_type", "compressed bodies are not read; send the image as it is")

    async def receive(self) -> Message:
        """The next message, checked."""
        if self._is_whole:  # what may still come is the news that the client left
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem("slow_sender", f"the body did not arrive within {self._guard.body_timeout_s:g} s") from error
        size = len(message.get("body", b""))
        self.num_bytes += size
        self._guard.hold(size)
        if self.num_bytes > self._max_bytes:
            raise self._too_large()
        self._is_whole = not message.get("more_body", False)
        return message

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"the body has more than {self._max_bytes:,} bytes, the limit here")


def max_body_bytes(path: str, config: ServeConfig) -> int:
    """The limit on bodies sent to `path`: larger where one request holds several images."""
    holds_several = path.endswith(("/inspect:batch", "/infer"))
    return config.max_batch_bytes if holds_several else config.max_body_bytes
