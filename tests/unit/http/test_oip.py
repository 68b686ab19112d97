"""The protocol's bytes by hand; tests/api speaks it with a client that is not ours."""

import base64
import json
import struct

import numpy as np
import pytest

from zsad.http import oip
from zsad.http.problems import Problem


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def call(tail=None, **changes):
    """Body and header length of a binary call with one image b"abc"."""
    tail = element(b"abc") if tail is None else tail
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}
    request = {"inputs": [tensor | changes.pop("tensor", {})]} | changes
    text = json.dumps(request).encode()
    return text + tail, str(len(text))


def test_images_come_as_binary_data():
    body, length = call(element(b"abc") + element(b"") + element(b"\0" * 5), tensor={"shape": [3]}, id="7")
    parsed = oip.parse_infer(body, length)
    assert parsed.images == [b"abc", b"", b"\0" * 5]
    assert parsed.request_id == "7"
    assert parsed.wanted == dict.fromkeys(["score", "raw_score", "is_anomaly", "defect_type", "inspection"], False)


def test_images_come_as_base64_in_json():
    data = [base64.b64encode(b"abc").decode()]
    body = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}).encode()
    assert oip.parse_infer(body, None).images == [b"abc"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (call(tensor={"name": "picture"}), "the input is 'image'"),
        (call(tensor={"datatype": "UINT8"}), "the input is 'image'"),
        (call(tensor={"shape": [2]}), "1 images"),
        (call(tensor={"shape": [2**62, 4]}), "1 images"),
        (call(tensor={"shape": [10**30]}), "1 images"),
        (call(tensor={"parameters": {"binary_data_size": 3}}), "does not fit"),
        (call(struct.pack("<I", 2**32 - 1) + b"abc"), "ends inside"),
        (call(element(b"a") * 33, tensor={"shape": [33]}), "send 1 to 32"),
        (call(b"", tensor={"shape": [0]}), "send 1 to 32"),
        (call(outputs=[{"name": "secret"}]), "no output of such a name"),
        ((call()[0], "0"), "does not fit"),
        ((call()[0], "999999"), "does not fit"),
        ((call()[0], "-1"), "does not fit"),
        ((call()[0], "seven"), "does not fit"),
        ((call()[0], "\xb2"), "does not fit"),
        ((call()[0], "9" * 5000), "does not fit"),
        ((b'{"inputs": [{"name": "image", "data": [' + b"1," * 10_001 + b"1]}]}", None), "commas"),
        ((b"{}", None), "inputs"),
        ((b"", None), "JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(parts, words):
    with pytest.raises(Problem, match=words) as caught:
        oip.parse_infer(*parts)
    assert caught.value.status in (400, 422)


def test_base64_that_is_none_is_refused():
    body = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["§§"]}]}).encode()
    with pytest.raises(Problem, match="base64"):
        oip.parse_infer(body, None)


def test_answers_are_json_or_bytes_behind_it():
    rows = [
        {"score": 0.5, "raw_score": 2.0, "is_anomaly": True, "defect_type": "dent"},
        {"score": 0.25, "raw_score": 1.0, "is_anomaly": False, "defect_type": None},
    ]
    maps = [np.array([[0.0, 1.0]], np.float32)] * 2
    wanted = {"score": False, "is_anomaly": True, "defect_type": True, "anomaly_map": True}
    body, length = oip.answer("nano", oip.Infer("7", [], {}, wanted), rows, maps)
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"], header["id"]) == ("nano", "1", "7")
    assert header["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.5, 0.25]},
        {"name": "is_anomaly", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}},
        {"name": "defect_type", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 12}},
        {"name": "anomaly_map", "datatype": "FP32", "shape": [2, 1, 2], "parameters": {"binary_data_size": 16}},
    ]
    assert body[length:] == b"\1\0" + element(b"dent") + element(b"") + struct.pack("<4f", 0, 1, 0, 1)


# Routes


def test_a_call_through_the_app(client):
    body, length = call(outputs=[{"name": "score"}, {"name": "inspection"}], parameters={"threshold": 0.8})
    response = client.post("/v2/models/first/infer", content=body, headers={"inference-header-content-length": length})
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert outputs["score"] == [0.75]
    told = json.loads(outputs["inspection"][0])
    assert (told["threshold"], told["is_anomaly"], told["explanation"][0]["side"]) == (0.8, False, "abnormal")


def test_the_first_bad_image_decides(client):
    body, length = call(element(b"x") + element(b"bad"), tensor={"shape": [2]})
    response = client.post("/v2/models/first/infer", content=body, headers={"inference-header-content-length": length})
    assert response.status_code == 422
    assert response.json()["code"] == "truncated"
    assert response.json()["error"] == response.json()["detail"]


@pytest.mark.parametrize("path", ["none", "first/versions/2", "none/ready"])
def test_unknown_models_and_versions(client, path):
    response = client.get(f"/v2/models/{path}")
    assert (response.status_code, response.json()["code"]) == (404, "no_detector")


@pytest.mark.parametrize("path", ["first", "first/versions/1"])
def test_a_model_tells_its_tensors(client, path):
    answer = client.get(f"/v2/models/{path}").json()
    assert (answer["name"], answer["versions"]) == ("first", ["1"])
    assert answer["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "score", "datatype": "FP32", "shape": [-1]} in answer["outputs"]


def test_a_parameter_out_of_range_is_refused(client):
    body, length = call(parameters={"threshold": 7})
    response = client.post("/v2/models/first/infer", content=body, headers={"inference-header-content-length": length})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
