"""One record per request: for the log (one JSON line each) and for whoever counts (`Observer`).

A record holds no image, no token, no query string and no header but the request's id: nothing that could be a secret.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsad.http.engine import Inspected
from zsad.http.problems import Problem

log = logging.getLogger("zsad.requests")
_KEY = "zsad.record"


@dataclass(slots=True, kw_only=True)
class Record:
    """What is remembered of one request; times in ms. `route` is the path's template, so that there are few.

    Attributes:
        code: of the problem that was answered, if one was.
        client: name of the token.
    """

    request_id: str
    method: str
    route: str = "unknown"
    status: int = 0
    code: str = ""
    client: str = ""
    detector: str = ""
    num_images: int = 0
    num_anomalies: int = 0
    num_failed: int = 0
    total_ms: float = 0.0


class Observer(Protocol):
    """Counts requests and images; must not raise."""

    def request(self, record: Record) -> None:
        """A request was answered."""
        ...

    def image(self, inspected: Inspected, queue_ms: float) -> None:
        """An image got its finding."""
        ...


class Journal:
    """ASGI middleware: makes the record of each request, and hands it out when the answer is complete."""

    def __init__(self, app: ASGIApp, *, observer: Observer) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record how it ended; a client that left counts as status 499."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        record = Record(request_id=identity[:128], method=scope["method"][:16], status=499)
        scope[_KEY] = record
        began = time.perf_counter()

        async def recording_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, recording_send)
        except Exception:  # answered further out, by the handler of what nobody expected
            record.status, record.code = 500, "internal"
            raise
        finally:
            route = scope.get("route")
            record.route = getattr(route, "path", record.route)
            record.total_ms = round((time.perf_counter() - began) * 1000, 3)
            log.info("%s", json.dumps(asdict(record)))
            self._observer.request(record)


def record_of(request: Request) -> Record:
    """The record of a request that came through `Journal`."""
    record: Record = request.scope[_KEY]
    return record


def answered(request: Request, problem: Problem) -> Response:
    """The answer to a request with a problem, which is noted."""
    record = record_of(request)
    record.code = problem.code
    return problem.response(record.request_id, is_oip=request.url.path.startswith("/v2"))
