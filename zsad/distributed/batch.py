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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from zsad import __version__
from zsad.batch_config import BatchConfig, absolute, listing_fields, result_fields
from zsad.detector_index import comparable, inherited
from zsad.distributed.cluster import Resources, connect, is_submitted_job, zsad_cause
from zsad.distributed.feed import ManifestFeed
from zsad.distributed.finish import Scored, add_to_delta, finish_run
from zsad.distributed.plan import dry_run
from zsad.distributed.prepare import settle_detectors
from zsad.distributed.progress import Counts, ProgressReporter, Tally, over_budget
from zsad.distributed.stages import Plan, ShardScorer, ShardSink, decode_block, partition_fields
from zsad.distributed.store_watch import StoreWatch
from zsad.errors import ConfigError, StorageError, TooManyBadImages
from zsad.images import Preprocess
from zsad.report import ledger, manifest, publish
from zsad.report.carry import Carrier
from zsad.report.lease import Lease, acquire_lease, refuse_if_held
from zsad.report.ledger import RunState
from zsad.report.object_list import ObjectList
from zsad.report.paths import new_run_id
from zsad.report.registration import last_run, register_run
from zsad.report.schema import report_schema
from zsad.report.since import since_moment
from zsad.report.sweep import sweep
from zsad.storage import Store, open_store

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
SHARDS_IN_STORE = 8
CPU_SHARD_ROWS = 64
LATER_CPU_SHARDS = 4  # times as large as those of the first manifest file: docs/benchmarks.md
GPU_SHARD_ROWS = 512
SCORER_CPUS = 0.4
DECODE_CPUS = 0.5


def score_bucket(config: BatchConfig) -> None:
    """Run the job of `config` and print its summary; see docs/report.md for what it leaves in the output.

    Raises:
        ConfigError: for arguments that can't be used; nothing was written.
        CommitConflict: if another live driver holds the output.
        StorageError, ModelError: if storage or the model fails.
        TooManyBadImages: above `max_error_share`; nothing was published.
    """
    if config.sweep:
        print(sweep(open_store(config.output), is_dry=config.dry_run))
        return
    source, lister, output = _check(config)
    if config.dry_run:
        print(dry_run(config, source, lister))
        return
    if config.run_id and ledger.is_published(output, config.run_id):
        log.info("run %s is published already in %s; nothing to score", config.run_id, output.url)
        add_to_delta(config, output)
        return
    if unfinished := ledger.find_unfinished_run(output):
        refuse_if_held(output, unfinished)  # before Ray and the detector cost time
    started = time.monotonic()
    resources = connect()
    try:
        _run(config, source, lister, output, resources, started)
        if config.run_id and not ledger.is_published(output, config.run_id):  # what went on was an older run
            _run(config, source, lister, output, resources, time.monotonic())
    except ray.exceptions.RayError as error:
        raise zsad_cause(error) or error from error


def _run(
    config: BatchConfig, source: Store, lister: manifest.Lister, output: Store, resources: Resources, started: float
) -> None:
    count_scorers(config, resources)
    settled = settle_detectors(config, lister, output)
    state, lease = open_run(config, output, settled.index.fingerprints())
    with lease:
        settled.write(output, state.run_id)
        plan = Plan(config=config, run_id=state.run_id, config_hash=state.config_hash, fence=lease.number)
        watch = StoreWatch()
        largest, most_bytes = plan.detectors.largest(), shard_bytes(config, resources)
        rows = shard_rows(config, largest, most_bytes=most_bytes)
        later_rows = shard_rows(config, largest, most_bytes=most_bytes, is_later=True)
        with ManifestFeed(partial(list_objects, plan, state, lister, (rows, later_rows), lease)) as feed:
            counts, num_resumed, seconds = score_shards(plan, feed, resources, lease, watch)
        listed = feed.summary()
        scored = Scored(
            num_scored=counts.rows - num_resumed, num_resumed=num_resumed, scoring_seconds=seconds, started=started
        )
        print(finish_run(plan, state, listed, scored, lease, watch))


