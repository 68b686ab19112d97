import asyncio
import base64
import io
import json
import logging
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from zsad.http.problems import MEDIA_TYPE

TOKENS = {"line1": sha256(b"right").hexdigest(), "line2": sha256(b"other").hexdigest()}


def code_of(response):
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert body["status"] == response.status_code
    return body["code"]


# One image


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "IMAGE/PNG; a=b", None])
def test_a_raw_body_is_inspected(client, kind):
    response = client.post("/v1/inspect", content=b"x", headers={"content-type": kind} if kind else {})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["score"], answer["raw_score"], answer["threshold"], answer["is_anomaly"]) == (0.75, 0.25, 0.5, True)
    assert (answer["detector"], answer["width"], answer["height"]) == ("first", 4, 3)
    assert answer["defect_scores"] == {"scratch": 0.25, "dent": 0.75}
    assert answer["regions"] == [
        {"box": [0, 0, 2, 3], "area_px": 6, "score": 0.875, "defect_type": "dent", "rle": None}
    ]
    assert (answer["map"], answer["mask"], answer["explanation"]) == (None, None, [])
    assert (answer["timings_ms"]["decode"], answer["timings_ms"]["model"]) == (1.0, 2.0)


def test_a_form_with_a_file_is_inspected(client):
    assert client.post("/v1/inspect", files={"file": ("a.jpg", b"x")}).json()["score"] == 0.75


def test_all_parts_come_on_request(client):
    answer = client.post("/v1/inspect?mask=png&map=png&explain=true&top_k=1", content=b"x").json()
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["map"]))))
    assert grey.tolist() == [[0, 65535]]
    mask = Image.open(io.BytesIO(base64.b64decode(answer["mask"])))
    assert mask.mode == "1"
    assert np.asarray(mask).tolist() == [[True, True, False, False]] * 3
    assert answer["explanation"] == [{"prompt": "a dented object", "side": "abnormal", "similarity": 0.5}]


def test_rle_is_cocos_over_the_whole_image(client):
    (region,) = client.post("/v1/inspect?mask=rle", content=b"x").json()["regions"]
    assert coco.decode({"size": [3, 4], "counts": region["rle"].encode()}).tolist() == [[1, 1, 0, 0]] * 3


def test_below_the_threshold_there_is_no_defect(client):
    answer = client.post("/v1/inspect?threshold=0.8", content=b"x").json()
    assert (answer["is_anomaly"], answer["threshold"], answer["defect_type"]) == (False, 0.8, None)
    assert (answer["regions"], answer["defect_scores"]) == ([], {})


def test_no_regions_on_request(client):
    assert client.post("/v1/inspect?top_k=0", content=b"x").json()["regions"] == []


def test_detector_and_object_reach_the_engine(client, engine):
    client.post("/v1/inspect?detector=second&object=metal%20nut", content=b"x")
    (key,) = engine.keys
    assert (key.name, key.object_name) == ("second", "metal nut")


# Refusals


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?detector=third", 404, "no_detector"),
        ("?threshold=1", 422, "invalid_parameter"),
        ("?threshold=nan", 422, "invalid_parameter"),
        ("?mask=svg", 422, "invalid_parameter"),
        ("?top_k=21", 422, "invalid_parameter"),
        ("?object=%3Cb%3E", 422, "invalid_parameter"),
        ("?unknown=1", 422, "invalid_parameter"),
    ],
)
def test_impossible_options_are_refused(client, engine, query, status, code):
    response = client.post(f"/v1/inspect{query}", content=b"x")
    assert (response.status_code, code_of(response)) == (status, code)
    assert engine.keys == []


def test_a_refusal_does_not_repeat_what_was_sent(client):
    assert "seven" not in client.post("/v1/inspect?threshold=seven", content=b"x").text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/inspect", 405, "method_not_allowed"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/page/none.js", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_unknown_paths_are_problems_too(client, method, path, status, code):
    response = client.request(method, path)
    assert (response.status_code, code_of(response)) == (status, code)


def test_a_problem_of_the_image_has_its_code_and_the_requests_id(client):
    response = client.post("/v1/inspect", content=b"bad", headers={"x-request-id": "mine"})
    assert (response.status_code, code_of(response)) == (422, "truncated")
    assert response.json()["request_id"] == response.headers["x-request-id"] == "mine"


def test_a_request_without_an_id_gets_one(client):
    response = client.post("/v1/inspect", content=b"x")
    assert response.json()["request_id"] == response.headers["x-request-id"] != ""


def test_a_bug_says_nothing_about_itself(client, observer):
    response = client.post("/v1/inspect", content=b"bug")
    assert (response.status_code, code_of(response)) == (500, "internal")
    assert "secret" not in response.text
    assert (observer.records[-1].status, observer.records[-1].code) == (500, "internal")


