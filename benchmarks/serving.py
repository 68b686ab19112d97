"""Load on the endpoint: throughput against two ceilings, latency, a soak, batching, a killed scorer, busy neighbours.

python benchmarks/serving.py [--seconds 20] [--soak-minutes 10] [--scorers 1]

The graph runs on a Ray of its own; the load comes from a second process on loopback (locust), with JPEGs of 512 px. The
ceilings are measured in the same run: the bare model (as many processes as there are scorers, one thread each, batches
ready in memory; the mean of before and right after the graph, as a machine's speed drifts) and the same graph with a
scorer whose answer is constant. The graphs share this machine's cores with the load generator, which the bare model
does not pay for.

Printed: images/s of each and their ratio; p50 and p99 at 50 % and 90 % of saturation; statuses and memory over the
soak at 90 %; failures and time to recover when a bundle is replaced, and when a scorer is killed; what is left beside
programs that take all the CPU they get; saturation with batches of one image.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

IMAGE_PX = 512
DISTINCT = 32
CLOSED_USERS = 16
OPEN_USERS = 48
PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
SETTLE_S = 3.0
NEIGHBOURS = (2, 4)
SMALL_RATE = 5.0


def main() -> None:
    """Measure and print; as `--load FILE`, be the second process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--soak-minutes", type=float, default=1.0)
    parser.add_argument("--scorers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        be_load(json.loads(options.load))
        return
    with tempfile.TemporaryDirectory(prefix="zsad-serving-") as name:
        bench = Bench(options, Path(name))
        bench.run()


class Bench:
    """One run; every step prints its figures."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.images = folder / "images"
        self.bundle = folder / "bundle"

    def run(self) -> None:
        """All steps, in the order of the module's description."""
        from zsad.bundle import SHIPPED

        shutil.copytree(SHIPPED / "winclip", self.bundle)
        write_images(self.images)
        before = self.bare("bare model")
        with ray_serve_running():
            with self.graph(constant=True):
                constant = self.saturation("same graph, constant scorer")
            with self.graph():
                real = self.saturation("graph")
                lower = min((before + self.bare("bare model, beside the idle graph")) / 2, constant)
                say("graph / lower ceiling", f"{real / lower:.2f}")
                for share in (0.5, 0.9):
                    self.latency(share, real)
                self.soak(0.9 * real)
                self.replaced_bundle(0.5 * real)
                self.killed_scorer(0.5 * real)
                for count in NEIGHBOURS:
                    self.beside(count)
            with self.graph(batch_size=1):
                single = self.saturation("graph, batches of one image")
            say("batching on / off", f"{real / single:.2f}")

    @contextlib.contextmanager
    def graph(self, *, constant: bool = False, batch_size: int | None = None) -> Iterator[None]:
        """The deployed graph, warm."""
        from ray import serve as ray_serve

        from zsad.distributed.serving import build_graph
        from zsad.distributed.serving_replicas import load_detectors
        from zsad.serve_config import ServeConfig

        config = ServeConfig(
            detectors=(f"bundle={self.bundle}",),
            batch_size=batch_size or self.options.batch_size,
            num_scorers=self.options.scorers,
            max_scorers=self.options.scorers,
            reload_s=1.0,
        )
        made_by = constant_detectors if constant else load_detectors
        ray_serve.run(build_graph(config, {}, {}, make_detectors=made_by))
        wait_until_ready()
        try:
            yield
        finally:
            ray_serve.delete("default")

    def load(self, *, rate: float = 0.0, seconds: float | None = None) -> "Load":
        """Start the second process: `rate` requests/s, or as fast as answers come."""
        wanted = {"images": str(self.images), "rate": rate, "seconds": seconds or self.options.seconds}
        command = [sys.executable, __file__, "--load", json.dumps(wanted)]
        return Load(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603 - this file itself

    def bare(self, what: str) -> float:
        """Images/s of the model alone."""
        rate = bare_rate(self.options.scorers, self.options.batch_size, self.options.seconds)
        say(f"{what}, {self.options.scorers} process(es)", f"{rate:.1f} images/s")
        return rate

    def saturation(self, what: str) -> float:
        """Images/s with 16 clients that ask on as soon as they are answered."""
        told = self.load().result()
        say(
            what, f"{told['rate']:.1f} images/s, p50 {told['p50']:.0f} ms, p99 {told['p99']:.0f} ms, {told['statuses']}"
        )
        return float(told["rate"])

    def latency(self, share: float, saturation: float) -> None:
        """Latency at a share of saturation."""
        told = self.load(rate=share * saturation).result()
        say(f"at {share:.0%} of saturation", f"p50 {told['p50']:.0f} ms, p99 {told['p99']:.0f} ms, {told['statuses']}")

    def soak(self, rate: float) -> None:
        """Statuses, and memory at a fifth and at the end of a long load."""
        seconds = 60 * self.options.soak_minutes
        load = self.load(rate=rate, seconds=seconds)
        time.sleep(SETTLE_S + seconds / 5)
        early = memory_bytes()
        time.sleep(seconds * 3 / 4)
        late = memory_bytes()
        told = load.result()
        num_5xx = sum(count for status, count in told["statuses"].items() if not status.startswith(("2", "4")))
        say(
            f"{self.options.soak_minutes:g} minutes at 90 %",
            f"{told['requests']} requests, {num_5xx} x 5xx, memory {early / 2**20:.0f} -> {late / 2**20:.0f} MiB "
            f"({late / early - 1:+.1%})",
        )

    def replaced_bundle(self, rate: float) -> None:
        """Overwrite the bundle's description under load."""
        load = self.load(rate=rate, seconds=15)
        time.sleep(SETTLE_S + 2)
        path = self.bundle / "detector.json"
        stored = json.loads(path.read_text())
        stored["calibration"]["threshold"] = 0.25
        (self.folder / "new").write_text(json.dumps(stored))
        (self.folder / "new").replace(path)
        began = time.monotonic()
        while threshold() != 0.25 and time.monotonic() - began < 60:
            time.sleep(0.2)
        took_s = time.monotonic() - began
        say("bundle replaced under load", f"{load.result()['statuses']}, new version after {took_s:.1f} s")

    def killed_scorer(self, rate: float) -> None:
        """SIGKILL a scorer under load."""
        load = self.load(rate=rate, seconds=60)
        time.sleep(SETTLE_S + 2)
        victim = pids("ray::ServeReplica:default:Scorer")[0]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        while victim in pids("ray::") or not is_answering():
            time.sleep(0.2)
        took_s = time.monotonic() - began
        say("scorer killed under load", f"{load.result()['statuses']}, answers again after {took_s:.1f} s")

    def beside(self, count: int) -> None:
        """Saturation, and latency at a small rate, beside so many endless loops of ordinary priority."""
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            self.saturation(f"beside {count} endless loops")
            told = self.load(rate=SMALL_RATE).result()
        finally:
            for loop in loops:
                loop.kill()
        latency = f"p50 {told['p50']:.0f} ms, p99 {told['p99']:.0f} ms"
        say(f"there at {SMALL_RATE:g} requests/s", f"{latency}, {told['statuses']}")


@dataclass(slots=True)
class Load:
    """A load that runs in another process."""

    process: "subprocess.Popen[str]"

    def result(self) -> dict[str, Any]:
        """Its figures, when it has ended."""
        told, _ = self.process.communicate()
        return dict(json.loads(told.splitlines()[-1]))


def be_load(wanted: dict[str, Any]) -> None:
    """The second process: post images with locust, print figures as JSON."""
    import gevent
    from locust import FastHttpUser, task
    from locust.env import Environment

    images = [path.read_bytes() for path in sorted(Path(wanted["images"]).iterdir())]
    statuses: Counter[str] = Counter()

    class Client(FastHttpUser):
        host = URL
        network_timeout = 60.0

        def wait_time(self) -> float:
            """Requests of many such users together come at random, at the rate asked for (a Poisson process)."""
            if not wanted["rate"]:
                return 0.0
            self.due += random.expovariate(wanted["rate"] / OPEN_USERS)
            return max(0.0, self.due - time.monotonic())

        def on_start(self) -> None:
            self.due = time.monotonic()
            gevent.sleep(self.wait_time())

        @task
        def inspect(self) -> None:
            data = images[statuses.total() % len(images)]
            headers = {"content-type": "image/jpeg"}
            with self.client.post("/v1/inspect", data=data, headers=headers, catch_response=True) as response:
                statuses[str(response.status_code)] += 1
                response.success()

    environment = Environment(user_classes=[Client])
    runner = environment.create_local_runner()
    num_users = OPEN_USERS if wanted["rate"] else CLOSED_USERS
    runner.start(num_users, spawn_rate=num_users)
    gevent.sleep(SETTLE_S)
    environment.stats.reset_all()
    statuses.clear()
    began = time.monotonic()
    gevent.sleep(wanted["seconds"])
    total = environment.stats.total
    figures = {
        "rate": statuses["200"] / (time.monotonic() - began),
        "requests": total.num_requests,
        "p50": total.get_response_time_percentile(0.5) or 0,
        "p99": total.get_response_time_percentile(0.99) or 0,
        "statuses": dict(statuses),
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)  # locust's users would finish their requests first


def write_images(folder: Path) -> None:
    """Distinct JPEGs of 512 px."""
    from PIL import Image

    from zsad.datasets.synthetic import SyntheticConfig, generate

    folder.mkdir()
    for number in range(DISTINCT):
        sink = io.BytesIO()
        Image.fromarray(generate(3, number, SyntheticConfig(size=IMAGE_PX)).image).save(sink, "JPEG", quality=92)
        (folder / f"{number:03d}.jpg").write_bytes(sink.getvalue())


def bare_rate(num_processes: int, batch_size: int, seconds: float) -> float:
    """Images/s of the model alone: whole batches in memory, one thread a process."""
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as workers:
        list(workers.map(_bare, [(batch_size, 1.0)] * num_processes))  # imports and warm-up
        return sum(workers.map(_bare, [(batch_size, seconds)] * num_processes))


def _bare(job: tuple[int, float]) -> float:
    import numpy as np
    import torch

    from zsad.detector import load_detector

    batch_size, seconds = job
    torch.set_num_threads(1)
    detector = _LOADED.setdefault(batch_size, load_detector("nano", device="cpu", batch_size=batch_size))
    size = detector.config.preprocess.size
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8))
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        count += len(detector.method.predict(pixels).score_B)
    return count / (time.monotonic() - began)


