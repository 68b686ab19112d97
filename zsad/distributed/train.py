"""Learn prompts from masks with Ray Train: check -> rows -> epochs on a group of workers -> one bundle and its page.

Data-parallel, gloo on CPUs and NCCL on GPUs. A lost worker ends its group; another one, of as many workers as there are
by then between `min_workers` and `num_workers`, goes on from the last checkpoint. Between those two numbers Ray Train
also grows a group while it runs. What a worker raised (no space left, a loss that is not finite, broken masks) ends the
training at once: a new group would only meet it again (`train_failures`). Ray Train's own retries can't tell the two
apart, so they are off and the driver starts the next group.

The driver holds the list of images and shows progress; pixels, features and tensors never pass through it.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray
import ray.data
import ray.train

from zsad.backbone import load_backbone
from zsad.distributed.cluster import Resources, connect
from zsad.distributed.train_board import Board, shown
from zsad.distributed.train_failures import loss, raised_by_worker
from zsad.distributed.train_worker import IMAGES, blocks, decode_block, learn
from zsad.errors import ZsadError
from zsad.learn import checkpoints
from zsad.learn.checkpoints import State
from zsad.learn.epochs import check_labels
from zsad.learn.estimate import estimate
from zsad.learn.page import put_page
from zsad.learn.plan import RAY, Plan, begin, forget_broken, hold, make_plan, shard_tables, stored_shards
from zsad.learn.prepare import check_masks, list_images
from zsad.report.lease import Lease
from zsad.train_config import SYNTHETIC, TrainConfig

log = logging.getLogger(__name__)


def train_from_masks(config: TrainConfig) -> State | None:
    """Run the job of `config` for faprompt or dapo.

    Returns:
        What was learned; None for a dry run.

    Raises:
        ConfigError: for arguments or data that can't be used.
        CommitConflict: if another driver trains in the same work folder.
        TooManyBadImages: above `max_error_share`; there is no bundle, and nothing was started where the list shows it.
        ModelError, StorageError: if a model or storage fails; there is no bundle.
    """
    listed = list_images(config)
    check_masks(config, listed)
    if config.dataset != SYNTHETIC:
        check_labels(listed["label"].to_pylist())
    backbone = load_backbone(config.backbone, "cpu")
    plan, recipe = make_plan(config, listed, backbone)
    print(estimate(config, plan.form, recipe, backbone, num_images=listed.num_rows).text())
    if config.dry_run:
        return None
    config.output_store.check_writable()
    resources = connect()
    config.check_gpus(resources.num_gpus)
    with hold(config) as lease:
        begin(config, {**config.identity(), "data_sha256": plan.data_sha256})
        if again := forget_broken(plan):
            log.info("%d shards hold images that could not be used and are made again", again)
        state = fit(plan, shard_tables(plan, listed), resources, lease)
        lease.check()
        put_page(config.output_store, config, state)
    log.info("bundle and training.html are in %s", config.output_store.url)
    return state


def fit(plan: Plan, tables: list[pa.Table], resources: Resources, lease: Lease) -> State:
    """Train until all epochs are done and the bundle is written, replacing lost workers.

    Raises:
        CommitConflict: if another driver took the lease over.
        ZsadError: what a worker raised, or that too many were lost.
    """
    config = plan.config
    board = Board.remote()
    for attempt in range(config.max_restarts + 1):
        is_last = attempt == config.max_restarts
        try:
            with shown(board, plan, lease.check), _interruptible():
                _trainer(plan, tables, resources, board).fit()
            break
        except ray.train.TrainingFailedError as error:
            if raised := raised_by_worker(error, is_last=is_last):
                raise raised from error
            if is_last:
                raise ZsadError(
                    f"workers were lost {attempt + 1} times (--max-restarts {config.max_restarts}); --resume goes on "
                    f"from the last checkpoint: {error}"
                ) from error
            log.warning("a new group goes on from the last checkpoint, for the last one was lost: %s", loss(error))
    state = checkpoints.newest(plan.checkpoints)
    if state is None or state.epochs < config.num_epochs:  # Ray Train may end without an error when it is interrupted
        raise KeyboardInterrupt
    return state


@contextmanager
def _interruptible() -> Iterator[None]:
    """Keep Ctrl-C what it is: Ray Train's own handler leaves by `SystemExit`, and stays when the training is over."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _trainer(plan: Plan, tables: list[pa.Table], resources: Resources, board: Any) -> Any:
    from ray.train.torch import TorchTrainer

    images = _images(plan, tables, resources)
    return TorchTrainer(
        learn,
        train_loop_config={"plan": plan, "board": board, "has_images": images is not None},
        scaling_config=_scaling(plan.config, resources),
        run_config=_run_config(plan),
        datasets={} if images is None else {IMAGES: images},
        dataset_config=WholeBlocks(),
    )


def _scaling(config: TrainConfig, resources: Resources) -> ray.train.ScalingConfig:
    """Workers take at most half of the CPUs, so that decoding goes on beside them on a laptop too."""
    cpus = min(1.0, 0.5 * resources.num_cpus / config.num_workers)
    return ray.train.ScalingConfig(
        num_workers=(config.min_workers, config.num_workers) if config.min_workers else config.num_workers,
        use_gpu=config.use_gpu,
        resources_per_worker={"CPU": cpus, **({"GPU": 1} if config.use_gpu else {})},
    )


def _run_config(plan: Plan) -> ray.train.RunConfig:
    filesystem, path = plan.config.work_store.sub(RAY).arrow_filesystem()
    return ray.train.RunConfig(
        name=uuid4().hex,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=0),
        logging_config=ray.train.LoggingConfig(log_level="ERROR"),
    )


def _images(plan: Plan, tables: list[pa.Table], resources: Resources) -> ray.data.Dataset | None:
    """The lazy pipeline from listed rows to pixels, of the shards that are not stored; None: all are."""
    missing = list(blocks(tables, stored_shards(plan)))
    if not missing:
        return None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_arrow(missing).map_batches(
        partial(decode_block, plan),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=min(1.0, 0.5 * resources.num_cpus),
    )


class WholeBlocks(ray.train.DataConfig):
    """Hands workers whole blocks as they come; Ray's own way cuts and drops rows so that all get equally many."""

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """See `ray.train.DataConfig.configure`."""
        handed: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            splits = dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for shards, split in zip(handed, splits, strict=True):
                shards[name] = split
        return handed
