"""Taking possession of an output, and what is forgotten of one."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from zsad.errors import CommitConflict, ConfigError, StorageError
from zsad.images import Preprocess
from zsad.learn.examples import Form, shard_key, write_shard
from zsad.learn.plan import Plan, begin, check_same, forget, forget_broken, hold, stored_shards
from zsad.train_config import TrainConfig


@pytest.fixture
def config_of(tmp_path):
    def made(**changes):
        wished = {"method": "faprompt", "dataset": "synthetic", "output": str(tmp_path / "o")} | changes
        return TrainConfig(**wished)

    return made


def test_a_second_training_in_the_same_place_is_refused(config_of):
    begin(config_of(), {"seed": 0})
    with pytest.raises(ConfigError, match="--resume goes on with it, --restart forgets it"):
        begin(config_of(), {"seed": 0})


def test_of_two_drivers_in_one_place_the_second_is_told_who_holds_it(config_of):
    with hold(config_of()), pytest.raises(CommitConflict, match="held by process"):
        hold(config_of(resume=True))
    hold(config_of(resume=True)).release()


def test_there_must_be_something_to_go_on_with(config_of):
    with pytest.raises(ConfigError, match="holds no training to go on with"):
        begin(config_of(resume=True), {"seed": 0})


def test_the_same_training_goes_on_and_another_is_named(config_of):
    begin(config_of(), {"seed": 0, "where": ("a=1",)})
    begin(config_of(resume=True), {"seed": 0, "where": ("a=1",)})
    with pytest.raises(ConfigError, match="begun with another seed;"):
        check_same(config_of().work_store, {"seed": 1, "where": ("a=1",)})


def test_starting_anew_forgets_the_trainings_own_files_and_no_others(config_of, tmp_path):
    config = config_of(work=str(tmp_path / "work"))
    kept = ["other.txt", "data/image.png"]
    ours = ["run.json", "cache-1234/000000.arrow", "checkpoints/epoch-0001.json", "tensorboard/events"]
    for key in (*kept, *ours):
        config.work_store.put(key, b"x")
    config.output_store.put("detector.json", b"{}")
    forget(config)
    assert sorted(info.key for info in config.work_store.list()) == sorted(kept)
    assert not config.output_store.exists("detector.json")


def test_a_bundle_of_a_product_is_not_written_over_without_being_told(config_of):
    bundles = [config_of().output_store.sub(name) for name in ("bolt", "nut", "lid")]
    for store in bundles[1:]:
        store.put("detector.json", b"{}")
    with pytest.raises(ConfigError, match=r"o/nut and 1 more hold a detector bundle already; .* or --restart$"):
        begin(config_of(), {"seed": 0}, bundles)
    assert not config_of().work_store.exists("run.json")
    begin(config_of(restart=True), {"seed": 0}, bundles)
    assert not any(store.exists("detector.json") for store in bundles)


def test_a_bundle_beside_its_training_can_be_gone_on_with(config_of):
    begin(config_of(), {"seed": 0})
    config_of().output_store.put("detector.json", b"{}")
    with pytest.raises(
        ConfigError, match=r"holds a detector bundle already; .*, or --resume to go on with the training"
    ):
        begin(config_of(), {"seed": 0})


def test_a_training_that_was_forgotten_by_half_is_not_taken_for_a_new_one(config_of, monkeypatch):
    """Otherwise its checkpoints would be those of the next one."""
    begin(config_of(), {"seed": 0})
    work = config_of().work_store
    work.put("checkpoints/epoch-0001.json", b"{}")

    delete = type(work).delete

    def refuse_checkpoints(store, key):
        if key.startswith("checkpoints/"):
            raise StorageError(f"no permission for {key}")
        delete(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(work), "delete", refuse_checkpoints)
        with pytest.raises(StorageError, match="epoch-0001"):
            forget(config_of())
    with pytest.raises(ConfigError, match="was begun before"):
        begin(config_of(), {"seed": 1})


@pytest.fixture
def plan(config_of):
    """A plan of three shards, of which the second holds an image that timed out."""
    config = config_of(images=80)
    made = Plan(
        config=config,
        words=(),
        preprocess=Preprocess(size=32),
        form=Form(size=32, kept="pixels"),
        num_images=80,
        cache="cache-0",
        data_sha256="",
        learning_rate=1e-3,
    )
    for shard, code in enumerate([None, "read_timeout", None]):
        facts = {"key": "a.png", "uri": "/data/a.png", "label": 0, "defect_type": "good"}
        pixels = {"mask_SS": np.zeros((32, 32), np.bool_), "pixels_SSC": np.zeros((32, 32, 3), np.uint8)}
        row = {**facts, **pixels, "error_code": code, "error_message": "no answer"}
        made.rows.put(shard_key(shard), write_shard(made.form, [row]))
    return made


def test_shards_with_a_broken_image_are_made_again(plan):
    assert forget_broken(plan) == 1
    assert stored_shards(plan) == {shard_key(0), shard_key(2)}
    assert forget_broken(plan) == 0


def test_the_images_of_an_epoch_that_is_done_stay_those_of_the_training(plan):
    data = safetensors.torch.save({"learned/x": torch.zeros(1)})
    plan.checkpoints.put("epoch-0001.safetensors", data)
    document = {"sha256": hashlib.sha256(data).hexdigest(), "epochs": 1, "history": []}
    plan.checkpoints.put("epoch-0001.json", json.dumps(document).encode())
    assert forget_broken(plan) == 0
    assert len(stored_shards(plan)) == 3
