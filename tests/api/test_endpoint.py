"""The endpoint through Ray Serve's own proxy: answers, limits, slow and departing clients, overload, other clients."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
from batch_runs import REPOSITORY, png_header
from PIL import Image

from zsad.bundle import CONFIG_FILE, SHIPPED

from .serving_runs import NUM_PARITY, THRESHOLD, processes, wait_until_ready

pytestmark = pytest.mark.ray

MIB = 2**20


@pytest.fixture(scope="module")
def client(endpoint):
    with endpoint.client() as client:
        yield client


def memory_of_serve() -> int:
    """Resident bytes of all processes of Ray Serve."""
    return sum(process.memory_info().rss for name in ("ray::Serve", "ray::Proxy") for process in processes(name))


def read_answer(connection) -> bytes:
    """All that the server sends until it closes."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


# Answers


def test_a_picture_is_inspected_whatever_way_it_comes(client, endpoint, pictures):
    (endpoint.bucket / "a.jpg").write_bytes(pictures[0])
    answers = [
        client.post("/v1/inspect", content=pictures[0]),
        client.post("/v1/inspect", files={"file": ("a.jpg", pictures[0])}),
        client.post("/v1/inspect", json={"bucket": "shots", "key": "a.jpg"}),
        client.post("/v1/inspect:batch", files=[("file", ("a.jpg", pictures[0]))]),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    bodies = [answer.json() for answer in answers[:3]] + [answers[3].json()["results"][0]["inspection"]]
    assert len({(body["score"], body["raw_score"], body["config_hash"]) for body in bodies}) == 1
    assert (bodies[0]["width"], bodies[0]["height"]) == (96, 96)


def test_the_graph_of_make_serve_is_what_is_tested(endpoint):
    """Ray Serve reads its variables at import; a worker has them if Ray was started with them, and the driver too."""
    import ray

    def seen() -> tuple[bool, bool, int]:
        from ray.serve._private import constants
        from ray.serve._private.handle_options import DynamicHandleOptions

        handles = DynamicHandleOptions()
        limit = constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
        return constants.RAY_SERVE_USE_GRPC_BY_DEFAULT, handles._by_reference, limit

    expected = (True, False, int(os.environ["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]))
    assert seen() == expected
    assert ray.get(ray.remote(num_cpus=0)(seen).remote()) == expected


def test_all_give_way_to_the_scorer(endpoint):
    """The proxy, the ingress and the decoder have a lower priority (a higher nice level), and interrupt nobody."""
    scorer, *others = (
        {(process.nice(), os.sched_getscheduler(process.pid)) for process in processes(title)}
        for title in ("ray::ServeReplica:default:Scorer", "ray::ServeReplica:default:Ingress",
                      "ray::ServeReplica:default:Decoder", "ray::ProxyActor")
    )  # fmt: skip
    ((own, policy),) = scorer
    assert policy == os.SCHED_OTHER
    assert all(level > own and policy == os.SCHED_BATCH for told in others for level, policy in told)
    assert all(others)


@pytest.mark.parametrize("side_px", [1200, 1450])
def test_an_image_of_more_than_4_mib_is_inspected(client, pictures, side_px):
    """Unless told otherwise gRPC refuses messages of more than 4 MiB; noise does not compress."""
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
    Image.fromarray(noise).save(sink, "PNG", compress_level=1)
    large = sink.getvalue()
    assert len(large) > 4 * MIB
    response = client.post("/v1/inspect?mask=png&map=png", content=large)
    assert response.status_code == 200, response.text
    assert response.json()["width"] == side_px
    files = [("file", (f"{n}.png", data)) for n, data in enumerate([pictures[0], large, large, pictures[1]])]
    response = client.post("/v1/inspect:batch", files=files)
    assert [result["status"] for result in response.json()["results"]] == [200] * 4


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"<html>502</html>", 415, "unknown_format"),
        (png_header(60_000, 60_000), 413, "too_many_pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"not a header" * 9, 422, "decode"),
    ],
    ids=["empty", "page", "bomb", "broken"],
)
def test_what_is_no_image_has_its_code(client, data, status, code):
    response = client.post("/v1/inspect", content=data)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


def test_one_bad_image_of_32_costs_one_place(client, pictures):
    files = [("file", (f"{n}.jpg", b"junk" if n == 3 else pictures[n % 8])) for n in range(32)]
    statuses = [result["status"] for result in client.post("/v1/inspect:batch", files=files).json()["results"]]
    assert statuses == [200] * 3 + [415] + [200] * 28


def test_a_batch_that_names_a_new_object_is_answered(client, pictures):
    """All 32 wait for one load; a fifth different one would be told to come back."""
    files = [("file", (f"{n}.jpg", pictures[n % 8])) for n in range(32)]
    response = client.post("/v1/inspect:batch?object=copper%20washer", files=files)
    assert [result["status"] for result in response.json()["results"]] == [200] * 32


def test_a_missing_object_is_told_without_the_buckets_address(client, endpoint):
    response = client.post("/v1/inspect", json={"bucket": "shots", "key": "none.jpg"})
    assert (response.status_code, response.json()["code"]) == (404, "missing")
    assert str(endpoint.bucket) not in response.text


def test_a_plain_request_id_comes_back_once_and_any_other_is_replaced(client, pictures):
    response = client.post("/v1/inspect", content=pictures[0], headers={"x-request-id": "line1-000017"})
    assert response.headers.get_list("x-request-id") == ["line1-000017"]
    assert response.json()["request_id"] == "line1-000017"
    response = client.post("/v1/inspect", content=pictures[0], headers={"x-request-id": "<script>" * 100})
    assert "<" not in response.headers["x-request-id"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_scores_are_those_of_the_batch_job(endpoint, batch_scores):
    folder, rows = batch_scores

    def ask(key: str) -> dict:
        with endpoint.client() as own:
            response = own.post(f"/v1/inspect?threshold={THRESHOLD}&mask=rle", content=(folder / key).read_bytes())
            assert response.status_code == 200, response.text
            return response.json()

    with ThreadPoolExecutor(6) as askers:
        answers = dict(zip(rows, askers.map(ask, rows), strict=True))
    assert len(answers) == NUM_PARITY
    assert 10 < sum(row["is_anomaly"] for row in rows.values()) < NUM_PARITY - 10
    for key, row in rows.items():
        answer = answers[key]
        for name in ("score", "raw_score", "is_anomaly", "defect_type", "threshold"):
            assert answer[name] == row[name], (key, name)
        assert [region["rle"] for region in answer["regions"]] == [region["rle"] for region in row["regions"]]
        assert list(answer["defect_scores"].values()) == [entry["score"] for entry in row["defect_scores"]]


# H1, H2: bodies too large, lying, slow; clients that leave


def test_bodies_over_the_limit_are_refused_and_cost_no_memory(client, endpoint, pictures):
    piece = b"x" * MIB
    for _ in range(2):  # what accepted bodies leave behind, with each way of sending them
        assert client.post("/v1/inspect", content=piece * 19).status_code == 415
        assert client.post("/v1/inspect", content=(piece for _ in range(19))).status_code == 415
    for _ in range(30):  # Ray Serve leaves refused ones to Python's garbage collector; by now that is level
        assert client.post("/v1/inspect", content=(piece for _ in range(21))).status_code == 413
    before = memory_of_serve()
    for _ in range(5):  # if each stayed, it would be 100 MiB in the proxy and as many in the ingress
        honest = client.post("/v1/inspect", content=piece * 21)
        assert (honest.status_code, honest.json()["code"]) == (413, "body_too_large")
        chunked = client.post("/v1/inspect", content=(piece for _ in range(21)))
        assert (chunked.status_code, chunked.json()["code"]) == (413, "body_too_large")
    many = client.post("/v1/inspect", files=[("file", (f"{n}.jpg", pictures[0])) for n in range(1000)])
    assert many.status_code in (400, 413)
    with endpoint.connect() as liar:  # says 10 bytes, sends 21 MiB
        liar.sendall(b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        try:
            for _ in range(21):
                liar.sendall(piece)
            received = read_answer(liar)
        except (BrokenPipeError, ConnectionResetError):
            received = b"HTTP/1.1 4"  # cut off while sending
    assert received.startswith(b"HTTP/1.1 4")
    with endpoint.connect() as liar:  # says 21 MiB, sends nothing
        liar.sendall(f"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: {21 * MIB}\r\n\r\n".encode())
        assert liar.recv(65_536).startswith(b"HTTP/1.1 413")
    assert memory_of_serve() - before <= 64 * MIB
    assert client.post("/v1/inspect", content=pictures[0]).status_code == 200


def test_slow_senders_are_cut_off(endpoint):
    """One sends its headers a byte at a time, one its body, one stops in the middle of it."""

    def drip(head: bytes, rest: bytes) -> float:
        began = time.monotonic()
        with endpoint.connect() as connection:
            connection.sendall(head)
            connection.settimeout(1.0)
            for byte in rest:
                try:
                    connection.sendall(bytes([byte]))
                    if not connection.recv(65_536):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                raise AssertionError("the server read it all")
        return time.monotonic() - began

    post = b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n"
    with ThreadPoolExecutor(2) as senders:
        slow = [senders.submit(drip, b"GET /v2 HTTP/1.1\r\n", b"a" * 60), senders.submit(drip, post, b"a" * 60)]
        assert all(sender.result() <= 30 for sender in slow)


def test_a_body_that_stops_gets_408(endpoint):
    with endpoint.connect() as connection:
        connection.sendall(b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"slow_sender" in answer


def test_clients_that_leave_free_their_places(endpoint, client, pictures):
    """As many requests as may wait are sent and given up; if they kept their places, later ones would get 429."""
    body = pictures[0]
    head = f"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(2):
        connections = [endpoint.connect() for _ in range(endpoint.config.max_waiting)]
        for connection in connections:
            connection.sendall(head + body)
        for connection in connections:
            connection.close()
    deadline = time.monotonic() + 30
    while (status := client.post("/v1/inspect", content=body).status_code) == 429 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert status == 200


# H3: overload


def test_overload_is_told_politely_and_passes(endpoint, pictures):
    def ask(number: int) -> httpx.Response:
        with endpoint.client() as own:
            return own.post("/v1/inspect", content=pictures[number % 8])

    with ThreadPoolExecutor(200) as askers:
        responses = list(askers.map(ask, range(200)))
    counts = Counter(response.status_code for response in responses)
    assert set(counts) <= {200, 429, 503}
    assert counts[200] >= 64
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    began = time.monotonic()
    while ask(0).status_code != 200:
        assert time.monotonic() - began < 5
        time.sleep(0.1)


# Other people's clients


def test_tritons_client_speaks_with_it(endpoint, pictures, client):
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    triton = InferenceServerClient(f"127.0.0.1:{endpoint.port}")
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("nano")
    assert triton.get_model_metadata("nano")["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    images = InferInput("image", [2], "BYTES")
    images.set_data_from_numpy(np.array(pictures[:2], dtype=object))
    result = triton.infer("nano", [images])
    expected = [client.post("/v1/inspect", content=data).json() for data in pictures[:2]]
    assert result.as_numpy("score").tolist() == [answer["score"] for answer in expected]
    assert result.as_numpy("is_anomaly").tolist() == [answer["is_anomaly"] for answer in expected]
    told = json.loads(result.as_numpy("inspection")[0])
    assert told["raw_score"] == expected[0]["raw_score"]
    wanted = [InferRequestedOutput("anomaly_map"), InferRequestedOutput("score", binary_data=False)]
    result = triton.infer("nano", [images], outputs=wanted)
    assert result.as_numpy("anomaly_map").shape == (2, 14, 14)
    assert result.as_numpy("score").tolist() == [answer["score"] for answer in expected]
    with pytest.raises(InferenceServerException, match="no such model"):
        triton.infer("none", [images])


def test_the_documents_examples_run(endpoint, pictures, tmp_path):
    text = (REPOSITORY / "docs" / "http.md").read_text().partition("## Clients")[2].partition("## Errors")[0]
    (tmp_path / "part.jpg").write_bytes(pictures[0])
    shell, python = (part.partition("```")[0] for part in re.split(r"```(?:sh|python)\n", text)[1:3])
    for command in (["sh", "-ec", shell], [sys.executable, "-c", python]):
        command[-1] = command[-1].replace(":8000", f":{endpoint.port}")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        assert "score" in done.stdout or done.stdout.startswith("0.")


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(endpoint, tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{endpoint.url}/openapi.json",
            "--checks", "not_a_server_error", "--max-examples", "8", "--phases", "examples,coverage,fuzzing",
            "--seed", "1", "--request-timeout", "30", "--suppress-health-check", "all",
        ],
        capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path,  # it leaves a cache
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# Change while it runs


def test_a_new_version_of_a_bundle_is_taken_over_without_a_lost_request(endpoint, pictures):
    statuses, thresholds, stop = Counter(), [], threading.Event()

    def ask_on() -> None:
        with endpoint.client() as own:
            while not stop.is_set():
                response = own.post("/v1/inspect?detector=changing", content=pictures[1])
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    thresholds.append(response.json()["threshold"])

    asker = threading.Thread(target=ask_on)
    asker.start()
    try:
        wait_for(lambda: thresholds)
        stored = json.loads((SHIPPED / "winclip" / CONFIG_FILE).read_text())
        stored["calibration"]["threshold"] = 0.25
        (endpoint.changing / "new").write_text(json.dumps(stored))
        shutil.move(endpoint.changing / "new", endpoint.changing / CONFIG_FILE)
        wait_for(lambda: thresholds[-1] == 0.25)
    finally:
        stop.set()
        asker.join()
    assert set(statuses) == {200}
    assert set(thresholds) == {0.5, 0.25}


def wait_for(condition, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_scorer_costs_at_most_what_it_was_doing(endpoint, pictures):
    failures, oks, stop = [], [], threading.Event()

    def ask_on() -> None:
        with endpoint.client() as own:
            while not stop.is_set():
                response = own.post("/v1/inspect", content=pictures[0])
                (oks if response.status_code == 200 else failures).append(response)

    askers = [threading.Thread(target=ask_on) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        wait_for(lambda: len(oks) > 10)
        (scorer,) = processes("ray::ServeReplica:default:Scorer")
        scorer.kill()
        count = len(oks)
        wait_for(lambda: len(oks) > count + 20, within_s=120)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert all(response.status_code in (503, 504) for response in failures)
    assert all(response.json()["request_id"] for response in failures)


def test_requests_and_images_are_scraped_at_rays_metrics_port(client, pictures):
    import ray

    def value(name: str, **labels: str) -> float:
        """Sum over processes of the samples of `name` that have these labels."""
        lines = [line for line in httpx.get(url, timeout=10).text.splitlines() if line.startswith(f"ray_{name}{{")]
        wanted = [f'{key}="{text}"' for key, text in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(words in line for words in wanted))

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    asked = {"route": "/v1/inspect", "status": "415"}
    before = value("zsad_requests_total", **asked)
    assert client.post("/v1/inspect", content=b"no image").status_code == 415
    assert client.post("/v1/inspect", content=pictures[0]).status_code == 200
    wait_for(lambda: value("zsad_requests_total", **asked) == before + 1)  # every 10 s, by Ray's default
    wait_for(lambda: value("zsad_images_total", detector="nano") > 0)
    wait_for(lambda: value("zsad_model_ms_count", detector="nano") > 0)


@pytest.mark.slow
def test_a_rolling_redeployment_loses_no_request(endpoint, pictures):
    """Other settings for every replica: each is replaced while images come in."""
    from ray import serve as ray_serve

    from zsad.distributed.serving import build_graph

    statuses, stop = Counter(), threading.Event()

    def ask_on() -> None:
        with endpoint.client() as own:
            while not stop.is_set():
                statuses[own.post("/v1/inspect", content=pictures[0]).status_code] += 1

    wait_until_ready(endpoint)
    before = {process.pid for process in processes("ray::ServeReplica")}
    askers = [threading.Thread(target=ask_on) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        wait_for(lambda: statuses[200] > 10)
        ray_serve.run(build_graph(replace(endpoint.config, batch_wait_ms=4.0), {"index.html": b"<p>page</p>"}, {}))
        count = statuses[200]
        wait_for(lambda: statuses[200] > count + 20)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert set(statuses) == {200}
    wait_for(lambda: not before & {process.pid for process in processes("ray::ServeReplica")})


@pytest.mark.slow
def test_two_scorers_and_two_ingresses_answer_as_one_of_each_does(endpoint, pictures):
    """The old replicas stop first: two CPUs have no room for both graphs."""
    from ray import serve as ray_serve

    from zsad.distributed.serving import build_graph

    def ask(picture: bytes) -> dict:
        with endpoint.client() as own:
            response = own.post("/v1/inspect", content=picture)
            assert response.status_code == 200, response.text
            return {name: response.json()[name] for name in ("score", "raw_score", "defect_type", "regions")}

    def cpu_s(kind: str) -> dict[int, float]:
        replicas = [p for p in processes("ray::ServeReplica") if kind in p.cmdline()[0]]
        return {p.pid: sum(p.cpu_times()[:2]) for p in replicas}

    wait_until_ready(endpoint)
    expected = [ask(picture) for picture in pictures]
    doubled = replace(endpoint.config, num_scorers=2, max_scorers=2, num_ingress=2, surge_percent=0)
    ray_serve.run(build_graph(doubled, {"index.html": b"<p>page</p>"}, {}))
    wait_for(lambda: all(len(cpu_s(kind)) == 2 for kind in ("Scorer", "Ingress")))
    wait_until_ready(endpoint)
    before = {kind: cpu_s(kind) for kind in ("Scorer", "Ingress")}
    with ThreadPoolExecutor(8) as askers:
        answers = list(askers.map(ask, pictures * 20))
    assert answers == expected * 20
    for kind, used in before.items():
        assert all(after > used[pid] + 0.1 for pid, after in cpu_s(kind).items()), kind


def test_ready_turns_before_anything_stops(endpoint, client, pictures):
    """The last test of this file: the app says "not ready" from here on."""
    from zsad.distributed.serving import drain

    wait_until_ready(endpoint)
    drain()
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200
    assert client.post("/v1/inspect", content=pictures[0]).status_code == 200
