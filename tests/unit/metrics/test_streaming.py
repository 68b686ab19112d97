"""Streaming pixel metrics: exact on binned scores, within their own bound of the unbinned ones, and additive."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from zsad.metrics.streaming import (
    NUM_BINS,
    PixelTally,
    bin_of,
    empty_tally,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pro,
    pro_curve,
    tally_image,
)

MASK = np.zeros((8, 8), bool)
MASK[1:3, 1:3] = True
MASK[5, 5] = True


def images(count, seed=0, *, spread=6.0):
    """Random scores in standard units, higher where a few random blocks are defective."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = np.zeros((24, 24), bool)
        for _ in range(int(rng.integers(0, 4))):
            y, x, height, width = rng.integers(0, 20), rng.integers(0, 20), rng.integers(1, 6), rng.integers(1, 6)
            mask[y : y + height, x : x + width] = True
        yield rng.normal(-20, spread, mask.shape) + spread * mask, mask


def total(pairs):
    return sum((tally_image(scores, mask) for scores, mask in pairs), empty_tally())


def best_f1(labels, scores):
    """Largest F1 over scikit-learn's precision-recall curve."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()


def slow_pro(pairs, limit=0.3):
    """PRO by its definition: every distinct score a threshold, every region looked at by itself."""
    regions, normal = [], []
    for scores, mask in pairs:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [scores[labels == index] for index in range(1, count + 1)]
        normal.append(scores[~mask])
    normal = np.concatenate(normal)
    thresholds = np.unique(np.concatenate([normal, *regions]))[::-1]
    points = [(0.0, 0.0)]
    for threshold in thresholds:
        overlap = sum((region >= threshold).mean() for region in regions) / len(regions)
        points.append(((normal >= threshold).mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit:
            end = min(x1, limit)
            y_end = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def test_auroc_ap_and_f1_equal_scikit_learn_on_the_binned_scores():
    pairs = list(images(6))
    bins = np.concatenate([bin_of(scores).ravel() for scores, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    found = total(pairs)
    assert pixel_auroc(found).value == pytest.approx(roc_auc_score(labels, bins), abs=1e-12)
    assert pixel_average_precision(found).value == pytest.approx(average_precision_score(labels, bins), abs=1e-12)
    assert pixel_f1_max(found).value == pytest.approx(best_f1(labels, bins), abs=1e-12)


@pytest.mark.parametrize("spread", [6.0, 0.02, 0.002], ids=["usual", "few bins", "one or two bins"])
@pytest.mark.parametrize("seed", range(3))
def test_the_unbinned_figure_lies_within_the_stated_error(seed, spread):
    pairs = list(images(4, seed, spread=spread))
    scores = np.concatenate([scores.ravel() for scores, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    found = total(pairs)
    for estimate, exact in (
        (pixel_auroc(found), roc_auc_score(labels, scores)),
        (pixel_average_precision(found), average_precision_score(labels, scores)),
        (pixel_f1_max(found), best_f1(labels, scores)),
        (pro(found), slow_pro(pairs)),
    ):
        assert abs(estimate.value - exact) <= estimate.error + 1e-12


def test_usual_scores_are_measured_to_three_digits():
    found = total(images(6))
    for metric, limit in ((pixel_auroc, 5e-4), (pixel_average_precision, 5e-3), (pro, 1e-3)):
        assert 0 < metric(found).error < limit


def test_pro_equals_its_definition_where_every_score_has_a_bin_of_its_own():
    """Scores 2 sinh(k / 8) lie 227 bins apart."""
    rng = np.random.default_rng(3)
    pairs = [(2 * np.sinh(rng.integers(-30, 30, mask.shape) / 8 + mask), mask) for _, mask in images(3, 5)]
    assert pro(total(pairs)).value == pytest.approx(slow_pro(pairs), abs=1e-9)


def test_pro_by_hand():
    """Two regions, a perfect map but for the small one, which scores like the normal pixels: half overlap at rate 0."""
    scores = np.where(MASK, 5.0, -5.0)
    scores[5, 5] = -5.0
    found = tally_image(scores, MASK)
    rates, overlaps = pro_curve(found)
    assert (rates[0], overlaps[0], rates[-1], overlaps[-1]) == (0, 0, 1, pytest.approx(1))
    assert pro(found).value == pytest.approx((0.5 + 0.65) / 2)  # from 0.5 at rate 0 to 1 at rate 1, cut at 0.3


def test_diagonal_pixels_are_one_region():
    assert tally_image(np.zeros((2, 2)), np.eye(2, dtype=bool)).num_regions == 1


def test_tallies_add_up_in_any_order_and_grouping():
    parts = [tally_image(scores, mask) for scores, mask in images(5)]
    whole = sum(parts, empty_tally())
    other = (parts[4] + parts[1]) + (parts[3] + (parts[0] + parts[2]))
    np.testing.assert_array_equal(whole.normal_N, other.normal_N)
    np.testing.assert_array_equal(whole.defect_N, other.defect_N)
    np.testing.assert_array_equal(whole.region_N, other.region_N)
    assert (whole.num_regions, whole.num_images) == (other.num_regions, 5)
    assert whole.normal_N.sum() + whole.defect_N.sum() == 5 * 24 * 24
    assert whole.region_N.sum() / 2**40 == pytest.approx(whole.num_regions)


def test_a_tally_survives_its_bytes():
    tally = total(images(2))
    again = PixelTally.from_bytes(tally.to_bytes())
    for name in ("normal_N", "defect_N", "region_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tally, name))
    assert (again.num_regions, again.num_images) == (tally.num_regions, 2)


def test_bins_never_fall_as_scores_rise():
    scores = np.sort(np.concatenate([[-np.inf, -1e30, 1e30, np.inf], np.random.default_rng(0).normal(0, 30, 5000)]))
    bins = bin_of(scores)
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, NUM_BINS - 1)


def test_without_normal_or_defective_pixels_there_is_no_figure():
    for metric in (pixel_auroc, pixel_average_precision, pixel_f1_max, pro):
        with pytest.raises(ValueError, match="no defective pixels"):
            metric(tally_image(np.zeros((3, 3)), np.zeros((3, 3), bool)))
        with pytest.raises(ValueError, match="no normal pixels"):
            metric(tally_image(np.zeros((3, 3)), np.ones((3, 3), bool)))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="different shapes"):
        tally_image(np.zeros((3, 3)), np.zeros((3, 4), bool))
