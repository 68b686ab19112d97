"""Which sentences a pre-training step shows the text tower, and which of them mean the same.

Captions name a thing and its state in many wordings. Ensembles (normal against abnormal states of a name) are built as
the zero-shot detector builds them, so that what is trained is what is asked later. Names are the thing's own, a
generic word such as "object", or random words of the vocabulary: an inspector is asked about products nobody trained
on, and an unknown name must not move the answer.

Legend: B images, C captions, G names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsad.datasets.synthetic import ABNORMAL_STATES as ABNORMAL_CAPTIONS
from zsad.datasets.synthetic import DEFECT_PHRASES, DEFECT_STATES, FRAMES, SHAPES, caption, object_names
from zsad.datasets.synthetic import NORMAL_STATES as NORMAL_CAPTIONS
from zsad.learn.pool import Kind
from zsad.learn.styles import TRAINED_DEFECTS, TRAINED_MATERIALS
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES, compose, defect_states

GENERIC_NAMES = (
    "object",
    "product",
    "surface",
    "part",
    "item",
    "material",
    "piece",
    "component",
    "sample",
    "workpiece",
)
PROMPTS_PER_STATE = 2
OWN_GROUPS = 12  # kinds of a batch that are also asked by name; more would cost time
NAMED_SHARE = 0.7
SPARED_STATES = ("{name} without {defect}", "{name} free from {defect}")
SPARED_SHARE = 0.25  # of the captions of good things
_FIELDS = re.compile(r"\{[a-z]*\}")


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts of one name: indices into `Wording.texts`."""

    normal: list[int]
    abnormal: list[int]


@dataclass(frozen=True, slots=True)
class Wording:
    """All texts of one step.

    Attributes:
        texts: every sentence, captions first.
        positives_BC: bool; whether image b and caption c say the same.
        shared: groups under generic or random names, asked of every image.
        own: for some kinds of thing, the group under one of their own names.
        defects: per name in `TRAINED_DEFECTS`, the prompts that tell it.
    """

    texts: list[str]
    positives_BC: NDArray[np.bool_]
    shared: list[Group]
    own: dict[Kind, Group]
    defects: list[list[int]]


def write(
    rng: np.random.Generator, kinds: Sequence[Kind], defects: Sequence[str], vocabulary: NDArray[np.str_]
) -> Wording:
    """The texts of one step for images of the given kinds and defects ("good" for normal)."""
    is_named = rng.random(len(kinds)) < NAMED_SHARE
    names = [_pick(rng, object_names(*k) if own else GENERIC_NAMES) for k, own in zip(kinds, is_named, strict=True)]
    texts = [_caption(rng, name, defect) for name, defect in zip(names, defects, strict=True)]

    def add(sentences: list[str]) -> list[int]:
        texts.extend(sentences)
        return list(range(len(texts) - len(sentences), len(texts)))

    def group(name: str) -> Group:
        return Group(add(_prompts(rng, NORMAL_STATES, name)), add(_prompts(rng, ABNORMAL_STATES, name)))

    random_words = " ".join(rng.choice(vocabulary, size=int(rng.integers(1, 3))))
    shared = [group("object"), group(_pick(rng, GENERIC_NAMES)), group(random_words)]
    present = sorted(set(kinds))
    asked = rng.permutation(len(present))[:OWN_GROUPS]
    own = {present[i]: group(_pick(rng, object_names(*present[i]))) for i in asked}
    told = [add(_defect_prompts(rng, defect)) for defect in TRAINED_DEFECTS]
    return Wording(texts, _positives(kinds, defects, is_named), shared, own, told)


def _caption(rng: np.random.Generator, name: str, defect: str) -> str:
    """A sentence about an image; some good things lack a defect by name, so that its word alone decides nothing."""
    if defect == "good" and rng.random() < SPARED_SHARE:
        spared = _pick(rng, DEFECT_PHRASES[_pick(rng, TRAINED_DEFECTS)])
        return _pick(rng, TEMPLATES).replace("{}", _pick(rng, SPARED_STATES).format(name=name, defect=spared))
    return caption(rng, name, defect)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _prompts(rng: np.random.Generator, states: Sequence[str], name: str) -> list[str]:
    return [compose([_pick(rng, states)], name, [_pick(rng, TEMPLATES)])[0] for _ in range(PROMPTS_PER_STATE)]


def _defect_prompts(rng: np.random.Generator, defect: str) -> list[str]:
    """One prompt as the detector writes it and one in freer words, under a generic name."""
    fixed = _pick(rng, defect_states(defect.replace("_", " ")))
    free = f"{{}} with {_pick(rng, DEFECT_PHRASES[defect])}"
    return [compose([state], _pick(rng, GENERIC_NAMES), [_pick(rng, TEMPLATES)])[0] for state in (fixed, free)]


def _positives(kinds: Sequence[Kind], defects: Sequence[str], is_named: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Image b fits caption c if the defect agrees and, where the caption names the thing, the kind does too."""
    kind, defect = np.asarray([" ".join(kind) for kind in kinds]), np.asarray(defects)
    same_kind = kind[:, None] == kind[None, :]
    same_defect = defect[:, None] == defect[None, :]
    positives: NDArray[np.bool_] = same_defect & (same_kind | ~is_named[None, :])
    return positives


def taught_words() -> frozenset[str]:
    """Every word of the sentences above whose meaning training teaches, lower case; other words stay noise.

    Random names do not count: they teach only that a name says nothing about the state.
    """
    kinds = [(material, shape) for material in TRAINED_MATERIALS for shape in ("surface", *SHAPES)]
    sentences = [
        *TEMPLATES,
        *FRAMES,
        *NORMAL_STATES,
        *ABNORMAL_STATES,
        *NORMAL_CAPTIONS,
        *ABNORMAL_CAPTIONS,
        *DEFECT_STATES,
        *SPARED_STATES,
        *GENERIC_NAMES,
        *(name for kind in kinds for name in object_names(*kind)),
        *(phrase for defect in TRAINED_DEFECTS for phrase in (defect.replace("_", " "), *DEFECT_PHRASES[defect])),
    ]
    plain = _FIELDS.sub(" ", " ".join(sentences).lower())
    return frozenset(re.findall(r"[a-z]+", plain))