def test_an_unknown_content_type_is_refused(client):
    response = client.post("/v1/inspect", content=b"x", headers={"content-type": "text/html"})
    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")


def test_compressed_bodies_are_refused(client):
    response = client.post("/v1/inspect", content=b"x", headers={"content-encoding": "gzip"})
    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("files", [{"photo": ("a.jpg", b"x")}, [("file", ("a", b"x")), ("file", ("b", b"x"))]])
def test_a_form_with_none_or_two_images_is_refused(client, files):
    response = client.post("/v1/inspect", files=files)
    assert (response.status_code, code_of(response)) == (400, "bad_request")


def test_a_form_of_a_thousand_parts_is_refused(client):
    response = client.post("/v1/inspect", files=[("file", (f"{n}.jpg", b"x")) for n in range(1000)])
    assert (response.status_code, code_of(response)) == (400, "bad_request")


# Size


def test_a_body_that_says_it_is_too_large_is_refused_unread(client_of, observer):
    response = client_of(max_body_bytes=10).post("/v1/inspect", content=b"x" * 11)
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    assert observer.records[-1].code == "body_too_large"


def test_a_body_in_chunks_is_counted(client_of, engine):
    client = client_of(max_body_bytes=10)
    assert client.post("/v1/inspect", content=iter([b"x" * 5, b"x" * 5])).status_code == 200
    response = client.post("/v1/inspect", content=iter([b"x" * 5, b"x" * 6]))
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    assert len(engine.keys) == 1


def test_a_batch_has_a_limit_of_its_own(client_of):
    client = client_of(max_body_bytes=10, max_batch_bytes=1000)
    assert client.post("/v1/inspect:batch", files=[("file", ("a", b"x" * 100))]).status_code == 200


def test_bodies_in_memory_are_bounded_and_given_back(client_of):
    client = client_of(max_waiting_bytes=10, max_body_bytes=20)
    response = client.post("/v1/inspect", content=b"x" * 11)
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"
    assert client.post("/v1/inspect", content=b"x" * 10).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
@pytest.mark.parametrize("body", [b"x", "chunks"], ids=["length", "chunked"])
def test_only_post_takes_a_body(client, method, body):
    response = client.request(method, "/v2/health/live", content=iter([b"x"]) if body == "chunks" else body)
    assert response.status_code == 400
    assert client.request("GET", "/v2/health/live", headers={"content-length": "0"}).status_code == 200


# Batches


def test_one_bad_image_costs_one_place(client, observer):
    files = [("file", (f"{n}.jpg", b"bad" if n == 7 else b"x")) for n in range(32)]
    response = client.post("/v1/inspect:batch", files=files)
    results = response.json()["results"]
    assert [result["status"] for result in results] == [200] * 7 + [422] + [200] * 24
    assert results[7]["problem"]["code"] == "truncated"
    assert results[7]["inspection"] is None
    assert results[0]["inspection"]["score"] == 0.75
    record = observer.records[-1]
    assert (record.num_images, record.num_failed, record.num_anomalies) == (32, 1, 31)


def test_a_bug_costs_one_place_of_a_batch_and_is_logged(client, observer, caplog):
    files = [("file", (f"{n}.jpg", b"bug" if n == 1 else b"x")) for n in range(3)]
    response = client.post("/v1/inspect:batch", files=files)
    results = response.json()["results"]
    assert [result["status"] for result in results] == [200, 500, 200]
    assert results[1]["problem"]["code"] == "internal"
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text
    assert observer.records[-1].num_failed == 1


def test_a_batch_of_33_is_refused(client):
    response = client.post("/v1/inspect:batch", files=[("file", (f"{n}.jpg", b"x")) for n in range(33)])
    assert (response.status_code, code_of(response)) == (400, "bad_request")


def test_keys_of_configured_buckets_are_read(client, engine):
    body = {"items": [{"bucket": "shots", "key": "a/b c.jpg"}, {"bucket": "none", "key": "x"}]}
    results = client.post("/v1/inspect:batch", json=body).json()["results"]
    assert [result["status"] for result in results] == [200, 404]
    assert [(image.bucket, image.key) for image in engine.stored] == [("shots", "a/b c.jpg")]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"key": "x"}', b'{"bucket": 1, "key": "x"}', b"[" * 100_000])
def test_json_that_names_no_image_is_refused(client, body):
    response = client.post("/v1/inspect", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, code_of(response)) == (422, "invalid_parameter")


# Who may ask


def test_without_tokens_everybody_may_ask(client):
    assert client.post("/v1/inspect", content=b"x").status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic right", "right", "Bearer", "Bearer " + "x" * 10_000])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/inspect"), ("POST", "/v1/inspect:batch"), ("GET", "/v1/detectors"), ("GET", "/v2/models/first")],
)
def test_without_a_known_token_nothing_is_told(client_of, engine, header, method, path):
    headers = {"authorization": header} if header else {}
    response = client_of(tokens=TOKENS).request(method, path, headers=headers)
    assert (response.status_code, code_of(response)) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert engine.keys == []


