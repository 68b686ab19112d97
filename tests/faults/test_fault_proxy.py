"""The proxy itself: it forwards what it is told to, spoils what it is told to, and does so again from the same seed."""

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fault_proxy import FaultProxy, Request, seeded

CONTENT = bytes(range(256)) * 40


class Upstream(BaseHTTPRequestHandler):
    """Answers a GET with CONTENT, and a PUT with what it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer."""
        self._answer(CONTENT)

    def do_PUT(self):
        """Answer."""
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Keep the test's output clean."""


@pytest.fixture
def proxy():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with FaultProxy(server.server_port) as found:
        yield found
    server.shutdown()
    server.server_close()


def ask(proxy, method="GET", body=None, timeout_s=10.0):
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout_s)
    try:
        connection.request(method, "/bucket/a%20b.jpg", body=body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_faults_everything_passes(proxy):
    assert ask(proxy) == (200, CONTENT)
    assert ask(proxy, "PUT", b"mine") == (200, b"mine")
    seen = [(request.method, request.path, request.number, fault) for request, fault in proxy.requests]
    assert seen == [("GET", "/bucket/a b.jpg", 0, None), ("PUT", "/bucket/a b.jpg", 0, None)]


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        ("slow_down", 503, b"SlowDown"),
        ("hidden", 200, b"SlowDown"),
        ("forbidden", 403, b"AccessDenied"),
        ("missing", 404, b"NoSuchKey"),
        ("failed", 500, b"InternalError"),
    ],
)
def test_answers_of_its_own(proxy, fault, status, word):
    proxy.script = lambda _request: fault
    found_status, body = ask(proxy)
    assert found_status == status
    assert word in body


def test_a_short_body_ends_early(proxy):
    proxy.script = lambda _request: "short"
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == CONTENT[: len(CONTENT) // 2]


@pytest.mark.parametrize("fault", ["reset", "lost"])
def test_a_reset_is_a_reset(proxy, fault):
    proxy.script = lambda _request: fault
    with pytest.raises(ConnectionResetError):
        ask(proxy)


def test_silence_lasts_as_long_as_the_client_waits(proxy):
    proxy.script = lambda _request: "silent"
    with pytest.raises(TimeoutError):
        ask(proxy, timeout_s=0.3)
    proxy.restart()
    assert ask(proxy) == (200, CONTENT)


def test_one_bit_is_flipped(proxy):
    proxy.script = lambda _request: "flipped"
    body = ask(proxy)[1]
    assert [one ^ other for one, other in zip(body, CONTENT, strict=True) if one != other] == [1]


def requests():
    for number in range(3):
        for key in range(1000):
            yield Request(method="GET", path=f"/b/{key}", is_listing=False, number=number, at_s=0.0)


def test_a_seed_decides_by_key_and_attempt_in_the_asked_shares():
    shares = {"slow_down": 0.2, "hidden": 0.05}
    found = [seeded(1, shares)(request) for request in requests()]
    assert found == [seeded(1, shares)(request) for request in requests()]
    assert found != [seeded(2, shares)(request) for request in requests()]
    counts = Counter(found)
    assert counts["slow_down"] == pytest.approx(600, abs=100)
    assert counts["hidden"] == pytest.approx(150, abs=50)


def test_listings_and_other_methods_are_left_alone():
    script = seeded(1, {"failed": 1.0}, method="PUT")
    assert script(Request(method="GET", path="/b/x", is_listing=False, number=0, at_s=0.0)) is None
    assert script(Request(method="PUT", path="/b/x", is_listing=False, number=0, at_s=0.0)) == "failed"
    assert seeded(1, {"failed": 1.0})(Request(method="GET", path="/b", is_listing=True, number=0, at_s=0.0)) is None
