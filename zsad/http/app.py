"""The ASGI application: routes, in front of an `Engine` that decodes and scores.

Order of checks, cheapest first: size of the body by its header, token, rate, options, the body itself as it arrives,
then a place among the images that may wait. Everything that goes wrong is a `Problem`.
"""

import asyncio
import logging
import mimetypes
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from zsad import __version__
from zsad.http.answers import inspection
from zsad.http.engine import DetectorKey, Engine, StoredImage, Upload
from zsad.http.problems import Problem, of_status
from zsad.http.requests import InspectOptions, read_image, readable
from zsad.serve_config import ServeConfig

log = logging.getLogger(__name__)

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def make_app(config: ServeConfig, engine: Engine, *, page: Mapping[str, bytes]) -> FastAPI:
    """The application.

    Args:
        config: of the endpoint.
        engine: what decodes and scores.
        page: name -> content of the web page's files; `index.html` is served at `/`.
    """
    app = FastAPI(
        title="zsad", version=__version__, docs_url=None, redoc_url=None, max_body_size=config.max_batch_bytes
    )
    _handle_problems(app)
    _add_page(app, page)
    _add_inspect(app, config, engine)
    return app


def request_id(request: Request) -> str:
    """The request's `X-Request-ID`."""
    return request.headers.get("x-request-id", "")[:128]


def _handle_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return problem.response(request_id(request))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        return of_status(error.status_code, str(error.detail)).response(request_id(request))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return Problem("invalid_parameter", readable(error.errors())).response(request_id(request))


def _add_page(app: FastAPI, page: Mapping[str, bytes]) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/page/{name:path}", include_in_schema=False)
    async def show(name: str = "index.html") -> Response:
        if name not in page:
            raise Problem("not_found", "there is no such file")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(page[name], media_type=kind, headers=PAGE_HEADERS)


def _add_inspect(app: FastAPI, config: ServeConfig, engine: Engine) -> None:
    @app.get("/v1/detectors")
    async def detectors() -> Any:
        found = await asyncio.gather(*(engine.describe(DetectorKey(name)) for name in config.refs))
        return {"default": config.default, "detectors": [description.public() for description in found]}

    @app.post("/v1/inspect")
    async def inspect(request: Request, options: Annotated[InspectOptions, Query()]) -> Any:
        key = options.key(config)
        image = await read_image(request, config)
        return JSONResponse(await _inspected(engine, image, key, options, request_id(request)))


async def _inspected(
    engine: Engine, image: Upload | StoredImage, key: DetectorKey, options: InspectOptions, request: str
) -> dict[str, Any]:
    began = time.perf_counter()
    found = await engine.inspect(image, key, options.threshold)
    total_ms = (time.perf_counter() - began) * 1000
    return await asyncio.to_thread(inspection, found, options, request_id=request, total_ms=total_ms)
