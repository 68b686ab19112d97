"""Fit PromptAD to all products of a data set: few actors, each with one tower in memory, products packed into blocks.

Thousands of products are thousands of rows, not thousands of processes. A product that can't be fitted is a row with a
reason; a lost actor is replaced and its block done again. A fitted product's bundle is whole or not there, and names
the training that it came from, so --resume fits only those that are missing.
"""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from zsad.backbone import load_backbone
from zsad.bundle import read_config
from zsad.datasets.reference import ALL
from zsad.decode_child import DecodeChild
from zsad.distributed.cluster import Resources, connect
from zsad.errors import ConfigError, ImageError, ModelError, TooManyBadImages, ZsadError
from zsad.learn.estimate import estimate_products
from zsad.learn.plan import begin, hold
from zsad.learn.prepare import chosen_images
from zsad.learn.products import (
    Outcome,
    ProductNormals,
    fit_product,
    normals_of,
    preprocess_of,
    product_store,
    run_hash,
    training_of,
)
from zsad.report.lease import Lease
from zsad.storage import Store
from zsad.train_config import TrainConfig

log = logging.getLogger(__name__)

SUMMARY = "training.json"
_BLOCKS_PER_ACTOR = 8
_SCHEMA = pa.schema([("product", pa.string()), ("keys", pa.list_(pa.string())), ("error", pa.string())])
_NAMED = 10
_READERS = 16


def train_products(config: TrainConfig) -> list[Outcome]:
    """Run the job of `config` for promptad.

    Returns:
        What became of each product; none for a dry run.

    Raises:
        ConfigError: for arguments or data that can't be used.
        CommitConflict: if another driver trains in the same work folder.
        TooManyBadImages: if more than `max_error_share` of the products could not be fitted; the others were.
        ModelError, StorageError: if the backbone does not suit, or storage fails.
    """
    products = normals_of(chosen_images(config, ALL), config.used_split)
    _announce(config, products)
    if config.dry_run:
        return []
    config.output_store.check_writable()
    resources = connect()
    config.check_gpus(resources.num_gpus)
    with hold(config) as lease:
        begin(config, config.identity(), _stores(config, products))
        done = _fitted_before(config, products) if config.resume else []
        left = [item for item in products if item.product not in set(done)]
        log.info("%d products are fitted already, %d are left", len(done), len(left))
        outcomes = list(_fitted(config, left, resources, lease)) if left else []
        lease.check()
        _summarise(config, done, outcomes)
    return outcomes


def _announce(config: TrainConfig, products: list[ProductNormals]) -> None:
    """Print what the training will need, once it is known that backbone, size and learning rate go together.

    Raises:
        ConfigError, ModelError: if they do not.
    """
    training, backbone = training_of(config), load_backbone(config.backbone, "cpu")
    size = preprocess_of(config, backbone).size
    print(estimate_products(config, training, backbone, products, size=size).text())


def _stores(config: TrainConfig, products: list[ProductNormals]) -> list[Store]:
    """Where bundles go, of all products whose name can be a folder."""
    stores = []
    for item in products:
        with suppress(ConfigError):
            stores.append(product_store(config, item.product))
    return stores


def _fitted_before(config: TrainConfig, products: list[ProductNormals]) -> list[str]:
    """The products with a bundle of this very training; those of others are made anew."""
    with ThreadPoolExecutor(_READERS) as readers:
        is_done = list(readers.map(partial(_is_done, config, run_hash(config)), products))
    return [item.product for item, done in zip(products, is_done, strict=True) if done]


def _is_done(config: TrainConfig, training: str, item: ProductNormals) -> bool:
    try:
        stored = read_config(product_store(config, item.product).url)
    except (ConfigError, ModelError):  # no folder of this name, no bundle, or none that can be read
        return False
    return bool(stored.provenance.get("training") == training)


def _fitted(
    config: TrainConfig, products: list[ProductNormals], resources: Resources, lease: Lease
) -> Iterator[Outcome]:
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
            lease.check()
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

        config = self._config
        if not config.use_gpu:
            torch.set_num_threads(1)
        self._backbone = load_backbone(config.backbone, "cuda" if config.use_gpu else "cpu")
        self._preprocess = preprocess_of(config, self._backbone)
        self._training = training_of(config)
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
