"""Losses of dense anomaly maps on probabilities: focal over classes, and dice.

Legend: B images, C classes, (R, Q) px.
Source: as used by AnomalyCLIP's descendants, FAPrompt (arXiv 2410.10289) and DAPO (arXiv 2512.09446) among them.
"""

import torch
from torch import Tensor

FOCUS = 2
LABEL_SMOOTHING = 1e-5
DICE_SMOOTHING = 1.0


def focal_loss(probabilities_BCRQ: Tensor, classes_BRQ: Tensor) -> Tensor:
    """Mean over pixels of -(1 - p)^2 log p, with p the smoothed probability of a pixel's class.

    p = (1 - s) p_true + s / (C - 1) * (1 - p_true) + s with s = 1e-5: labels are smoothed, and the logarithm is finite.

    Args:
        probabilities_BCRQ: [0, 1], summing to 1 over at least two classes.
        classes_BRQ: int64, the true class of each pixel.
    """
    true_BRQ = probabilities_BCRQ.gather(1, classes_BRQ[:, None])[:, 0]
    return focal_of_true(true_BRQ, num_classes=probabilities_BCRQ.shape[1])


def focal_of_true(true_BRQ: Tensor, *, num_classes: int) -> Tensor:
    """`focal_loss` of the probabilities of the true classes."""
    other = LABEL_SMOOTHING / (num_classes - 1)
    p_BRQ = (1 - LABEL_SMOOTHING) * true_BRQ + other * (1 - true_BRQ) + LABEL_SMOOTHING
    return -((1 - p_BRQ) ** FOCUS * p_BRQ.log()).mean()


def dice_loss(probability_BRQ: Tensor, target_BRQ: Tensor) -> Tensor:
    """1 - mean over images of (2 |p t| + 1) / (|p| + |t| + 1), sums over an image's pixels.

    Args:
        probability_BRQ: [0, 1].
        target_BRQ: 0 or 1.
    """
    p, t = probability_BRQ.flatten(1), target_BRQ.flatten(1).to(probability_BRQ.dtype)
    return dice_of_sums((p * t).sum(dim=1), p.sum(dim=1) + t.sum(dim=1))


def dice_of_sums(overlap_B: Tensor, both_B: Tensor) -> Tensor:
    """`dice_loss` of |p t| and |p| + |t| of each image."""
    return 1 - torch.mean((2 * overlap_B + DICE_SMOOTHING) / (both_B + DICE_SMOOTHING))
