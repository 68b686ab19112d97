"""The order of images is a function of seed, epoch and place alone."""

import numpy as np
import pytest

from zsad.learn.order import batches, epoch_order, held_out, part_of


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own():
    first, second = epoch_order(0, 0, 50), epoch_order(0, 1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(0, 0, 50).tolist()
    assert first.tolist() != epoch_order(1, 0, 50).tolist()


def test_batches_follow_the_order_and_the_last_may_be_smaller():
    assert [batch.tolist() for batch in batches(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_a_batch_without_gap_or_overlap(num_workers):
    batch = np.array([4, 2, 9, 7, 5])
    parts = [part_of(batch, rank, num_workers) for rank in range(num_workers)]
    assert np.concatenate(parts).tolist() == batch.tolist()
    assert {len(part) for part in parts} <= {5 // num_workers, 5 // num_workers + 1}


def test_validation_takes_its_share_of_each_label_and_keeps_it_when_images_are_added():
    keys, labels = [f"image {number}" for number in range(60)], [0] * 40 + [1] * 20
    kept = held_out(keys, labels, 0.1, seed=0)
    assert kept[:40].sum() == 4
    assert kept[40:].sum() == 2
    more = held_out([*keys, "another"], [*labels, 1], 0.1, seed=0)
    assert (kept != more[:60]).sum() <= 1
    assert kept.tolist() != held_out(keys, labels, 0.1, seed=1).tolist()


def test_nothing_is_held_out_of_a_single_image():
    assert not held_out(["a", "b", "c"], [0, 1, 0], 0.5, seed=0)[1]
    assert not held_out(["a", "b"], [0, 1], 0.0, seed=0).any()
