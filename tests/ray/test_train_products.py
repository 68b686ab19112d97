"""PromptAD product by product on a real Ray: one bundle each, and a broken product costs only itself."""

import json
import shutil
from dataclasses import replace

import pytest
from training_runs import PRODUCTS, config_for, write_backbone, write_labelled

from zsad.detector import load_detector
from zsad.distributed.train_prompts import train_prompts
from zsad.errors import TooManyBadImages

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
    settings = {"method": "promptad", "shots": 2, "epochs": 3, "num_workers": 2, "max_error_share": 0.5}
    return config_for(*places, output, **{**settings, **changes})


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
