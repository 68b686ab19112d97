"""The Open Inference Protocol's routes; detectors are its models."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from zsad import __version__
from zsad.http import oip
from zsad.http.engine import DetectorKey, Upload
from zsad.http.problems import Problem
from zsad.http.requests import InspectOptions, readable
from zsad.http.schemas import answers
from zsad.http.service import Service

_PARAMETERS = ("object", "threshold")
_EXAMPLE = {
    "model_name": "nano",
    "model_version": oip.VERSION,
    "outputs": [{"name": "score", "datatype": "FP32", "shape": [1], "data": [0.71]}],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/InferRequest"},
                "example": {
                    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["<base64 of an image>"]}]
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def health_router(service: Service) -> APIRouter:
    """Those routes under /v2 that need no token."""
    router = APIRouter(prefix="/v2")
    _add_health(router, service)
    return router


def models_router(service: Service) -> APIRouter:
    """The others."""
    router = APIRouter(prefix="/v2", dependencies=[Depends(service.authorise)])
    _add_models(router, service)
    return router


def _add_health(router: APIRouter, service: Service) -> None:
    @router.get("", responses=answers(None, {"name": "zsad", "version": __version__, "extensions": ["binary_data"]}))
    async def server() -> Any:
        """The server's name and version."""
        return JSONResponse({"name": "zsad", "version": __version__, "extensions": ["binary_data"]})

    @router.get("/health/live", responses=answers(None, {"live": True}))
    async def live() -> Any:
        """Whether this process answers."""
        return JSONResponse({"live": True})

    @router.get("/health/ready", responses=answers(None, {"ready": True}, 503))
    async def ready() -> Any:
        """Whether images can be inspected; turns 503 before this replica stops."""
        await service.check_ready()
        return JSONResponse({"ready": True})


def _add_models(router: APIRouter, service: Service) -> None:
    readiness = answers(None, {"ready": True}, 400, 401, 404, 503, 504)

    @router.get("/models/{model}/ready", responses=readiness)
    @router.get("/models/{model}/versions/{version}/ready", responses=readiness)
    async def model_ready(model: str, version: str = oip.VERSION) -> Any:
        """Whether the detector can be described; only one that nothing describes is loaded for that."""
        await service.describe(_key(service, model, version))
        return JSONResponse({"ready": True})

    @router.get("/models/{model}", responses=answers(None, oip.metadata("nano"), 401, 404))
    @router.get("/models/{model}/versions/{version}", responses=answers(None, oip.metadata("nano"), 401, 404))
    async def metadata(model: str, version: str = oip.VERSION) -> Any:
        """The detector's inputs and outputs."""
        return JSONResponse(oip.metadata(_key(service, model, version).name))

    refusals = answers(None, _EXAMPLE, 400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)

    @router.post("/models/{model}/infer", responses=refusals, openapi_extra=_BODY)
    @router.post("/models/{model}/versions/{version}/infer", responses=refusals, openapi_extra=_BODY)
    async def infer(request: Request, model: str, version: str = oip.VERSION) -> Any:
        """Inspect up to 32 images; the first that can't be inspected decides the status of the whole call."""
        _key(service, model, version)
        call = oip.parse_infer(await request.body(), request.headers.get(oip.HEADER_LENGTH))
        options = _options(model, call)
        images: list[Any] = [Upload(data) for data in call.images]
        outcomes = await service.inspect_many(request, images, options.key(service.config), options)
        rows, maps = [], []
        for outcome in outcomes:
            if isinstance(outcome, Problem):
                raise outcome
            rows.append(outcome[1])
            maps.append(outcome[0].finding.anomaly_map)
        body, header_length = oip.answer(model, call, rows, maps)
        if header_length == len(body):
            return Response(body, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(header_length)}
        return Response(body, media_type="application/octet-stream", headers=headers)


def _key(service: Service, model: str, version: str) -> DetectorKey:
    if model not in service.config.refs or version != oip.VERSION:
        raise Problem("no_detector", "there is no such model or version here; GET /v1/detectors lists the models")
    return DetectorKey(model)


def _options(model: str, call: oip.Infer) -> InspectOptions:
    given = {name: call.parameters[name] for name in _PARAMETERS if name in call.parameters}
    try:
        return InspectOptions.model_validate({"detector": model, "explain": True, **given})
    except ValidationError as error:
        raise Problem("invalid_parameter", readable(error.errors())) from error
