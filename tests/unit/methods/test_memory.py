"""The memory of normal images: what it holds, and distances to it by hand."""

import pytest
import torch

from zsad.backbone import ImageFeatures
from zsad.errors import ModelError
from zsad.methods import memory


def features(*patches, grid=(1, 2)):
    """One image with these patch tokens."""
    return ImageFeatures(image_BD=torch.eye(2)[:1], patches_BPD=torch.tensor([patches]), grid=grid, taps={})


RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def test_distances_by_hand():
    """To the nearest of "right" and "up": 0 for itself, (1 - cos 45) / 2, 1/2 at a right angle to the nearer one."""
    known = torch.tensor([RIGHT, UP])
    asked = torch.tensor([[UP, [0.5**0.5, 0.5**0.5], LEFT], [RIGHT, RIGHT, UP]])
    expected = torch.tensor([[0.0, (1 - 0.5**0.5) / 2, 0.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(memory.distance(asked, known), expected)


def test_the_opposite_direction_is_at_distance_1():
    torch.testing.assert_close(memory.distance(torch.tensor([[LEFT]]), torch.tensor([RIGHT])), torch.ones(1, 1))


def test_a_large_memory_is_searched_in_parts(monkeypatch):
    known = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    asked = torch.nn.functional.normalize(torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    whole = memory.distance(asked, known)
    monkeypatch.setattr(memory, "_ROWS", 7)
    torch.testing.assert_close(memory.distance(asked, known), whole)


def test_patches_of_all_batches_are_collected():
    seen = [(features(RIGHT, UP), {}), (features(LEFT, UP), {})]
    assert memory.collect(seen)["memory.patches"].tolist() == [RIGHT, UP, LEFT, UP]


def test_windows_are_collected_by_size():
    seen = [(features(RIGHT, UP), {2: torch.tensor([[UP]]), 3: torch.tensor([[LEFT]])})] * 2
    found = memory.collect(seen)
    assert found["memory.windows_2x2"].tolist() == [UP, UP]
    assert found["memory.windows_3x3"].tolist() == [LEFT, LEFT]


def test_novelty_is_the_mean_over_patches_and_windows():
    """Patch distances 0 and 1/2 on a grid of one window: its distance 1/2 counts for both patches."""
    known = {"memory.patches": torch.tensor([RIGHT]), "memory.windows_1x1": torch.tensor([RIGHT])}
    found = memory.novelty(known, features(RIGHT, UP), {1: torch.tensor([[UP, LEFT]])})
    torch.testing.assert_close(found, torch.tensor([[(0 + 0.5) / 2, (0.5 + 1) / 2]]))


def test_nothing_is_restored_from_nothing():
    assert memory.restore(None, (2, 3), width=2, device=torch.device("cpu")) == {}
    assert memory.restore({}, (), width=2, device=torch.device("cpu")) == {}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"memory.patches": torch.zeros(3, 2)}, "needs memory.patches, memory.windows_2x2"),
        ({"learned": torch.zeros(3, 2)}, "remembers learned"),
        ({"memory.patches": torch.zeros(3, 2), "memory.windows_2x2": torch.zeros(3, 5)}, r"shape \(3, 5\)"),
        ({"memory.patches": torch.zeros(3, 2), "memory.windows_2x2": torch.zeros(0, 2)}, r"shape \(0, 2\)"),
        ({"memory.patches": torch.zeros(2), "memory.windows_2x2": torch.zeros(3, 2)}, r"shape \(2,\)"),
    ],
)
def test_memories_that_do_not_fit_are_refused(tensors, words):
    with pytest.raises(ModelError, match=words):
        memory.restore(tensors, (2,), width=2, device=torch.device("cpu"))


def test_a_memory_is_told_from_other_tensors():
    assert memory.is_remembered({"memory.patches": torch.zeros(1, 2)})
    assert not memory.is_remembered({"prompts": torch.zeros(1, 2)})
    assert not memory.is_remembered({})
