"""The ASGI application: middlewares, problems, the web page, and the routes of both protocols.

Order of checks, cheapest first: size of the body by its header, token, options, the body itself as it arrives, rate,
then places among the images that may wait. Everything that goes wrong is a `Problem`.
"""

import logging
import mimetypes
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsad import __version__
from zsad.http.engine import Engine
from zsad.http.journal import Journal, Observer, answered, record_of
from zsad.http.limits import BodyGuard
from zsad.http.oip import InferRequest
from zsad.http.problems import UNEXPECTED, Problem, of_status
from zsad.http.requests import KeyItem, KeyItems, readable
from zsad.http.routes_oip import health_router, models_router
from zsad.http.routes_v1 import v1_router
from zsad.http.service import Service
from zsad.serve_config import ServeConfig

log = logging.getLogger(__name__)

SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
PAGE_HEADERS = {
    **SAFE_HEADERS,
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def make_app(
    config: ServeConfig,
    engine: Engine,
    *,
    tokens: Mapping[str, str],
    observer: Observer,
    page: Mapping[str, bytes],
    echoes_request_id: bool = True,
) -> FastAPI:
    """The application; `app.state.service` is what its routes share.

    Args:
        config: of the endpoint.
        engine: what decodes and scores.
        tokens: name -> hex digest of those who may ask; {}: everybody may.
        observer: counts requests and images.
        page: name -> content of the web page's files; `index.html` is served at `/`.
        echoes_request_id: whether to answer with the request's id; Ray Serve's proxy does that itself.
    """
    app = FastAPI(
        title="zsad",
        version=__version__,
        summary="Inspect images for defects that nobody has labelled.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = Service(config, engine, tokens=tokens, observer=observer)
    _handle_problems(app)
    _add_page(app, page)
    for make_router in (v1_router, health_router, models_router):
        app.include_router(make_router(app.state.service))
    _describe(app)
    app.add_middleware(BodyGuard, config=config)  # the last added is the outermost
    app.add_middleware(Journal, observer=observer)
    app.add_middleware(RequestId, echoes=echoes_request_id)
    return app


class RequestId:
    """ASGI middleware: every request has an `X-Request-ID`, its own or a new one."""

    def __init__(self, app: ASGIApp, *, echoes: bool) -> None:
        self._app, self._echoes = app, echoes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its id, and say it in the answer if told to."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id")
        identity = (given or str(uuid.uuid4()).encode())[:128]
        if given is None:
            scope["headers"] = [*scope["headers"], (b"x-request-id", identity)]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", identity)]
            await send(message)

        await self._app(scope, receive, send_with_id if self._echoes else send)


def _handle_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return answered(request, problem)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        return answered(request, of_status(error.status_code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return answered(request, Problem("invalid_parameter", readable(error.errors())))

    @app.exception_handler(ClientDisconnect)
    async def on_departure(request: Request, error: ClientDisconnect) -> Response:
        return answered(request, Problem("bad_request", "the client left before its body was whole"))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("request %s: unexpected %s", record_of(request).request_id, type(error).__name__, exc_info=error)
        return answered(request, Problem("internal", UNEXPECTED))


def _add_page(app: FastAPI, page: Mapping[str, bytes]) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/page/{name:path}", include_in_schema=False)
    async def show(name: str = "index.html") -> Response:
        if name not in page:
            raise Problem("not_found", "there is no such file")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(page[name], media_type=kind, headers=PAGE_HEADERS)


def _describe(app: FastAPI) -> None:
    """`/openapi.json` also holds the models of bodies that the routes read by hand."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            for model in (KeyItem, KeyItems, InferRequest):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                found["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
