"""A state is whole or it is not there."""

import json

import pytest
import torch

from zsad.errors import ModelError
from zsad.learn import checkpoints
from zsad.learn.checkpoints import EpochRecord, State
from zsad.storage import open_store


class Numbers:
    """A learner of one tensor under Adam."""

    names = ("loss",)

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.tensors = {"w": torch.randn(3, requires_grad=True)}
        self.optimiser = torch.optim.Adam(self.tensors.values(), lr=0.1)

    def step(self):
        """One step of Adam on the squares."""
        self.optimiser.zero_grad()
        (self.tensors["w"] ** 2).sum().backward()
        self.optimiser.step()


def state_of(epochs, validation=()):
    losses = dict(enumerate(validation))
    records = [
        EpochRecord(epoch=n, steps=[{"loss": 1.0}], validation={"loss": losses[n]} if losses else {})
        for n in range(epochs)
    ]
    return State(epochs=epochs, history=tuple(records))


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "checkpoints"))


def test_a_restored_learner_goes_on_as_if_never_stopped(store):
    kept, other = Numbers(), Numbers(seed=5)
    kept.step()
    checkpoints.save(store, kept, state_of(1))
    expected_random = torch.rand(2)  # what comes after the stored random state
    kept.step()
    assert checkpoints.load(store, other, 1) == state_of(1)
    assert torch.equal(torch.rand(2), expected_random)
    other.step()
    assert torch.equal(other.tensors["w"], kept.tensors["w"])


def test_nothing_is_found_where_nothing_was_stored(store):
    assert checkpoints.newest(store) is None


@pytest.mark.parametrize("torn", ["tensors cut", "tensors missing", "json cut", "other tensors"])
def test_a_torn_state_is_passed_over_for_the_one_before(store, tmp_path, torn):
    learner = Numbers()
    for epochs in (1, 2):
        learner.step()
        checkpoints.save(store, learner, state_of(epochs))
    folder = tmp_path / "checkpoints"
    tensors, text = folder / "epoch-0002.safetensors", folder / "epoch-0002.json"
    if torn == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif torn == "tensors missing":
        tensors.unlink()
    elif torn == "json cut":
        text.write_bytes(text.read_bytes()[:-1])
    else:
        tensors.write_bytes((folder / "epoch-0001.safetensors").read_bytes())
    assert checkpoints.newest(store).epochs == 1
    with pytest.raises(ModelError, match="no whole checkpoint of epoch 2"):
        checkpoints.load(store, Numbers(), 2)


def test_a_state_of_other_tensors_is_refused(store):
    checkpoints.save(store, Numbers(), state_of(1))
    other = Numbers()
    other.tensors["v"] = torch.zeros(1, requires_grad=True)
    with pytest.raises(ModelError, match="of another training"):
        checkpoints.load(store, other, 1)


def test_the_two_newest_and_the_best_are_kept(store):
    learner = Numbers()
    losses = [3.0, 1.0, 2.0, 2.5, 2.6]
    for epochs in range(1, 6):
        checkpoints.save(store, learner, state_of(epochs, losses))
    kept = sorted(info.key for info in store.list() if info.key.endswith(".json"))
    assert kept == ["epoch-0002.json", "epoch-0004.json", "epoch-0005.json"]
    assert set(checkpoints.learned_at(store, 1)) == {"w"}


def test_the_best_epoch_has_the_least_validation_loss_and_the_last_wins_without_one():
    assert state_of(4, [3.0, 1.0, 1.0, 2.0]).best == 1
    assert state_of(4).best == 3


def test_no_pickle_is_written(store, tmp_path):
    checkpoints.save(store, Numbers(), state_of(1))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"epoch-0001.json", "epoch-0001.safetensors"}
    assert json.loads((tmp_path / "checkpoints" / "epoch-0001.json").read_text())["epochs"] == 1