def _check(config: BatchConfig) -> tuple[Store, manifest.Lister, Store]:
    """Find everything wrong with the arguments that can be found without a cluster; writes only a probe.

    Returns:
        The images, what lists them, and the report.

    Raises:
        ConfigError: saying which argument, and what to give instead.
        StorageError: if the input can't be listed or the output not be written.
    """
    if is_submitted_job():
        for name in ("input", "output", "normals", "prompts", "delta", "manifest"):
            url = getattr(config, name)
            if url and not absolute(url):
                raise ConfigError(
                    f"--{name} {url}: inside a submitted job a relative path points into the shipped package; "
                    "give an absolute path that all nodes share, or an s3:// URL"
                )
    source, output = open_store(config.input), open_store(config.output)
    if source.contains(output):
        raise ConfigError(f"the output {output.url} lies inside the input {source.url}; choose one outside")
    lister = ObjectList(config.manifest, source) if config.manifest else source
    if next(manifest.iter_listing(lister, config.listing()), None) is None:
        chosen = " that --include and --exclude leave" if config.include or config.exclude else ""
        where = f" in the list {lister.url}; check --manifest" if config.manifest else "; check --input"
        raise ConfigError(f"there are no objects under {source.url}{chosen}{where}")
    since_moment(config.since, output, ledger.latest_published(output) if config.since else None)
    report_schema(partition_fields(config))
    if not config.dry_run:
        output.check_writable()
    return source, lister, output


def open_run(config: BatchConfig, output: Store, fingerprint: str | dict[str, str | None]) -> tuple[RunState, Lease]:
    """Resume the unfinished run of this output, or register a new one behind the last, and hold its lease.

    Args:
        config: of the run.
        output: its store.
        fingerprint: of the detector, or of each product's.

    Raises:
        ConfigError: if the unfinished or the last run had other settings and `restart` is off.
        CommitConflict: if a live driver holds the run.
    """
    values = result_fields(config, fingerprint)
    behind = last_run(output)  # first, so that a run which another driver starts meanwhile is met in `register_run`
    wanted = RunState(
        run_id=config.run_id or new_run_id(after=behind),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        input_url=config.input,
        config={**values, "listing": listing_fields(config)},
        config_hash=ledger.config_hash(values),
        code_version=__version__,
    )
    is_used = ledger.load_run_state(output, wanted.run_id) is not None
    unfinished = ledger.find_unfinished_run(output)
    if is_used and (wanted.run_id != unfinished or config.restart):
        raise ConfigError(f"run {wanted.run_id} exists already in {output.url}; give another --run-id")
    if unfinished is not None and not config.restart:
        state = _same_settings(output, unfinished, wanted, "is unfinished and")
        log.info("going on with unfinished run %s", unfinished)
        return state, acquire_lease(output, unfinished)
    if unfinished is not None:
        with acquire_lease(output, unfinished):
            publish.write_partial(output, unfinished, [], "given up for a run with --restart")
    last = None if config.restart else ledger.latest_published(output)
    if (latest := ledger.latest_published(output) or "") >= wanted.run_id:
        raise ConfigError(
            f"run {wanted.run_id} would stay behind run {latest} of {output.url}: readers take the greatest run id; "
            "give a --run-id that sorts behind it"
        )
    if last is not None:
        before = _same_settings(output, last, replace(wanted, config=values), "")
        values["detector"] = inherited(before.config["detector"], values["detector"])
        wanted = replace(
            wanted,
            previous_run_id=last,
            config={**wanted.config, "detector": values["detector"]},
            config_hash=ledger.config_hash(values),
        )
    state = register_run(output, wanted, behind)
    return state, acquire_lease(output, state.run_id)


