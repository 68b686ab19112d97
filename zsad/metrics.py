"""Ranking metrics of anomaly scores.

Source: the rank form of the area under the ROC curve (Mann-Whitney), ties counted half, as scikit-learn's
`roc_auc_score` does; kept here so that the library does not need scikit-learn.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1]; 0.5 is chance.

    Args:
        labels: (N,) truth, non-zero = anomalous; images (image AUROC) or pixels (pixel AUROC).
        scores: (N,) anomaly scores, larger = more anomalous.

    Raises:
        ValueError: if shapes differ or only one class is present.
    """
    truth = np.asarray(labels).astype(bool).ravel()
    ranks = rankdata(np.asarray(scores).ravel())
    if truth.shape != ranks.shape:
        raise ValueError(f"{truth.size} labels for {ranks.size} scores")
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives:
        raise ValueError("AUROC needs normal and anomalous samples; only one class is present")
    rank_sum = float(ranks[truth].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
