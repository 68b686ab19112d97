"""The main job's driver with a loop instead of Ray, in a process of its own that tests kill, stop and continue.

Everything that decides what readers see is the product's: `open_run`, the manifest, shard data and records, the lease,
publishing. Only the score is a stand-in: a number made of the object's etag. Children come from a fork server that has
imported the libraries before, so that one costs some tens of ms.
"""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from zsad.batch_config import BatchConfig
from zsad.distributed import batch
from zsad.errors import ErrorCode, ZsadError
from zsad.report import ledger, publish
from zsad.report.carry import Carrier, load_carried
from zsad.report.lease import Lease, LeaseTimes, acquire_lease
from zsad.report.ledger import RunState
from zsad.report.manifest import (
    ListingOptions,
    ManifestSummary,
    load_manifest_summary,
    read_manifest_shard,
    write_manifest,
)
from zsad.report.schema import RunStamp, error_row, rows_to_table
from zsad.storage import ObjectInfo, Store, open_store

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["zsad.distributed.batch", "zsad.report", "pyarrow.dataset", "pyarrow.parquet", "s3fs"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRun:
    """What one driver does; `env` is set in its process, `acks` gets a line for everything it was told is committed."""

    source: str
    output: str
    acks: Path
    run_id: str = ""
    rows_per_shard: int = 20
    fingerprint: str = "plain"
    times: LeaseTimes = field(default_factory=LeaseTimes)
    env: Mapping[str, str] = field(default_factory=dict)


def start(plan: PlainRun) -> BaseProcess:
    """Start a driver."""
    process = _CONTEXT.Process(target=_main, args=(plan,))
    process.start()
    return process


def run(plan: PlainRun, timeout_s: float = 60) -> int:
    """Run a driver to its end; returns its exit code, negative for a signal."""
    return finish(start(plan), timeout_s)


def finish(process: BaseProcess, timeout_s: float = 60) -> int:
    """Wait for a driver, and kill it when it takes too long."""
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a driver did not end within {timeout_s:g} s")
    return process.exitcode


def score(etag: str) -> float:
    """The stand-in's score in [0, 1)."""
    return int.from_bytes(hashlib.sha256(etag.encode()).digest()[:4], "big") / 2**32


def _main(plan: PlainRun) -> None:
    os.environ.update(plan.env)
    try:
        drive(plan)
    except ZsadError as error:
        print(f"exit {error.exit_code}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def drive(plan: PlainRun) -> None:
    """List, score, commit and publish, in the order of the job."""
    source, output = open_store(plan.source), open_store(plan.output)
    batch.acquire_lease = partial(acquire_lease, times=plan.times)
    config = BatchConfig(input=plan.source, output=plan.output, run_id=plan.run_id)
    if plan.run_id and ledger.is_published(output, plan.run_id):
        return
    state, lease = batch.open_run(config, output, plan.fingerprint)
    with lease:
        listed = _list(plan, source, output, state, lease)
        for shard in sorted(set(range(listed.num_shards)) - ledger.committed_shards(output, state.run_id)):
            objects = read_manifest_shard(output, state.run_id, shard)
            table = rows_to_table(_row(state, info) for info in objects)
            record = ledger.write_shard_data(
                output, state.run_id, shard, table, hash_=state.config_hash, fence=lease.number
            )
            _acknowledge(plan.acks, f"shard {shard} {ledger.commit_shard(output, state.run_id, record).file}")
        lease.check()
        publish.publish_run(
            output,
            state.run_id,
            num_shards=listed.num_shards,
            config_hash=state.config_hash,
            carried=load_carried(output, state.run_id),
        )
        _acknowledge(plan.acks, f"published {state.run_id}")


def _list(plan: PlainRun, source: Store, output: Store, state: RunState, lease: Lease) -> ManifestSummary:
    listed = load_manifest_summary(output, state.run_id)
    if listed is not None:
        return listed
    last = publish.load_run_manifest(output, state.previous_run_id) if state.previous_run_id else None
    return write_manifest(
        source,
        output,
        state.run_id,
        ListingOptions(rows_per_shard=plan.rows_per_shard),
        carrier=Carrier(output, last) if last else None,
        guard=lease.check,
    )


def _row(state: RunState, info: ObjectInfo) -> dict:
    stamp = RunStamp(run_id=state.run_id, config_hash=state.config_hash)
    row = error_row(stamp, info, ErrorCode.EMPTY, "", detector="plain")
    value = score(info.etag)
    return row | {
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "score": value,
        "is_anomaly": value > 0.9,
    }


def _acknowledge(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())  # one short write: lines of two drivers don't mix
    os.close(descriptor)


if __name__ == "__main__":  # SOURCE OUTPUT ACKS: in this process, for a test that needs another mount namespace
    _main(PlainRun(source=sys.argv[1], output=sys.argv[2], acks=Path(sys.argv[3])))
