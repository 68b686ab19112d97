"""The three stages that Ray Data maps over manifest shards: decode (tasks), score (actors), commit (sink).

One block is one manifest shard from end to end; the sink checks that before it commits anything. Rows of a shard are
grouped by their detector on the way: each group is resized for it, and scored by it in batches of its own, padded to
the same shape as in a run with that detector alone.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import Datasink

from zsad import failpoints
from zsad.batch_config import BatchConfig
from zsad.decode_child import DecodeChild
from zsad.detector_index import DetectorIndex, Entry
from zsad.distributed.memory_guard import MemoryGuard
from zsad.errors import ModelError, StorageError, TooManyBadImages, ZsadError
from zsad.report import ledger, manifest
from zsad.report.paths import DETECTORS_JSON, run_key
from zsad.report.schema import RunStamp, report_schema
from zsad.report.stats import Stats, heap_bytes, peak_bytes
from zsad.scoring import (
    MAP_PNG,
    SHARD,
    BatchTooLarge,
    Group,
    RowContext,
    decode_objects,
    decoded_schema,
    score_groups,
    undecoded,
)
from zsad.storage import ObjectInfo, Store, counters, open_store

if TYPE_CHECKING:
    from zsad.detector_cache import DetectorCache

STATS = "stats"
_MAP_WRITERS = 8
MOST_STARTS = 16  # of one scorer; halving its batch takes a few


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know; small, for it travels with each task."""

    config: BatchConfig
    run_id: str
    config_hash: str
    fence: int

    @property
    def source(self) -> Store:
        """The images."""
        return open_store(self.config.input)

    @property
    def output(self) -> Store:
        """The report."""
        return open_store(self.config.output)

    @property
    def detectors(self) -> DetectorIndex:
        """Which detector scores what; read once by each process.

        Raises:
            StorageError: if it can't be read.
        """
        return read_detectors(self.output, self.run_id)

    def open_detectors(self, batch_size: int | None = None) -> "DetectorCache":
        """An empty cache for this process, on its GPU if it has a share of one, else on one thread of the CPU."""
        import torch

        from zsad.detector_cache import DetectorCache

        if not self.config.num_gpus_per_scorer:
            torch.set_num_threads(1)
        device = "cuda" if self.config.num_gpus_per_scorer else "cpu"
        return DetectorCache(device=device, batch_size=batch_size or self.config.batch_size)


@lru_cache(maxsize=2)
def read_detectors(output: Store, run_id: str) -> DetectorIndex:
    """`detectors.json` of a run, which never changes.

    Raises:
        StorageError: if it is not there or can't be read.
    """
    key = run_key(run_id, DETECTORS_JSON)
    found = ledger.read_json(output, key)
    if found is None:
        raise StorageError(f"{output.uri(key)} is missing; give --restart")
    return DetectorIndex.from_dict(found)


def partition_fields(config: BatchConfig) -> tuple[str, ...]:
    """Columns made of the key."""
    template = config.template()
    return template.fields if template else ()


@cache
def _decode_child() -> DecodeChild:
    """The decoding process of this worker process; it ends with it."""
    return DecodeChild()


def decode_block(plan: Plan, shards: list[int], numbers: pa.Table) -> pa.Table:
    """Fetch and decode the shards whose places in `shards` a block names: exactly one in practice."""
    failpoints.hit("decode")
    began, before = time.monotonic(), counters.snapshot()
    tables = []
    for place in numbers["id"].to_pylist():
        objects = manifest.read_manifest_shard(plan.output, plan.run_id, shards[place])
        tables.append(decode_shard(plan, objects, shards[place]))
    stats = Stats(decode_s=time.monotonic() - began, decode_peak_bytes=peak_bytes(), decode_heap_bytes=heap_bytes())
    return _with_stats(pa.concat_tables(tables), stats.with_traffic(counters.snapshot() - before))


def decode_shard(plan: Plan, objects: Sequence[ObjectInfo], shard: int) -> pa.Table:
    """Fetch and decode one shard, each object for its detector; objects without one are not fetched.

    Returns:
        Rows in the order of `objects`; pixels are of one size unless the run has several detectors.
    """
    parts, places = [], []
    for entry, chosen in _grouped(plan.detectors, [info.key for info in objects]):
        mine = [objects[place] for place in chosen]
        if entry.preprocess is None:
            parts.append(undecoded(mine, [entry.error] * len(mine), shard=shard))
        else:
            limits, child = plan.config.decode, _decode_child()
            parts.append(
                decode_objects(plan.source, mine, shard=shard, limits=limits, preprocess=entry.preprocess, child=child)
            )
        places += chosen
    if len(parts) == 1 and not plan.detectors.fields:
        return parts[0]
    order = sorted(range(len(places)), key=places.__getitem__)
    return pa.concat_tables([part.cast(decoded_schema(None)) for part in parts]).take(pa.array(order))


