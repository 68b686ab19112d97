"""Debian's Chromium, one for all browser tests, and a fresh page for each."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import LocalRay
from playwright.sync_api import Browser, Error, sync_playwright

from .browsing import Watched

REQUIRED = "ZSAD_REQUIRE_BROWSER"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Real Chromium; skips where there is none, fails instead if ZSAD_REQUIRE_BROWSER=1."""
    path = shutil.which("chromium")
    if path is None:
        _missing("no chromium on the PATH (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            _missing(f"chromium does not start: {error.message.splitlines()[0]}")
        yield launched
        launched.close()


def _missing(reason: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, but: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="package")
def page_url(local_ray: LocalRay) -> Iterator[str]:
    """Where the real endpoint shows the page; its detectors are nano by WinCLIP and by ALFA."""
    from ray import serve as ray_serve

    from serve.app import page_files
    from zsad.distributed.serving import build_graph
    from zsad.serve_config import ServeConfig

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build_graph(ServeConfig(detectors=("nano", "nano:alfa"), batch_size=1), page_files(), {}))
    url = f"http://127.0.0.1:{port}/"
    _wait_for_detectors(url)
    yield url
    ray_serve.shutdown()


def _wait_for_detectors(url: str, within_s: float = 240) -> None:
    """ALFA calibrates for longer than a request may take; the load goes on when the request is given up."""
    deadline = time.monotonic() + within_s
    while (answer := httpx.get(f"{url}v1/detectors", timeout=60)).status_code != 200:
        assert answer.status_code in (503, 504), answer.text
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture
def open_page(browser: Browser, page_url: str) -> Iterator[Callable[..., Watched]]:
    """A function that opens the page in a fresh context with playwright's options.

    At the end of the test no page may have asked another origin, thrown, or run into the content policy.
    """
    opened: list[Watched] = []

    def opener(*, before: Callable[[Any], None] | None = None, load: bool = True, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        watched = Watched(context.new_page(), page_url)
        opened.append(watched)
        watched.watch()
        if before:
            before(watched.page)
        return watched.open() if load else watched

    yield opener
    for watched in opened:
        watched.page.context.close()
    assert [address for watched in opened for address in watched.foreign] == []
    assert [error for watched in opened for error in watched.errors] == []


@pytest.fixture
def page(open_page: Callable[..., Watched]) -> Watched:
    """The page, loaded, on a desktop."""
    return open_page()
