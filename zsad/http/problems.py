"""What goes wrong with a request, as `application/problem+json`: one exception, one code each, one shape for all.

Source: RFC 9457. `code` is an `ErrorCode` where an image is to blame, else one of `CODES`; clients may rely on both.
"""

import math
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from zsad.errors import ErrorCode

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
UNEXPECTED = "unexpected error; the server's log has more under this id"

STATUS_OF_IMAGE = {
    ErrorCode.EMPTY: 400,
    ErrorCode.TRUNCATED: 422,
    ErrorCode.UNKNOWN_FORMAT: 415,
    ErrorCode.TOO_MANY_BYTES: 413,
    ErrorCode.TOO_MANY_PIXELS: 413,
    ErrorCode.TOO_SMALL: 422,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.MISSING: 404,
    ErrorCode.CHANGED: 409,
    ErrorCode.READ_TIMEOUT: 504,
    ErrorCode.READ_ERROR: 502,
    ErrorCode.DECODE: 422,
    ErrorCode.DECODE_TIMEOUT: 422,
    ErrorCode.MODEL: 500,
    ErrorCode.NO_DETECTOR: 404,
}
"""HTTP status of an image's error code."""

CODES = {
    "bad_request": 400,
    "bad_key": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_bucket": 404,
    "method_not_allowed": 405,
    "slow_sender": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_parameter": 422,
    "rate_limited": 429,
    "busy": 429,
    "internal": 500,
    "unavailable": 503,
    "timeout": 504,
}
"""HTTP status of a request's error code."""


class Problem(Exception):
    """A request, or one image of a batch, that gets an error instead of an answer.

    Attributes:
        code: an `ErrorCode`'s value or a key of `CODES`; decides the status.
        detail: what is wrong, the limit, and what to do.
        retry_after_s: seconds to wait; 429 and 503 always say so.
    """

    def __init__(self, code: str, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, detail, retry_after_s)
        self.code = code
        self.detail = detail
        self.status = CODES[code] if code in CODES else STATUS_OF_IMAGE[ErrorCode(code)]
        if retry_after_s is None and self.status in (429, 503):
            retry_after_s = RETRY_AFTER_S
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> Any:  # it crosses process borders
        return _rebuilt, (self.code, self.detail, self.retry_after_s)

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON of the answer."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status == 408:
            found["Connection"] = "close"
        return found

    def response(self, request_id: str, *, is_oip: bool = False) -> JSONResponse:
        """The whole answer; clients of the Open Inference Protocol look for the member `error`."""
        content = self.body(request_id) | ({"error": self.detail} if is_oip else {})
        return JSONResponse(content, status_code=self.status, headers=self.headers(), media_type=MEDIA_TYPE)


def _rebuilt(code: str, detail: str, retry_after_s: float | None) -> Problem:
    return Problem(code, detail, retry_after_s=retry_after_s)


def of_status(status: int, detail: str) -> Problem:
    """The problem that stands for a status the framework chose, such as 404 for an unknown path."""
    code = next(
        (code for code, known in CODES.items() if known == status), "bad_request" if status < 500 else "internal"
    )
    return Problem(code, detail)
