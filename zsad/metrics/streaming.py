"""Pixel metrics of any number of images in constant memory: fine histograms that add up.

Each pixel's score falls into one of `NUM_BINS` bins; normal and defective pixels are counted apart. PRO needs, for
every connected defective region, the share of its area above each threshold; the mean over regions is linear, so the
regions' histograms, each divided by its area, are summed into one. Shares are whole numbers of 2^-40, so that all sums
are exact and no figure depends on who counted what: workers hold one `PixelTally` each and add them.

Within a bin the order is lost and counts as a tie. What that can change is bounded from the histogram itself, so every
figure comes with the most by which it can differ from that of the unbinned scores. Bins are uniform in
asinh(score / 2): 0.001 wide around 0 and 0.06 % of the score far from it, for scores in standard units
(`zsad.calibration.Scale.standardise`), where a good image's pixels lie between about -100 and 0.

Legend: N bins, rising; T thresholds, falling; (H, W) an image at the resolution compared at.
Cost: 3 x 8 x 32,768 bytes a tally; about 1 ms for 256 x 256 pixels.
Source: PRO as MVTec AD defines it (Bergmann et al., IJCV 2021, section 4): 8-connected regions, mean overlap over the
false-positive rate of all defect-free pixels, integrated up to 0.3 and divided by 0.3. Histograms and bounds are ours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zsad.metrics.ranking import Cumulated, average_precision_of, f1_max_of

NUM_BINS = 2**15
PRO_LIMIT = 0.3
_UNIT = 2.0
_RANGE = 9.0  # asinh(score / 2) is cut at +-9, a score of +-8,103
_WHOLE = 2.0**40
_REGION = np.ones((3, 3))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the most by which binning can have moved it, both ways."""

    value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class PixelTally:
    """What pixel metrics need to know of some images.

    Attributes:
        normal_N: normal pixels per bin.
        defect_N: defective pixels per bin.
        region_N: sum over regions of the share of the region's area per bin, in units of 2^-40; room for 8 million.
        num_regions: connected defective regions.
        num_images: images counted.
    """

    normal_N: NDArray[np.int64]
    defect_N: NDArray[np.int64]
    region_N: NDArray[np.int64]
    num_regions: int
    num_images: int

    def __add__(self, other: "PixelTally") -> "PixelTally":
        """The tally of both sets of images."""
        return PixelTally(
            self.normal_N + other.normal_N,
            self.defect_N + other.defect_N,
            self.region_N + other.region_N,
            self.num_regions + other.num_regions,
            self.num_images + other.num_images,
        )

    def to_bytes(self) -> bytes:
        """For a column of a table."""
        counts = np.array([self.num_regions, self.num_images], np.int64)
        return b"".join(part.tobytes() for part in (self.normal_N, self.defect_N, self.region_N, counts))

    @classmethod
    def from_bytes(cls, data: bytes) -> "PixelTally":
        """Inverse of `to_bytes`."""
        whole = np.frombuffer(data, np.int64)
        normal, defect, region = (whole[k * NUM_BINS : (k + 1) * NUM_BINS] for k in range(3))
        return cls(normal, defect, region, int(whole[-2]), int(whole[-1]))


def empty_tally() -> PixelTally:
    """The tally of no image."""
    zeros = np.zeros(NUM_BINS, np.int64)
    return PixelTally(zeros, zeros, zeros, 0, 0)


def tally_image(scores_HW: NDArray[np.floating], mask_HW: NDArray[np.bool_]) -> PixelTally:
    """The tally of one image.

    Args:
        scores_HW: pixel scores in standard units, larger = more anomalous.
        mask_HW: True where the pixel is defective.

    Raises:
        ValueError: if the shapes differ.
    """
    if scores_HW.shape != mask_HW.shape:
        raise ValueError(f"scores {scores_HW.shape} and mask {mask_HW.shape} have different shapes")
    bins_HW = bin_of(scores_HW)
    labels_HW, num_regions = ndimage.label(mask_HW, structure=_REGION)
    areas = np.bincount(labels_HW.ravel(), minlength=num_regions + 1)
    inside = bins_HW[mask_HW]
    shares = np.rint(_WHOLE / areas[labels_HW[mask_HW]])  # float64, but whole and below 2^53 even when added up
    return PixelTally(
        np.bincount(bins_HW[~mask_HW], minlength=NUM_BINS),
        np.bincount(inside, minlength=NUM_BINS),
        np.bincount(inside, weights=shares, minlength=NUM_BINS).astype(np.int64),
        int(num_regions),
        1,
    )


