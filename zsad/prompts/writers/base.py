"""What is asked of a writer of phrases, and what it gives back.

A writer turns product names into drafts: phrases that tell how a good and a faulty item look, not yet checked. A
language model in a Ray actor, an endpoint, a recorded file and the built-in lists all answer to `Writer`. One bad
product never ends the work on the others: its draft has no phrases and says why.

This module needs the standard library alone, because it is also read in the language model's own environment.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from zsad.errors import ConfigError

MAX_PAIRS = 32
Side = Literal["normal", "abnormal"]  # as in zsad.prompts.bank, which needs more than the standard library


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """One product that needs phrases.

    Attributes:
        product: its name, as a person typed it; a stranger's text.
        notes: what a person added about it; a stranger's text, cut to a limit before it is shown to a model.
        language: ISO 639-1 code of the language to write in.
        num_pairs: pairs of a normal and an abnormal phrase to ask for, 1 to 32.
        seed: of the model's sampling.

    Raises:
        ConfigError: if a value can't be used.
    """

    product: str
    notes: str = ""
    language: str = "en"
    num_pairs: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("product", "notes", "language"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be text, not {ascii(getattr(self, name))[:60]}")
        if not self.product.strip():
            raise ConfigError("a product needs a name; this one is empty")
        if len(self.language) != 2 or not self.language.isascii() or not self.language.islower():
            raise ConfigError(
                f"language is {ascii(self.language)[:60]}; it must be a two-letter code of ISO 639-1, such as 'en'"
            )
        if not _is_whole(self.num_pairs) or not 1 <= self.num_pairs <= MAX_PAIRS:
            raise ConfigError(f"num_pairs is {self.num_pairs!r}; it must be a whole number from 1 to {MAX_PAIRS}")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed!r}; it must be a whole number from 0 to {2**31 - 1:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPhrase:
    """One phrase as a writer gave it, unchecked.

    Attributes:
        text: what follows "<product> with ".
        side: whether it tells a normal or an abnormal item.
        log_prob: mean natural log-probability of its tokens given the product, at most 0; None where the writer can't
            tell.

    Raises:
        ConfigError: if `side` is unknown or `log_prob` is no finite number up to 0.
    """

    text: str
    side: Side
    log_prob: float | None = None

    def __post_init__(self) -> None:
        if self.side not in get_args(Side):
            raise ConfigError(f"side is {ascii(self.side)[:60]}; choose {' or '.join(get_args(Side))}")
        if self.log_prob is not None and not (math.isfinite(self.log_prob) and self.log_prob <= 0):
            raise ConfigError(f"log_prob is {self.log_prob}; a mean log-probability is a finite number up to 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a writer gave for one product.

    Attributes:
        request: what was asked.
        phrases: in the writer's order; empty when it failed.
        model: who wrote them.
        revision: which state of it, such as a hash of its weights.
        failure: a plain sentence when the writer gave nothing usable.

    Raises:
        ConfigError: if there are phrases beside a failure, or neither.
    """

    request: WriteRequest
    phrases: tuple[DraftPhrase, ...]
    model: str
    revision: str
    failure: str | None = None

    def __post_init__(self) -> None:
        if bool(self.phrases) == (self.failure is not None):
            raise ConfigError("a draft has either phrases or a failure")


class Writer(Protocol):
    """Writes drafts; `name`, `model` and `revision` go into the bank and the cache key."""

    @property
    def name(self) -> str:
        """The kind of writer, such as "vllm"."""

    @property
    def model(self) -> str:
        """Who writes: a model's name or folder."""

    @property
    def revision(self) -> str:
        """Which state of the model."""

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """One draft per request, in their order; a product that fails gives a draft with a failure, never an error."""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
