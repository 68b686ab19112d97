"""Which normal images a detector remembers, and which set its thresholds: never the same ones.

An image that is remembered has distance 0 to the memory, so a threshold fitted on it would call every new image an
anomaly. Every image is therefore judged by a memory of others, and only in the end all of them are remembered:

- 8 images or more: four folds; each is judged by a memory made of the other three.
- 2 to 7: each image is judged by a memory of the others, in its eight orientations (flips and quarter turns), so that
  there are enough numbers to fit. Orientations of one image resemble each other more than new images do, and an object
  with an upright position looks stranger lying down: these thresholds are approximate.
- 1: the image, and then its half turn, is remembered, and its seven other orientations are judged. Rough: nothing tells
  how much normal images differ, so expect many false alarms until a threshold is set by hand or more images are given.

In the folds a memory holds fewer images than in the end, so distances come out a little larger and thresholds a little
higher than exact ones; above `MAX_SUPPORT` images that difference is gone.

Cost: `MAX_KEPT` prepared images in memory (77 MB at 224 px); each is judged once, and remembering is one pass over at
most `MAX_SUPPORT` images for each fold and for the end.
Source: cross-fitting is common practice; the folds, the limits and the rule for few images are ours.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zsad.calibration import MIN_NORMALS
from zsad.errors import ConfigError

MAX_SUPPORT = 16
"""Images in a memory at most, evenly spaced over those given: the memory's size and each image's cost stay bounded."""
MAX_KEPT = 512
"""Images used at most, evenly spaced over those given; one at 1,024 px has 3 MB."""
FOLDS = 4
ENOUGH = MIN_NORMALS
"""From this many images on, thresholds need no orientations."""
T = TypeVar("T")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Split:
    """A memory to make of `remembered` and to judge `judged` by; both are squares (S, S, 3)."""

    remembered: list[Pixels]
    judged: list[Pixels]


def thinned(images: Iterable[T], limit: int = MAX_KEPT) -> list[T]:
    """At most `limit` of a stream of unknown length: every image, or every 2nd, 4th, 8th, ... of them.

    Raises:
        ConfigError: if there is none.
    """
    kept: list[T] = []
    stride = 1
    for index, image in enumerate(images):
        if index % stride:
            continue
        if len(kept) == limit:
            kept, stride = kept[::2], 2 * stride
            if index % stride:
                continue
        kept.append(image)
    if not kept:
        raise ConfigError("there are no usable normal images; a method that remembers them needs at least one")
    return kept


def support(pixels: Sequence[Pixels]) -> list[Pixels]:
    """The images to remember: all, or `MAX_SUPPORT` of them evenly spaced."""
    count = min(len(pixels), MAX_SUPPORT)
    return [pixels[index * len(pixels) // count] for index in range(count)]


def splits(pixels: Sequence[Pixels]) -> Iterator[Split]:
    """The memories and what each judges, by the rule of this module; `pixels` are squares, at least one."""
    if len(pixels) >= ENOUGH:
        for fold in range(FOLDS):
            others = [image for index, image in enumerate(pixels) if index % FOLDS != fold]
            yield Split(support(others), list(pixels[fold::FOLDS]))
    elif len(pixels) > 1:
        for index, image in enumerate(pixels):
            yield Split([*pixels[:index], *pixels[index + 1 :]], orientations(image))
    else:
        turned = orientations(pixels[0])
        for known in (0, 2):
            yield Split([turned[known]], turned[:known] + turned[known + 1 :])


def is_approximate(num_images: int) -> bool:
    """Whether so few images leave the thresholds to their own orientations."""
    return num_images < ENOUGH


def orientations(image: Pixels) -> list[Pixels]:
    """The four quarter turns of a square image, and those of its mirror image."""
    return [np.rot90(side, turns).copy() for side in (image, image[:, ::-1]) for turns in range(4)]
