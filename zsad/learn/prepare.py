"""From a training's settings to rows: the images there are, their pixels and masks, and what is stored of them.

Listing and drawing give the same table, so everything behind it is the same for both. An anomalous image without a mask
can't be learned from and becomes a row with an error, as does one whose mask is broken (`zsad.evaluation.truth`); where
the list itself shows more of the former than may be, `check_masks` refuses it.

Legend: S side px.
"""

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from zsad.datasets.labelled import GOOD, LabelledImage
from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.decode_child import DecodeChild
from zsad.errors import ConfigError, TooManyBadImages
from zsad.evaluation.truth import MASK, TRUTH_SCHEMA, decode_truth, decoded_schema, pack, truth_table, unpack
from zsad.images import Preprocess
from zsad.learn.examples import Form
from zsad.learn.styles import TRAINED_DEFECTS, training_styles
from zsad.scoring import PIXELS
from zsad.train_config import SYNTHETIC, TrainConfig

if TYPE_CHECKING:
    from zsad.learn.recipes import FAPromptRecipe, Recipe

_SHARD_ROWS = 32
_SHARD_BYTES = 64 * 2**20  # of pixels; Ray Data cuts blocks of more than twice as many
DRAWN_SEED = 30_000
"""Added to a training's seed: nothing else in zsad draws images with seeds from here on."""


def shard_rows(size: int) -> int:
    """Images of `size` px in a shard."""
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // (3 * size * size)))


def list_images(config: TrainConfig) -> pa.Table:
    """The images of a training with `TRUTH_SCHEMA`, in an order that does not change.

    Raises:
        ConfigError: if there are none, or a product is asked for that is not there.
        StorageError: if they can't be listed.
    """
    if config.dataset == SYNTHETIC:
        rows = [{"key": str(index), "uri": f"{SYNTHETIC}:{index}", "label": 0} for index in range(config.images)]
        return pa.Table.from_pylist(
            [{**row, "defect_type": GOOD, "product": SYNTHETIC} for row in rows], schema=TRUTH_SCHEMA
        )
    return truth_table(chosen_images(config))


def chosen_images(config: TrainConfig, split: str | None = None) -> list[LabelledImage]:
    """The listed images of the products asked for; `split` None: the training's.

    Raises:
        ConfigError: if one of them is not there.
        StorageError: if they can't be listed.
    """
    images = list(config.labelled().images(split=split or config.used_split, where=config.where))
    if not config.products:
        return images
    there = sorted({image.product for image in images})
    for wanted in config.products:
        if wanted not in there:
            near = get_close_matches(wanted, there, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there[:8])}"
            raise ConfigError(
                f"--products {wanted}: {config.dataset} has no such product in split {config.used_split}; {hint}"
            )
    return [image for image in images if image.product in config.products]


def check_masks(config: TrainConfig, listed: pa.Table) -> None:
    """Refuse a list whose anomalous images have too few masks, before an image is decoded.

    Raises:
        TooManyBadImages: naming some, if more than `max_error_share` of all images are such.
    """
    rows = listed.select(["uri", "label", "mask"]).to_pylist()
    bare = [row["uri"] for row in rows if row["label"] and row["mask"] is None]
    if config.dataset != SYNTHETIC and len(bare) > config.max_error_share * len(rows):
        raise TooManyBadImages(
            f"{len(bare):,} of {len(rows):,} images are anomalous but have no mask, and {config.method} learns from "
            f"masks; the limit is {config.max_error_share:.1%} (--max-error-share): {', '.join(bare[:3])}"
        )


def defect_types(config: TrainConfig, listed: pa.Table) -> set[str]:
    """All types that a training meets, without "good"; drawn images have all that are drawn."""
    if config.dataset == SYNTHETIC:
        return set(TRAINED_DEFECTS)
    return set(listed["defect_type"].to_pylist()) - {GOOD}


def data_sha256(config: TrainConfig, listed: pa.Table) -> str:
    """SHA-256 of which images are learned from and what is known of them; not of their contents."""
    seed = config.seed if config.dataset == SYNTHETIC else None
    rows = [config.dataset, seed, listed.select(["key", "label", "defect_type", "mask", "product"]).to_pydict()]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def decode_rows(config: TrainConfig, preprocess: Preprocess, listed: pa.Table, child: DecodeChild | None) -> pa.Table:
    """Pixels and masks of listed rows at the model's size, with `decoded_schema`.

    Args:
        config: of the training.
        preprocess: how an image becomes the model's input.
        listed: rows of `list_images`.
        child: decodes; None where images are drawn.
    """
    if child is None:
        return _drawn(training_styles(preprocess.size), config.seed, listed)
    return decode_truth(
        config.labelled().store,
        listed,
        limits=config.decode,
        preprocess=preprocess,
        side_px=preprocess.size,
        child=child,
    )


def _drawn(styles: SyntheticConfig, seed: int, listed: pa.Table) -> pa.Table:
    rows = []
    for row in listed.to_pylist():
        sample = generate(DRAWN_SEED + seed, int(row["key"]), styles)
        facts = {"label": int(sample.defect_type != GOOD), "defect_type": sample.defect_type}
        size = {"width": styles.size, "height": styles.size}
        mask = pack(sample.mask) if facts["label"] else None
        rows.append({**row, **facts, **size, MASK: mask, PIXELS: sample.image.tobytes()})
    return pa.Table.from_pylist(rows, schema=decoded_schema(styles.size))


def rows_of(recipe: "Recipe", form: Form, decoded: pa.Table) -> list[dict[str, Any]]:
    """What `write_shard` takes: decoded rows with their arrays, features where the form asks for them.

    The image tower runs here, once over each usable image.
    """
    rows: list[dict[str, Any]] = decoded.drop_columns([PIXELS, MASK]).to_pylist()
    masks = decoded[MASK].to_pylist()
    pixels = [np.frombuffer(data.as_buffer(), np.uint8) for data in decoded[PIXELS]]
    usable = []
    for row, mask, flat in zip(rows, masks, pixels, strict=True):
        if row["label"] and not mask and not row["error_code"]:
            row["error_code"] = "mask_missing"
            row["error_message"] = "it is anomalous but has no mask, and this method learns from masks"
        if row["error_code"]:
            continue
        blank = np.zeros((form.size, form.size), np.bool_)
        row["mask_SS"] = unpack(mask, form.size, form.size) if mask else blank
        row["pixels_SSC"] = flat.reshape(form.size, form.size, 3)
        usable.append(row)
    if form.kept != "pixels" and usable:
        _add_features(cast("FAPromptRecipe", recipe), usable)  # the only one with such rows
    return rows


def _add_features(recipe: "FAPromptRecipe", rows: Sequence[dict[str, Any]]) -> None:
    image_BD, patches_BPD = recipe.features(np.stack([row["pixels_SSC"] for row in rows]))
    for row, image_D, patches_PD in zip(rows, image_BD.cpu().numpy(), patches_BPD.cpu().numpy(), strict=True):
        row["image_D"], row["patches_PD"] = image_D, patches_PD
