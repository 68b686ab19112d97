"""What a text tower makes of phrases: whether it can read them, on which side it puts them, what they tell apart.

A phrase may be good English and still be useless to the CLIP model that will use it. Four answers tell:

- fits: whether the phrase in the longest template stays within the tower's context, so that nothing is cut off;
- unseen: words that the tower was never taught, where it says which it was;
- contrast: similarity to the own side's ensemble minus that to the other's; > 0 if the tower reads it as meant;
- separation: over pairs of a normal image and the same one with a fault, the share in which the fault moves the image
  towards an abnormal phrase, or away from a normal one; pairs without any effect count half, so 0.5 is chance.

The pairs are procedural, or the user's own normal images, each with a piece of itself pasted elsewhere.

Legend: M pairs of images, K phrases, D joint width, S side px.
Cost: once a run 128 pairs, with nano 4 s to draw and 4 s to embed on one core; then 16 short texts a phrase, 6 ms.
Source: the pasted piece as in CutPaste (arXiv 2104.04015), section 2.1; the scores are zsad's own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zsad.backbone import Backbone
from zsad.backbone.similarity import similarity
from zsad.errors import ConfigError
from zsad.images import Preprocess
from zsad.prompts.bank import MAX_REASON_CHARS, Side
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES, encode_units, fill
from zsad.prompts.names import one_line

Image = NDArray[np.uint8]
NUM_PAIRS = 128
MIN_NORMALS = 8
_DRAWN_SEED = 25_000  # a training learns from those of 30,000 on (zsad.learn.prepare)
_PASTE_SEED = 30_000
_BATCH = 16
_LEAST_PIECE, _MOST_PIECE = 0.12, 0.3  # side of a pasted piece, share of the image's


@dataclass(frozen=True, slots=True)
class ImagePairs:
    """Pairs of squares (S, S, 3) for a backbone: normal images, and the same ones with a fault."""

    normal: Sequence[Image]
    faulty: Sequence[Image]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSource:
    """Where pairs come from; they are made and embedded only when a phrase must be scored.

    Attributes:
        name: for people.
        identity: changes when the pairs do.
        make: the pairs for a backbone.
    """

    name: str
    identity: str
    make: Callable[[Backbone], ImagePairs]


@dataclass(frozen=True, slots=True)
class Readings:
    """What the tower makes of K phrases: unit-length embeddings (K, D), contrast (K,) and separation (K,)."""

    units_KD: Tensor
    contrast: list[float]
    separation: list[float]


class Reader:
    """Reads phrases with one backbone; `source` gives the pairs that they have to tell apart."""

    def __init__(self, backbone: Backbone, source: PairSource) -> None:
        self.backbone = backbone
        self.source = source
        self._longest = max(TEMPLATES, key=lambda template: self._num_tokens(fill(template, "object")))

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Embeddings (M, D) of the normal images, and of those with a fault.

        Raises:
            ConfigError: if the source has too few images.
        """
        made = self.source.make(self.backbone)
        return _embed(self.backbone, made.normal), _embed(self.backbone, made.faulty)

    def fits(self, phrase: str, object_name: str) -> bool:
        """Whether nothing of the phrase is cut off in the longest template."""
        prompt = fill(self._longest, fill(_look(phrase), object_name))
        context = self.backbone.tokenizer.context_length
        roomy, tight = (self.backbone.tokenizer([prompt], context_length=context + extra)[0] for extra in (1, 0))
        return bool((roomy[:context] == tight).all())

    def read(self, phrases: Sequence[str], sides: Sequence[Side], object_name: str) -> Readings:
        """Readings of at least one phrase."""
        units_KD = encode_units(self.backbone, [_look(phrase) for phrase in phrases], object_name)
        own = [self._ensemble(states, object_name) for states in (NORMAL_STATES, ABNORMAL_STATES)]
        margin_K = similarity(units_KD, torch.stack(own).to(units_KD))
        contrast_K = (margin_K[:, 1] - margin_K[:, 0]).double()
        normal_MK, faulty_MK = (similarity(rows, units_KD) for rows in self.pairs)
        moved_MK = faulty_MK - normal_MK
        rises_K = ((moved_MK > 0).double() + 0.5 * (moved_MK == 0).double()).mean(dim=0)
        is_normal = [side == "normal" for side in sides]
        return Readings(
            units_KD=units_KD,
            contrast=[-c if n else c for c, n in zip(contrast_K.tolist(), is_normal, strict=True)],
            separation=[1 - r if n else r for r, n in zip(rises_K.tolist(), is_normal, strict=True)],
        )

    def _ensemble(self, states: Sequence[str], object_name: str) -> Tensor:
        return F.normalize(encode_units(self.backbone, states, object_name).mean(dim=0), dim=0)

    def _num_tokens(self, text: str) -> int:
        tokens = self.backbone.tokenizer([text])[0]
        return int((tokens != tokens[-1]).sum())  # short texts end in padding, whatever its number


