"""A filter for Swift's proxy: at most one write per object at a time, so that conditional writes have one winner.

S3 promises that of several simultaneous puts with `If-None-Match: *` to one new key exactly one succeeds. Swift checks
the condition and stores the object in two steps: of eight simultaneous puts, two to five answered 200. Its one proxy
process makes the promise easy to keep here. (S3 may also refuse a loser with 409; this server always answers 412.)
Runs inside the interpreter of `.venv-s3`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from eventlet.semaphore import Semaphore

NUM_LOCKS = 64
WRITES = ("PUT", "POST", "DELETE")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def filter_factory(_global_conf: dict[str, str], **_conf: str) -> Callable[[Application], Application]:
    """What the proxy's configuration names as paste.filter_factory."""
    return one_writer


def one_writer(application: Application) -> Application:
    """Wrap a WSGI application: writes to the same path run one after another, parts of a multipart upload excepted."""
    locks = [Semaphore() for _ in range(NUM_LOCKS)]

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in WRITES or "partNumber=" in environ.get("QUERY_STRING", ""):
            return application(environ, start_response)
        with locks[hash(environ["PATH_INFO"]) % NUM_LOCKS]:
            return list(application(environ, start_response))  # the answer to a multipart completion does the work

    return serve