def _same_settings(output: Store, run_id: str, wanted: RunState, what: str) -> RunState:
    """The state of an earlier run if it has the settings that `wanted` names.

    Raises:
        ConfigError: naming the fields that differ.
    """
    state = ledger.load_run_state(output, run_id)
    if state is None:
        raise StorageError(f"run {run_id} in {output.url} has no run.json any more; give --restart")
    stored = {name: value for name, value in state.config.items() if name in wanted.config}
    if changed := ledger.diff_fields(*comparable(stored, wanted.config)):
        names = ", ".join(name.removeprefix("listing.") for name in changed)
        raise ConfigError(f"run {run_id} {what} was made with another {names}; give --restart to start from nothing")
    return state


def list_objects(
    plan: Plan,
    state: RunState,
    lister: manifest.Lister,
    rows_per_shard: tuple[int, int],
    lease: Lease,
    announce: Callable[[int, int], None],
) -> manifest.ManifestSummary:
    """The run's manifest: as it is, or made now, leaving out objects whose rows in the previous run stay valid.

    `rows_per_shard` are those of the first file's shards and of later ones.
    `announce` is told the numbers of shards that can be scored and of their rows, as they come.
    """
    output = plan.output
    listed = manifest.load_manifest_summary(output, state.run_id)
    if listed is not None:
        return listed
    previous = publish.load_run_manifest(output, state.previous_run_id) if state.previous_run_id else None
    carrier = Carrier(output, previous, rows_per_file=plan.config.rows_per_file) if previous else None
    newer_than = since_moment(plan.config.since, output, state.previous_run_id)
    options = plan.config.listing(*rows_per_shard, newer_than=newer_than)
    return manifest.write_manifest(
        lister, output, state.run_id, options, carrier=carrier, guard=lease.check, announce=announce
    )


