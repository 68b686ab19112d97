"""Contextual scoring: which prompts of a set are fit to judge this one image.

A fixed set of prompts names features that an image does not show; for that image normal and abnormal prompts overlap in
similarity and say little. Per image, prompts whose similarity lies among those of the other side are dropped, or
weighed down. Modes:

- `none`: all prompts, equal weights;
- `interval`: between the sides' shared limits of similarity, a prompt stays if at least 60 % of its 5 nearest prompts
  (by similarity to the image) are of its own side; outside the limits all stay, and a floor of each side always does;
- `topk`: the better half of each side;
- `soft`: all, weighed by a softmax of their similarity over their side.

A caution: the similarities that choose the prompts also decide the class, so a choice confirms itself. On random
similarities without any evidence `interval` still widens the margin. Answers of different images come from different
prompts, and thresholds must be fitted on answers of the same mode. Choosing by order flips near ties, so `interval` in
bf16 can choose other prompts than in fp32: on a tiny random tower its maps correlated at 0.90 to 0.96 only.

Legend: N prompts, of both sides.
Cost: O(N * N log N) an image, on the CPU.
Source: the idea is ALFA's (arXiv 2404.09654), of which only the abstract was at hand; all formulas here are ours.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["none", "interval", "topk", "soft"]

NEIGHBOURS = 5
MIN_KEPT = 3
SOFT_TEMPERATURE = 0.02
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """The prompts that judge one image.

    Attributes:
        weight_N: of each prompt in its side's mean direction; sums to 1 over each side, 0 if dropped.
        share: kept prompts over all, for `interval`; 1 for the other modes.
    """

    weight_N: Floats
    share: float


def choose(similarity_N: Floats, is_abnormal_N: Flags, mode: Mode) -> Choice:
    """The prompts for one image.

    Args:
        similarity_N: cosine similarity of the image embedding to every prompt.
        is_abnormal_N: side of each prompt; both sides must be present.
        mode: see this module.
    """
    if mode == "soft":
        return Choice(_soft(similarity_N, is_abnormal_N), 1.0)
    if mode == "interval":
        kept_N = unambiguous(similarity_N, is_abnormal_N)
        return Choice(_equal(kept_N, is_abnormal_N), float(kept_N.mean()))
    kept_N = np.ones_like(is_abnormal_N) if mode == "none" else _better_half(similarity_N, is_abnormal_N)
    return Choice(_equal(kept_N, is_abnormal_N), 1.0)


def unambiguous(similarity_N: Floats, is_abnormal_N: Flags) -> Flags:
    """Which prompts `interval` keeps, (N,)."""
    sides = [similarity_N[is_abnormal_N == side] for side in (False, True)]
    low, high = max(side.min() for side in sides), min(side.max() for side in sides)
    if low >= high:
        return np.ones_like(is_abnormal_N)
    num_neighbours = min(NEIGHBOURS, len(similarity_N) - 1)
    same_N = same_side_neighbours(similarity_N, is_abnormal_N, num_neighbours)
    kept_N: Flags = (similarity_N < low) | (similarity_N > high) | (5 * same_N >= 3 * num_neighbours)
    for side in (False, True):
        _keep_floor(kept_N, np.flatnonzero(is_abnormal_N == side), same_N, similarity_N)
    return kept_N


def same_side_neighbours(similarity_N: Floats, is_abnormal_N: Flags, num_neighbours: int) -> NDArray[np.int64]:
    """How many of a prompt's nearest others on the similarity axis are of its side.

    At equal distance the smaller similarity counts as nearer, then the normal side: the order of prompts never matters.
    """
    apart_NN = np.abs(similarity_N[:, None] - similarity_N[None, :])
    np.fill_diagonal(apart_NN, np.inf)
    nearest = [np.lexsort((is_abnormal_N, similarity_N, apart_N))[:num_neighbours] for apart_N in apart_NN]
    return np.array([(is_abnormal_N[near] == side).sum() for near, side in zip(nearest, is_abnormal_N, strict=True)])


def floor_of(num_prompts: int) -> int:
    """How many prompts of a side always stay: 30 %, at least 3, never more than there are."""
    return min(num_prompts, max(MIN_KEPT, -(-3 * num_prompts // 10)))


def _keep_floor(kept_N: Flags, members: NDArray[np.intp], same_N: NDArray[np.int64], similarity_N: Floats) -> None:
    """Bring one side up to its floor: prompts among the most of their own kind first, then the most similar."""
    missing = floor_of(len(members)) - int(kept_N[members].sum())
    dropped = members[~kept_N[members]]
    best = dropped[np.lexsort((-similarity_N[dropped], -same_N[dropped]))]
    kept_N[best[: max(0, missing)]] = True


def _better_half(similarity_N: Floats, is_abnormal_N: Flags) -> Flags:
    """The most similar half of each side, rounded up."""
    kept_N = np.zeros_like(is_abnormal_N)
    for side in (False, True):
        members = np.flatnonzero(is_abnormal_N == side)
        ranked = members[np.argsort(-similarity_N[members], kind="stable")]
        kept_N[ranked[: (len(members) + 1) // 2]] = True
    return kept_N


def _equal(kept_N: Flags, is_abnormal_N: Flags) -> Floats:
    """Equal weights of the kept prompts of each side."""
    weight_N = np.zeros(len(kept_N))
    for side in (False, True):
        members = kept_N & (is_abnormal_N == side)
        weight_N[members] = 1 / members.sum()
    return weight_N


def _soft(similarity_N: Floats, is_abnormal_N: Flags) -> Floats:
    weight_N = np.zeros(len(similarity_N))
    for side in (False, True):
        members = is_abnormal_N == side
        raised = np.exp((similarity_N[members] - similarity_N[members].max()) / SOFT_TEMPERATURE)
        weight_N[members] = raised / math.fsum(raised)  # exact, whatever the order
    return weight_N
