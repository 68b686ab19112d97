"""The main job: manifest -> decode tasks -> fixed pool of scorers -> committed shards -> published report.

One block of the Ray Data pipeline is one manifest shard from end to end: a read task makes the block, `batch_size=None`
keeps it whole, and the sink checks that it is. So the ledger commits exactly what was listed, and a restart skips whole
shards. Shards are small enough (`rows_per_shard`) that a decoded one stays far below Ray's target block size, which
would split it.

On machines without GPUs there is one single-threaded scorer per CPU, and decoding shares those CPUs: a decode task
and a scorer ask for about half a CPU each, so that both always fit. With GPUs there is one scorer per GPU and
decoding has the CPUs. Decode tasks and scorers ask for different shares on purpose: with equal ones Ray would fuse
the two stages.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasink

from zsad import __version__
from zsad.batch_config import BatchConfig, absolute, result_fields
from zsad.bundle import DetectorConfig, write_bundle
from zsad.decode_child import DecodeChild
from zsad.distributed.cluster import Resources, connect, is_submitted_job, zsad_cause
from zsad.distributed.gallery import write_gallery
from zsad.distributed.plan import dry_run
from zsad.distributed.prepare import prepare_detector
from zsad.distributed.progress import Counts, ProgressReporter, Tally, over_budget
from zsad.errors import ConfigError, TooManyBadImages, ZsadError
from zsad.report import ledger, manifest, publish
from zsad.report.lease import Lease, acquire_lease
from zsad.report.ledger import RunState
from zsad.report.paths import new_run_id, run_key
from zsad.report.schema import RunStamp, report_schema
from zsad.report.summary import RunSummary
from zsad.scoring import MAP_PNG, SHARD, RowContext, decode_objects, score_table
from zsad.storage import Store, open_store

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
CPU_SHARD_ROWS = 64
GPU_SHARD_ROWS = 512
_MAP_WRITERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know; small, for it travels with each task."""

    config: BatchConfig
    run_id: str
    config_hash: str
    fence: int
    bundle_url: str
    detector: DetectorConfig

    @property
    def source(self) -> Store:
        """The images."""
        return open_store(self.config.input)

    @property
    def output(self) -> Store:
        """The report."""
        return open_store(self.config.output)


def partition_fields(config: BatchConfig) -> tuple[str, ...]:
    """Columns made of the key."""
    template = config.template()
    return template.fields if template else ()


def score_bucket(config: BatchConfig) -> None:
    """Run the job of `config` and print its summary; see docs/report.md for what it leaves in the output.

    Raises:
        ConfigError: for arguments that can't be used; nothing was written.
        CommitConflict: if another live driver holds the output.
        StorageError, ModelError: if storage or the model fails.
        TooManyBadImages: above `max_error_share`; nothing was published.
    """
    source, output = _check(config)
    if config.dry_run:
        print(dry_run(config, source))
        return
    started = time.monotonic()
    resources = connect()
    try:
        _run(config, source, output, resources, started)
    except ray.exceptions.RayError as error:
        raise zsad_cause(error) or error from error


def _run(config: BatchConfig, source: Store, output: Store, resources: Resources, started: float) -> None:
    prepared = prepare_detector(config)
    state, lease = open_run(config, output, prepared.config.fingerprint())
    with lease:
        rows_per_shard = shard_rows(config, prepared.config)
        listed = manifest.load_manifest_summary(output, state.run_id) or manifest.write_manifest(
            source, output, state.run_id, config.listing(rows_per_shard), guard=lease.check
        )
        bundle_url = output.uri(run_key(state.run_id, "detector"))
        write_bundle(bundle_url, prepared.config, prepared.tensors)
        plan = Plan(
            config=config,
            run_id=state.run_id,
            config_hash=state.config_hash,
            fence=lease.number,
            bundle_url=bundle_url,
            detector=prepared.config,
        )
        log.info("run %s: %d images in %d shards", state.run_id, listed.num_objects, listed.num_shards)
        num_scored, seconds = score_shards(plan, listed, resources, lease)
        lease.check()
        published = publish.publish_run(
            output,
            state.run_id,
            num_shards=listed.num_shards,
            config_hash=state.config_hash,
            partition_fields=partition_fields(config),
        )
        summary = RunSummary(
            run_id=state.run_id,
            input_url=config.input,
            output_url=output.url,
            detector=config.detector,
            started_at=state.started_at,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            scoring_seconds=seconds,
            total_seconds=time.monotonic() - started,
            num_scored=num_scored,
            totals=published.totals,
        )
        selection, gallery_uri = write_gallery(plan, summary)
    print(summary.table(selection.counts, gallery_uri))


