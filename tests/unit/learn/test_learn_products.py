"""Which images a product is fitted to, without Ray."""

import pytest

from zsad.datasets.labelled import LabelledImage
from zsad.errors import ConfigError
from zsad.images import Preprocess
from zsad.learn.estimate import estimate_products
from zsad.learn.products import (
    ProductNormals,
    drawn_order,
    fit_product,
    normals_of,
    preprocess_of,
    product_store,
    training_of,
)
from zsad.learn.promptad import new_learner
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


def test_a_product_that_breaks_keeps_no_bundle_of_an_earlier_training(tmp_path, tiny_backbone):
    config = TrainConfig(method="promptad", dataset=f"mvtec:{tmp_path}/data", output=str(tmp_path / "o"))
    store = product_store(config, "nut")
    store.put("detector.json", b"{}")
    normals = ProductNormals(product="nut", keys=())
    with pytest.raises(ConfigError, match="nut has 0 usable normal images"):
        fit_product(config, training_of(config), tiny_backbone, Preprocess(size=32), normals, child=None)
    assert not store.exists("detector.json")


def test_what_is_said_before_fitting_is_what_will_be_learned(tmp_path, tiny_backbone):
    """Trainable numbers against the learners themselves; two of three products have fewer than the four shots."""
    config = TrainConfig(method="promptad", dataset=f"mvtec:{tmp_path}/data", output=str(tmp_path / "o"))
    sizes = {"bolt": 9, "lid": 3, "nut": 0}
    products = [ProductNormals(product=name, keys=tuple(KEYS[:count])) for name, count in sizes.items()]
    training = training_of(config)
    found = estimate_products(config, training, tiny_backbone, products, size=32)
    learners = [new_learner(training, tiny_backbone, "lid", ["damaged lid"], task) for task in ("cls", "seg")]
    assert found.num_trainable == sum(part.numel() for learner in learners for part in learner.parameters())
    assert (found.num_images, found.steps) == (12, 200)
    assert "too few images      2 products: lid (3), nut (0)" in found.text()
    assert found.cache_bytes == 4 * 4 * (32 + 16 * (32 + 2 * 64))  # 4 shots of bolt, 4 bytes; widths 32 and 64
    assert "cache               0.0 MiB of features (fp32)" in found.text()


def test_settings_that_do_not_go_with_the_backbone_are_refused_before_fitting(tmp_path, tiny_backbone):
    settings = {"method": "promptad", "dataset": f"mvtec:{tmp_path}/data", "output": str(tmp_path / "o")}
    with pytest.raises(ConfigError, match="input size 33 px is no multiple"):
        preprocess_of(TrainConfig(**settings, size=33), tiny_backbone)
    with pytest.raises(ConfigError, match="learning rates go from 1e-06"):
        training_of(TrainConfig(**settings, learning_rate=1e-6))
