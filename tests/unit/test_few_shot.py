"""Which normal images are remembered and which set thresholds: never the same ones."""

import numpy as np
import pytest

from zsad.errors import ConfigError
from zsad.few_shot import FOLDS, MAX_KEPT, MAX_SUPPORT, is_approximate, orientations, splits, support, thinned


def images(count):
    """Squares with 16 different values each, so that no two orientations of any of them are equal."""
    return [
        np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2) + np.uint8(16 * (i % 16)) for i in range(count)
    ]


def contents(pixels):
    return [image.tobytes() for image in pixels]


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (3, 4, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (5, 4, [0, 2, 4]),
        (7, 4, [0, 2, 4, 6]),
        (8, 4, [0, 2, 4, 6]),
        (9, 4, [0, 4, 8]),
        (17, 4, [0, 8, 16]),
    ],
)
def test_a_stream_is_thinned_evenly(count, limit, expected):
    assert thinned(iter(range(count)), limit) == expected


def test_thinning_never_keeps_more_than_the_limit():
    assert max(len(thinned(range(count))) for count in (1, MAX_KEPT, MAX_KEPT + 1, 2000, 10_000)) == MAX_KEPT


def test_no_image_at_all_is_refused():
    with pytest.raises(ConfigError, match="needs at least one"):
        thinned(iter(()))


def test_all_images_are_remembered_up_to_the_limit_then_evenly_spaced_ones():
    few, many = images(MAX_SUPPORT), list(range(4 * MAX_SUPPORT))
    assert contents(support(few)) == contents(few)
    assert support(many) == many[::4]


@pytest.mark.parametrize("count", [8, 9, 13, 40])
def test_every_image_is_judged_once_by_a_memory_of_others(count):
    numbers = list(range(count))
    found = list(splits(numbers))
    assert len(found) == FOLDS
    assert sorted(image for split in found for image in split.judged) == numbers
    for split in found:
        assert not set(split.judged) & set(split.remembered)
        assert len(split.remembered) == min(MAX_SUPPORT, count - len(split.judged))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_few_images_are_judged_in_every_orientation_by_the_others(count):
    given = images(count)
    found = list(splits(given))
    assert len(found) == count
    for index, split in enumerate(found):
        assert contents(split.judged) == contents(orientations(given[index]))
        assert contents(split.remembered) == contents(given[:index] + given[index + 1 :])
        assert not set(contents(split.judged)) & set(contents(split.remembered))


def test_one_image_and_its_half_turn_judge_the_other_orientations():
    (given,) = images(1)
    first, second = splits([given])
    assert contents(first.remembered) == [given.tobytes()]
    assert contents(second.remembered) == [given[::-1, ::-1].tobytes()]
    for split in (first, second):
        assert len(split.judged) == 7
        assert not set(contents(split.judged)) & set(contents(split.remembered))


def test_the_eight_orientations_are_different_and_hold_the_same_pixels():
    (given,) = images(1)
    found = orientations(given)
    assert len(set(contents(found))) == 8
    assert contents(found)[0] == given.tobytes()
    assert all(sorted(image.ravel()) == sorted(given.ravel()) for image in found)


def test_fewer_images_than_a_calibration_needs_are_approximate():
    assert [is_approximate(count) for count in (1, 7, 8, 99)] == [True, True, False, False]
