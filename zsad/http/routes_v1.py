"""zsad's own API: one image, up to 32 images, and the detectors on offer."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from zsad.http.journal import record_of
from zsad.http.problems import Problem
from zsad.http.requests import InspectOptions, read_image, read_images
from zsad.http.schemas import (
    IMAGE_BODY,
    IMAGES_BODY,
    INSPECTION_EXAMPLE,
    BatchAnswer,
    DetectorsAnswer,
    Inspection,
    answers,
)
from zsad.http.service import Service

_DETECTORS_EXAMPLE = {
    "default": "nano",
    "detectors": [
        {
            "name": "nano",
            "backbone": "nano",
            "method": "winclip",
            "object": "object",
            "defect_words": ["scratch", "dent"],
            "threshold": 0.5,
            "explains": False,
        }
    ],
}
_BATCH_EXAMPLE = {
    "request_id": INSPECTION_EXAMPLE["request_id"],
    "results": [{"status": 200, "inspection": INSPECTION_EXAMPLE, "problem": None}],
}
_REFUSALS = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504)


def v1_router(service: Service) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(service.authorise)])

    @router.get("/detectors", responses=answers(DetectorsAnswer, _DETECTORS_EXAMPLE, 400, 401, 503, 504))
    async def detectors() -> Any:
        """The detectors on offer; the default answers requests that name none."""
        return JSONResponse({"default": service.config.default, "detectors": await service.on_offer()})

    @router.post("/inspect", responses=answers(Inspection, INSPECTION_EXAMPLE, *_REFUSALS), openapi_extra=IMAGE_BODY)
    async def inspect(request: Request, options: Annotated[InspectOptions, Query()]) -> Any:
        """Inspect one image: the raw body, the form field `file`, or an object of a configured bucket."""
        key = options.key(service.config)
        image = await read_image(request, service.config)
        return JSONResponse(await service.inspect_one(request, image, key, options))

    @router.post(
        "/inspect:batch", responses=answers(BatchAnswer, _BATCH_EXAMPLE, *_REFUSALS), openapi_extra=IMAGES_BODY
    )
    async def inspect_batch(request: Request, options: Annotated[InspectOptions, Query()]) -> Any:
        """Inspect up to 32 images; each has a status of its own."""
        key = options.key(service.config)
        images = await read_images(request, service.config)
        outcomes = await service.inspect_many(request, images, key, options)
        request_id = record_of(request).request_id
        results = [
            {"status": outcome.status, "inspection": None, "problem": outcome.body(request_id)}
            if isinstance(outcome, Problem)
            else {"status": 200, "inspection": outcome[1], "problem": None}
            for outcome in outcomes
        ]
        return JSONResponse({"request_id": request_id, "results": results})

    return router
