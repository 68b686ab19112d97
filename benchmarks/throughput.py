"""Throughput of the main job against a hand-written loop, interleaved in one run on this machine.

make bench   (or: python benchmarks/throughput.py [--images 3000] [--rounds 3])

The loop does the least that gives the same scores: read, decode, resize, the same model on the same batch size. It runs
as one process with two threads and as two processes with one thread each, before and after the job, on at most 3,000
of its images; the job is compared with the better of them.
Start-up is excluded on both sides: the loop starts its clock when model and files are ready, the job's clock runs over
the last two thirds of its committed shards (in the first third its second scorer is still importing torch). Printed:
medians, their ratio, and the peak memory of all processes of the job.
Refuses to measure when the machine is busy at the start.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

IMAGE_PX = 512
DISTINCT = 300
LOOP_IMAGES = 3000
SAMPLE_S = 5.0  # reading the memory of all processes takes 55 ms of CPU
WARM_SHARE = 1 / 3
BATCH = 16
BUSY_SHARE = 0.15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if (busy := busy_share(3.0)) > BUSY_SHARE:
        sys.exit(f"the machine is busy ({busy:.0%} of its CPU time); a ratio measured now would mean nothing")
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as name:
        folder = Path(name)
        paths = write_images(folder / "images", arguments.images)
        rates: dict[str, list[float]] = {"one process, two threads": [], "two processes": [], "the job": []}
        jobs: list[PeakMemory] = []
        for number in range(arguments.rounds):
            _run_loops(paths[:LOOP_IMAGES], rates)
            with PeakMemory() as memory:
                rates["the job"].append(job(folder / "images", folder / f"report{number}", len(paths)))
            jobs.append(memory)
            _run_loops(paths[:LOOP_IMAGES], rates)
            print(f"round {number + 1}: the job {rates['the job'][-1]:.1f}", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(medians["one process, two threads"], medians["two processes"])
    for name, value in medians.items():
        each = ", ".join(f"{rate:.1f}" for rate in rates[name])
        print(f"{name:<26} {value:7.1f} images/s, median of {each}")
    print(f"ratio job / better loop    {medians['the job'] / best:7.2f}")
    peak_gib = max(memory.peak_gib for memory in jobs)
    print(f"peak memory of the job     {peak_gib:7.2f} GiB (proportional set size, all its processes)")
    print(f"growth from 30 % to 90 %   {max(m.growth for m in jobs):+7.1%}")


def _run_loops(paths: list[Path], rates: dict[str, list[float]]) -> None:
    rates["one process, two threads"].append(loop(paths, processes=1, threads=2))
    rates["two processes"].append(loop(paths, processes=2, threads=1))


def busy_share(seconds: float) -> float:
    """Share of all CPU time that was not idle during `seconds`."""

    def read() -> tuple[int, int]:
        fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]

    before = read()
    time.sleep(seconds)
    after = read()
    return 1 - (after[1] - before[1]) / max(1, after[0] - before[0])


def write_images(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 512 px: 300 drawn ones, each under several names and made unique by a JPEG comment."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        drawn = list(tqdm(workers.map(_draw, range(DISTINCT), chunksize=8), total=DISTINCT, desc="drawing"))
    paths = []
    for number in range(count):
        picture = Image.open(io.BytesIO(drawn[number % DISTINCT]))
        paths.append(folder / f"{number:05d}.jpg")
        picture.save(paths[-1], quality="keep", comment=f"number {number}".encode())
    return paths


def _draw(index: int) -> bytes:
    from zsad.datasets.synthetic import SyntheticConfig, generate

    sink = io.BytesIO()
    Image.fromarray(generate(3, index, SyntheticConfig(size=IMAGE_PX)).image).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def loop(paths: list[Path], *, processes: int, threads: int) -> float:
    """Images/s of the hand-written loop, its processes warm before the clock starts."""
    parts = [paths[i::processes] for i in range(processes)]
    context = get_context("spawn")
    all_warm = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _warm_up, (threads, paths[:BATCH], all_warm)) as workers:
        list(workers.map(_count, [[]] * processes))  # starts every process and waits until all are warm
        began = time.monotonic()
        total = sum(workers.map(_count, parts))
    assert total == len(paths)  # noqa: S101 - a benchmark that skipped work must not print
    return len(paths) / (time.monotonic() - began)


def _warm_up(threads: int, paths: list[Path], all_warm: Any) -> None:
    import torch

    from zsad.detector import load_detector

    torch.set_num_threads(threads)
    _LOADED["detector"] = load_detector("nano", device="cpu", batch_size=BATCH)
    _count(paths)
    all_warm.wait()


def _count(paths: list[Path]) -> int:
    """Score files in batches; returns how many."""
    import torch

    from zsad.images import DecodeLimits, decode_image

    detector = _LOADED["detector"]
    resize = detector.config.preprocess.apply
    scores = 0
    for start in range(0, len(paths), BATCH):
        pixels = [resize(decode_image(p.read_bytes(), DecodeLimits())) for p in paths[start : start + BATCH]]
        scores += len(detector.method.predict(torch.from_numpy(np.stack(pixels))).score_B)
    return scores


_LOADED: dict[str, Any] = {}


def job(images: Path, output: Path, count: int) -> float:
    """Images/s of the main job once a third of its shards are committed."""
    from zsad.batch_config import BatchConfig
    from zsad.distributed.batch import score_bucket
    from zsad.report.read import open_manifest
    from zsad.storage import open_store

    score_bucket(BatchConfig(input=str(images), output=str(output), batch_size=BATCH))
    manifest = open_manifest(open_store(str(output)))
    assert manifest.totals["ok"] == count  # noqa: S101 - see above
    stored = json.loads((output / "runs" / manifest.run_id / "summary.json").read_text())
    print(f"spilled bytes {stored['memory']['spilled_bytes']}", flush=True)
    records = sorted((output / "runs" / manifest.run_id / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    times = [record.stat().st_mtime for record in records]
    warm = round(WARM_SHARE * len(times))
    measured = count - sum(json.loads(record.read_text())["rows"] for record in records[:warm])
    shutil.rmtree(output)
    return measured / (times[-1] - times[warm - 1])


class PeakMemory:
    """Sums of proportional set sizes of this project's processes while it is open, one every `SAMPLE_S`."""

    @property
    def peak_gib(self) -> float:
        """The largest."""
        return max(self.samples_gib, default=0.0)

    @property
    def growth(self) -> float:
        """From 30 % of the time to 90 %, as a share; medians of the tenths around the two."""
        count = len(self.samples_gib)
        early, late = (
            statistics.median(self.samples_gib[round((at - 0.05) * count) : round((at + 0.05) * count) + 1])
            for at in (0.3, 0.9)
        )
        return late / early - 1

    def __enter__(self) -> "PeakMemory":
        self.samples_gib: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            total = sum(_pss_kib(process) for process in Path("/proc").glob("[0-9]*"))
            self.samples_gib.append(total / 2**20)


def _pss_kib(process: Path) -> int:
    """Proportional set size of a process of this environment; 0 for others and for those that just ended."""
    try:
        command = (process / "cmdline").read_bytes().decode(errors="replace")
        if sys.prefix not in command and not command.startswith("ray::"):
            return 0
        line = next(ln for ln in (process / "smaps_rollup").read_text().splitlines() if ln.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1])


if __name__ == "__main__":
    main()
