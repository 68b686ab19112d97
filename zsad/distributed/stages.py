"""The three stages that Ray Data maps over manifest shards: decode (tasks), score (actors), commit (sink).

One block is one manifest shard from end to end; the sink checks that before it commits anything.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink

from zsad import failpoints
from zsad.batch_config import BatchConfig
from zsad.bundle import DetectorConfig
from zsad.decode_child import DecodeChild
from zsad.errors import TooManyBadImages, ZsadError
from zsad.report import ledger, manifest
from zsad.report.schema import RunStamp, report_schema
from zsad.scoring import MAP_PNG, SHARD, RowContext, decode_objects, score_table
from zsad.storage import Store, open_store

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


@cache
def _decode_child() -> DecodeChild:
    """The decoding process of this worker process; it ends with it."""
    return DecodeChild()


def decode_block(plan: Plan, shards: list[int], numbers: pa.Table) -> pa.Table:
    """Fetch and decode the shards whose places in `shards` a block names: exactly one in practice."""
    failpoints.hit("decode")
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
        self._failure: ZsadError | None = None
        try:
            self._load(plan)
        except ZsadError as error:  # raised by the first call: an actor that dies at its start loses the cause
            self._failure = error

    def _load(self, plan: Plan) -> None:
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
        """Report rows of one block.

        Raises:
            ModelError, StorageError: if the detector could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
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
