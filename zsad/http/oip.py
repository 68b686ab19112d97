"""The Open Inference Protocol, version 2, for images: tensors in a JSON header, and their bytes behind it.

Input `image`, BYTES [N]: N encoded images (JPEG, PNG, ...), as binary data or as base64 text in JSON. Outputs, each
with N rows: `score`, `raw_score` FP32, `is_anomaly` BOOL, `defect_type`, `inspection` (the JSON of /v1/inspect) BYTES,
and on request `anomaly_map` FP32 [N, h, w]. A BYTES element in binary data is its length (4 bytes, little-endian) and
its content.

Source: the protocol's specification and its extension for binary data, as KServe and Triton speak them.
"""

import json
import math
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from zsad.http.problems import Problem
from zsad.http.requests import validated
from zsad.serve_config import MAX_BATCH_IMAGES

VERSION = "1"
INPUT = "image"
HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {
    "score": "FP32",
    "raw_score": "FP32",
    "is_anomaly": "BOOL",
    "defect_type": "BYTES",
    "inspection": "BYTES",
    "anomaly_map": "FP32",
}
ON_REQUEST = ("anomaly_map",)
MAX_HEADER_BYTES = 2**20


class Tensor(BaseModel):
    """An input or a requested output; what a client adds beyond the protocol is ignored, as it asks."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(max_length=64)]
    datatype: str = ""
    shape: Annotated[list[int], Field(max_length=4)] = []
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferRequest(BaseModel):
    """The JSON part of an infer call."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(max_length=128)] = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Tensor], Field(max_length=len(DATATYPES))] = []


@dataclass(frozen=True, slots=True)
class Infer:
    """A parsed infer call; `wanted` maps the name of each output to whether it goes as binary data."""

    request_id: str
    images: list[bytes]
    parameters: Mapping[str, Any]
    wanted: Mapping[str, bool]


def parse_infer(body: bytes, header_length: str | None) -> Infer:
    """Read the body of an infer call.

    Args:
        body: JSON, with binary data behind it where `header_length` says how long the JSON is.
        header_length: the header `Inference-Header-Content-Length`.

    Raises:
        Problem: saying what does not fit.
    """
    size = _header_size(body, header_length)
    request = validated(InferRequest, body[:size])
    images = _images(request.inputs[0], body[size:])
    return Infer(request.id, images, request.parameters, _wanted(request))


def answer(
    model: str, infer: Infer, rows: Sequence[dict[str, Any]], maps: Sequence[NDArray[np.float32]]
) -> tuple[bytes, int]:
    """The body of the answer and the length of its JSON part; equal to the body's where nothing is binary.

    Args:
        model: its name.
        infer: the call.
        rows: one answer of /v1/inspect per image.
        maps: the anomaly map of each image.
    """
    outputs, tail = [], []
    for name, is_binary in infer.wanted.items():
        values = maps if name == "anomaly_map" else [_value(name, row) for row in rows]
        output: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": list(np.shape(np.asarray(values))),
        }
        if DATATYPES[name] == "BYTES":
            output["shape"] = [len(values)]
        if is_binary:
            data = _binary(DATATYPES[name], values)
            tail.append(data)
            output["parameters"] = {"binary_data_size": len(data)}
        else:
            output["data"] = np.ravel(values).tolist() if DATATYPES[name] != "BYTES" else list(values)
        outputs.append(output)
    header: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    if infer.request_id:
        header["id"] = infer.request_id
    text = json.dumps(header).encode()
    return b"".join([text, *tail]), len(text)


def metadata(model: str) -> dict[str, Any]:
    """What `GET /v2/models/{model}` says."""
    outputs = [
        {"name": name, "datatype": datatype, "shape": [-1, -1, -1] if name == "anomaly_map" else [-1]}
        for name, datatype in DATATYPES.items()
    ]
    inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    return {"name": model, "versions": [VERSION], "platform": "zsad", "inputs": inputs, "outputs": outputs}


def _header_size(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    is_number = header_length.isdecimal() and len(header_length) <= 9
    if not is_number or not 0 < int(header_length) <= min(len(body), MAX_HEADER_BYTES):
        raise Problem("bad_request", f"Inference-Header-Content-Length does not fit a body of {len(body):,} bytes")
    return int(header_length)


def _images(tensor: Tensor, tail: bytes) -> list[bytes]:
    if tensor.name != INPUT or tensor.datatype != "BYTES":
        raise Problem("invalid_parameter", f"the input is {INPUT!r} of datatype BYTES")
    size = tensor.parameters.get("binary_data_size")
    if size is not None and size != len(tail):
        raise Problem("bad_request", f"binary_data_size does not fit the {len(tail):,} bytes behind the header")
    images = _elements(tail) if size is not None else _decoded(tensor.data or [])
    if not 1 <= len(images) <= MAX_BATCH_IMAGES or math.prod(tensor.shape) != len(images):
        raise Problem("bad_request", f"{len(images)} images; send 1 to {MAX_BATCH_IMAGES}, as many as the shape says")
    return images


def _elements(tail: bytes) -> list[bytes]:
    """The elements of a BYTES tensor."""
    found: list[bytes] = []
    start = 0
    while start < len(tail) and len(found) <= MAX_BATCH_IMAGES:
        size = int.from_bytes(tail[start : start + 4], "little")
        if start + 4 + size > len(tail):
            raise Problem("bad_request", "the binary data ends inside an element")
        found.append(tail[start + 4 : start + 4 + size])
        start += 4 + size
    return found


def _decoded(data: list[Any]) -> list[bytes]:
    try:
        return [b64decode(text, validate=True) for text in data[: MAX_BATCH_IMAGES + 1]]
    except (ValueError, TypeError) as error:
        raise Problem("bad_request", "an image in JSON is base64 text; binary data needs no such detour") from error


def _wanted(request: InferRequest) -> dict[str, bool]:
    for_all = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return {name: for_all for name in DATATYPES if name not in ON_REQUEST}
    unknown = [output.name for output in request.outputs if output.name not in DATATYPES]
    if unknown:
        raise Problem("invalid_parameter", f"there is no output of such a name; there are {', '.join(DATATYPES)}")
    return {output.name: bool(output.parameters.get("binary_data", for_all)) for output in request.outputs}


def _value(name: str, row: dict[str, Any]) -> Any:
    if name == "inspection":
        return json.dumps(row)
    return row[name] or "" if name == "defect_type" else row[name]


def _binary(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = [str(value).encode() for value in values]
        return b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
    return np.asarray(values, dtype=np.float32 if datatype == "FP32" else np.bool_).tobytes()
