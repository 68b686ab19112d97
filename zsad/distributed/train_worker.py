"""What each worker of Ray Train runs: its share of the rows, the epochs with all others, and worker 0 the bundle.

Decoded images come through the worker's shard of a Ray dataset, in any order: a row's place is fixed by the list, so
which worker wrote it changes nothing. The epochs read rows by place (`zsad.learn.epochs`), so their order is the same
for any number of workers.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
import ray
import ray.data
import ray.train

from zsad.decode_child import DecodeChild
from zsad.errors import ZsadError
from zsad.learn.examples import Fact, Shards, shard_key, write_shard
from zsad.learn.plan import TENSORBOARD, Plan
from zsad.learn.prepare import decode_rows, rows_of
from zsad.train_config import SYNTHETIC

if TYPE_CHECKING:
    from zsad.learn.checkpoints import State
    from zsad.learn.recipes import Recipe

log = logging.getLogger(__name__)

SHARD = "shard"
IMAGES = "images"
_READERS = 16


def decode_block(plan: Plan, listed: pa.Table) -> pa.Table:
    """Task of Ray Data: one shard's rows with pixels; none if the shard is stored already."""
    shard = listed[SHARD][0].as_py()
    if plan.rows.exists(shard_key(shard)):
        listed = listed.slice(0, 0)
    child = None if plan.config.dataset == SYNTHETIC else _decode_child()
    decoded = decode_rows(plan.config, plan.preprocess, listed.drop_columns([SHARD]), child)
    return decoded.append_column(SHARD, pa.array([shard] * decoded.num_rows, pa.int64()))


@cache
def _decode_child() -> DecodeChild:
    """The decoding process of this worker process; it ends with it."""
    return DecodeChild()


def learn(settings: dict[str, Any]) -> None:
    """A worker's whole life; `settings` holds "plan", "board" and "has_images".

    Raises:
        ZsadError: whatever makes the training end.
    """
    import torch.distributed as dist
    from ray.train import torch as ray_torch

    from zsad.backbone import load_backbone
    from zsad.learn.recipes import new_recipe

    plan: Plan = settings["plan"]
    rank = ray.train.get_context().get_world_rank()
    backbone = load_backbone(plan.config.backbone, str(ray_torch.get_device()))
    recipe = new_recipe(
        plan.config.method,
        backbone,
        words=plan.words,
        seed=plan.config.seed,
        learning_rate=plan.learning_rate,
        overlap_weight=plan.config.overlap_weight,
        dice_weight=plan.config.dice_weight,
        checkpointing=plan.config.checkpointing,
    )
    if settings["has_images"]:
        fill_cache(plan, recipe, ray.train.get_dataset_shard(IMAGES), settings["board"])
    dist.barrier()
    state = run_epochs(plan, recipe, settings["board"])
    if rank == 0:
        finish(plan, recipe, backbone, state)


def fill_cache(plan: Plan, recipe: "Recipe", images: Any, board: Any) -> None:
    """Store the rows of every shard that this worker is handed.

    Raises:
        StorageError: if one can't be written.
        ZsadError: if Ray cut a shard, so that storing it would lose rows.
    """
    for block in images.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for shard in sorted(set(block[SHARD].to_pylist())):
            decoded = block.filter(pa.compute.field(SHARD) == shard).drop_columns([SHARD])
            if decoded.num_rows != plan.rows_of_shard(shard):
                raise ZsadError(
                    f"a block holds {decoded.num_rows} rows of shard {shard}, which has {plan.rows_of_shard(shard)}"
                )
            plan.rows.put(shard_key(shard), write_shard(plan.form, rows_of(recipe, plan.form, decoded)))
            board.stored.remote(decoded.num_rows)


def run_epochs(plan: Plan, recipe: "Recipe", board: Any) -> "State":
    """All epochs that the newest whole checkpoint lacks."""
    from zsad.learn import checkpoints
    from zsad.learn.epochs import Worker, train, usable_rows

    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), num_workers=context.get_world_size(), reduce=_summed_over_workers())
    shards = Shards(plan.rows, plan.form)
    rows = usable_rows(all_facts(plan, shards), plan.schedule, plan.config.max_error_share)
    done = _agreed_epochs(plan)
    state = checkpoints.State() if not done else checkpoints.load(plan.checkpoints, recipe.learner, done)
    on_step = partial(_tell, board, -(-len(rows.learned) // plan.config.batch_size))
    on_epoch = partial(_after_epoch, plan)
    return train(
        recipe, rows, shards, plan.checkpoints, plan.schedule,
        state=state, worker=worker, on_step=on_step, on_epoch=on_epoch,
    )  # fmt: skip


def all_facts(plan: Plan, shards: Shards) -> list[Fact]:
    """Of all rows, in the order of the list."""
    with ThreadPoolExecutor(_READERS) as readers:
        return [fact for found in readers.map(shards.facts, range(plan.num_shards)) for fact in found]


def _summed_over_workers() -> Any:
    import torch.distributed as dist

    return dist.all_reduce


def _agreed_epochs(plan: Plan) -> int:
    """How many epochs worker 0 finds done; it tells the others, so that all start from one state."""
    import torch
    import torch.distributed as dist
    from ray.train import torch as ray_torch

    from zsad.learn import checkpoints

    done = torch.zeros(1, dtype=torch.int64, device=ray_torch.get_device())
    if dist.get_rank() == 0:
        found = checkpoints.newest(plan.checkpoints)
        done += found.epochs if found else 0
    dist.broadcast(done, src=0)
    return int(done)


def _tell(board: Any, steps_per_epoch: int, epoch: int, step: int, terms: dict[str, float]) -> None:
    board.stepped.remote(epoch, step, steps_per_epoch, terms)


def _after_epoch(plan: Plan, state: "State") -> None:
    """Event files and Ray's own report; the latter brings all workers to the same place."""
    from zsad.learn.tensorboard import put_events

    record = state.history[-1]
    if ray.train.get_context().get_world_rank() == 0:
        put_events(plan.config.work_store.sub(TENSORBOARD), state)
    ray.train.report({"epoch": record.epoch + 1, **record.last})


def finish(plan: Plan, recipe: "Recipe", backbone: Any, state: "State") -> None:
    """Calibrate and publish the epoch to keep."""
    from zsad.learn.epochs import learned_tensors
    from zsad.learn.publish import calibrated_on_drawn, make_detector, publish
    from zsad.learn.recipes import settings_of

    config = plan.config
    epoch, tensors = learned_tensors(plan.checkpoints, state, config.keep)
    detector = make_detector(
        backbone,
        method=config.method,
        settings=settings_of(recipe),
        tensors=tensors,
        preprocess=plan.preprocess,
        object_name="object",
        defect_words=plan.words,
        provenance={"data": config.dataset, "data_sha256": plan.data_sha256, "seed": config.seed, "epoch": epoch},
    )
    publish(calibrated_on_drawn(detector, config.calibration_images), config.output_store)


def blocks(tables: list[pa.Table], stored: set[str]) -> Iterator[pa.Table]:
    """The shards that are not stored yet, each one block."""
    for shard, table in enumerate(tables):
        if shard_key(shard) not in stored:
            yield table.append_column(SHARD, pa.array([shard] * table.num_rows, pa.int64()))