def bin_of(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of each score, any shape; monotone, the outermost bins take everything beyond the range."""
    place = (np.arcsinh(scores / _UNIT) / _RANGE + 1) * (NUM_BINS / 2)
    return np.asarray(np.clip(place, 0, NUM_BINS - 1), np.int64)


def pixel_counts(tally: PixelTally) -> Cumulated:
    """Defective and normal pixels at or above each bin, highest first.

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    counts = Cumulated(_falling(tally.defect_N), _falling(tally.normal_N))
    if not counts.num_true:
        raise ValueError("there are no defective pixels")
    if not counts.num_false:
        raise ValueError("there are no normal pixels")
    return counts


def pixel_auroc(tally: PixelTally) -> Estimate:
    """Area under the ROC curve of pixels; the error is half the share of pairs that share a bin.

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    counts = pixel_counts(tally)
    found_T, false_T = np.diff(counts.true_T, prepend=0), np.diff(counts.false_T, prepend=0)
    pairs = counts.num_true * counts.num_false
    tied = float((found_T * false_T).sum()) / pairs
    above = float(((counts.true_T - found_T) * false_T).sum()) / pairs
    return Estimate(above + tied / 2, tied / 2)


def pixel_average_precision(tally: PixelTally) -> Estimate:
    """Average precision of pixels; the bound takes, in each bin, all defective pixels first or all last.

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    counts = pixel_counts(tally)
    value = average_precision_of(counts)
    found_T = np.diff(counts.true_T, prepend=0)
    before_true_T, before_false_T = counts.true_T - found_T, np.append(0, counts.false_T[:-1])
    best_T = counts.true_T / np.maximum(counts.true_T + before_false_T, 1)
    worst_T = (before_true_T + 1) / (before_true_T + 1 + counts.false_T)
    best, worst = ((found_T * share).sum() / counts.num_true for share in (best_T, worst_T))
    return Estimate(value, float(max(best - value, value - worst)))


def pixel_f1_max(tally: PixelTally) -> Estimate:
    """Largest F1 of pixels over all thresholds; a threshold inside a bin may do better by the error.

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    counts = pixel_counts(tally)
    value = f1_max_of(counts)
    before_false_T = np.append(0, counts.false_T[:-1])
    best = float((2 * counts.true_T / (counts.num_true + counts.true_T + before_false_T)).max())
    return Estimate(value, best - value)


def pro(tally: PixelTally, limit: float = PRO_LIMIT) -> Estimate:
    """Per-region overlap, averaged over false-positive rates from 0 to `limit`, [0, 1].

    The curve is exact at the bins' edges and rises between them, so the trapezoid is wrong by at most half of each
    step's rectangle, and by a whole one in the step that `limit` cuts.

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    rate_T, overlap_T = pro_curve(tally)
    stop = int(np.searchsorted(rate_T, limit, side="right"))
    cut = float(np.interp(limit, rate_T, overlap_T))
    x, y = np.append(rate_T[:stop], limit), np.append(overlap_T[:stop], cut)
    rectangles = np.diff(rate_T[:stop]) * np.diff(overlap_T[:stop])
    last = (limit - rate_T[stop - 1]) * (overlap_T[stop] - overlap_T[stop - 1]) if stop < len(rate_T) else 0.0
    return Estimate(float(np.trapezoid(y, x)) / limit, float(rectangles.sum() / 2 + last) / limit)


def pro_curve(tally: PixelTally) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-positive rate and mean overlap of regions at each bin's lower edge, from (0, 0) to (1, 1).

    Raises:
        ValueError: if there are no normal or no defective pixels.
    """
    counts = pixel_counts(tally)
    overlap_T = _falling(tally.region_N)
    return np.append(0, counts.false_T / counts.num_false), np.append(0, overlap_T / overlap_T[-1])


def _falling(values_N: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.cumsum(values_N[::-1]), np.float64)
