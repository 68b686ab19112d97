"""How well defect types are named: confusion matrix, macro F1, and one-vs-rest ranking.

A type that the detector has no word for can never be named right, so macro figures are taken over the types it can
name (and "good"), and callers list the others. One-vs-rest ranking is by the type's own score against all images
that are not of this type, normal ones included.

Legend: N images, C classes.
Source: the multi-type protocol of MultiADS / DAPO (one-vs-rest macro AUROC, macro F1, macro AP), there over pixels,
here over images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from zsad.metrics.ranking import auroc, average_precision

Confusion = Mapping[tuple[str, str], int]
"""(truth, answer) -> images; two of them add up key by key."""


def f1_by_class(confusion: Confusion, classes: Sequence[str]) -> dict[str, float]:
    """F1 of each class, [0, 1]; 0 for one that is neither there nor answered.

    Args:
        confusion: all images, answers outside `classes` included.
        classes: those to measure.
    """
    figures = {}
    for name in classes:
        right = confusion.get((name, name), 0)
        truths = sum(count for (truth, _), count in confusion.items() if truth == name)
        answers = sum(count for (_, answer), count in confusion.items() if answer == name)
        figures[name] = 2 * right / (truths + answers) if truths + answers else 0.0
    return figures


def macro_f1(confusion: Confusion, classes: Sequence[str]) -> float:
    """Unweighted mean F1.

    Raises:
        ValueError: if there are no classes.
    """
    if not classes:
        raise ValueError("macro F1 needs at least one class")
    return float(np.mean(list(f1_by_class(confusion, classes).values())))


def one_vs_rest(truths: Sequence[str], scores_by_class: Mapping[str, ArrayLike]) -> dict[str, tuple[float, float]]:
    """(AUROC, average precision) of each class against all images that are not of it.

    Args:
        truths: N true classes.
        scores_by_class: class -> (N,) scores, larger = more of this class.

    Raises:
        ValueError: if a class has no images, or all of them.
    """
    truth = np.asarray(truths)
    figures = {}
    for name, scores in scores_by_class.items():
        labels = truth == name
        figures[name] = (auroc(labels, scores), average_precision(labels, scores))
    return figures