def _grouped(index: DetectorIndex, keys: Sequence[str]) -> Iterator[tuple[Entry, list[int]]]:
    """Each detector with the places of its keys, in the order of their first ones."""
    template = index.template()
    groups: dict[Entry, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(index.find(key, template), []).append(place)
    yield from groups.items()


class ShardScorer:
    """Actor of the scorer pool: loads detectors when it meets them, one already at its start if all share it.

    Args:
        plan: of the run.
        tally: the run's `Tally`, which ends the pool; None outside a pool.
    """

    def __init__(self, plan: Plan, tally: Any = None) -> None:
        self._failure: ZsadError | None = None
        try:
            _join(tally)
            self._load(plan)
        except ZsadError as error:  # raised by the first call: an actor that dies at its start loses the cause
            self._failure = error

    def _load(self, plan: Plan) -> None:
        self._index = plan.detectors
        self._output = plan.output
        cap_bytes = int(plan.config.scorer_memory_gib * 2**30)
        self._guard = MemoryGuard(plan.output, plan.run_id, plan.config.batch_size, cap_bytes)
        self._plan = plan
        self._detectors = plan.open_detectors(self._guard.batch_size)
        self._context = RowContext(
            stamp=RunStamp(run_id=plan.run_id, config_hash=plan.config_hash),
            output=plan.output,
            detector_ref=plan.config.detector,
            maps=plan.config.maps,
            template=plan.config.template(),
        )
        if not self._index.fields:
            self._detectors.get(self._output.uri(self._index.entries[()].bundle))

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Report rows of one block.

        Raises:
            ModelError, StorageError: if the one detector of the run could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
        began = time.monotonic()
        before = _stats_of(decoded)
        table = self._score(decoded["key"].to_pylist(), decoded.drop_columns([STATS]))
        stats = Stats(score_s=time.monotonic() - began, score_peak_bytes=peak_bytes(), score_heap_bytes=heap_bytes())
        return _with_stats(table, before + stats)

    def _score(self, keys: Sequence[str], decoded: pa.Table) -> pa.Table:
        """Report rows, with half of the batch as often as it does not fit in memory."""
        while True:
            try:
                table = score_groups(self._groups(keys), decoded, self._context)
            except BatchTooLarge as error:
                self._guard.halve(str(error))
                self._detectors = self._plan.open_detectors(self._guard.batch_size)
            else:
                self._guard.check()
                return table

    def _groups(self, keys: Sequence[str]) -> Iterator[Group]:
        for entry, places in _grouped(self._index, keys):
            try:
                detector = self._detectors.get(self._output.uri(entry.bundle)) if entry.bundle else None
                yield Group(ref=entry.ref, places=places, detector=detector, error=entry.error)
            except ModelError as error:
                yield Group(ref=entry.ref, places=places, error=str(error))


def _join(tally: Any) -> None:
    """Make this actor known to the tally that ends it, which also counts how often Ray had to start it.

    Raises:
        ModelError: it died so often that it will again; Ray alone would repeat its shard for ever.
    """
    if tally is None:
        return
    context = ray.get_runtime_context()
    starts = ray.get(tally.add_scorer.remote(context.get_actor_id(), context.current_actor))
    if starts > MOST_STARTS:
        raise ModelError(
            f"a scorer died {MOST_STARTS} times in this run, for want of memory or in a crash that Ray's log shows; "
            "give a smaller --batch-size, or --scorer-memory-gib so that it goes on with less, and run it again"
        )


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
        began, before = time.monotonic(), counters.snapshot()
        shard = _whole_shard(block, output, plan.run_id)
        _put_maps(output, block)
        rows = block.drop_columns([SHARD, MAP_PNG, STATS]).cast(report_schema(partition_fields(plan.config)))
        record = ledger.write_shard_data(output, plan.run_id, shard, rows, hash_=plan.config_hash, fence=plan.fence)
        stats = _stats_of(block) + Stats(write_s=time.monotonic() - began)
        record = ledger.with_stats(record, stats.with_traffic(counters.snapshot() - before))
        counted = ledger.commit_shard(output, plan.run_id, record)
        reason = ray.get(self._tally.add.remote(shard, counted.rows, counted.errors, counted.anomalies))
        if reason:
            raise TooManyBadImages(reason)
        return counted.rows


def _with_stats(table: pa.Table, stats: Stats) -> pa.Table:
    return table.append_column(STATS, pa.array([json.dumps(asdict(stats))] * table.num_rows, pa.string()))


def _stats_of(block: pa.Table) -> Stats:
    return Stats(**json.loads(block[STATS][0].as_py()))


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
