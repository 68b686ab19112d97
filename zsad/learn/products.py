"""Fit PromptAD to product after product of a labelled data set, one bundle each.

A product's images are drawn from its normal ones by seed and name, so that neither the other products nor the order of
fitting change the draw. An image that can't be decoded gives way to the next one drawn; a product with too few of them
is an outcome with a reason, and the others go on.

Cost: of k images k passes of the image tower, kept for later trainings (`zsad.learn.product_features`), 100 short text
passes for each of two tasks, and the passes of the thresholds' cross-fit (`zsad.few_shot`); a tower loaded once serves
all products of a process.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zsad.backbone import Backbone
from zsad.bundle import CONFIG_FILE
from zsad.datasets.labelled import LabelledImage
from zsad.decode_child import DecodeChild
from zsad.defect_types import split_seen
from zsad.errors import ConfigError, ImageError
from zsad.images import DecodeLimits, Preprocess
from zsad.learn.checkpoints import EpochRecord
from zsad.learn.page import PAGE, render_page
from zsad.learn.product_features import features_of
from zsad.learn.promptad import PromptADTraining, Task, fit_features
from zsad.learn.publish import make_detector, publish
from zsad.methods.base import Subject
from zsad.methods.promptad import PromptADConfig
from zsad.prompts.ensemble import DEFECT_WORDS
from zsad.report.ledger import config_hash
from zsad.scoring import fetched
from zsad.storage import Store
from zsad.tiling import check_patches
from zsad.train_config import PRODUCT, WORK, TrainConfig

TASKS: dict[Task, str] = {"cls": "Image task", "seg": "Pixel task"}
_SPARE = 4  # drawn images read at once beyond the shots


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductNormals:
    """A product and the keys of its normal images, in the order of the list."""

    product: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a product: `error` is empty where its bundle is written; `keys` were learned from."""

    product: str
    keys: tuple[str, ...] = ()
    error: str = ""


def normals_of(images: Iterable[LabelledImage], split: str) -> list[ProductNormals]:
    """All products by name, each with its normal images of `split`, of which there may be none."""
    found: dict[str, list[str]] = {}
    for image in images:
        keys = found.setdefault(image.product, [])
        if image.label == 0 and image.split == split:
            keys.append(image.key)
    return [ProductNormals(product=name, keys=tuple(keys)) for name, keys in sorted(found.items())]


def drawn_order(keys: Sequence[str], product: str, seed: int) -> list[str]:
    """The keys in the order in which they are drawn."""
    number = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big")
    return [keys[place] for place in np.random.default_rng([seed, number]).permutation(len(keys))]


def run_hash(config: TrainConfig) -> str:
    """What a bundle's provenance holds of the training that it came from: equal for trainings that learn the same."""
    return config_hash(config.identity())


def training_of(config: TrainConfig) -> PromptADTraining:
    """How each product is learned.

    Raises:
        ConfigError: if the learning rate can't be used.
    """
    rate = config.learning_rate or PromptADTraining().learning_rate
    return PromptADTraining(epochs=config.num_epochs, learning_rate=rate)


def preprocess_of(config: TrainConfig, backbone: Backbone) -> Preprocess:
    """How images become the model's input.

    Raises:
        ConfigError: if the size does not divide into patches.
    """
    preprocess = Preprocess(size=config.size or backbone.image_size, interpolation=backbone.interpolation)
    check_patches(preprocess, backbone.patch_size)
    return preprocess


