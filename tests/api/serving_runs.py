"""What the API tests share: the endpoint's address, pictures, and the processes of Ray."""

import contextlib
import io
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from PIL import Image

from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.serve_config import ServeConfig

NUM_PARITY = 200  # images that the batch job and the endpoint must score alike
BATCH_SIZE = 4
THRESHOLD = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where it listens, its settings, and the bundle behind the detector `changing`, which tests may overwrite."""

    port: int
    config: ServeConfig
    changing: Path
    bucket: Path

    @property
    def url(self) -> str:
        """Base of all addresses."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings) -> httpx.Client:
        """A client of one's own: httpx's are no good in several threads."""
        return httpx.Client(base_url=self.url, **{"timeout": 60, **settings})

    def connect(self) -> socket.socket:
        """A bare connection, to say what no client would."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def wait_until_ready(endpoint: Endpoint, within_s: float = 60) -> float:
    """Seconds until `/v2/health/ready` says 200."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{endpoint.url}/v2/health/ready", timeout=10).status_code == 200:
                return time.monotonic() - began
        time.sleep(0.2)
    raise TimeoutError(f"the endpoint was not ready within {within_s} s")


def picture(number: int, size: int = 96) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(generate(5, number, SyntheticConfig(size=size, anomaly_share=0.5)).image).save(sink, "JPEG")
    return sink.getvalue()


def processes(name: str) -> list[psutil.Process]:
    """Ray's processes whose title begins with `name`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline() and process.cmdline()[0].startswith(name):
                found.append(process)
    return found
