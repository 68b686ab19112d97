"""The protocol on real sockets of a real uvicorn, with shorter times; tests/api has it inside Ray Serve's proxy."""

import asyncio

import pytest
import uvicorn

from zsad.http import proxy_guard
from zsad.http.proxy_guard import CleanHeaders, ImpatientProtocol

SHORT_S = 0.2


async def app(scope, receive, send):
    """Answers without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(scenario, monkeypatch):
    """Run `scenario(reader, writer)` against a server."""
    monkeypatch.setattr(proxy_guard, "HEADERS_TIMEOUT_S", SHORT_S)
    monkeypatch.setattr(proxy_guard, "REST_TIMEOUT_S", SHORT_S)

    async def main():
        config = uvicorn.Config(app, port=0, http=ImpatientProtocol, lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.wait_for(scenario(reader, writer), 20)
        finally:
            writer.close()
            server.should_exit = True
            await task

    asyncio.run(main())


@pytest.mark.parametrize("beginning", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_end_close_the_connection(monkeypatch, beginning):
    async def scenario(reader, writer):
        writer.write(beginning)
        assert await reader.read() == b""

    served(scenario, monkeypatch)


def test_a_whole_request_is_answered_and_the_connection_kept(monkeypatch):
    async def scenario(reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(2 * SHORT_S)

    served(scenario, monkeypatch)


def test_a_body_behind_its_answer_may_not_go_on_for_ever(monkeypatch):
    async def scenario(reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        await reader.readuntil(b"ok")
        assert await reader.read() == b""

    served(scenario, monkeypatch)


def request_id(*given: bytes) -> bytes:
    seen = []

    async def inner(scope, receive, send):
        seen.append([value for name, value in scope["headers"] if name == b"x-request-id"])

    headers = [(b"x-request-id", value) for value in given]
    asyncio.run(CleanHeaders(inner)({"type": "http", "headers": headers}, None, None))
    (found,) = seen[0]
    return found


def test_a_plain_id_is_kept():
    assert request_id(b"line1-000017") == b"line1-000017"


@pytest.mark.parametrize("given", [[], [b""], [b"a b"], [b"<i>"], [b"x" * 129], [b"a", b"b"], [b"\xff"]])
def test_any_other_id_is_replaced(given):
    assert len(request_id(*given)) == 36
    assert request_id(*given) not in given


@pytest.mark.parametrize(
    "name", [b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"x-request-disconnect-disabled"]
)
def test_headers_that_would_steer_ray_serve_are_dropped_and_no_other(name):
    seen = []

    async def inner(scope, receive, send):
        seen.extend(scope["headers"])

    headers = [(name, b"?1"), (b"content-type", b"image/png"), (b"x-request-id", b"a")]
    asyncio.run(CleanHeaders(inner)({"type": "http", "headers": headers}, None, None))
    assert sorted(seen) == [(b"content-type", b"image/png"), (b"x-request-id", b"a")]