def _check(config: BatchConfig) -> tuple[Store, Store]:
    """Find everything wrong with the arguments that can be found without a cluster; writes only a probe.

    Raises:
        ConfigError: saying which argument, and what to give instead.
        StorageError: if the input can't be listed or the output not be written.
    """
    if is_submitted_job():
        for name in ("input", "output", "normals"):
            url = getattr(config, name)
            if url and not absolute(url):
                raise ConfigError(
                    f"--{name} {url}: inside a submitted job a relative path points into the shipped package; "
                    "give an absolute path that all nodes share, or an s3:// URL"
                )
    source, output = open_store(config.input), open_store(config.output)
    if source.contains(output):
        raise ConfigError(f"the output {output.url} lies inside the input {source.url}; choose one outside")
    if next(manifest.iter_listing(source, config.listing()), None) is None:
        chosen = " that --include and --exclude leave" if config.include or config.exclude else ""
        raise ConfigError(f"there are no objects under {source.url}{chosen}; check --input")
    report_schema(partition_fields(config))
    if not config.dry_run:
        output.check_writable()
    return source, output


def open_run(config: BatchConfig, output: Store, fingerprint: str) -> tuple[RunState, Lease]:
    """Resume the unfinished run of this output, or register a new one, and hold its lease.

    Raises:
        ConfigError: if an unfinished run was started with other settings and `restart` is off, or the run id is taken.
        CommitConflict: if a live driver holds the run.
    """
    fields = result_fields(config, fingerprint)
    wanted = RunState(
        run_id=config.run_id or new_run_id(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        input_url=config.input,
        config=fields,
        config_hash=ledger.config_hash(fields),
        code_version=__version__,
    )
    unfinished = ledger.find_unfinished_run(output)
    if unfinished is not None and config.restart:
        with acquire_lease(output, unfinished):
            publish.write_partial(output, unfinished, [], "given up for a run with --restart")
    elif unfinished is not None:
        state = ledger.load_run_state(output, unfinished)
        if state is not None and state.config_hash != wanted.config_hash:
            changed = ", ".join(ledger.diff_fields(state.config, fields))
            raise ConfigError(f"run {unfinished} is unfinished and was started with another {changed}; add --restart")
        if state is not None:
            log.info("going on with unfinished run %s", unfinished)
            return state, acquire_lease(output, unfinished)
    if ledger.is_published(output, wanted.run_id):
        raise ConfigError(f"run {wanted.run_id} is published already in {output.url}; give another --run-id")
    return ledger.write_run_state(output, wanted), acquire_lease(output, wanted.run_id)


def shard_rows(config: BatchConfig, detector: DetectorConfig) -> int:
    """Rows per shard: whole batches, at most 64 MiB of pixels, and few enough for a small machine to overlap stages."""
    most = GPU_SHARD_ROWS if config.num_gpus_per_scorer else CPU_SHARD_ROWS
    fit = SHARD_BYTES // (detector.preprocess.size**2 * 3)
    return max(1, min(most, fit) // config.batch_size) * config.batch_size


def score_shards(plan: Plan, listed: manifest.ManifestSummary, resources: Resources, lease: Lease) -> tuple[int, float]:
    """Score and commit every shard that has no record yet; returns the number of rows and the seconds that took.

    Raises:
        TooManyBadImages: if the error budget is spent; `partial.json` is written.
    """
    records = ledger.load_shard_records(plan.output, plan.run_id)
    start = Counts(*(sum(getattr(r, name) for r in records) for name in ("rows", "errors", "anomalies")))
    done = {record.shard for record in records}
    pending = [shard for shard in range(listed.num_shards) if shard not in done]
    tally = Tally.remote(start, plan.config.max_error_share)
    began = time.monotonic()
    if pending:
        with ProgressReporter(tally, start, listed.num_objects, lease.check):
            try:
                pipeline(plan, pending, resources).write_datasink(
                    ShardSink(plan, tally), ray_remote_args={"num_cpus": 0.1}
                )
            except Exception as error:
                cause = zsad_cause(error)
                if isinstance(cause, TooManyBadImages):
                    _give_up(plan, str(cause))
                raise cause or error from error
    counts, _ = ray.get(tally.read.remote())
    if reason := over_budget(counts, plan.config.max_error_share):
        _give_up(plan, reason)
        raise TooManyBadImages(reason)
    return counts.rows - start.rows, time.monotonic() - began


def _give_up(plan: Plan, reason: str) -> None:
    publish.write_partial(plan.output, plan.run_id, ledger.load_shard_records(plan.output, plan.run_id), reason)


def pipeline(plan: Plan, shards: list[int], resources: Resources) -> Dataset:
    """The lazy pipeline from shard numbers to report rows."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    gpus = plan.config.num_gpus_per_scorer
    num_scorers = plan.config.num_scorers or default_scorers(resources, gpus)
    numbers = ray.data.range(len(shards), override_num_blocks=len(shards))
    decoded = numbers.map_batches(
        partial(decode_block, plan, shards), batch_size=None, batch_format="pyarrow", num_cpus=1.0 if gpus else 0.5
    )
    return decoded.map_batches(
        ShardScorer,
        fn_constructor_args=(plan,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(num_scorers, len(shards))),
        num_cpus=0.9 if gpus else 0.4,
        num_gpus=gpus or None,
    )


def default_scorers(resources: Resources, gpus_per_scorer: float) -> int:
    """One scorer per share of the GPUs, or per CPU.

    Raises:
        ConfigError: if scorers ask for GPUs and the cluster has too few.
    """
    if not gpus_per_scorer:
        return max(1, resources.num_cpus)
    if resources.num_gpus < gpus_per_scorer:
        raise ConfigError(
            f"each scorer asks for {gpus_per_scorer:g} GPUs (--num-gpus-per-scorer), the cluster has "
            f"{resources.num_gpus}; where nodes start on demand, give --num-scorers"
        )
    return int(resources.num_gpus / gpus_per_scorer)


@cache
def _decode_child() -> DecodeChild:
    """The decoding process of this worker process; it ends with it."""
    return DecodeChild()


def decode_block(plan: Plan, shards: list[int], numbers: pa.Table) -> pa.Table:
    """Fetch and decode the shards whose places in `shards` a block names: exactly one in practice."""
    tables = []
    for place in numbers["id"].to_pylist():
        shard = shards[place]
        objects = manifest.read_manifest_shard(plan.output, plan.run_id, shard)
        tables.append(
            decode_objects(
                plan.source,
                objects,
                shard=shard,
                limits=plan.config.decode,
                preprocess=plan.detector.preprocess,
                child=_decode_child(),
            )
        )
    return pa.concat_tables(tables)


class ShardScorer:
    """Actor of the scorer pool: loads the detector once, scores blocks."""

    def __init__(self, plan: Plan) -> None:
        import torch

        from zsad.detector import load_detector

        if not plan.config.num_gpus_per_scorer:
            torch.set_num_threads(1)
        device = "cuda" if plan.config.num_gpus_per_scorer else "cpu"
        self._detector = load_detector(plan.bundle_url, device=device, batch_size=plan.config.batch_size)
        self._context = RowContext(
            stamp=RunStamp(run_id=plan.run_id, config_hash=plan.config_hash),
            output=plan.output,
            detector_ref=plan.config.detector,
            maps=plan.config.maps,
            template=plan.config.template(),
        )

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Report rows of one block."""
        return score_table(self._detector, decoded, self._context)


class ShardSink(Datasink[int]):
    """Writes maps and rows of each block and commits its shard; returns the number of rows."""

    def __init__(self, plan: Plan, tally: Any) -> None:
        self._plan = plan
        self._tally = tally

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """Commit blocks; each must be one whole shard.

        Raises:
            TooManyBadImages: if the run must stop.
        """
        return sum(self._commit(block) for block in blocks if block.num_rows)

    def _commit(self, block: pa.Table) -> int:
        plan, output = self._plan, self._plan.output
        shard = _whole_shard(block, output, plan.run_id)
        _put_maps(output, block)
        rows = block.drop_columns([SHARD, MAP_PNG]).cast(report_schema(partition_fields(plan.config)))
        record = ledger.write_shard_data(output, plan.run_id, shard, rows, hash_=plan.config_hash, fence=plan.fence)
        counted = ledger.commit_shard(output, plan.run_id, record)
        reason = ray.get(self._tally.add.remote(counted.rows, counted.errors, counted.anomalies))
        if reason:
            raise TooManyBadImages(reason)
        return counted.rows


def _whole_shard(block: pa.Table, output: Store, run_id: str) -> int:
    """The number of the one shard that `block` is.

    Raises:
        ZsadError: if Ray split or merged shards, so that committing would lose or double rows.
    """
    numbers = set(block[SHARD].to_pylist())
    shard = next(iter(numbers))
    expected = len(manifest.read_manifest_shard(output, run_id, shard))
    if len(numbers) > 1 or block.num_rows != expected:
        raise ZsadError(
            f"a block holds {block.num_rows} rows of shards {sorted(numbers)}; shard {shard} has {expected}"
        )
    return int(shard)


def _put_maps(output: Store, block: pa.Table) -> None:
    uris, pngs = block["map_uri"].to_pylist(), block[MAP_PNG].to_pylist()
    pairs = [(output.key(uri), png) for uri, png in zip(uris, pngs, strict=True) if uri is not None]
    with ThreadPoolExecutor(_MAP_WRITERS) as writers:
        list(writers.map(lambda pair: output.put(*pair), pairs))
