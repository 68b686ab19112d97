"""What a request may ask: query options, and images as bytes or as keys of configured buckets.

Never a URL: nothing a client sends is fetched from anywhere but the buckets of the operator's configuration.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from zsad.http.engine import DetectorKey, StoredImage, Upload
from zsad.http.problems import Problem
from zsad.regions import MAX_REGIONS
from zsad.serve_config import ANY_OBJECT, MAX_BATCH_IMAGES, ServeConfig
from zsad.storage.base import is_plain_key

MAX_KEY_BYTES = 1024
MAX_FORM_FIELDS = 8
MAX_JSON_COMMAS = 10_000
FIELD = "file"
Model = TypeVar("Model", bound=BaseModel)


class InspectOptions(BaseModel):
    """Query parameters of both inspect calls."""

    model_config = ConfigDict(extra="forbid")

    detector: Annotated[str, Field(max_length=64, description="one of GET /v1/detectors; default: the first")] = ""
    object: Annotated[
        str,
        Field(
            max_length=64, pattern=r"^[\w .,'-]*$", description="the product's word in prompts; default: the bundle's"
        ),
    ] = ""
    threshold: Annotated[
        float | None, Field(ge=1e-6, lt=1, description="calibrated decision threshold; default: the detector's")
    ] = None
    mask: Annotated[Literal["none", "rle", "png"], Field(description="masks: per region as RLE, or one PNG")] = "none"
    map: Annotated[Literal["none", "png"], Field(description="anomaly map, 16-bit grey PNG")] = "none"
    top_k: Annotated[int, Field(ge=0, le=MAX_REGIONS, description="at most so many regions")] = MAX_REGIONS
    explain: Annotated[bool, Field(description="the prompts that decided, where the method keeps them")] = False

    def key(self, config: ServeConfig) -> DetectorKey:
        """The detector that is asked for.

        Raises:
            Problem: it is not on offer, or not with this object.
        """
        name = self.detector or config.default
        if name not in config.refs:
            raise Problem("no_detector", f"there is no detector {name!r} here; GET /v1/detectors lists them")
        if self.object and ANY_OBJECT not in config.objects and self.object not in config.objects:
            raise Problem("invalid_parameter", f"the object {self.object!r} is not on offer; leave it out")
        return DetectorKey(name, self.object.strip())


class KeyItem(BaseModel):
    """An image that lies in a configured bucket."""

    model_config = ConfigDict(extra="forbid")

    bucket: Annotated[str, Field(max_length=64)]
    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_BYTES)]

    def checked(self, buckets: Mapping[str, str]) -> StoredImage:
        """The object, if it can only lie in that bucket.

        Raises:
            Problem: the bucket is not configured, or the key is no plain one.
        """
        if self.bucket not in buckets:
            raise Problem("unknown_bucket", "there is no such bucket here; the operator names those that may be read")
        is_printable = all(character.isprintable() for character in self.key)
        if not is_plain_key(self.key) or not is_printable or len(self.key.encode()) > MAX_KEY_BYTES:
            raise Problem(
                "bad_key",
                f"a key has plain pieces between slashes (none empty, '.' or '..'), printable characters and at most "
                f"{MAX_KEY_BYTES} bytes; URLs are never fetched",
            )
        return StoredImage(self.bucket, self.key)


class KeyItems(BaseModel):
    """Several such images."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[KeyItem], Field(min_length=1, max_length=MAX_BATCH_IMAGES)]


async def read_image(request: Request, config: ServeConfig) -> Upload | StoredImage:
    """The one image of a request: raw body, form field `file`, or JSON with bucket and key.

    Raises:
        Problem: there is none, or more than one.
    """
    kind = media_type(request)
    if kind == "application/json":
        return validated(KeyItem, await request.body()).checked(config.bucket_urls)
    if kind == "multipart/form-data":
        uploads = await _uploads(request, 1)
        return uploads[0]
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise Problem(
            "unsupported_media_type",
            f"content type {kind[:80]!r}: send image/*, application/octet-stream, multipart/form-data or JSON",
        )
    return Upload(await request.body())


async def read_images(request: Request, config: ServeConfig) -> list[Upload | StoredImage | Problem]:
    """The images of a batch request, in order; a bad key costs one place.

    Raises:
        Problem: there are none or too many.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return list(await _uploads(request, MAX_BATCH_IMAGES))
    if kind != "application/json":
        raise Problem(
            "unsupported_media_type",
            f"a batch is multipart/form-data with up to {MAX_BATCH_IMAGES} fields {FIELD!r}, or JSON with keys",
        )
    return [_or_problem(item, config) for item in validated(KeyItems, await request.body()).items]


def media_type(request: Request) -> str:
    """The request's content type without parameters, lower case; "" if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _or_problem(item: KeyItem, config: ServeConfig) -> StoredImage | Problem:
    try:
        return item.checked(config.bucket_urls)
    except Problem as problem:
        return problem


async def _uploads(request: Request, most: int) -> list[Upload]:
    async with request.form(max_files=most, max_fields=MAX_FORM_FIELDS) as form:
        files = [value for value in form.getlist(FIELD) if isinstance(value, UploadFile)]
        if not files:
            raise Problem("bad_request", f"the form has no file in a field named {FIELD!r}")
        return [Upload(await file.read()) for file in files]


def validated(model: type[Model], body: bytes) -> Model:
    """A model of a JSON body.

    Raises:
        Problem: it does not fit, or holds so many values that parsing would cost 30 bytes of memory for each of text.
    """
    if body.count(b",") > MAX_JSON_COMMAS:
        raise Problem("bad_request", f"the JSON has more than {MAX_JSON_COMMAS:,} commas; no request needs so many")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise Problem("invalid_parameter", readable(error.errors())) from error


def readable(errors: Any) -> str:
    """Pydantic's errors in one line, without the values that were sent."""
    parts = [f"{'.'.join(str(piece) for piece in error['loc'][:6]) or 'body'}: {error['msg']}" for error in errors[:5]]
    return "; ".join(parts)[:500]