def shard_bytes(config: BatchConfig, resources: Resources) -> int:
    """Pixels of a shard, in bytes, of which the object store holds several for each scorer without spilling."""
    return min(SHARD_BYTES, resources.store_bytes // (SHARDS_IN_STORE * count_scorers(config, resources)))


def shard_rows(
    config: BatchConfig, preprocess: Preprocess, *, most_bytes: int = SHARD_BYTES, is_later: bool = False
) -> int:
    """Rows per shard: at most 64 MiB of pixels, and at first few enough for a small bucket to feed all scorers.

    Whole batches where images are no tiles; tiles fill their batches from whatever rows there are, and so few large
    squares fit that a batch of them could pass Ray's target block size.
    """
    cpu_rows = CPU_SHARD_ROWS * (LATER_CPU_SHARDS if is_later else 1)
    most = GPU_SHARD_ROWS if config.num_gpus_per_scorer else cpu_rows
    fit = most_bytes // (preprocess.size**2 * 3)
    if preprocess.tiling and fit < config.batch_size:
        return max(1, fit)
    return max(1, min(most, fit) // config.batch_size) * config.batch_size


def score_shards(
    plan: Plan, feed: ManifestFeed, resources: Resources, lease: Lease, watch: StoreWatch
) -> tuple[Counts, int, float]:
    """Score and commit every shard that has no record yet; returns all counts, rows from before, and seconds.

    Raises:
        TooManyBadImages: if the error budget is spent; `partial.json` is written.
        StorageError, ConfigError: if the listing fails.
    """
    records = ledger.load_shard_records(plan.output, plan.run_id)
    start = Counts(*(sum(getattr(r, name) for r in records) for name in ("rows", "errors", "anomalies")))
    done = {record.shard for record in records}
    tally = Tally.remote(start, plan.config.max_error_share)
    began = time.monotonic()

    check = partial(check_running, lease, feed)
    with ProgressReporter(tally, start, feed.num_listed_rows, check, watch):
        while wave := feed.take():
            pending = [shard for shard in wave if shard not in done]
            log.info("run %s: %d shards listed, %d of them to score now", plan.run_id, wave.stop, len(pending))
            try:
                _score_wave(plan, pending, resources, tally)
            except Exception as error:
                check()  # a lost lease or a failed listing stops the sinks too, and is what went wrong
                cause = zsad_cause(error)
                if isinstance(cause, TooManyBadImages):
                    _give_up(plan, str(cause))
                raise cause or error from error
    counts, _ = ray.get(tally.read.remote())
    if reason := over_budget(counts, plan.config.max_error_share):
        _give_up(plan, reason)
        raise TooManyBadImages(reason)
    return counts, start.rows, time.monotonic() - began


def check_running(lease: Lease, feed: ManifestFeed) -> None:
    """Raise what must stop a run that is under way: another driver's lease, or a listing that failed.

    A lease that can't be renewed is late, not lost: what is committed meanwhile is put-if-absent, and storage may come
    back. `finish_run` looks again before it publishes.
    """
    try:
        lease.check()
    except StorageError as error:
        log.warning("the lease can't be renewed: %s", error)
    feed.check()


def _score_wave(plan: Plan, pending: list[int], resources: Resources, tally: Any) -> None:
    if not pending:
        return
    try:
        pipeline(plan, pending, resources, tally).write_datasink(
            ShardSink(plan, tally), ray_remote_args={"num_cpus": 0.1}
        )
    finally:
        with suppress(ray.exceptions.RayError):  # without the tally Ray itself is gone
            ray.get(tally.end_scorers.remote())


def _give_up(plan: Plan, reason: str) -> None:
    publish.write_partial(plan.output, plan.run_id, ledger.load_shard_records(plan.output, plan.run_id), reason)


def pipeline(plan: Plan, shards: list[int], resources: Resources, tally: Any) -> Dataset:
    """The lazy pipeline from shard numbers to report rows."""
    numbers = ray.data.range(len(shards), override_num_blocks=len(shards))
    num_scorers = min(count_scorers(plan.config, resources), len(shards))
    gpus = plan.config.num_gpus_per_scorer
    decode = partial(decode_block, plan, shards)
    return decode_and_score(numbers, decode, ShardScorer, (plan, tally), num_scorers=num_scorers, gpus_each=gpus)


def decode_and_score(
    blocks: Dataset,
    decode: Callable[..., Any],
    scorer: type,
    arguments: tuple[Any, ...],
    *,
    num_scorers: int,
    gpus_each: float,
) -> Dataset:
    """`blocks` through decode tasks and a fixed pool of scorers, each block whole; lazy.

    Args:
        blocks: one a unit of work.
        decode: from a block to a block.
        scorer: class of the pool's actors, called with a decoded block.
        arguments: of its constructor.
        num_scorers: size of the pool.
        gpus_each: GPUs of one scorer; 0: scorers and decoding share the CPUs.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    decoded = blocks.map_batches(
        decode, batch_size=None, batch_format="pyarrow", num_cpus=1.0 if gpus_each else DECODE_CPUS
    )
    return decoded.map_batches(
        scorer,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=num_scorers),
        num_cpus=0.9 if gpus_each else SCORER_CPUS,
        num_gpus=gpus_each or None,
    )


def count_scorers(config: BatchConfig, resources: Resources) -> int:
    """How many scorers to run: as told, or one per share of the GPUs, or one per CPU.

    Raises:
        ConfigError: if the cluster can't hold them, or not together with a decode task.
    """
    gpus_each = config.num_gpus_per_scorer
    if gpus_each:
        if not config.num_scorers and resources.num_gpus < gpus_each:
            raise ConfigError(
                f"each scorer asks for {gpus_each:g} GPUs (--num-gpus-per-scorer), the cluster has "
                f"{resources.num_gpus}; where nodes start on demand, give --num-scorers"
            )
        return config.num_scorers or int(resources.num_gpus / gpus_each)
    cpus = max(1, resources.num_cpus)
    if config.num_scorers * SCORER_CPUS + DECODE_CPUS > cpus:
        raise ConfigError(f"--num-scorers {config.num_scorers}: the cluster has {cpus} CPUs; give at most {cpus}")
    return config.num_scorers or cpus
