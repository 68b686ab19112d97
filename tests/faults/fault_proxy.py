"""A proxy in front of a real S3 server that spoils chosen answers; what it spoils depends on a seed and on keys only.

It forwards requests byte for byte (signatures stay valid) and keeps a record of all of them. Which fault meets which
request is a function of (seed, key, how often this key was asked for), so that a run can be repeated from its seed
whatever the order in which threads and processes arrive. Standard library only.

| fault | what the client sees |
|---|---|
| `slow_down` | 503 with S3's SlowDown document |
| `hidden` | the same document inside HTTP 200 |
| `flipped` | the right head, and the body with one bit flipped |
| `reset` | the right head, half of the body, then a connection reset |
| `short` | the right head, half of the body, then an orderly end of the connection |
| `silent` | nothing, for as long as it waits |
| `forbidden`, `missing` | 403 AccessDenied, 404 NoSuchKey |
| `failed` | 500 InternalError; the request is not forwarded |
| `lost` | the request is forwarded, and the connection is reset instead of an answer |
"""

import asyncio
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_DOCUMENT = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>by the fault proxy</Message></Error>'
)
_ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "hidden": (200, "SlowDown"),
    "forbidden": (403, "AccessDenied"),
    "missing": (404, "NoSuchKey"),
    "failed": (500, "InternalError"),
}
_NO_BODY = (204, 304)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: `path` is decoded and without a query; `number` counts requests for this method and path from 0."""

    method: str
    path: str
    is_listing: bool
    number: int
    at_s: float

    @property
    def is_object_get(self) -> bool:
        """Whether it reads an object's content."""
        return self.method == "GET" and not self.is_listing


Script = Callable[[Request], str | None]


def no_faults(_request: Request) -> str | None:
    """Forward everything."""
    return None


def seeded(seed: int, shares: Mapping[str, float], *, method: str = "GET") -> Script:
    """Spoil object requests of one method: each fault with its share, drawn from the seed, the key and the attempt."""

    def script(request: Request) -> str | None:
        if request.is_listing or request.method != method:
            return None
        key = request.path.split("/", 2)[-1]  # without the bucket, whose name is new each time
        draw = random.Random(f"{seed} {key} {request.number}").random()
        for fault, share in shares.items():
            if draw < share:
                return fault
            draw -= share
        return None

    return script


class FaultProxy:
    """Context manager: a proxy on a loopback port in a thread of its own; `script` may be replaced at any time."""

    def __init__(self, upstream_port: int, script: Script = no_faults) -> None:
        self.script = script
        self.requests: list[tuple[Request, str | None]] = []
        self._upstream_port = upstream_port
        self._counts: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self.port = 0

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL must be."""
        return f"http://127.0.0.1:{self.port}"

    def restart(self, script: Script = no_faults) -> None:
        """Forget all requests so far, and go on with another script."""
        self.script, self.requests, self._counts = script, [], Counter()

    def num_faults(self) -> Counter[str]:
        """How often each fault was used."""
        return Counter(fault for _, fault in self.requests if fault)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        server.close()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False when the connection is to be closed."""
        head = await reader.readuntil(b"\r\n\r\n")
        headers = parse_headers(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = self._note(head)
        fault = await asyncio.to_thread(self.script, request)
        self.requests.append((request, fault))
        if fault in _ANSWERS:
            writer.write(error_answer(*_ANSWERS[fault], is_head=request.method == "HEAD"))
            await writer.drain()
            return True
        if fault == "silent":
            await reader.read(1)  # until the client gives up
            return False
        return await self._forward(request, head, body, writer, fault)

    def _note(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        parts = urlsplit(target)
        path = unquote(parts.path)
        number = self._counts[method, path]
        self._counts[method, path] += 1
        is_listing = method == "GET" and ("list-type" in parts.query or path.count("/") == 1)
        return Request(method=method, path=path, is_listing=is_listing, number=number, at_s=time.monotonic())

    async def _forward(
        self, request: Request, head: bytes, body: bytes, writer: asyncio.StreamWriter, fault: str | None
    ) -> bool:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port, limit=2**20)
        try:
            upstream.write(without_expect(head) + body)
            answer_head = await upstream_reader.readuntil(b"\r\n\r\n")
            status, headers = int(answer_head.split(b" ", 2)[1]), parse_headers(answer_head)
            has_body = request.method != "HEAD" and status not in _NO_BODY
            if "content-length" not in headers and has_body:
                raise ConnectionError("an answer without a length, which this proxy can't tell the end of")
            content = await upstream_reader.readexactly(int(headers.get("content-length", 0)) if has_body else 0)
        finally:
            upstream.close()
        if fault == "lost":
            reset(writer)
            return False
        if fault in {"reset", "short"}:
            writer.write(answer_head + content[: len(content) // 2])
            await writer.drain()
            if fault == "reset":
                await asyncio.sleep(0.02)  # a reset discards what the client has not read yet
                reset(writer)
            return False
        writer.write(answer_head + (flipped(content) if fault == "flipped" else content))
        await writer.drain()
        return True


def parse_headers(head: bytes) -> dict[str, str]:
    """Header fields of a request or answer by lower-case name."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def without_expect(head: bytes) -> bytes:
    """The head without `Expect`, which the proxy has answered."""
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(b"expect:"))


def error_answer(status: int, code: str, *, is_head: bool) -> bytes:
    """An S3 error as a whole answer."""
    body = _DOCUMENT.format(code).encode()
    head = f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if is_head else body)


def flipped(content: bytes) -> bytes:
    """The content with one bit in its middle flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset instead of an orderly end."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
