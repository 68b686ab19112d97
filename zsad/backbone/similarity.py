"""Cosine similarity, its probability, and sums whose bits do not depend on a row's place in the batch.

Matrix kernels of CPUs round the rows of a small product by their place (seen for 4 x 32 times 32 x 2 on an AVX-512
machine), and an image's score must not depend on its neighbours. A product and a sum over the last axis treat every row
alike on every machine. Sigmoids have the same trouble: vectorised kernels compute the last few values of a tensor by
another routine, which rounds otherwise (seen from 33 values on). Sums over a leading axis of more than four add in
another order there (seen for nine).

Cost: one pass over the features per direction; for two to twenty directions it is lost in the tower's cost.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def similarity(features: Tensor, directions_SD: Tensor) -> Tensor:
    """Dot products (..., S) of features (..., D) with S directions."""
    return torch.stack([(features * direction_D).sum(dim=-1) for direction_D in directions_SD], dim=-1)


def probability(margins: Tensor) -> Tensor:
    """The sigmoid of `margins`, any shape, as the softmax of (0, margin): every pair takes the same way."""
    return torch.stack([torch.zeros_like(margins), margins], dim=-1).softmax(dim=-1)[..., 1]


def total(terms: Sequence[Tensor]) -> Tensor:
    """Sum of at least one tensor of one shape, added in their order at every place."""
    return reduce(torch.add, terms)
