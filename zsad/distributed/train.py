"""Learn prompts from masks with Ray Train: check -> rows -> epochs on a group of workers -> one bundle and its page.

Data-parallel, gloo on CPUs and NCCL on GPUs. A lost worker ends its group; another one, of as many workers as there are
by then between `min_workers` and `num_workers`, goes on from the last checkpoint. Between those two numbers Ray Train
also grows a group while it runs. An error of ours (no space left, a loss that is not finite, broken masks) ends the
training at once: a new group would only meet it again. Ray Train's own retries can't tell the two apart, so they are
off and the driver starts the next group.

The driver holds the list of images and shows progress; pixels, features and tensors never pass through it.
"""

import logging
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
from zsad.distributed.train_worker import IMAGES, blocks, decode_block, learn
from zsad.errors import StorageError, ZsadError, causes
from zsad.learn import checkpoints
from zsad.learn.checkpoints import State
from zsad.learn.epochs import check_labels
from zsad.learn.estimate import estimate
from zsad.learn.page import put_page
from zsad.learn.plan import RAY, Plan, begin, hold, make_plan, shard_tables
from zsad.learn.prepare import list_images
from zsad.train_config import SYNTHETIC, TrainConfig

log = logging.getLogger(__name__)


def train_from_masks(config: TrainConfig) -> State | None:
    """Run the job of `config` for faprompt or dapo.

    Returns:
        What was learned; None for a dry run.

    Raises:
        ConfigError: for arguments or data that can't be used.
        CommitConflict: if another driver trains in the same work folder.
        TooManyBadImages: above `max_error_share`; there is no bundle.
        ModelError, StorageError: if a model or storage fails; there is no bundle.
    """
    listed = list_images(config)
    if config.dataset != SYNTHETIC:
        check_labels(listed["label"].to_pylist())
    backbone = load_backbone(config.backbone, "cpu")
    plan, recipe = make_plan(config, listed, backbone)
    print(estimate(config, plan.form, recipe, backbone, num_images=listed.num_rows).text())
    if config.dry_run:
        return None
    config.output_store.check_writable()
    resources = connect()
    with hold(config):
        begin(config, {**config.identity(), "data_sha256": plan.data_sha256})
        state = fit(plan, shard_tables(plan, listed), resources)
        put_page(config.output_store, config, state)
    log.info("bundle and training.html are in %s", config.output_store.url)
    return state


def fit(plan: Plan, tables: list[pa.Table], resources: Resources) -> State:
    """Train until all epochs are done and the bundle is written, replacing lost workers.

    Raises:
        ZsadError: what a worker raised, or that too many were lost.
    """
    config = plan.config
    board = Board.remote()
    for attempt in range(config.max_restarts + 1):
        try:
            with shown(board, plan):
                _trainer(plan, tables, resources, board).fit()
            break
        except ray.train.TrainingFailedError as error:
            cause = own_cause(error)
            if cause is not None:
                raise cause from error
            if attempt == config.max_restarts:
                raise ZsadError(
                    f"workers were lost {attempt + 1} times (--max-restarts {config.max_restarts}); --resume goes on "
                    f"from the last checkpoint: {error}"
                ) from error
            log.warning("a worker was lost; going on from the last checkpoint with a new group")
    state = checkpoints.newest(plan.checkpoints)
    if state is None or state.epochs < config.num_epochs:  # Ray Train ends without an error when it is interrupted
        raise KeyboardInterrupt
    return state


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
    stored = _stored(plan)
    missing = list(blocks(tables, stored))
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


def _stored(plan: Plan) -> set[str]:
    try:
        return {info.key for info in plan.rows.list()}
    except StorageError as error:
        if error.code == "missing":  # nothing was written there yet
            return set()
        raise


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


def own_cause(error: BaseException) -> ZsadError | None:
    """The zsad error that a worker raised, if one did and trying again can't help.

    Ray Train wraps what a worker raised, and it may do so twice.
    """
    failures = getattr(error, "worker_failures", {}).values()
    inner = [getattr(failure, "_base_exc", failure) for failure in failures]
    for wrapped in [error, *inner]:
        for cause in causes(wrapped):
            if isinstance(cause, ZsadError) and not getattr(cause, "retryable", False):
                return cause
    return None
