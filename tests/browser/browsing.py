"""What the browser tests share: files to upload, and a page that is watched for errors and foreign requests."""

import io
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, Request, Response, Route, expect

from zsad.datasets.synthetic import SyntheticConfig, generate

ANSWER_MS = 150_000  # a first answer may wait for a model to load on a busy machine
INSPECT = "**/v1/inspect?*"


def upload(name: str, content: bytes, kind: str = "image/png") -> dict[str, Any]:
    """A file as playwright hands it to an input."""
    return {"name": name, "mimeType": kind, "buffer": content}


def encoded(rgb_HW3: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    sink = io.BytesIO()
    Image.fromarray(rgb_HW3).save(sink, form, **options)
    return sink.getvalue()


def picture(number: int, *, size: int = 256) -> np.ndarray:
    """A procedural picture, the same every time; about half of them have a defect."""
    return generate(3, number, SyntheticConfig(size=size, anomaly_share=0.5)).image


@dataclass
class Watched:
    """A page and all that it asked for.

    Attributes:
        inspections: requests to /v1/inspect, in order.
        foreign: addresses of requests to any other origin; all are aborted.
        errors: uncaught exceptions and messages of the content policy.
    """

    page: Page
    url: str
    inspections: list[Request] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Begin; before the page is opened."""
        origin = urlsplit(self.url).netloc
        self.page.route(
            lambda url: urlsplit(url).netloc != origin and not url.startswith(("data:", "blob:")), self._abort
        )
        self.page.on("request", self._seen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)

    def _abort(self, route: Route) -> None:
        self.foreign.append(route.request.url)
        route.abort()

    def _seen(self, request: Request) -> None:
        if "/v1/inspect" in request.url:
            self.inspections.append(request)

    def _said(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.errors.append(message.text)

    def open(self) -> "Watched":
        """Load the page and wait for its detectors."""
        self.page.goto(self.url)
        expect(self.at("#detector")).to_be_enabled(timeout=ANSWER_MS)
        return self

    def at(self, selector: str) -> Locator:
        """The element."""
        return self.page.locator(selector)

    def give(self, *files: dict[str, Any]) -> None:
        """Choose files, without waiting for answers."""
        self.at("#files").set_input_files(list(files))

    def inspect(self, *files: dict[str, Any]) -> dict[str, Any]:
        """Choose files and wait for the answers; returns the last one."""
        with self.page.expect_response(INSPECT, timeout=ANSWER_MS) as waited:
            self.give(*files)
        self.settled()
        response: Response = waited.value
        return response.json() if response.ok else {}

    def settled(self) -> None:
        """Wait until every image has its answer or refusal, and the shown one is drawn."""
        expect(self.at("#strip button").first).to_be_visible()
        expect(self.at("#stop")).to_be_hidden(timeout=ANSWER_MS)
        expect(self.at("#verdict-text")).not_to_have_class("tone wait", timeout=ANSWER_MS)
        if self.at("#findings").is_visible():
            label = re.compile("^" + re.escape(self.at("#subject").inner_text()))
            expect(self.at("#photo")).to_have_attribute("aria-label", label)

    def set_threshold(self, value: float) -> None:
        """Type a threshold."""
        self.at("#threshold").fill(str(value))
