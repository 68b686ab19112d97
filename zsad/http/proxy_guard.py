"""For the process that owns the sockets, Ray Serve's proxy: connections that do not get on are closed.

uvicorn waits for ever for the end of a request's headers, so that a few thousand connections at a byte a second would
hold all of a proxy's sockets. Ray Serve calls `install` in each proxy if the environment that Ray starts in has

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=zsad.http.proxy_guard:install

(`make serve` sets it). It gives uvicorn a protocol with one more timer, cleans the request id, which Ray Serve
would echo as it came, and drops headers that would steer Ray Serve. Bodies have limits of their own in the app
(`zsad.http.limits`), with or without this.
"""

import asyncio
import re
import uuid
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zsad.priority import give_way

HEADERS_TIMEOUT_S = 10.0
REST_TIMEOUT_S = 10.0
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_RAYS_OWN = (b"serve_multiplexed_model_id", b"x_request_disconnect_disabled")


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a connection must deliver whole headers in time, and the rest of a refused body too."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._expect(HEADERS_TIMEOUT_S)

    def on_message_begin(self) -> None:
        """Headers of another request on this connection begin."""
        super().on_message_begin()
        self._expect(HEADERS_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        """From here on the app decides how long the body may take."""
        self._expect(None)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """A body that goes on behind its answer was refused: it may not go on for ever."""
        super().on_response_complete()
        if self.cycle is not None and self.cycle.more_body:
            self._expect(REST_TIMEOUT_S)

    def on_message_complete(self) -> None:
        """The body has ended."""
        super().on_message_complete()
        self._expect(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._expect(None)
        super().connection_lost(exc)

    def _expect(self, seconds: float | None) -> None:
        """Close the connection in so many seconds unless called again before; None: never."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler) if seconds else None


class CleanHeaders:
    """ASGI middleware: a request id of other than plain characters is replaced; what would steer Ray Serve is dropped.

    Ray Serve's router keeps each model id that it was ever asked for, and a request that says so would be worked on
    after its client has left.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with exactly one clean id, and without Ray Serve's own headers."""
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == b"x-request-id"]
            clean = given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else str(uuid.uuid4()).encode()
            dropped = (b"x_request_id", *_RAYS_OWN)
            others = [(name, value) for name, value in scope["headers"] if name.replace(b"-", b"_") not in dropped]
            scope = {**scope, "headers": [*others, (b"x-request-id", clean)]}
        await self._app(scope, receive, send)


def install() -> list[Any]:
    """Make this process's uvicorn impatient; returns the middlewares that Ray Serve's proxy puts around itself."""
    give_way()
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{ImpatientProtocol.__name__}"
    return [Middleware(CleanHeaders)]
