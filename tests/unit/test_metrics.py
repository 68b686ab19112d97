"""AUROC by counting pairs."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from zsad.metrics import auroc


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
