"""Losses of dense anomaly maps on probabilities: focal over classes, and dice.

Legend: B images, C classes, (R, Q) px.
Source: as used by AnomalyCLIP's descendants, FAPrompt (arXiv 2410.10289) and DAPO (arXiv 2512.09446) among them.
"""

from typing import Any

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
    other = LABEL_SMOOTHING / (probabilities_BCRQ.shape[1] - 1)
    p_BRQ = (1 - LABEL_SMOOTHING) * true_BRQ + other * (1 - true_BRQ) + LABEL_SMOOTHING
    return -((1 - p_BRQ) ** FOCUS * p_BRQ.log()).mean()


def focal_of_map(map_BRQ: Tensor, bad_BRQ: Tensor) -> Tensor:
    """`focal_loss` of two classes, of which `map_BRQ` is the probability of the second; few passes over the pixels.

    Args:
        map_BRQ: [0, 1].
        bad_BRQ: 1 where the second class is true, else 0; of the map's own type.
    """
    mean: Tensor = _FocalOfMap.apply(map_BRQ, bad_BRQ)
    return mean


class _FocalOfMap(torch.autograd.Function):
    """With d = m - t and q = (1 - 2 s) |d|, the smoothed probability missed: the mean of -q^2 log(1 - q).

    Its derivative after m is (1 - 2 s)^2 d (q / (1 - q) - 2 log(1 - q)), made together with the value: autograd would
    keep and read six arrays of the maps' size.
    """

    @staticmethod
    def forward(ctx: Any, map_BRQ: Tensor, bad_BRQ: Tensor) -> Tensor:
        slope = 1 - 2 * LABEL_SMOOTHING
        off_BRQ = map_BRQ - bad_BRQ
        q_BRQ = off_BRQ.abs().mul_(slope)
        p_BRQ = 1 - q_BRQ
        log_BRQ = p_BRQ.log()
        value = -torch.dot((q_BRQ * q_BRQ).view(-1), log_BRQ.view(-1)) / map_BRQ.numel()
        ctx.save_for_backward(off_BRQ.mul_(q_BRQ.div_(p_BRQ).sub_(log_BRQ, alpha=2)))
        ctx.scale = slope**2 / map_BRQ.numel()
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_BRQ,) = ctx.saved_tensors
        return gradient_BRQ * (ctx.scale * gradients[0]), None


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
