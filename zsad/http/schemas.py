"""The answers as pydantic models, for `/openapi.json`; `zsad.http.answers` makes the JSON itself."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from zsad.http.problems import MEDIA_TYPE
from zsad.serve_config import MAX_BATCH_IMAGES

Unit = Annotated[float, Field(ge=0, le=1)]


class RegionAnswer(BaseModel):
    """One connected defective area; box as x, y, width, height in px of the image."""

    box: Annotated[list[int], Field(min_length=4, max_length=4)]
    area_px: int
    score: Unit
    defect_type: str
    rle: Annotated[str | None, Field(description="COCO run-length counts over the whole image; with mask=rle")]


class KeptPrompt(BaseModel):
    """A prompt that decided."""

    prompt: str
    side: Literal["normal", "abnormal"]
    similarity: float


class Timings(BaseModel):
    """Milliseconds; queue is all that is neither decoding nor the model's batch."""

    queue: float
    decode: float
    model: float
    total: float


class Inspection(BaseModel):
    """What the detector says of one image; scores and threshold are calibrated, raw_score is the method's own."""

    request_id: str
    detector: str
    config_hash: str
    width: int
    height: int
    score: Unit
    raw_score: float
    threshold: Unit
    is_anomaly: bool
    defect_type: str | None
    defect_scores: dict[str, Unit]
    regions: list[RegionAnswer]
    explanation: list[KeptPrompt]
    map: Annotated[str | None, Field(description="base64 PNG, 16-bit grey on the model's grid, 65535 is 1")]
    mask: Annotated[str | None, Field(description="base64 PNG, 1 bit, at the image's size")]
    timings_ms: Timings


class ProblemAnswer(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class BatchItem(BaseModel):
    """The outcome of one image: its inspection, or its problem."""

    status: int
    inspection: Inspection | None = None
    problem: ProblemAnswer | None = None


class BatchAnswer(BaseModel):
    """Outcomes in the order of the images."""

    request_id: str
    results: Annotated[list[BatchItem], Field(max_length=MAX_BATCH_IMAGES)]


class DetectorAnswer(BaseModel):
    """A detector on offer; `explains` says whether it keeps prompts."""

    name: str
    backbone: str
    method: str
    object: str
    defect_words: list[str]
    threshold: Unit
    explains: bool


class DetectorsAnswer(BaseModel):
    """All detectors on offer."""

    default: str
    detectors: list[DetectorAnswer]


INSPECTION_EXAMPLE = {
    "request_id": "0eb301e5-55bd-4c7d-a919-15fffd1ed86a",
    "detector": "nano",
    "config_hash": "9ba1cfbc11c492fcc51ff01caaf4dfa65ca87a3225b908b7583b0c6e47f4b4fd",
    "width": 640,
    "height": 480,
    "score": 0.71,
    "raw_score": 0.93,
    "threshold": 0.5,
    "is_anomaly": True,
    "defect_type": "scratch",
    "defect_scores": {"scratch": 0.81, "dent": 0.19},
    "regions": [{"box": [96, 40, 60, 24], "area_px": 913, "score": 0.83, "defect_type": "scratch", "rle": None}],
    "explanation": [],
    "map": None,
    "mask": None,
    "timings_ms": {"queue": 4.1, "decode": 6.3, "model": 61.0, "total": 71.4},
}
PROBLEM_EXAMPLE = {
    "type": "about:blank",
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "the JPEG has no end mark: its upload or copy was cut off",
    "code": "truncated",
    "request_id": "0eb301e5-55bd-4c7d-a919-15fffd1ed86a",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_KEY_EXAMPLE = {"bucket": "line1", "key": "2026-03-01/cam2/000017.jpg"}
_FILE = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]},
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/KeyItem"}, "example": _KEY_EXAMPLE},
        },
    }
}
IMAGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": _FILE, "maxItems": MAX_BATCH_IMAGES}},
                    "required": ["file"],
                },
            },
            "application/json": {
                "schema": {"$ref": "#/components/schemas/KeyItems"},
                "example": {"items": [_KEY_EXAMPLE]},
            },
        },
    }
}


def answers(model: type[BaseModel] | None, example: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses`: the good one with an example, and a problem for each of `statuses`."""
    good: dict[str, Any] = {"content": {"application/json": {"example": example}}}
    if model is not None:
        good["model"] = model
    problem = {"model": ProblemAnswer, "content": {MEDIA_TYPE: {"example": PROBLEM_EXAMPLE}}}
    return {200: good, **{status: {**problem, "description": f"Problem {status}"} for status in statuses}}
