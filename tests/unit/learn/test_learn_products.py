"""Which images a product is fitted to, without Ray."""

import pytest

from zsad.datasets.labelled import LabelledImage
from zsad.errors import ConfigError
from zsad.learn.products import drawn_order, normals_of, product_store
from zsad.train_config import TrainConfig

KEYS = [f"{number:02d}.png" for number in range(20)]


def image(key, product, label=0, split="train"):
    kind = "scratch" if label else "good"
    return LabelledImage(
        key=key, uri=f"/data/{key}", label=label, defect_type=kind, mask=None, product=product, split=split
    )


def test_products_have_their_normal_images_of_the_split_and_may_have_none():
    images = [image("a", "nut"), image("b", "bolt", label=1), image("c", "bolt", split="test"), image("d", "nut")]
    found = {item.product: item.keys for item in normals_of(images, "train")}
    assert found == {"bolt": (), "nut": ("a", "d")}


def test_a_draw_depends_on_seed_and_name_alone():
    assert drawn_order(KEYS, "nut", 0) == drawn_order(KEYS, "nut", 0)
    assert drawn_order(KEYS, "nut", 0) != drawn_order(KEYS, "nut", 1)
    assert drawn_order(KEYS, "nut", 0) != drawn_order(KEYS, "bolt", 0)
    assert sorted(drawn_order(KEYS, "nut", 3)) == KEYS


@pytest.mark.parametrize("name", ["_training", "..", "a//b"])
def test_names_that_can_be_no_folder_are_refused(tmp_path, name):
    config = TrainConfig(method="promptad", dataset=f"mvtec:{tmp_path}/data", output=str(tmp_path / "o"))
    with pytest.raises(ConfigError):
        product_store(config, name)
