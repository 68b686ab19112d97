"""What all who take part in a training share, and what of it lies where on storage.

```
WORK/run.json                    what is being learned, from what
WORK/cache-<hash>/000012.arrow   rows (zsad.learn.examples)
WORK/checkpoints/epoch-0003.*    states (zsad.learn.checkpoints)
WORK/tensorboard/                event files, one an epoch
WORK/ray/                        what Ray Train keeps
```
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zsad.bundle import CONFIG_FILE
from zsad.errors import ConfigError, StorageError
from zsad.images import Preprocess
from zsad.learn import checkpoints
from zsad.learn.examples import Form, Shards, shard_key, words_of
from zsad.learn.order import Schedule
from zsad.learn.prepare import data_sha256, defect_types, shard_rows
from zsad.report.lease import Lease, acquire_lease
from zsad.report.ledger import config_hash, diff_fields
from zsad.storage import Store
from zsad.tiling import check_patches
from zsad.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.backbone import Backbone
    from zsad.learn.recipes import Recipe

RUN = "run.json"
CHECKPOINTS, TENSORBOARD, RAY = "checkpoints", "tensorboard", "ray"
_MAX_BYTES = 2**20
_CALLS = 16  # to storage at once
_RATE = {"faprompt": 1e-3, "dapo": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Small but for the list; the list does not travel to the workers.

    Attributes:
        config: of the training.
        words: defect words, for dapo.
        preprocess: how images become the model's input.
        form: of the rows.
        num_images: listed ones.
        cache: name of the folder with the rows.
        data_sha256: of the list.
        learning_rate: in use.
    """

    config: TrainConfig
    words: tuple[str, ...]
    preprocess: Preprocess
    form: Form
    num_images: int
    cache: str
    data_sha256: str
    learning_rate: float

    @property
    def num_shards(self) -> int:
        """Of the cache."""
        return -(-self.num_images // shard_rows(self.form.size))

    def rows_of_shard(self, shard: int) -> int:
        """How many images it holds."""
        rows = shard_rows(self.form.size)
        return min(rows, self.num_images - shard * rows)

    @property
    def rows(self) -> Store:
        """The cache."""
        return self.config.work_store.sub(self.cache)

    @property
    def checkpoints(self) -> Store:
        """States after each epoch."""
        return self.config.work_store.sub(CHECKPOINTS)

    @property
    def schedule(self) -> Schedule:
        """How long and in which order."""
        config = self.config
        return Schedule(
            epochs=config.num_epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            validation=config.validation,
        )


def shard_tables(plan: Plan, listed: pa.Table) -> list[pa.Table]:
    """The list in pieces of one shard each, in order."""
    rows = shard_rows(plan.form.size)
    return [listed.slice(start, rows).combine_chunks() for start in range(0, listed.num_rows, rows)]


def make_plan(config: TrainConfig, listed: pa.Table, backbone: "Backbone") -> tuple[Plan, "Recipe"]:
    """What workers need to know, and the recipe at its start.

    Raises:
        ConfigError, ModelError: if the backbone can't carry the method at this size.
    """
    size = config.size or backbone.image_size
    preprocess = Preprocess(size=size, interpolation=backbone.interpolation)
    from zsad.learn.recipes import new_recipe

    words, rate = words_of(defect_types(config, listed)), config.learning_rate or _RATE[config.method]
    recipe = new_recipe(
        config.method,
        backbone,
        words=words,
        seed=config.seed,
        learning_rate=rate,
        overlap_weight=config.overlap_weight,
        dice_weight=config.dice_weight,
        checkpointing=config.checkpointing,
    )
    check_patches(preprocess, backbone.patch_size)
    form = recipe.form(size, "pixels" if config.cache == "off" else config.cache)
    data = data_sha256(config, listed)
    facts = {"data": data, "backbone": backbone.sha256, "form": asdict(form), "interpolation": backbone.interpolation}
    facts["precision"] = "bf16" if config.use_gpu else "fp32"  # of the tower in the workers
    plan = Plan(
        config=config,
        words=words,
        preprocess=preprocess,
        form=form,
        num_images=listed.num_rows,
        cache=f"cache-{config_hash(facts)[:12]}",
        data_sha256=data,
        learning_rate=rate,
    )
    return plan, recipe


def hold(config: TrainConfig) -> Lease:
    """The lease of the work folder: of two drivers one goes on, whatever flags they were given.

    Raises:
        CommitConflict: another live driver trains there.
        StorageError: if storage fails.
    """
    return acquire_lease(config.work_store, "training")


def begin(config: TrainConfig, identity: dict[str, Any], bundles: Sequence[Store] = ()) -> None:
    """Take possession of output and work folder: write `run.json`, or find that of the run that goes on.

    Args:
        config: of the training.
        identity: what changes what is learned.
        bundles: where the bundles of products go, beside the one in OUTPUT itself.

    Raises:
        ConfigError: if something is there already and neither --resume nor --restart was given, or --resume finds
            nothing or another training.
        StorageError: if storage fails.
    """
    work = config.work_store
    if config.restart:
        forget(config, bundles)
    if config.resume:
        check_same(work, identity)
        return
    if held := _with_bundle([config.output_store, *bundles]):
        more = f" and {len(held) - 1:,} more hold" if len(held) > 1 else " holds"
        going_on = f", or --resume to go on with the training in {work.url}" if work.exists(RUN) else ""
        raise ConfigError(
            f"{held[0].url}{more} a detector bundle already; choose another --output, or --restart{going_on}"
        )
    if not work.put_if_absent(RUN, json.dumps(identity, indent=1).encode()):
        raise ConfigError(
            f"{work.url} holds a training that was begun before; --resume goes on with it, --restart forgets it"
        )


def _with_bundle(stores: Sequence[Store]) -> list[Store]:
    with ThreadPoolExecutor(_CALLS) as calls:
        found = calls.map(lambda store: store.exists(CONFIG_FILE), stores)
        return [store for store, is_there in zip(stores, found, strict=True) if is_there]


def check_same(work: Store, identity: dict[str, Any]) -> None:
    """Refuse to go on with another training.

    Raises:
        ConfigError: naming what differs.
    """
    if not work.exists(RUN):
        raise ConfigError(f"{work.url} holds no training to go on with; leave --resume out")
    known = json.loads(work.get(RUN, max_bytes=_MAX_BYTES))
    changed = diff_fields(known, json.loads(json.dumps(identity)))
    if changed:
        raise ConfigError(
            f"the training in {work.url} was begun with another {', '.join(changed)}; give the same again, or "
            "--restart to forget it"
        )


def forget(config: TrainConfig, bundles: Sequence[Store] = ()) -> None:
    """Delete the bundles and what a training of ours left in the work folder, and nothing else.

    PromptAD's features stay, for they are named by all that they depend on (`zsad.learn.product_features`).

    `run.json` goes last: as long as anything is left, a later call is told that a training was begun here, and does not
    take checkpoints of that one for its own.

    Args:
        config: of the training.
        bundles: where those of products lie, beside the one in OUTPUT itself.
    """
    work = config.work_store
    with ThreadPoolExecutor(_CALLS) as calls:
        list(calls.map(lambda store: store.delete(CONFIG_FILE), [config.output_store, *bundles]))
    for prefix in ("cache-", f"{CHECKPOINTS}/", f"{TENSORBOARD}/"):
        for key in _listed(work, prefix):
            work.delete(key)
    work.delete(RUN)


def stored_shards(plan: Plan) -> set[str]:
    """Names of the shards that are in the cache.

    Raises:
        StorageError: if it can't be listed.
    """
    return set(_listed(plan.rows, ""))


def forget_broken(plan: Plan) -> int:
    """Delete the stored shards in which an image could not be used, so that they are made again; returns how many.

    A read that timed out may succeed now, a mask may have been mended. Once an epoch is done the shards stay: its
    images are those that the others learn from.

    Raises:
        StorageError: if rows can't be read or deleted.
    """
    if checkpoints.newest(plan.checkpoints) is not None:
        return 0
    names = stored_shards(plan)
    stored = [shard for shard in range(plan.num_shards) if shard_key(shard) in names]
    shards = Shards(plan.rows, plan.form)
    with ThreadPoolExecutor(_CALLS) as calls:
        facts = calls.map(shards.facts, stored)
        broken = [shard for shard, rows in zip(stored, facts, strict=True) if any(row.error for row in rows)]
    for shard in broken:
        plan.rows.delete(shard_key(shard))
    return len(broken)


def _listed(store: Store, prefix: str) -> list[str]:
    try:
        return [info.key for info in store.list(prefix)]
    except StorageError as error:
        if error.code == "missing":  # nothing was written there yet
            return []
        raise
