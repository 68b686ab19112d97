"""Whole trainings over the tiny towers, without Ray."""

import pytest
import torch
from training_rows import SCHEDULE, raw_rows, recipe_for, stored, trained

from zsad.errors import ConfigError, ModelError, StorageError, TooManyBadImages
from zsad.learn import checkpoints
from zsad.learn.epochs import learned_tensors, usable_rows
from zsad.storage import open_store
from zsad.storage.local import LocalStore


@pytest.fixture
def forwards(tiny_backbone, monkeypatch):
    """How many images the image tower has seen; a counter around the real one."""
    counted, real = [], tiny_backbone.encode_image

    def encode_image(pixels_BHWC, **options):
        counted.append(len(pixels_BHWC))
        return real(pixels_BHWC, **options)

    monkeypatch.setattr(tiny_backbone, "encode_image", encode_image)
    return counted


def test_epochs_on_cached_features_make_no_forward_of_the_image_tower(tmp_path, tiny_backbone, forwards):
    recipe = recipe_for(tiny_backbone)
    shards, facts = stored(tmp_path / "rows", recipe, "fp32")
    assert forwards
    forwards.clear()
    assert trained(tmp_path / "checkpoints", recipe, shards, facts).epochs == 3
    assert not forwards


def test_cached_features_give_what_the_tower_gives_at_every_step(tmp_path, tiny_backbone, forwards):
    learned = {}
    for kept in ("fp32", "pixels"):
        recipe = recipe_for(tiny_backbone)
        shards, facts = stored(tmp_path / kept, recipe, kept)
        forwards.clear()
        trained(tmp_path / f"{kept}.checkpoints", recipe, shards, facts)
        learned[kept] = recipe.learner.tensors
    assert forwards
    for name, tensor in learned["fp32"].items():
        torch.testing.assert_close(tensor, learned["pixels"][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["faprompt", "dapo"])
def test_a_training_that_stopped_goes_on_to_the_same_end(tmp_path, tiny_backbone, method):
    class Killed(BaseException):
        pass

    def kill(state):
        if state.epochs == 2:
            raise Killed

    whole = recipe_for(tiny_backbone, method)
    shards, facts = stored(tmp_path / "rows", whole, "fp32")
    trained(tmp_path / "whole", whole, shards, facts)
    stopped = recipe_for(tiny_backbone, method)
    with pytest.raises(Killed):
        trained(tmp_path / "stopped", stopped, shards, facts, on_epoch=kill)
    store, fresh = open_store(str(tmp_path / "stopped")), recipe_for(tiny_backbone, method)
    state = checkpoints.load(store, fresh.learner, checkpoints.newest(store).epochs)
    assert trained(tmp_path / "stopped", fresh, shards, facts, state=state).epochs == 3
    for name, tensor in whole.learner.tensors.items():
        assert torch.equal(fresh.learner.tensors[name], tensor)


def test_held_out_images_are_never_learned_from(tmp_path, tiny_backbone):
    _, facts = stored(tmp_path, recipe_for(tiny_backbone), "pixels")
    rows = usable_rows(facts, SCHEDULE, 0.0)
    assert len(rows.validated) == 2
    assert {fact.key for fact in rows.learned} | {fact.key for fact in rows.validated} == {f.key for f in facts}
    assert not {fact.key for fact in rows.learned} & {fact.key for fact in rows.validated}


def test_every_epoch_is_validated_and_the_best_is_given(tmp_path, tiny_backbone):
    recipe = recipe_for(tiny_backbone, learning_rate=0.1)
    shards, facts = stored(tmp_path / "rows", recipe, "fp32")
    state = trained(tmp_path / "checkpoints", recipe, shards, facts)
    losses = [sum(record.validation.values()) for record in state.history]
    store = open_store(str(tmp_path / "checkpoints"))
    epoch, tensors = learned_tensors(store, state, "best")
    assert epoch == losses.index(min(losses)) + 1
    assert set(tensors) == set(recipe.learner.tensors)
    last, tensors = learned_tensors(store, state, "last")
    assert last == 3
    assert all(torch.equal(tensors[name], tensor) for name, tensor in recipe.learner.tensors.items())


def test_broken_images_end_the_training_by_name_unless_a_share_is_allowed(tmp_path, tiny_backbone):
    rows = raw_rows()
    rows[3] |= {"error_code": "mask_size", "error_message": "mask 3.png has 8 x 8 px, its image 32 x 32 px"}
    _, facts = stored(tmp_path, recipe_for(tiny_backbone), "pixels", rows)
    with pytest.raises(TooManyBadImages, match=r"1 of 10 images .*/data/3\.png: mask 3\.png has 8 x 8 px"):
        usable_rows(facts, SCHEDULE, 0.0)
    kept = usable_rows(facts, SCHEDULE, 0.1)
    assert len(kept.learned) + len(kept.validated) == 9


def test_one_label_alone_is_refused(tmp_path, tiny_backbone):
    _, facts = stored(tmp_path, recipe_for(tiny_backbone), "pixels")
    with pytest.raises(ConfigError, match="no anomalous images"):
        usable_rows([fact for fact in facts if fact.label == 0], SCHEDULE, 0.0)


def test_a_loss_that_is_not_finite_stores_no_checkpoint(tmp_path, tiny_backbone):
    recipe = recipe_for(tiny_backbone)
    shards, facts = stored(tmp_path / "rows", recipe, "fp32")
    with torch.no_grad():
        recipe.learner.tensors["normal_context"].fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        trained(tmp_path / "checkpoints", recipe, shards, facts)
    assert checkpoints.newest(open_store(str(tmp_path / "checkpoints"))) is None


def test_a_full_disk_ends_the_training_with_the_checkpoint_before_it(tmp_path, tiny_backbone, monkeypatch):
    """The second epoch's tensors find no space; a fault put into the real store."""
    recipe = recipe_for(tiny_backbone)
    shards, facts = stored(tmp_path / "rows", recipe, "fp32")
    real = LocalStore.put

    def put(self, key, data):
        if key == "epoch-0002.safetensors":
            raise StorageError("can't write epoch-0002.safetensors: the disk is full: free space")
        real(self, key, data)

    monkeypatch.setattr(LocalStore, "put", put)
    with pytest.raises(StorageError, match="the disk is full"):
        trained(tmp_path / "checkpoints", recipe, shards, facts)
    assert checkpoints.newest(open_store(str(tmp_path / "checkpoints"))).epochs == 1
