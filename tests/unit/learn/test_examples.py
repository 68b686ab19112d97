"""Rows come back from shards as they went in, one by one and in any order."""

import numpy as np
import pytest
from training_rows import SIZE, raw_rows, recipe_for, stored

from zsad.errors import StorageError
from zsad.learn.examples import Form, Shards, shard_key, word_of, words_of, write_shard
from zsad.storage import open_store


def test_pixels_and_masks_come_back(tmp_path, tiny_backbone):
    shards, facts = stored(tmp_path, recipe_for(tiny_backbone), "pixels")
    for number in (7, 0, 9):
        example, row = shards.read(facts[number]), raw_rows()[number]
        assert np.array_equal(example.pixels_SSC, row["pixels_SSC"])
        assert np.array_equal(example.mask_SS, row["mask_SS"])
        assert (example.label, example.defect_type) == (row["label"], row["defect_type"])


@pytest.mark.parametrize(("kept", "tolerance"), [("fp32", 0.0), ("fp16", 5e-4)])
def test_features_come_back_in_their_precision(tmp_path, tiny_backbone, kept, tolerance):
    """Unit-length features lie in [-1, 1], where fp16 rounds by at most 2^-12."""
    recipe = recipe_for(tiny_backbone)
    shards, facts = stored(tmp_path, recipe, kept)
    expected = recipe.features(raw_rows()[3]["pixels_SSC"][None])[1][0].numpy()
    found = shards.read(facts[3]).patches_PD
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance


def test_features_do_not_depend_on_the_images_beside_them(tiny_backbone):
    pixels = np.stack([row["pixels_SSC"] for row in raw_rows(10)])
    recipe = recipe_for(tiny_backbone)
    together, alone = recipe.features(pixels)[1], recipe.features(pixels[9:])[1]
    assert np.array_equal(together[9].numpy(), alone[0].numpy())


def test_a_broken_row_keeps_its_place_and_its_reason(tmp_path, tiny_backbone):
    rows = raw_rows()
    rows[2] |= {"error_code": "mask_size", "error_message": "mask m.png has 8 x 8 px"}
    _, facts = stored(tmp_path, recipe_for(tiny_backbone), "pixels", rows)
    assert [fact.error for fact in facts[1:4]] == ["", "mask m.png has 8 x 8 px (mask_size)", ""]
    assert [fact.key for fact in facts] == [row["key"] for row in rows]


def test_bytes_of_an_image_are_those_of_its_data():
    """Mask 32 x 32 bits; pixels 3 a place; features (1 + 16) x 8 numbers."""
    assert Form(size=32, kept="pixels").bytes_per_image == 128 + 3072
    assert Form(size=32, kept="fp32", num_patches=16, width=8).bytes_per_image == 128 + 17 * 8 * 4
    assert Form(size=32, kept="fp16", num_patches=16, width=8).bytes_per_image == 128 + 17 * 8 * 2


def test_the_stated_size_is_nearly_that_of_a_shard():
    form, rows = Form(size=SIZE, kept="pixels"), raw_rows()
    assert 0 <= len(write_shard(form, rows)) - len(rows) * form.bytes_per_image < len(rows) * 2048


def test_a_torn_shard_is_no_shard(tmp_path, tiny_backbone):
    form, store = Form(size=SIZE, kept="pixels"), open_store(str(tmp_path))
    store.put(shard_key(0), write_shard(form, raw_rows())[:-20])
    with pytest.raises(StorageError, match=r"000000\.arrow can't be read .*--restart makes them anew"):
        Shards(store, form).facts(0)


def test_types_that_name_nothing_teach_the_word_defect():
    assert word_of("anomaly") == word_of("combined") == "defect"
    assert words_of(["good", "scratch_head", "bad", "Hole", "scratch_head"]) == ("defect", "hole", "scratch head")
