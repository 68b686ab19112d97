"""PromptAD product by product on a real Ray: one bundle each, and a broken product costs only itself."""

import json
import shutil
from dataclasses import replace

import pytest
from training_runs import PRODUCTS, write_backbone, write_labelled

from zsad.detector import load_detector
from zsad.distributed.train_prompts import train_prompts
from zsad.errors import ConfigError, TooManyBadImages
from zsad.train_config import TrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A backbone, and two products beside two that can't be fitted: one image is none, and there are none."""
    folder = tmp_path_factory.mktemp("products")
    data = write_labelled(folder / "data")
    few = data / "one_left" / "train" / "good"
    shutil.copytree(data / "bolt", data / "one_left")
    for path in sorted(few.iterdir())[2:]:
        path.unlink()
    sorted(few.iterdir())[0].write_bytes(b"no image")
    shutil.copytree(data / "bolt", data / "untrained")
    shutil.rmtree(data / "untrained" / "train")
    return write_backbone(folder / "backbone"), data


@pytest.fixture(scope="module")
def fitted(local_ray, places, tmp_path_factory):
    """The output of a training of all products; two of four are broken and half may be."""
    output = tmp_path_factory.mktemp("fitted") / "bundles"
    train_prompts(promptad(places, output))
    return output


def promptad(places, output, **changes):
    backbone, data = places
    settings = {"method": "promptad", "shots": 2, "epochs": 3, "num_workers": 2, "max_error_share": 0.5}
    where = {"backbone": str(backbone), "dataset": f"mvtec:{data}", "output": str(output)}
    return TrainConfig(**{**settings, **where, **changes})


def test_every_product_has_a_bundle_of_its_own_with_its_page(fitted):
    for product in PRODUCTS:
        detector = load_detector(str(fitted / product), device="cpu")
        assert detector.config.object_name == product.replace("_", " ")
        assert detector.config.provenance["product"] == product
        assert len(detector.method.tensors["memory.1"]) == 2 * 16  # two images of 4 x 4 patches
        assert (fitted / product / "training.html").read_text().count("<polyline") == 2 * 4


def test_broken_products_are_named_with_a_reason_and_have_no_bundle(fitted):
    summary = json.loads((fitted / "training.json").read_text())
    assert set(summary["fitted"]) == set(PRODUCTS)
    assert "one_left has 1 usable normal images" in summary["broken"]["one_left"]
    assert "unknown_format" in summary["broken"]["one_left"]
    assert "untrained has 0 usable normal images" in summary["broken"]["untrained"]
    assert not (fitted / "one_left").exists()


def test_the_same_seed_draws_the_same_images_whatever_else_is_fitted(fitted, places, tmp_path):
    train_prompts(promptad(places, tmp_path / "bundles", products=("steel_nut",), num_workers=1))
    alone, beside = tmp_path / "bundles" / "steel_nut", fitted / "steel_nut"
    assert (alone / "tensors.safetensors").read_bytes() == (beside / "tensors.safetensors").read_bytes()


def test_features_of_every_fitted_product_are_kept_where_all_nodes_reach_them(fitted):
    assert len(list((fitted / "_training" / "features").glob("*.arrow"))) == len(PRODUCTS)


def test_learning_anew_with_another_rate_reads_the_features_that_are_there(places, tmp_path):
    """Their file is the only one and was written once."""
    config = promptad(places, tmp_path / "bundles", products=("bolt",), num_workers=1, cache="fp16")
    train_prompts(config)
    (kept,) = (tmp_path / "bundles" / "_training" / "features").glob("*.arrow")
    written, tensors = kept.stat().st_mtime_ns, tmp_path / "bundles" / "bolt" / "tensors.safetensors"
    first = tensors.read_bytes()
    train_prompts(replace(config, restart=True))
    assert tensors.read_bytes() == first
    train_prompts(replace(config, restart=True, learning_rate=0.02))
    assert tensors.read_bytes() != first
    assert [path.stat().st_mtime_ns for path in kept.parent.iterdir()] == [written]


@pytest.mark.slow
def test_going_on_fits_only_what_is_missing(places, tmp_path):
    config = promptad(places, tmp_path / "bundles", products=PRODUCTS)
    train_prompts(config)
    kept, lost = (tmp_path / "bundles" / product / "detector.json" for product in PRODUCTS)
    before = kept.stat().st_mtime_ns
    lost.unlink()
    train_prompts(replace(config, resume=True))
    assert kept.stat().st_mtime_ns == before
    assert lost.exists()
    summary = json.loads((tmp_path / "bundles" / "training.json").read_text())
    assert (summary["fitted_before"], list(summary["fitted"])) == ([PRODUCTS[0]], [PRODUCTS[1]])


@pytest.mark.slow
def test_more_broken_products_than_allowed_end_the_job_and_keep_the_others(places, tmp_path):
    with pytest.raises(TooManyBadImages, match=r"1 of 2 products .*one_left"):
        train_prompts(promptad(places, tmp_path / "bundles", products=("bolt", "one_left"), max_error_share=0.1))
    assert (tmp_path / "bundles" / "bolt" / "detector.json").exists()


def test_a_bundle_of_another_training_is_neither_written_over_nor_taken_for_a_fitted_product(places, tmp_path):
    """The second training is as one that was killed before it came to its product: only its run.json is there."""
    config = promptad(places, tmp_path / "bundles", products=("bolt",))
    train_prompts(config)
    bundle, work = tmp_path / "bundles" / "bolt" / "detector.json", tmp_path / "bundles" / "_training"
    stored = bundle.read_bytes()
    shutil.rmtree(work)
    with pytest.raises(ConfigError, match=r"bundles/bolt holds a detector bundle already"):
        train_prompts(config)
    other = replace(config, seed=1)
    work.mkdir(exist_ok=True)
    (work / "run.json").write_text(json.dumps(other.identity()))
    assert bundle.read_bytes() == stored
    train_prompts(replace(other, resume=True))
    assert json.loads(bundle.read_text())["provenance"]["seed"] == 1


@pytest.mark.slow
def test_starting_anew_leaves_no_old_bundle_of_a_product_that_breaks(places, tmp_path):
    config = promptad(places, tmp_path / "bundles", products=("bolt", "one_left"))
    stale = tmp_path / "bundles" / "one_left" / "detector.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    train_prompts(replace(config, restart=True))
    assert not stale.exists()
    assert (tmp_path / "bundles" / "bolt" / "detector.json").exists()


def test_a_dry_run_names_products_with_too_few_images_and_writes_nothing(places, tmp_path, capsys):
    """Eleven normal images of each product but for those left with two and none."""
    train_prompts(promptad(places, tmp_path / "bundles", dry_run=True))
    said = capsys.readouterr().out
    assert "too few images      1 products: untrained (0)" in said
    assert "normal images       24, of which 2 of each product are used" in said
    assert "steps               6 a product" in said
    assert "trainable numbers   768 a product" in said  # width 32 times (3 + 1) contexts of 4 and twice 4 of 1
    with pytest.raises(ConfigError, match="input size 33 px"):
        train_prompts(promptad(places, tmp_path / "bundles", dry_run=True, size=33))
    assert not (tmp_path / "bundles").exists()


def test_gpus_that_the_cluster_lacks_are_refused_before_anything_is_written(places, tmp_path):
    with pytest.raises(ConfigError, match="the cluster has 0 GPUs"):
        train_prompts(promptad(places, tmp_path / "bundles", use_gpu=True))
    assert not (tmp_path / "bundles" / "_training").exists()