def test_a_known_token_lets_in_and_is_logged_by_name_only(client_of, observer, caplog):
    caplog.set_level(logging.INFO, "zsad.requests")
    headers = {"authorization": "Bearer right", "x-request-id": "mine"}
    assert client_of(tokens=TOKENS).post("/v1/inspect?object=nut", content=b"x", headers=headers).status_code == 200
    assert observer.records[-1].client == "line1"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "zsad.requests"]
    assert json.loads(line)["client"] == "line1"
    assert not any(secret in caplog.text for secret in ("right", TOKENS["line1"], "nut"))


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/v2"])
def test_page_health_and_description_need_no_token(client_of, path):
    assert client_of(tokens=TOKENS).get(path).status_code == 200


def test_each_token_has_a_rate_of_its_own(client_of):
    client = client_of(tokens=TOKENS, token_rate=0.001, token_burst=2)
    asked = [client.post("/v1/inspect", content=b"x", headers={"authorization": "Bearer right"}) for _ in range(3)]
    assert [response.status_code for response in asked] == [200, 200, 429]
    assert code_of(asked[2]) == "rate_limited"
    assert int(asked[2].headers["retry-after"]) >= 1
    assert client.post("/v1/inspect", content=b"x", headers={"authorization": "Bearer other"}).status_code == 200


def test_no_other_site_may_read_answers(client):
    response = client.post("/v1/inspect", content=b"x", headers={"origin": "https://elsewhere.example"})
    assert not any(name.startswith("access-control") for name in response.headers)


# Page and description


def test_the_page_comes_with_a_policy_against_other_hosts(client):
    response = client.get("/")
    assert (response.content, response.headers["content-type"]) == (b"<p>page</p>", "text/html; charset=utf-8")
    assert "default-src 'self'" in response.headers["content-security-policy"]


def test_detectors_are_asked_for_one_after_the_other(client_of, engine):
    """A scorer lets few loads wait at a time, so a list of many that asks for all at once would never be answered."""
    described, running, most = engine.describe, [], []

    async def counted(key):
        running.append(key)
        most.append(len(running))
        await asyncio.sleep(0)
        running.pop()
        return await described(key)

    engine.describe = counted
    assert client_of(detectors=[f"d{number}=nano" for number in range(9)]).get("/v1/detectors").status_code == 200
    assert most == [1] * 9


def test_detectors_are_listed_in_order(client):
    answer = client.get("/v1/detectors").json()
    assert answer["default"] == "first"
    assert [detector["name"] for detector in answer["detectors"]] == ["first", "second"]
    assert set(answer["detectors"][0]) == {
        "name", "backbone", "method", "object", "defect_words", "threshold", "explains",
    }  # fmt: skip


def test_a_broken_detector_hides_no_other(client, engine):
    engine.broken = {"second"}
    assert [detector["name"] for detector in client.get("/v1/detectors").json()["detectors"]] == ["first"]
    engine.broken = {"first"}
    response = client.get("/v1/detectors")
    assert (response.status_code, code_of(response)) == (404, "no_detector")


@pytest.mark.parametrize("path", ["/v1/detectors", "/v2/models/first/ready", "/v2/models/first/versions/1/ready"])
def test_a_detector_that_takes_too_long_to_describe_is_given_up(client_of, engine, path):
    async def never(key):
        await engine.release.wait()

    engine.describe = never
    response = client_of(request_timeout_s=0.05).get(path)
    assert (response.status_code, code_of(response)) == (504, "timeout")


def test_records_name_the_route_by_its_template(client, observer):
    client.post("/v1/inspect", content=b"x")
    client.get("/v2/models/first")
    client.get("/nowhere/at/all")
    assert [record.route for record in observer.records] == ["/v1/inspect", "/v2/models/{model}", "unknown"]


def test_the_description_is_whole(client):
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    text = json.dumps(schema)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(schema["components"]["schemas"])
    inspect = schema["paths"]["/v1/inspect"]["post"]
    assert inspect["responses"]["200"]["content"]["application/json"]["example"]["score"] == 0.71
    assert {"image/jpeg", "multipart/form-data", "application/json"} <= set(inspect["requestBody"]["content"])


def test_health_turns_before_the_replica_stops(app_of, engine):
    from starlette.testclient import TestClient

    app = app_of()
    client = TestClient(app)
    assert client.get("/v2/health/ready").status_code == 200
    engine.is_ready = False
    assert client.get("/v2/health/ready").status_code == 503
    engine.is_ready = True
    app.state.service.is_draining = True
    response = client.get("/v2/health/ready")
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert client.get("/v2/health/live").status_code == 200
    assert client.post("/v1/inspect", content=b"x").status_code == 200
