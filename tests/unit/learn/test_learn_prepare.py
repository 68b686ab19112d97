"""From a list or a drawing to rows, without Ray."""

import numpy as np
import pytest
from PIL import Image
from training_rows import recipe_for

from zsad.decode_child import DecodeChild
from zsad.errors import ConfigError, TooManyBadImages
from zsad.evaluation.truth import MASK
from zsad.images import Preprocess
from zsad.learn.prepare import (
    DRAWN_SEED,
    check_masks,
    data_sha256,
    decode_rows,
    defect_types,
    list_images,
    rows_of,
    shard_rows,
)
from zsad.prompts import clip_scores
from zsad.train_config import TrainConfig

PREPROCESS = Preprocess(size=32)


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two products; of the bolt's two defects one has a mask, and the nut has no masks at all."""
    for product in ("bolt", "nut"):
        save(tmp_path / product / "test" / "good" / "a.png", 10)
        save(tmp_path / product / "test" / "dent" / "b.png", 20)
    save(tmp_path / "bolt" / "test" / "dent" / "c.png", 30)
    save(tmp_path / "bolt" / "ground_truth" / "dent" / "b_mask.png", 255)
    return tmp_path


def config(folder, **changes):
    return TrainConfig(**{"method": "faprompt", "dataset": f"mvtec:{folder}", "output": f"{folder}-out"} | changes)


def rows(folder, backbone, **changes):
    settings, recipe = config(folder, **changes), recipe_for(backbone)
    child = None if settings.dataset == "synthetic" else DecodeChild()
    decoded = decode_rows(settings, PREPROCESS, list_images(settings), child)
    return {row["key"]: row for row in rows_of(recipe, recipe.form(32, "pixels"), decoded)}


def test_products_are_chosen_by_name(folder):
    assert set(list_images(config(folder, products=("nut",)))["product"].to_pylist()) == {"nut"}
    with pytest.raises(ConfigError, match="no such product in split test; did you mean 'bolt'"):
        list_images(config(folder, products=("bold",)))


def test_masks_come_at_the_models_size_and_normal_images_have_empty_ones(folder, tiny_backbone):
    found = rows(folder, tiny_backbone, products=("bolt",))
    assert found["bolt/test/dent/b.png"]["mask_SS"].all()
    assert not found["bolt/test/good/a.png"]["mask_SS"].any()
    assert found["bolt/test/good/a.png"]["pixels_SSC"].shape == (32, 32, 3)


@pytest.mark.parametrize("key", ["bolt/test/dent/c.png", "nut/test/dent/b.png"])
def test_a_defect_without_a_mask_is_an_error_row(folder, tiny_backbone, key):
    """Once its file is missing among others, once the product has none."""
    row = rows(folder, tiny_backbone)[key]
    assert row["error_code"] == "mask_missing"
    assert "mask" in row["error_message"]
    assert "pixels_SSC" not in row


def test_drawn_images_are_the_same_for_a_seed_and_know_their_defects(tmp_path):
    settings = config(tmp_path, dataset="synthetic", images=16)
    first, again = (decode_rows(settings, PREPROCESS, list_images(settings), None) for _ in range(2))
    assert first.equals(again)
    other = config(tmp_path, dataset="synthetic", images=16, seed=1)
    assert not decode_rows(other, PREPROCESS, list_images(other), None).equals(first)
    labels, kinds = first["label"].to_pylist(), first["defect_type"].to_pylist()
    assert [kind != "good" for kind in kinds] == [label == 1 for label in labels]
    assert [mask is not None for mask in first[MASK].to_pylist()] == [label == 1 for label in labels]


def test_types_and_hash_of_the_data(folder, tmp_path):
    settings = config(folder)
    listed = list_images(settings)
    assert defect_types(settings, listed) == {"dent"}
    assert data_sha256(settings, listed) != data_sha256(settings, listed.slice(1))
    drawn = config(tmp_path, dataset="synthetic")
    assert "scratch" in defect_types(drawn, list_images(drawn))


def test_shards_of_large_images_hold_fewer():
    """64 MiB of pixels at most: 2^26 / (3 * 1024^2) = 21.3 images of 1,024 px."""
    assert [shard_rows(size) for size in (224, 518, 1024, 4096)] == [32, 32, 21, 1]


def test_a_list_with_too_few_masks_is_refused_before_anything_is_decoded(folder):
    """One of five images; the one whose mask is merely not there is found when it is read."""
    settings = config(folder)
    with pytest.raises(TooManyBadImages, match=r"1 of 5 images are anomalous but have no mask.*nut/test/dent/b\.png"):
        check_masks(settings, list_images(settings))
    check_masks(config(folder, max_error_share=0.2), list_images(settings))
    check_masks(config(folder, products=("bolt",)), list_images(config(folder, products=("bolt",))))


def test_phrases_are_not_judged_by_scenes_that_a_training_draws():
    assert clip_scores._DRAWN_SEED < DRAWN_SEED
