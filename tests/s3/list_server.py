"""A fast server that answers only what listing needs: ListObjectsV2 over any number of made-up keys.

It stands in for a large bucket in tests and benchmarks of listing; everything else is tested against the real server
of `server.py`. Standard library only. `python tests/s3/list_server.py --objects 1000000 [--faults]` prints its address
and serves until its standard input ends.

With faults, every 7th listing request gets the page before the one it asked for, and all pages name one next token.
"""

import argparse
import contextlib
import subprocess
import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

BUCKET = "large"
KEYS_PER_PAGE = 1000
FAULT_EVERY = 7
LONGEST = "long/" + "x" * 1015 + ".jpg"  # 1,024 bytes
# Key -> bytes; legal in S3, all listed.
ODD_KEYS = {
    "line0/cam0/with space.jpg": 5,
    "line1/../../escape.jpg": 5,
    "line1/a&b<c>.jpg": 5,
    "line2//double//slash.jpg": 5,
    "line2/empty.jpg": 0,
    "line3/Gehäuse/größe 🔩.jpg": 5,
    "line3/plus+percent%20.jpg": 5,
    "line3/trailing/": 5,
    LONGEST: 5,
}
FOLDER_MARK = "line1/"  # ends in "/" and has 0 bytes: not listed
_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-03-01T10:00:00.000Z</LastModified>"
    "<ETag>&quot;e&quot;</ETag><Size>{}</Size></Contents>"
)


def regular_keys(count: int) -> list[str]:
    """`count` keys in 4 lines of 4 cameras each, sorted."""
    each = -(-count // 16)
    return [f"line{n // (4 * each)}/cam{n // each % 4}/{n % each:08d}.jpg" for n in range(count)]


class _Bucket:
    """Sorted keys with their sizes, and the pages of a listing."""

    def __init__(self, count: int, *, has_faults: bool) -> None:
        self.sizes = {**ODD_KEYS, FOLDER_MARK: 0}
        self.keys = sorted([*regular_keys(count), *self.sizes])
        self.has_faults = has_faults
        self.num_requests = 0
        self.lock = threading.Lock()

    def page(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        if "delimiter" in query:
            return _answer("".join(self._folders(prefix)), is_truncated=False)
        with self.lock:
            self.num_requests += 1
            is_fault = self.has_faults and self.num_requests % FAULT_EVERY == 0
        start = bisect_right(self.keys, query.get("start-after", [""])[0])
        start = max(start - KEYS_PER_PAGE * is_fault, bisect_left(self.keys, prefix))
        found = [key for key in self.keys[start : start + KEYS_PER_PAGE] if key.startswith(prefix)]
        entries = "".join(_ENTRY.format(escape(key), self.sizes.get(key, 5)) for key in found)
        is_truncated = len(found) == KEYS_PER_PAGE and start + KEYS_PER_PAGE < len(self.keys)
        return _answer(entries, is_truncated=is_truncated)

    def _folders(self, prefix: str) -> Iterator[str]:
        place = bisect_left(self.keys, prefix)
        while place < len(self.keys) and self.keys[place].startswith(prefix):
            name, slash, _ = self.keys[place][len(prefix) :].partition("/")
            if not slash:
                place += 1
                continue
            yield f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>"
            place = bisect_left(self.keys, prefix + name + "0")  # "0" is the character behind "/"


def _answer(entries: str, *, is_truncated: bool) -> str:
    flags = f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated><NextContinuationToken>same</NextContinuationToken>"
    return f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name>{flags}{entries}</ListBucketResult>'


def _serve(count: int, *, has_faults: bool) -> None:
    bucket = _Bucket(count, has_faults=has_faults)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bucket.page(parse_qs(urlsplit(self.path).query, keep_blank_values=True)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Keep the output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def list_server(count: int, *, has_faults: bool = False) -> Iterator[dict[str, str]]:
    """Run the server in a process of its own; yields the environment that reaches it as s3://large."""
    command = [sys.executable, str(Path(__file__)), "--objects", str(count), *(["--faults"] if has_faults else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield {
                "AWS_ENDPOINT_URL_S3": process.stdout.readline().strip(),
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            process.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--faults", action="store_true")
    arguments = parser.parse_args()
    _serve(arguments.objects, has_faults=arguments.faults)
