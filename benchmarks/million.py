"""A million objects through the whole job with a scorer that reads nothing: what zsad itself costs per row.

python benchmarks/million.py [--objects 1000000] [--small 100000] [--served 100000]

No image exists. A synthetic lister makes up the objects in the driver; listing by S3 requests is measured apart, from a
local server that only lists (tests/s3/list_server.py). The job is the real one - manifest, waves through Ray Data,
shard records, files put together, publishing, summary, gallery - but for its decode task, which passes manifest rows
on, and its scorer, which gives every row the same finding. Shards have 512 rows, as on a GPU. Each measurement runs in
a process of its own; the rows are counted in the published report.

Printed: seconds, rows/s, CPU time of all processes per row (a busy machine changes it less than seconds), memory of the
driver and of all processes (proportional set size), and seconds from the first manifest file to the first committed
shard, with the start of workers.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / "tests"), str(Path(__file__).parent)]
SHARD_ROWS = 512


def main() -> None:
    """Measure each size in its own process and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--served", type=int, default=100_000)
    parser.add_argument("--measure", choices=("listing", "served", "job"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = {"listing": listing, "served": listing, "job": job}[arguments.measure]
        lister = None if arguments.measure == "served" else SyntheticList(arguments.objects)
        with tempfile.TemporaryDirectory(prefix="zsad-million-") as folder:
            print(json.dumps(measure(arguments.objects, Path(folder), lister)))
        return
    run_alone("listing", arguments.objects)
    small, large = run_alone("job", arguments.small), run_alone("job", arguments.objects)
    for name in ("CPU ms/row", "peak MB"):
        print(f"{name}, {arguments.objects:,} / {arguments.small:,}: {large[name] / small[name]:.2f}", flush=True)
    print(f"seconds per row, likewise: {small['rows/s'] / large['rows/s']:.2f}", flush=True)
    from s3.list_server import list_server

    with list_server(arguments.served) as env:
        run_alone("served", arguments.served, env)


def run_alone(part: str, size: int, env: Mapping[str, str] | None = None) -> dict[str, float]:
    """One measurement in a fresh process; printed as soon as it is there."""
    command = [sys.executable, __file__, "--measure", part, "--objects", str(size)]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{part}, {size:,} objects: " + ", ".join(f"{k} {v:,.2f}" for k, v in found.items()), flush=True)
    return found


class SyntheticList:
    """Lists made-up objects in key order; takes the place of `ObjectList` in the job."""

    url = "made up"

    def __init__(self, size: int, root: str = "s3://made-up") -> None:
        self.size = size
        self.root = root

    def contains(self, _other: Any) -> bool:
        """No output lies inside."""
        return False

    def list(self, prefix: str = "", after: str = "") -> Iterator[Any]:
        """Yield `size` objects."""
        from zsad.storage import ObjectInfo

        moment = datetime(2026, 3, 1, tzinfo=UTC)
        for number in range(self.size):
            key = f"line{number // 250_000}/cam{number // 50_000 % 5}/{number:09d}.jpg"
            if key > after:
                uri = f"{self.root}/{key}"
                yield ObjectInfo(key=key, uri=uri, size_bytes=5, etag=f"{number:032x}", last_modified=moment)


def listing(size: int, folder: Path, lister: SyntheticList | None) -> dict[str, float]:
    """Listing into a manifest, without Ray."""
    from zsad.report.manifest import ListingOptions, iter_listing, objects_to_table, write_manifest
    from zsad.storage import open_store

    source, output = lister or open_store("s3://large"), open_store(str(folder))
    objects_to_table([next(iter_listing(source, ListingOptions()))])  # connected and imported
    before_mb, began, before_s = peak_mb(), time.monotonic(), time.process_time()
    first: list[float] = []
    summary = write_manifest(
        source,
        output,
        "run",
        ListingOptions(rows_per_shard=64),
        announce=lambda shards, _rows: first.append(time.monotonic() - began) if shards and not first else None,
    )
    seconds = time.monotonic() - began
    check(summary.num_objects, size if lister else size + num_odd())
    return {
        "seconds": seconds,
        "keys/s": size / seconds,
        "CPU ms/key": 1000 * (time.process_time() - before_s) / size,
        "first manifest file after s": first[0],
        "memory growth MB": peak_mb() - before_mb,
    }


def job(size: int, folder: Path, _lister: SyntheticList | None) -> dict[str, float]:
    """The whole job."""
    from throughput import PeakMemory

    from zsad.batch_config import BatchConfig
    from zsad.distributed import batch
    from zsad.distributed.cluster import connect
    from zsad.report.read import open_manifest
    from zsad.storage import open_store

    batch.decode_block, batch.ShardScorer = pass_on, ConstantScorer
    batch.shard_rows = lambda *_arguments, **_named: SHARD_ROWS
    batch.ObjectList = lambda _url, source: SyntheticList(size, source.url)
    images, output = folder / "images", folder / "report"
    images.mkdir()
    connect()
    before_mb, began, before_s = peak_mb(), time.monotonic(), cpu_seconds()
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        watch = FirstRow(output)
        batch.score_bucket(
            BatchConfig(input=str(images), output=str(output), manifest="made up", maps="none", batch_size=16)
        )
        seconds = time.monotonic() - began
    published = open_manifest(open_store(str(output)))
    check(published.totals["ok"], size)
    stored = json.loads(next(output.glob("runs/*/summary.json")).read_text())
    return {
        "seconds": seconds,
        "rows/s": size / seconds,
        "CPU ms/row": 1000 * (cpu_seconds() - before_s) / size,
        "of them scoring": stored["scoring_seconds"],
        "and publishing": stored["publishing_seconds"],
        "first row after first manifest file s": watch.seconds(),
        "driver growth MB": peak_mb() - before_mb,
        "peak MB": memory.peak_gib * 1024,
    }


def pass_on(plan: Any, shards: list[int], numbers: Any) -> Any:
    """The decode task without fetching or decoding."""
    import pyarrow as pa

    from zsad.distributed.stages import STATS
    from zsad.report.manifest import objects_to_table, read_manifest_shard
    from zsad.scoring import SHARD

    (place,) = numbers["id"].to_pylist()
    table = objects_to_table(read_manifest_shard(plan.output, plan.run_id, shards[place]))
    table = table.append_column(SHARD, pa.array([shards[place]] * len(table), pa.int32()))
    return table.append_column(STATS, pa.array(["{}"] * len(table)))


class ConstantScorer:
    """The scorer without a model: builds and sorts report rows as the real one does."""

    def __init__(self, plan: Any, tally: Any) -> None:
        import numpy as np
        import ray

        from zsad.finding import Finding
        from zsad.report.schema import RunStamp

        context = ray.get_runtime_context()
        ray.get(tally.add_scorer.remote(context.get_actor_id(), context.current_actor))
        self._stamp = RunStamp(run_id=plan.run_id, config_hash=plan.config_hash)
        self._finding = Finding(
            score=0.01,
            raw_score=0.1,
            threshold=0.5,
            defect_type=None,
            defect_scores={},
            anomaly_map=np.zeros((1, 1), np.float32),
            raw_map=np.zeros((1, 1), np.float32),
            regions=[],
            width=64,
            height=64,
        )

    def __call__(self, table: Any) -> Any:
        """Report rows of one shard."""
        import pyarrow as pa

        from zsad.distributed.stages import STATS
        from zsad.report.schema import ok_row, rows_to_table
        from zsad.scoring import MAP_PNG, SHARD
        from zsad.storage import ObjectInfo

        shard, listed = table[SHARD][0].as_py(), table.drop_columns([SHARD, STATS]).to_pylist()
        rows = [ok_row(self._stamp, ObjectInfo(**row), self._finding, size=(64, 64), detector="none") for row in listed]
        found = rows_to_table(rows).append_column(SHARD, pa.array([shard] * len(rows), pa.int32()))
        found = found.append_column(MAP_PNG, pa.nulls(len(rows), pa.binary()))
        return found.append_column(STATS, pa.array(["{}"] * len(rows)))


class FirstRow:
    """Watches a report's folder for the first manifest file and the first shard record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds = float("nan")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        """Between the two."""
        self._thread.join(5)
        return self._seconds

    def _watch(self) -> None:
        self._wait("runs/*/manifest/*.parquet")
        listed = time.monotonic()
        self._wait("runs/*/shards/*.json")
        self._seconds = time.monotonic() - listed

    def _wait(self, pattern: str) -> None:
        while not any(self._folder.glob(pattern)):
            time.sleep(0.05)


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """CPU time of this project's living processes so far; Ray keeps its workers for a minute."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if sys.prefix in command or command.startswith("ray::"):
                total += sum(int(ticks) for ticks in (process / "stat").read_text().rpartition(")")[2].split()[11:15])
        except OSError:  # it just ended
            continue
    return total / os.sysconf("SC_CLK_TCK")


def num_odd() -> int:
    """Keys that the server has besides the regular ones."""
    from s3.list_server import ODD_KEYS

    return len(ODD_KEYS)


def check(found: int, expected: int) -> None:
    """Stop when rows are missing: a benchmark that lost some must not print."""
    if found != expected:
        sys.exit(f"{found:,} rows instead of {expected:,}")


if __name__ == "__main__":
    main()
