"""Exact ranking metrics: by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from zsad.metrics import auroc, average_precision, f1_max
from zsad.metrics.ranking import cumulated


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 1], [0.1, 0.9], 1.0),
        ([0, 1], [0.9, 0.1], 0.0),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [1, 3, 2, 4], 0.75),  # 3 of 4 pairs in order
        ([0, 0, 1], [1, 2, 2], 0.75),  # one pair in order, one tie
        ([False, 7], [-1.0, 5.0], 1.0),  # any non-zero label is anomalous
    ],
)
def test_pairs_in_order(labels, scores, expected):
    assert auroc(labels, scores) == expected


def test_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (20, 30)), rng.integers(0, 10, (20, 30)) / 10
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_one_class_is_refused(labels):
    with pytest.raises(ValueError, match="only one class"):
        auroc(labels, np.zeros(len(labels)))


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="2 labels for 3 scores"):
        auroc([0, 1], [1, 2, 3])


def test_average_precision_by_hand():
    """Anomalous at ranks 1 and 3: precisions 1/1 and 2/3."""
    assert average_precision([1, 0, 1], [3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)


def test_f1_max_by_hand():
    """Taking the top 3 finds both of 2: precision 2/3, recall 1, F1 0.8; the top 1 gives 2/3."""
    assert f1_max([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx(0.8)


def test_average_precision_and_f1_equal_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 12, 300)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    expected = max(f1_score(labels, scores >= threshold) for threshold in range(12))
    assert f1_max(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_counts_at_each_distinct_score():
    counts = cumulated([1, 0, 0, 1], [5, 5, 2, 1])
    np.testing.assert_array_equal(counts.true_T, [1, 1, 2])
    np.testing.assert_array_equal(counts.false_T, [1, 2, 2])


@pytest.mark.parametrize("metric", [average_precision, f1_max])
def test_without_anomalies_there_is_no_precision(metric):
    with pytest.raises(ValueError, match="need anomalous samples"):
        metric([0, 0], [1, 2])
    with pytest.raises(ValueError, match="2 labels for 1 scores"):
        metric([0, 1], [1])
    with pytest.raises(ValueError, match="no samples"):
        metric([], [])
