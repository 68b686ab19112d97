"""Trainings from one S3 bucket to another, cache and checkpoints included, learn what a local folder gives."""

import pytest
import torch
from safetensors.torch import load
from training_runs import PRODUCTS, config_for, learned_in, write_backbone, write_labelled

from zsad.detector import load_detector
from zsad.distributed.train_prompts import train_prompts
from zsad.storage import open_store
from zsad.train_config import TrainConfig

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Every node has the weights; only data and results are in buckets."""
    return write_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def sets(s3, tmp_path_factory):
    """The labelled set as a folder, and the same in a bucket."""
    folder = write_labelled(tmp_path_factory.mktemp("labelled") / "set")
    url = s3.new_bucket() + "/labelled set"
    bucket = open_store(url)
    for path in folder.rglob("*.png"):
        bucket.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return folder, url


def bundle_tensors(url):
    return load(open_store(url).get("tensors.safetensors", max_bytes=2**24))


def test_faprompt_learns_the_same_from_a_bucket(s3, backbone, sets, tmp_path):
    folder, url = sets
    output = s3.new_bucket() + "/models/faprompt"
    train_prompts(config_for(backbone, folder, tmp_path / "local"))
    train_prompts(config_for(backbone, url, output, num_workers=2))
    expected, found = learned_in(tmp_path / "local"), bundle_tensors(output)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)  # two workers against one: rounding
    keys = {stored.key for stored in open_store(output).list()}
    assert any(key.startswith("_training/checkpoints/epoch-") for key in keys)
    assert any(key.endswith(".arrow") for key in keys)
    assert sum("tfevents" in key for key in keys) > 0
    assert load_detector(output, device="cpu").config.method == "faprompt"


def test_promptad_fits_every_product_of_a_bucket(s3, backbone, sets, tmp_path):
    folder, url = sets
    shared = {"method": "promptad", "shots": 2, "epochs": 2, "num_workers": 2, "backbone": str(backbone)}
    output = s3.new_bucket() + "/models/promptad"
    train_prompts(TrainConfig(dataset=f"mvtec:{folder}", output=str(tmp_path / "local"), **shared))
    train_prompts(TrainConfig(dataset=f"mvtec:{url}", output=output, **shared))
    for product in PRODUCTS:
        local = learned_in(tmp_path / "local" / product)
        assert all(torch.equal(tensor, local[name]) for name, tensor in bundle_tensors(f"{output}/{product}").items())
        assert load_detector(f"{output}/{product}", device="cpu").config.object_name == product.replace("_", " ")
