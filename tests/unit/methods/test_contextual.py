"""Which prompts judge an image, worked out by hand."""

import numpy as np
import pytest

from zsad.methods.contextual import choose, floor_of, same_side_neighbours, unambiguous

MODES = ("none", "interval", "topk", "soft")


def sides(normal, abnormal):
    """Similarities and sides of normal prompts followed by abnormal ones."""
    return np.array([*normal, *abnormal]), np.repeat([False, True], [len(normal), len(abnormal)])


MIXED = sides([0.10, 0.20, 0.21, 0.22, 0.23, 0.24], [0.19, 0.25, 0.26, 0.27, 0.28, 0.40])


def test_without_overlap_interval_keeps_everything_like_none():
    similarity, is_abnormal = sides([0.30, 0.31, 0.35], [0.10, 0.20, 0.29])
    assert unambiguous(similarity, is_abnormal).all()
    interval, none = (choose(similarity, is_abnormal, mode) for mode in ("interval", "none"))
    assert interval.weight_N.tolist() == none.weight_N.tolist()
    assert interval.share == none.share == 1.0


def test_touching_sides_do_not_overlap():
    assert unambiguous(*sides([0.1, 0.2, 0.2], [0.2, 0.3, 0.3])).all()


def test_neighbours_on_the_similarity_axis():
    """Three nearest of 0: 0.1 n, 0.2 a, 0.4 a; of 0.4: 0.2 a, 0.1 n, 0 n."""
    similarity, is_abnormal = sides([0.0, 0.1], [0.2, 0.4])
    assert same_side_neighbours(similarity, is_abnormal, 3).tolist() == [1, 1, 1, 1]


def test_at_equal_distance_the_smaller_similarity_is_nearer():
    similarity, is_abnormal = sides([0.0, 0.25], [0.5, 0.75])
    assert same_side_neighbours(similarity, is_abnormal, 1).tolist() == [1, 1, 0, 1]


def test_interval_by_hand():
    """Shared limits 0.19 to 0.24. Inside: the abnormal 0.19 has 5 normal neighbours and goes; the normal ones stay."""
    kept = unambiguous(*MIXED)
    assert kept.tolist() == [True] * 6 + [False] + [True] * 5
    found = choose(*MIXED, "interval")
    assert found.share == 11 / 12
    np.testing.assert_allclose(found.weight_N, [1 / 6] * 6 + [0] + [1 / 5] * 5)


@pytest.mark.parametrize(("count", "least"), [(1, 1), (3, 3), (4, 3), (10, 3), (11, 4), (20, 6), (21, 7), (100, 30)])
def test_the_floor_is_30_percent_and_at_least_3(count, least):
    assert floor_of(count) == least


def test_where_everything_is_ambiguous_the_floor_stays():
    """One normal prompt between any two abnormal ones: 2 of 5 neighbours are of one's own side, so 30 % a side stay."""
    similarity, is_abnormal = sides(np.arange(0.0, 0.4, 0.02), np.arange(0.01, 0.41, 0.02))
    kept = unambiguous(similarity, is_abnormal)
    assert kept[~is_abnormal].sum() == kept[is_abnormal].sum() == floor_of(20) == 6


def test_the_floor_takes_the_purest_then_the_most_similar():
    """Abnormal 0.25 and 0.26 have each other among five neighbours, 0.60 and 0.80 nobody: 0.60 is one too many."""
    normal = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.65, 0.7, 0.75, 0.85, 0.9, 1.0]
    similarity, is_abnormal = sides(normal, [0.25, 0.26, 0.60, 0.80])
    assert same_side_neighbours(similarity, is_abnormal, 5)[is_abnormal].tolist() == [1, 1, 0, 0]
    assert unambiguous(similarity, is_abnormal)[is_abnormal].tolist() == [True, True, False, True]


def test_topk_keeps_the_better_half_rounded_up():
    found = choose(*sides([0.1, 0.3, 0.2], [0.5, 0.4]), "topk")
    assert found.weight_N.tolist() == [0, 0.5, 0.5, 1, 0]
    assert found.share == 1.0


def test_soft_is_a_softmax_over_each_side():
    """0.02 ln 3 apart: three to one."""
    found = choose(*sides([0.2, 0.2 + 0.02 * np.log(3)], [0.9]), "soft")
    np.testing.assert_allclose(found.weight_N, [0.25, 0.75, 1.0])
    assert found.share == 1.0


def test_none_weighs_each_side_alike():
    assert choose(*sides([0.1, 0.3], [0.5]), "none").weight_N.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_weights_sum_to_one_a_side_and_follow_a_permutation(mode, seed):
    rng = np.random.default_rng(seed)
    similarity = 0.2 + 0.01 * rng.standard_normal(17)
    is_abnormal = np.arange(17) >= 9
    found = choose(similarity, is_abnormal, mode)
    for side in (False, True):
        assert found.weight_N[is_abnormal == side].sum() == pytest.approx(1)
    order = rng.permutation(17)
    moved = choose(similarity[order], is_abnormal[order], mode)
    assert moved.weight_N.tolist() == found.weight_N[order].tolist()
    assert moved.share == found.share


@pytest.mark.parametrize("mode", MODES)
def test_one_prompt_a_side_is_enough(mode):
    assert choose(*sides([0.3], [0.3]), mode).weight_N.tolist() == [1.0, 1.0]


def test_interval_widens_the_margin_without_evidence():
    """Why the caution: both sides from one distribution, and the filtered margin is larger on average."""
    rng = np.random.default_rng(0)
    plain, filtered = [], []
    for _ in range(200):
        similarity, is_abnormal = 0.2 + 0.01 * rng.standard_normal(40), np.arange(40) >= 20
        for margins, mode in ((plain, "none"), (filtered, "interval")):
            weights = choose(similarity, is_abnormal, mode).weight_N
            margins.append(abs((weights * similarity)[is_abnormal].sum() - (weights * similarity)[~is_abnormal].sum()))
    assert np.mean(filtered) > 1.5 * np.mean(plain)
