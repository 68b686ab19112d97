"""A million objects through the whole job with a scorer that reads nothing: what zsad itself costs per row.

python benchmarks/million.py [--objects 1000000] [--small 100000]

The bucket is a fast local server that only lists (tests/s3/list_server.py); no image exists. The job is the real one
- listing, manifest, waves through Ray Data, shard records, files put together, publishing, summary, gallery - but for
its decode task, which passes manifest rows on, and its scorer, which gives every row the same finding. Shards have 512
rows, as on a GPU. Each size runs in a process of its own; the rows are counted in the published report.

Printed for each size: seconds, rows/s, memory of the driver and of all processes (proportional set size), and seconds
from the first manifest file to the first committed shard; and listing alone, without Ray.
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
from contextlib import ExitStack
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
    parser.add_argument("--measure", choices=("listing", "job"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        with tempfile.TemporaryDirectory(prefix="zsad-million-") as folder:
            measured = (listing if arguments.measure == "listing" else job)(arguments.objects, Path(folder))
        print(json.dumps(measured))
        return
    for part, sizes in (("listing", [arguments.objects]), ("job", [arguments.small, arguments.objects])):
        found = [run_alone(part, size) for size in sizes]
        for size, values in zip(sizes, found, strict=True):
            print(f"{part}, {size:,} objects: " + ", ".join(f"{k} {v:,.1f}" for k, v in values.items()), flush=True)
    small, large = found
    print(f"cost per row, large / small: {small['rows/s'] / large['rows/s']:.2f}")
    print(f"peak of all processes, large / small: {large['peak MB'] / small['peak MB']:.2f}")


def run_alone(part: str, size: int) -> dict[str, float]:
    """One measurement in a fresh process, with its own server."""
    from s3.list_server import list_server

    command = [sys.executable, __file__, "--measure", part, "--objects", str(size)]
    with list_server(size) as env:
        done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def listing(size: int, folder: Path) -> dict[str, float]:
    """Listing into a manifest, without Ray."""
    from zsad.report.manifest import ListingOptions, iter_listing, write_manifest
    from zsad.storage import open_store

    source, output = open_store("s3://large"), open_store(str(folder))
    next(iter_listing(source, ListingOptions()))  # connected and imported
    before_mb, began = peak_mb(), time.monotonic()
    first: list[float] = []
    summary = write_manifest(
        source,
        output,
        "run",
        ListingOptions(rows_per_shard=64),
        announce=lambda shards: first.append(time.monotonic() - began) if shards and not first else None,
    )
    seconds = time.monotonic() - began
    check(summary.num_objects, size)
    return {
        "seconds": seconds,
        "keys/s": size / seconds,
        "first manifest file after s": first[0],
        "memory growth MB": peak_mb() - before_mb,
    }


def job(size: int, folder: Path) -> dict[str, float]:
    """The whole job."""
    from throughput import PeakMemory

    from zsad.batch_config import BatchConfig
    from zsad.distributed import batch
    from zsad.distributed.cluster import connect
    from zsad.report.read import open_manifest
    from zsad.storage import open_store

    batch.decode_block, batch.ShardScorer, batch.CPU_SHARD_ROWS = pass_on, ConstantScorer, SHARD_ROWS
    connect()
    before_mb, began = peak_mb(), time.monotonic()
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        watch = FirstRow(folder)
        batch.score_bucket(BatchConfig(input="s3://large", output=str(folder), maps="none", batch_size=16))
        seconds = time.monotonic() - began
    published = open_manifest(open_store(str(folder)))
    check(published.totals["ok"], size)
    stored = json.loads(next(folder.glob("runs/*/summary.json")).read_text())
    return {
        "seconds": seconds,
        "rows/s": size / seconds,
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

    def __init__(self, plan: Any) -> None:
        import numpy as np

        from zsad.finding import Finding
        from zsad.report.schema import RunStamp

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


def check(found: int, size: int) -> None:
    """Stop when rows are missing: a benchmark that lost some must not print."""
    from s3.list_server import ODD_KEYS

    if found != size + len(ODD_KEYS):
        sys.exit(f"{found:,} rows instead of {size + len(ODD_KEYS):,}")


if __name__ == "__main__":
    main()
