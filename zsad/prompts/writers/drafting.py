"""From a language engine's tokens to drafts: ask, read the answer, score every phrase, product after product.

An engine is anything that takes questions and texts to score and works on all of them a step at a time, as engines with
continuous batching do. `Drafter` keeps what belongs to one product together: when an answer is complete, its phrases
go back into the same engine to be scored, beside the answers that others still write, so the batch stays full.

Nothing here waits, starts threads or looks at the clock: equal questions in equal order give equal steps.

Cost: one answer and one short scoring request per phrase, so 1 + 2 * pairs requests for a product.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from zsad.prompts.writers.base import Draft, Side, WriteRequest
from zsad.prompts.writers.request import BadAnswer, draft_phrases, parse, scored_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wrote about one product.

    Attributes:
        place: the product's number, as given to `Engine.ask`.
        text: the answer.
        is_complete: whether the model ended it, rather than a limit.
        num_tokens: its length.
    """

    place: int
    text: str
    is_complete: bool
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How likely one phrase is.

    Attributes:
        place: the product's number, as given to `Engine.score`.
        index: the phrase's number in it.
        log_prob: mean natural log-probability of the phrase's tokens.
    """

    place: int
    index: int
    log_prob: float


class Engine(Protocol):
    """A language model that works on many requests at once."""

    @property
    def num_slots(self) -> int:
        """How many requests can be in one step."""

    @property
    def num_open(self) -> int:
        """Requests that are not finished."""

    def ask(self, place: int, request: WriteRequest) -> None:
        """Take a question in; raises BadAnswer if the model can't be asked it."""

    def score(self, place: int, index: int, before: str, text: str) -> None:
        """Take in a text whose tokens beyond those of `before` are to be scored."""

    def step(self) -> Sequence[Answer | Score]:
        """Do one step for the open requests, and give what finished in it."""


@dataclass(slots=True)
class Work:
    """Counts of what an engine did.

    Attributes:
        steps: of the engine.
        slots_used: requests that were open in a step, at most the engine's slots, summed over the steps.
        tokens: that the model wrote in answers.
    """

    steps: int = 0
    slots_used: int = 0
    tokens: int = 0

    def copy(self) -> "Work":
        """The counts as they are now."""
        return replace(self)


@dataclass(slots=True)
class _Product:
    request: WriteRequest
    looks: tuple[tuple[str, Side], ...] = ()
    log_probs: dict[int, float] = field(default_factory=dict)


class Drafter:
    """Drafts of the products that are in one engine."""

    def __init__(self, engine: Engine, model: str, revision: str) -> None:
        self.work = Work()
        self._engine = engine
        self._named = {"model": model, "revision": revision}
        self._products: dict[int, _Product] = {}
        self._finished: list[tuple[int, Draft]] = []

    @property
    def num_open(self) -> int:
        """Products without a draft, or with one that `step` has not given yet."""
        return len(self._products) + len(self._finished)

    def add(self, place: int, request: WriteRequest) -> None:
        """Begin the draft of a product; `place` is any number that tells it from others in work."""
        self._products[place] = _Product(request)
        try:
            self._engine.ask(place, request)
        except BadAnswer as error:
            self._fail(place, str(error))

    def step(self) -> list[tuple[int, Draft]]:
        """One step of the engine; gives the drafts that are finished, each with its place."""
        if self._products:
            self.work.steps += 1
            self.work.slots_used += min(self._engine.num_open, self._engine.num_slots)
            for result in self._engine.step():
                try:
                    self._take_answer(result) if isinstance(result, Answer) else self._take_score(result)
                except BadAnswer as error:
                    self._fail(result.place, str(error))
        finished, self._finished = self._finished, []
        return finished

    def _take_answer(self, answer: Answer) -> None:
        product = self._products[answer.place]
        self.work.tokens += answer.num_tokens
        if not answer.is_complete:
            raise BadAnswer(f"the answer was cut off after {answer.num_tokens:,} tokens")
        product.looks = parse(answer.text, product.request)
        for index, (text, side) in enumerate(product.looks):
            self._engine.score(answer.place, index, *scored_text(product.request, text, side))

    def _take_score(self, score: Score) -> None:
        product = self._products.get(score.place)
        if product is None:  # failed by another of its phrases
            return
        if not math.isfinite(score.log_prob):
            raise BadAnswer(f"the model gave a phrase the log-probability {score.log_prob}")
        product.log_probs[score.index] = min(0.0, score.log_prob)
        if len(product.log_probs) == len(product.looks):
            phrases = draft_phrases(product.looks, [product.log_probs[i] for i in range(len(product.looks))])
            del self._products[score.place]
            self._finished.append((score.place, Draft(request=product.request, phrases=phrases, **self._named)))

    def _fail(self, place: int, reason: str) -> None:
        request = self._products.pop(place).request
        self._finished.append((place, Draft(request=request, phrases=(), failure=reason, **self._named)))
