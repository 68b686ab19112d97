"""Which image is seen when: a pure function of seed, epoch and place, whatever the number of workers.

Legend: N images of an epoch.
Cost: 8 bytes an image on every worker: 8 MB for a million.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and in which order to learn.

    Attributes:
        epochs: in all.
        batch_size: images of a global batch, whatever the number of workers.
        seed: of the order and of the split.
        validation: share of each kind of image, normal and anomalous, that is only looked at after every epoch.
    """

    epochs: int
    batch_size: int
    seed: int
    validation: float


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The places 0 to `count` - 1 in the order in which `epoch` sees them."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)


def batches(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Global batches of an epoch in turn; the last one may be smaller."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def part_of(batch: NDArray[np.int64], rank: int, num_workers: int) -> NDArray[np.int64]:
    """What worker `rank` takes of a global batch: neighbours, and of n images n / workers, rounded down or up."""
    start, end = (place * len(batch) // num_workers for place in (rank, rank + 1))
    return batch[start:end]


def held_out(keys: Sequence[str], labels: Sequence[int], share: float, seed: int) -> NDArray[np.bool_]:
    """Which N images are kept for validation: the first `share` of each label in the order of their hashed keys.

    An image's place in the hash order does not depend on the others, so a data set that grows keeps its split nearly.
    A label of fewer than two images gives none.
    """
    chosen = np.zeros(len(keys), np.bool_)
    hashed = [hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in keys]
    for label in set(labels):
        places = sorted((place for place, found in enumerate(labels) if found == label), key=hashed.__getitem__)
        chosen[places[: round(share * len(places))]] = len(places) > 1
    return chosen
