"""What an S3 call's exception means: one pure function from exceptions of botocore and s3fs to `StorageError`."""

import re
from typing import Any

import aiohttp
from botocore import exceptions as boto

from zsad.errors import ErrorCode, StorageError
from zsad.storage.retry import ThrottledError, UnreachableError

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys), AWS_PROFILE, or give "
    "the machine a role"
)
_ENDPOINT = "check the network and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL"
_FORBIDDEN_CODES = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
_MISSING_CODES = frozenset({"NoSuchBucket", "NoSuchKey", "NotFound"})
_THROTTLED_CODES = frozenset(
    {"RequestLimitExceeded", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"}
)
_THROTTLED_STATUSES = {429, 503}
_RETRYABLE_CODES = frozenset(
    {"BadDigest", "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestTimeout"}
)
_RETRYABLE_STATUSES = {408, 409, 500, 502, 504}
_TIMEOUTS = (boto.ReadTimeoutError, boto.ConnectTimeoutError, TimeoutError)
_UNREACHABLE = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_CONFIGURATION = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
)
_HIDDEN_ERROR = re.compile(rb"<Error[ >].{0,2000}?<Code>\s*(\w+)\s*</Code>", re.DOTALL)


def storage_error(error: BaseException, uri: str, action: str) -> StorageError:
    """Say what a failed call on `uri` means; `action` is a verb for the message.

    Args:
        error: what s3fs raised; its cause may be botocore's own exception, which is the one looked at.
        uri: the object's or bucket's address.
        action: "read", "write", "list", ...
    """
    client_error = _client_error(error)
    if client_error is not None:
        response: dict[str, Any] = client_error.response
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        details = response.get("Error", {})
        return error_from_code(str(details.get("Code", "")), status, str(details.get("Message", "")), uri, action)
    message = f"can't {action} {uri}: {str(error) or 'no answer in time'} ({type(error).__name__})"
    if isinstance(error, _CONFIGURATION):
        return StorageError(f"can't {action} {uri}: no usable credentials; {_CREDENTIALS}", code=ErrorCode.FORBIDDEN)
    if isinstance(error, _UNREACHABLE):
        return UnreachableError(f"{message}; {_ENDPOINT}", retryable=True, code=ErrorCode.READ_TIMEOUT)
    if isinstance(error, _TIMEOUTS):
        return StorageError(message, retryable=True, code=ErrorCode.READ_TIMEOUT)
    if isinstance(error, boto.SSLError):
        return StorageError(f"{message}; check the certificate (AWS_CA_BUNDLE) and the endpoint's scheme")
    # What is left of botocore's HTTP errors, broken XML and socket errors are connections that broke on the way.
    is_transport = isinstance(error, (boto.HTTPClientError, OSError, aiohttp.ClientError))
    is_garbled = type(error).__name__ in {"ResponseParserError", "IncompleteRead", "IncompleteReadError"}
    return StorageError(message, retryable=is_transport or is_garbled)


def error_from_code(code: str, status: int, detail: str, uri: str, action: str) -> StorageError:
    """Say what S3's error `code` and HTTP `status` mean for a call on `uri`; `detail` is the server's own text."""
    message = f"can't {action} {uri}: {code or 'no code'} (HTTP {status}) {detail}".rstrip()
    if code in _FORBIDDEN_CODES or status in {401, 403}:
        return StorageError(f"{message}; check the permissions of the key, or {_CREDENTIALS}", code=ErrorCode.FORBIDDEN)
    if code == "NoSuchBucket":
        return StorageError(f"{message}; check the bucket's name and the endpoint", code=ErrorCode.MISSING)
    if code in _MISSING_CODES or status == 404:
        return StorageError(message, code=ErrorCode.MISSING)
    if code == "RequestTimeout" or status in {408, 504}:
        return StorageError(message, retryable=True, code=ErrorCode.READ_TIMEOUT)
    if code in _THROTTLED_CODES or status in _THROTTLED_STATUSES:
        return ThrottledError(message, retryable=True)
    return StorageError(message, retryable=code in _RETRYABLE_CODES or status in _RETRYABLE_STATUSES)


def is_refused_condition(error: BaseException) -> bool:
    """Whether the call failed because `If-None-Match: *` met an existing object (HTTP 412)."""
    client_error = _client_error(error)
    if client_error is None:
        return False
    status = client_error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return bool(status == 412 or client_error.response.get("Error", {}).get("Code") == "PreconditionFailed")


def hidden_error_code(data: bytes) -> str | None:
    """The error code when `data`, which came with HTTP 200, looks like one of S3's XML error documents.

    Under load S3 can answer `SlowDown` inside a success.
    """
    if not data[:64].lstrip().startswith((b"<?xml", b"<Error")):
        return None
    found = _HIDDEN_ERROR.search(data[:4096])
    return found.group(1).decode() if found else None


def _client_error(error: BaseException) -> "boto.ClientError | None":
    """The botocore `ClientError` that is `error` or its cause, or None."""
    return next((one for one in (error, error.__cause__) if isinstance(one, boto.ClientError)), None)
