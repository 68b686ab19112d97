"""Exact ranking metrics of anomaly scores that fit into memory.

Everything follows from the counts of true and false positives at falling thresholds (`cumulated`), so the streaming
metrics of histograms use the same functions. Equal scores share one threshold.

Legend: N scores, T distinct thresholds, highest first.
Cost: one sort, O(N log N).
Source: AUROC in its rank form (Mann-Whitney), ties counted half, as scikit-learn's `roc_auc_score` does; average
precision as its step-wise sum without interpolation, as `average_precision_score` does; kept here so that the library
does not need scikit-learn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata


@dataclass(frozen=True, slots=True)
class Cumulated:
    """Positives at or above each threshold: `true_T` defective ones, `false_T` normal ones, as float64."""

    true_T: NDArray[np.float64]
    false_T: NDArray[np.float64]

    @property
    def num_true(self) -> float:
        """All defective ones."""
        return float(self.true_T[-1])

    @property
    def num_false(self) -> float:
        """All normal ones."""
        return float(self.false_T[-1])


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


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the anomalous samples, (0, 1]; chance is their share. Arguments as for `auroc`.

    Raises:
        ValueError: if shapes differ or nothing is anomalous.
    """
    return average_precision_of(cumulated(labels, scores))


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """Largest F1 over all thresholds, [0, 1]: a threshold that only the truth could choose. Arguments as for `auroc`.

    Raises:
        ValueError: if shapes differ or nothing is anomalous.
    """
    return f1_max_of(cumulated(labels, scores))


def cumulated(labels: ArrayLike, scores: ArrayLike) -> Cumulated:
    """Counts at or above each distinct score, highest first. Arguments as for `auroc`.

    Raises:
        ValueError: if shapes differ or there is nothing.
    """
    truth = np.asarray(labels).astype(bool).ravel()
    values = np.asarray(scores).ravel()
    if truth.shape != values.shape:
        raise ValueError(f"{truth.size} labels for {values.size} scores")
    if not truth.size:
        raise ValueError("there are no samples")
    order = np.argsort(-values, kind="stable")
    last_T = np.append(np.flatnonzero(np.diff(values[order])), truth.size - 1)
    true_T = np.cumsum(truth[order])[last_T].astype(np.float64)
    return Cumulated(true_T, last_T + 1 - true_T)


def average_precision_of(counts: Cumulated) -> float:
    """Average precision from counts.

    Raises:
        ValueError: if nothing is anomalous.
    """
    _need_true(counts)
    gained_T = np.diff(counts.true_T, prepend=0)
    return float((gained_T * precision(counts)).sum() / counts.num_true)


def f1_max_of(counts: Cumulated) -> float:
    """F1-max from counts.

    Raises:
        ValueError: if nothing is anomalous.
    """
    _need_true(counts)
    return float((2 * counts.true_T / (counts.num_true + counts.true_T + counts.false_T)).max())


def precision(counts: Cumulated) -> NDArray[np.float64]:
    """Share of anomalous ones among those at or above each threshold; 1 where there are none."""
    found_T = counts.true_T + counts.false_T
    return np.divide(counts.true_T, found_T, out=np.ones_like(found_T), where=found_T > 0)


def _need_true(counts: Cumulated) -> None:
    if not counts.num_true:
        raise ValueError("average precision and F1 need anomalous samples; there are none")
