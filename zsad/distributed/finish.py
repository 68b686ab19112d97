"""The end of a run: put its files together, publish, sum up, write the gallery, add it to the Delta table."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import ray

from zsad.batch_config import BatchConfig
from zsad.distributed.cluster import zsad_cause
from zsad.distributed.gallery import write_gallery
from zsad.distributed.memory_guard import num_halvings
from zsad.distributed.stages import Plan, partition_fields
from zsad.distributed.store_watch import StoreWatch
from zsad.errors import ZsadError
from zsad.report import compact, delta, ledger, publish
from zsad.report.carry import load_carried
from zsad.report.lease import Lease
from zsad.report.ledger import RunState, ShardRecord, canonical_json
from zsad.report.manifest import ManifestSummary
from zsad.report.paths import run_key
from zsad.report.publish import DataFile
from zsad.report.read import read_report
from zsad.report.selection import Selection, choose
from zsad.report.stats import total
from zsad.report.summary import RunSummary
from zsad.storage import Store

log = logging.getLogger(__name__)

_TASKS_AHEAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What scoring did: rows of this call, rows that were there before it, seconds since the job and scoring began."""

    num_scored: int
    num_resumed: int
    scoring_seconds: float
    started: float


def finish_run(
    plan: Plan, state: RunState, listed: ManifestSummary, scored: Scored, lease: Lease, watch: StoreWatch
) -> str:
    """Publish a run of which every shard is committed; returns the summary's table.

    Raises:
        CommitConflict: another driver took over.
        StorageError: the store fails.
        ZsadError: the counts do not add up; what is wrong before publishing leaves nothing published.
    """
    began, output = time.monotonic(), plan.output
    records = ledger.load_shard_records(output, plan.run_id)
    carried = load_carried(output, plan.run_id)
    publish.check_counts(records, carried, scored=listed.num_objects, unchanged=listed.num_carried)
    parts = put_together(plan, records)
    lease.check()
    published = publish.publish_run(
        output,
        state.run_id,
        num_shards=listed.num_shards,
        config_hash=state.config_hash,
        partition_fields=partition_fields(plan.config),
        carried=carried,
        parts=parts,
    )
    now = time.monotonic()
    summary = RunSummary(
        run_id=state.run_id,
        input_url=plan.config.input,
        output_url=output.url,
        detector=plan.config.detector,
        started_at=state.started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        scoring_seconds=scored.scoring_seconds,
        total_seconds=now - scored.started,
        num_scored=scored.num_scored,
        num_carried=listed.num_carried,
        totals=published.totals,
        num_resumed=scored.num_resumed,
        error_counts=published.error_counts,
        num_files=len(published.files),
        stats=total(record.stats for record in records).with_traffic(watch.traffic()),
        publishing_seconds=now - began,
        memory=watch.memory(),
        num_halvings=num_halvings(output, plan.run_id),
    )
    summary.check(listed.num_objects + listed.num_carried)
    output.put(run_key(plan.run_id, "summary.json"), canonical_json(summary.to_dict()))
    add_to_delta(plan.config, output)
    selection = choose(read_report(output.url, plan.run_id))
    return summary.table(selection.counts, _gallery(plan, summary, selection))


def _gallery(plan: Plan, summary: RunSummary, selection: Selection) -> str:
    """The gallery's address, or why there is none: a published run is not spoilt by its pictures."""
    try:
        return write_gallery(plan, summary, selection)
    except (ZsadError, OSError, ray.exceptions.RayError) as error:
        log.warning("the report is published, but its gallery could not be written: %s", zsad_cause(error) or error)
        return "none, see the log"


def add_to_delta(config: BatchConfig, output: Store) -> None:
    """Add every published run that the Delta table lacks, if one is named.

    Raises:
        StorageError: if the table can't be read or written.
    """
    if config.delta:
        added = delta.append_runs(output, config.delta)
        log.info("added to the Delta table %s: %s", config.delta, ", ".join(added) or "nothing new")


def put_together(plan: Plan, records: Sequence[ShardRecord]) -> list[DataFile] | None:
    """Files of the size asked for, written in Ray tasks; None where the shards' own files have it already."""
    size = compact.settle_rows_per_file(plan.output, plan.run_id, plan.config.rows_per_file)
    parts = list(compact.cut(records, size))
    if all(len(part) == 1 and part[0].is_whole for part in parts):
        return None
    log.info("putting %d files together to %d", len(records), len(parts))
    tasks: list[ray.ObjectRef] = []
    running: list[ray.ObjectRef] = []
    for number, part in enumerate(parts):
        if len(running) == _TASKS_AHEAD:
            _, running = ray.wait(running, num_returns=1)
        tasks.append(_write_part.remote(plan, number, part))
        running.append(tasks[-1])
    return list(ray.get(tasks))


@ray.remote(num_cpus=1)
def _write_part(plan: Plan, number: int, part: compact.Part) -> DataFile:
    return compact.write_part(plan.output, plan.run_id, number, part, partition_fields(plan.config))
