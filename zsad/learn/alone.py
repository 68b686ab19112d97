"""A whole training from masks in this process, without Ray: for notebooks, measurements and tests.

The same rows, order and steps as on a cluster, one worker. Rows and checkpoints lie in the work folder; no bundle is
written.
"""

from collections.abc import Callable

import pyarrow as pa
from torch import Tensor

from zsad.backbone import Backbone
from zsad.decode_child import DecodeChild
from zsad.learn.checkpoints import State
from zsad.learn.epochs import Worker, learned_tensors, train, usable_rows
from zsad.learn.examples import Shards, shard_key, write_shard
from zsad.learn.plan import Plan, make_plan, shard_tables
from zsad.learn.prepare import decode_rows, list_images, rows_of
from zsad.learn.recipes import Recipe
from zsad.train_config import SYNTHETIC, TrainConfig


def train_alone(
    config: TrainConfig, backbone: Backbone, *, on_epoch: Callable[[Recipe], None] | None = None
) -> tuple[State, dict[str, Tensor]]:
    """Learn what `config` says; rows that are stored already are not made again.

    Args:
        config: for faprompt or dapo; its workers and restarts play no part.
        backbone: the one that `config` names.
        on_epoch: told the recipe as it stands after each epoch.

    Returns:
        The course of the training, and the tensors of the epoch that `config.keep` chooses.

    Raises:
        ConfigError, ModelError, StorageError, TooManyBadImages: as the job.
    """
    listed = list_images(config)
    plan, recipe = make_plan(config, listed, backbone)
    _make_rows(plan, recipe, shard_tables(plan, listed))
    shards = Shards(plan.rows, plan.form)
    facts = [fact for shard in range(plan.num_shards) for fact in shards.facts(shard)]
    state = train(
        recipe,
        usable_rows(facts, plan.schedule, config.max_error_share),
        shards,
        plan.checkpoints,
        plan.schedule,
        state=State(),
        worker=Worker(),
        on_step=lambda *_: None,
        on_epoch=lambda _: on_epoch(recipe) if on_epoch else None,
    )
    return state, learned_tensors(plan.checkpoints, state, config.keep)[1]


def _make_rows(plan: Plan, recipe: Recipe, tables: list[pa.Table]) -> None:
    child = None if plan.config.dataset == SYNTHETIC else DecodeChild()
    for shard, table in enumerate(tables):
        if not plan.rows.exists(shard_key(shard)):
            decoded = decode_rows(plan.config, plan.preprocess, table, child)
            plan.rows.put(shard_key(shard), write_shard(plan.form, rows_of(recipe, plan.form, decoded)))