def procedural_source(num_pairs: int = NUM_PAIRS) -> PairSource:
    """Drawn pairs of all materials and defects that no training has seen, always the same."""

    def make(backbone: Backbone) -> ImagePairs:
        from zsad.datasets.synthetic import SyntheticConfig, generate_pair

        config = SyntheticConfig(size=backbone.image_size, anomaly_share=1.0)
        drawn = [generate_pair(_DRAWN_SEED, index, config) for index in range(num_pairs)]
        return ImagePairs([reference for _, reference in drawn], [sample.image for sample, _ in drawn])

    name = f"{num_pairs} procedural pairs"
    return PairSource(name=name, identity=f"{name} of seed {_DRAWN_SEED}", make=make)


def damaged_source(images: Callable[[], Iterable[Image]], *, name: str, identity: str) -> PairSource:
    """The first 128 of the user's normal images (H, W, 3), each beside itself with a piece pasted elsewhere.

    Args:
        images: reads them; called when they are needed.
        name: where they lie.
        identity: changes when they do.
    """

    def make(backbone: Backbone) -> ImagePairs:
        square = Preprocess(size=backbone.image_size, interpolation=backbone.interpolation)
        normals = [square.apply(image) for image in islice(images(), NUM_PAIRS)]
        if len(normals) < MIN_NORMALS:
            raise ConfigError(f"{name}: {len(normals)} normal images; scoring phrases needs at least {MIN_NORMALS}")
        rng = np.random.default_rng(_PASTE_SEED)
        return ImagePairs(normals, [paste_piece(image, rng) for image in normals])

    return PairSource(name=one_line(f"{name} with pasted pieces", MAX_REASON_CHARS), identity=identity, make=make)


def paste_piece(image_SSC: Image, rng: np.random.Generator) -> Image:
    """A copy with a rectangle of itself, turned by 180 degrees and lit otherwise, at another place."""
    side = image_SSC.shape[0]
    height, width = (int(side * rng.uniform(_LEAST_PIECE, _MOST_PIECE)) for _ in range(2))
    (y, x), (to_y, to_x) = ((rng.integers(side - height), rng.integers(side - width)) for _ in range(2))
    piece = image_SSC[y : y + height, x : x + width][::-1, ::-1] * rng.choice([0.6, 1.4])
    damaged = image_SSC.copy()
    damaged[to_y : to_y + height, to_x : to_x + width] = piece.clip(0, 255).astype(np.uint8)
    return damaged


def _embed(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Image embeddings (M, D), always in batches of one shape."""
    padded = [*images, *[images[0]] * (-len(images) % _BATCH)]
    batches = (torch.from_numpy(np.stack(padded[start : start + _BATCH])) for start in range(0, len(padded), _BATCH))
    return torch.cat([backbone.encode_image(batch).image_BD for batch in batches])[: len(images)]


def _look(phrase: str) -> str:
    """The state with its object left open, as ALFA words it."""
    return "{} with " + phrase