_LOADED: dict[int, Any] = {}


def constant_detectors(config: Any) -> Any:
    """A scorer's detectors whose model costs nothing: the same prediction for every batch."""
    from zsad.distributed.serving_replicas import load_detectors

    held = load_detectors(config)
    load = held.load

    def load_constant(key: Any) -> Any:
        loaded = load(key)
        size = loaded.description.preprocess.size
        import numpy as np

        blank = np.zeros((1, size, size, 3), np.uint8)
        (finding,) = loaded.detector.inspect_pixels(blank, [(IMAGE_PX, IMAGE_PX)])
        loaded.detector.inspect_pixels = lambda pixels, sizes: [finding] * len(sizes)
        return loaded

    held.load = load_constant
    return held


@contextlib.contextmanager
def ray_serve_running() -> Iterator[None]:
    """A Ray of its own with Ray Serve's proxy, in the environment of `make serve`."""
    settings = Path(__file__).parents[1] / "serve" / "ray.env"
    os.environ.update(line.split("=", maxsplit=1) for line in settings.read_text().splitlines())
    import ray
    from ray import serve as ray_serve

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    try:
        yield
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def wait_until_ready() -> None:
    """Return when `/v2/health/ready` says so."""
    import httpx

    for _ in range(300):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{URL}/v2/health/ready", timeout=10).status_code == 200:
                return
        time.sleep(0.3)
    sys.exit("the endpoint did not become ready")


def threshold() -> float:
    """The default detector's threshold as the endpoint tells it."""
    import httpx

    return float(httpx.get(f"{URL}/v1/detectors", timeout=30).json()["detectors"][0]["threshold"])


def is_answering() -> bool:
    """Whether the endpoint says that it is ready, asked for the first time in more than a second."""
    import httpx

    time.sleep(1.1)
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{URL}/v2/health/ready", timeout=10).status_code == 200
    return False


def pids(beginning: str) -> list[int]:
    """Ray's processes whose title begins so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(beginning.encode()):
                found.append(int(folder.name))
    return found


def memory_bytes() -> int:
    """Resident bytes of all of Ray Serve's processes."""
    total = 0
    for pid in pids("ray::Serve") + pids("ray::Proxy"):
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def say(what: str, figures: str) -> None:
    """One line of the result."""
    print(f"{what:<46} {figures}", flush=True)


if __name__ == "__main__":
    main()
