"""Fit PromptAD to all products of a data set: few actors, each with one tower in memory, products packed into blocks.

Thousands of products are thousands of rows, not thousands of processes. A product that can't be fitted is a row with a
reason; a lost actor is replaced and its block done again. A fitted product's bundle is whole or not there, so --resume
fits only those that are missing.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from zsad.bundle import CONFIG_FILE
from zsad.datasets.reference import ALL
from zsad.decode_child import DecodeChild
from zsad.distributed.cluster import Resources, connect
from zsad.errors import ConfigError, ImageError, TooManyBadImages, ZsadError
from zsad.learn.plan import begin, hold
from zsad.learn.prepare import chosen_images
from zsad.learn.products import Outcome, ProductNormals, fit_product, normals_of, product_store
from zsad.train_config import TrainConfig

log = logging.getLogger(__name__)

SUMMARY = "training.json"
_BLOCKS_PER_ACTOR = 8
_SCHEMA = pa.schema([("product", pa.string()), ("keys", pa.list_(pa.string())), ("error", pa.string())])
_NAMED = 10


def train_products(config: TrainConfig) -> list[Outcome]:
    """Run the job of `config` for promptad.

    Returns:
        What became of each product; none for a dry run.

    Raises:
        ConfigError: for arguments or data that can't be used.
        CommitConflict: if another driver trains in the same work folder.
        TooManyBadImages: if more than `max_error_share` of the products could not be fitted; the others were.
        StorageError: if storage fails.
    """
    products = normals_of(chosen_images(config, ALL), config.used_split)
    num_images = sum(len(item.keys) for item in products)
    print(f"products {len(products):,}, their normal images {num_images:,}, of which {config.shots} each are used;")
    print(f"bundles  {len(products):,}, of 2 x {config.num_epochs} steps each, by {config.num_workers} processes")
    if config.dry_run:
        return []
    config.output_store.check_writable()
    resources = connect()
    with hold(config):
        begin(config, config.identity())
        done = [item.product for item in products if config.resume and _is_done(config, item)]
        left = [item for item in products if item.product not in set(done)]
        log.info("%d products are fitted already, %d are left", len(done), len(left))
        outcomes = list(_fitted(config, left, resources)) if left else []
        _summarise(config, done, outcomes)
    return outcomes


def _is_done(config: TrainConfig, item: ProductNormals) -> bool:
    try:
        return product_store(config, item.product).exists(CONFIG_FILE)
    except ConfigError:
        return False


def _fitted(config: TrainConfig, products: list[ProductNormals], resources: Resources) -> Iterator[Outcome]:
    tables = _blocks(products, config.num_workers)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_arrow(tables).map_batches(
        ProductFitter,
        fn_constructor_args=(config,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(config.num_workers, len(tables))),
        num_cpus=min(1.0, 0.9 * resources.num_cpus / config.num_workers),
        num_gpus=1 if config.use_gpu else None,
    )
    with tqdm(total=len(products), unit="product", disable=None) as bar:
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                bar.update()
                yield Outcome(product=row["product"], keys=tuple(row["keys"]), error=row["error"])


def _blocks(products: list[ProductNormals], num_workers: int) -> list[pa.Table]:
    size = max(1, len(products) // (num_workers * _BLOCKS_PER_ACTOR))
    rows = [{"product": item.product, "keys": list(item.keys), "error": ""} for item in products]
    return [pa.Table.from_pylist(rows[start : start + size], schema=_SCHEMA) for start in range(0, len(rows), size)]


class ProductFitter:
    """Actor: holds the tower, fits the products of a block one after another."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._failure: ZsadError | None = None
        try:
            self._load()
        except ZsadError as error:  # raised by the first call: an actor that dies at its start loses the cause
            self._failure = error

    def _load(self) -> None:
        import torch

        from zsad.backbone import load_backbone
        from zsad.images import Preprocess
        from zsad.learn.promptad import PromptADTraining
        from zsad.tiling import check_patches

        config = self._config
        if not config.use_gpu:
            torch.set_num_threads(1)
        self._backbone = load_backbone(config.backbone, "cuda" if config.use_gpu else "cpu")
        size = config.size or self._backbone.image_size
        self._preprocess = Preprocess(size=size, interpolation=self._backbone.interpolation)
        check_patches(self._preprocess, self._backbone.patch_size)
        rate = config.learning_rate or PromptADTraining().learning_rate
        self._training = PromptADTraining(epochs=config.num_epochs, learning_rate=rate)
        self._child = DecodeChild()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Outcomes of a block's products.

        Raises:
            ZsadError: if the tower could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
        rows = []
        for row in block.to_pylist():
            outcome = self._outcome(ProductNormals(product=row["product"], keys=tuple(row["keys"])))
            rows.append({**asdict(outcome), "keys": list(outcome.keys)})
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def _outcome(self, normals: ProductNormals) -> Outcome:
        try:
            return fit_product(self._config, self._training, self._backbone, self._preprocess, normals, self._child)
        except (ZsadError, ImageError) as error:
            return Outcome(product=normals.product, error=str(error))
        except Exception as error:
            log.exception("product %s", normals.product)
            return Outcome(product=normals.product, error=f"unexpected {type(error).__name__}: {error}")


def _summarise(config: TrainConfig, done: list[str], outcomes: list[Outcome]) -> None:
    """Print and store what became of each product.

    Raises:
        TooManyBadImages: above `max_error_share`.
    """
    broken = [outcome for outcome in outcomes if outcome.error]
    fitted = [outcome for outcome in outcomes if not outcome.error]
    summary = {
        "fitted_before": done,
        "fitted": {outcome.product: list(outcome.keys) for outcome in fitted},
        "broken": {outcome.product: outcome.error for outcome in broken},
    }
    config.output_store.put(SUMMARY, json.dumps(summary, indent=1).encode())
    print(f"{len(fitted) + len(done):,} products have a bundle under {config.output_store.url}")
    for outcome in broken[:_NAMED]:
        print(f"  not fitted: {outcome.product}: {outcome.error}")
    if len(broken) > _NAMED:
        print(f"  and {len(broken) - _NAMED:,} more, see {SUMMARY}")
    if len(broken) > config.max_error_share * (len(outcomes) + len(done)):
        raise TooManyBadImages(
            f"{len(broken):,} of {len(outcomes) + len(done):,} products could not be fitted, such as "
            f"{broken[0].product} ({broken[0].error}); the others were; the limit is {config.max_error_share:.1%} "
            "(--max-error-share)"
        )
