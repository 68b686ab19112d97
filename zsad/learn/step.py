"""One optimiser step over a batch that several workers share, equal to the step of one worker that has it all.

Every worker computes the terms of its own images, already scaled so that the sum over workers is the loss of the whole
global batch: a mean over n of N images enters with n / N, a sum over images as it is, and a term that no image takes
part in with n / N too, so that it counts once. Gradients and terms of a worker travel as one vector, which `reduce`
sums; then every worker takes the same step. A worker without images (the last batch of an epoch may be smaller than
the number of workers) takes part with zeros.

A loss or gradient that is not finite is seen in the sum: all workers stop together, and the tensors stay as they were.

Cost: one all-reduce a step of 4 bytes a learned number: 16.4 MB for FAPrompt and 13.4 MB for DAPO over ViT-L/14.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from zsad.errors import ModelError

Reduce = Callable[[Tensor], None]
"""Replaces a vector by its sum over all workers."""


class Learner(Protocol):
    """Learned tensors, their optimiser, and the loss terms of some images."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Learned ones, by name."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the loss terms."""
        ...

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Of `tensors`."""
        ...

    def terms(self, batch: Any, share: float) -> Mapping[str, Tensor]:
        """Weighted loss terms of these images, scaled as `share` of a global batch; scalars, one a name of `names`."""
        ...


def alone(vector: Tensor) -> None:
    """The sum over one worker."""


def take_step(learner: Learner, batch: Any | None, share: float = 1.0, reduce: Reduce = alone) -> dict[str, float]:
    """Move `learner.tensors` by one step.

    Args:
        learner: the same on all workers.
        batch: this worker's images; None: it has none.
        share: this worker's part of the global batch's images, [0, 1].
        reduce: sums over workers.

    Returns:
        The loss terms of the global batch before the step, weights applied.

    Raises:
        ModelError: if a term or a gradient is not finite; nothing was changed.
    """
    learner.optimiser.zero_grad(set_to_none=True)
    leaves = list(learner.tensors.values())
    values = torch.zeros(len(learner.names), device=leaves[0].device)
    if batch is not None:
        terms = learner.terms(batch, share)
        stacked = torch.stack([terms[name] for name in learner.names])
        torch.autograd.backward(stacked.sum())
        values = stacked.detach()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    vector = torch.cat([*(gradient.flatten() for gradient in gradients), values])
    reduce(vector)
    found = dict(zip(learner.names, vector[-len(learner.names) :].tolist(), strict=True))
    check_finite(found, vector)
    _hand_back(leaves, vector)
    learner.optimiser.step()
    return found


def reduced_terms(learner: Learner, batch: Any | None, share: float, reduce: Reduce = alone) -> dict[str, float]:
    """The loss terms of a global batch as `take_step` gives them, without a step; same arguments."""
    values = torch.zeros(len(learner.names), device=next(iter(learner.tensors.values())).device)
    if batch is not None:
        with torch.no_grad():
            terms = learner.terms(batch, share)
        values = torch.stack([terms[name] for name in learner.names])
    reduce(values)
    return dict(zip(learner.names, values.tolist(), strict=True))


def check_finite(terms: Mapping[str, float], vector: Tensor) -> None:
    """Refuse a step whose terms or gradients are not finite.

    Raises:
        ModelError: naming the terms.
    """
    if torch.isfinite(vector).all():
        return
    wrong = [name for name, value in terms.items() if not abs(value) < float("inf")]
    what = f"loss terms {', '.join(wrong)} are" if wrong else "the gradient is"
    raise ModelError(
        f"{what} not finite; nothing of this step was kept: lower the learning rate, or look for broken images or "
        "weights; --resume goes on from the last checkpoint"
    )


def bytes_exchanged(learner: Learner) -> int:
    """Bytes of the vector that every worker puts into the all-reduce of one step."""
    return 4 * (sum(tensor.numel() for tensor in learner.tensors.values()) + len(learner.names))


def _hand_back(leaves: list[Tensor], vector: Tensor) -> None:
    start = 0
    for leaf in leaves:
        leaf.grad = vector[start : start + leaf.numel()].view_as(leaf).clone()
        start += leaf.numel()
