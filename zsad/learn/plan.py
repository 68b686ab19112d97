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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zsad.bundle import CONFIG_FILE
from zsad.errors import ConfigError, StorageError
from zsad.images import Preprocess
from zsad.learn.examples import Form, words_of
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


def begin(config: TrainConfig, identity: dict[str, Any]) -> None:
    """Take possession of output and work folder: write `run.json`, or find that of the run that goes on.

    Raises:
        ConfigError: if something is there already and neither --resume nor --restart was given, or --resume finds
            nothing or another training.
        StorageError: if storage fails.
    """
    work, output = config.work_store, config.output_store
    if config.restart:
        forget(config)
    if config.resume:
        check_same(work, identity)
        return
    if output.exists(CONFIG_FILE):
        raise ConfigError(f"{output.url} holds a detector bundle already; choose another --output, or --restart")
    if not work.put_if_absent(RUN, json.dumps(identity, indent=1).encode()):
        raise ConfigError(
            f"{work.url} holds a training that was begun before; --resume goes on with it, --restart forgets it"
        )


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


def forget(config: TrainConfig) -> None:
    """Delete the bundle and all that a training of ours left in the work folder, and nothing else."""
    work = config.work_store
    config.output_store.delete(CONFIG_FILE)
    work.delete(RUN)
    for prefix in ("cache-", f"{CHECKPOINTS}/", f"{TENSORBOARD}/"):
        for key in _listed(work, prefix):
            work.delete(key)


def _listed(store: Store, prefix: str) -> list[str]:
    try:
        return [info.key for info in store.list(prefix)]
    except StorageError as error:
        if error.code == "missing":
            return []
        raise