def fit_product(
    config: TrainConfig,
    training: PromptADTraining,
    backbone: Backbone,
    preprocess: Preprocess,
    normals: ProductNormals,
    child: DecodeChild,
) -> Outcome:
    """Learn one product and write its bundle and page; a bundle that is there goes first, whatever comes of it.

    Raises:
        ConfigError: if it has too few usable normal images, or its name can't be a folder or stand in prompts.
        ModelError, StorageError: if the model or storage fails; there is no bundle.
    """
    store = product_store(config, normals.product)
    store.delete(CONFIG_FILE)
    keys, pixels = _shots(config, preprocess, normals, child)
    name = config.object.replace(PRODUCT, normals.product.replace("_", " "))
    records: dict[Task, list[dict[str, float]]] = {task: [] for task in TASKS}
    method = PromptADConfig()
    features = features_of(backbone, method, torch.from_numpy(np.stack(pixels)), config.work_store, config.cache)
    tensors = fit_features(
        replace(training, seed=training.seed + config.seed),
        backbone,
        Subject(object_name=name),
        [features],
        method=method,
        watch=lambda task, terms: records[task].append(terms),
    )
    detector = make_detector(
        backbone,
        method="promptad",
        settings={},
        tensors=tensors,
        preprocess=preprocess,
        object_name=name,
        defect_words=split_seen(backbone, DEFECT_WORDS)[0] or DEFECT_WORDS,
        provenance={
            "data": config.dataset,
            "product": normals.product,
            "normals": list(keys),
            "seed": config.seed,
            "training": run_hash(config),
        },
    )
    calibrated = detector.with_normals(pixels, source=f"{len(pixels)} normal images of {normals.product}")
    publish(calibrated, store)
    store.put(PAGE, _page(config, normals.product, keys, records).encode())
    return Outcome(product=normals.product, keys=tuple(keys))


def product_store(config: TrainConfig, product: str) -> Store:
    """Where a product's bundle goes.

    Raises:
        ConfigError: if its name can't be a folder there.
    """
    if product == WORK:
        raise ConfigError(f"a product can't be called {WORK}, where the training keeps its own files; rename it")
    return config.output_store.sub(product)


def _shots(
    config: TrainConfig, preprocess: Preprocess, normals: ProductNormals, child: DecodeChild
) -> tuple[list[str], list[NDArray[np.uint8]]]:
    """The first usable ones in the drawn order.

    Raises:
        ConfigError: if there are too few.
    """
    order = drawn_order(normals.keys, normals.product, config.seed)
    keys: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    reasons: list[str] = []
    for key, found in _decoded(config.labelled().store, order, config.decode, preprocess, child):
        if isinstance(found, ImageError):
            reasons.append(f"{key}: {found} ({found.code})")
            continue
        keys.append(key)
        pixels.append(found)
        if len(keys) == config.shots:
            return keys, pixels
    broken = f"; {len(reasons)} can't be used, such as {reasons[0]}" if reasons else ""
    raise ConfigError(
        f"product {normals.product} has {len(keys)} usable normal images in split {config.used_split}, and --shots "
        f"asks for {config.shots}{broken}; add some, or lower --shots"
    )


def _decoded(
    store: Store, order: Sequence[str], limits: DecodeLimits, preprocess: Preprocess, child: DecodeChild
) -> Iterator[tuple[str, NDArray[np.uint8] | ImageError]]:
    for start in range(0, len(order), _SPARE):
        some = order[start : start + _SPARE]
        for key, data in zip(some, fetched(store, [(key, None) for key in some], limits.max_bytes), strict=True):
            try:
                yield key, data if isinstance(data, ImageError) else child.decode(data, limits, preprocess).pixels
            except ImageError as error:
                yield key, error


def _page(config: TrainConfig, product: str, keys: Sequence[str], records: dict[Task, list[dict[str, float]]]) -> str:
    parts = ("contrastive", "margin", "align")
    histories = {
        title: [EpochRecord(epoch=0, steps=[{name: terms[name] for name in parts} for terms in records[task]])]
        for task, title in TASKS.items()
    }
    facts: dict[str, Any] = {"Product": product, "Normal images": f"{len(keys)}"}
    facts |= {f"{title}, steps": f"{len(records[task]):,}" for task, title in TASKS.items()}
    under = f"{', '.join(keys)}; the x-axis is the share of all steps; the align term before its weight"
    return render_page(config, facts, histories, under=under, x_label="share of steps")
