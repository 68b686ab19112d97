"""How questions, answers and scores of many products in one engine become drafts."""

import json
import math

import pytest

from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.drafting import Answer, Drafter, Score
from zsad.prompts.writers.request import BadAnswer

CAP = WriteRequest(product="cap", num_pairs=1)
ANSWER = json.dumps({"pairs": [{"trait": "edge", "good": "a smooth rim", "faulty": "a chipped rim"}]})


class Hand:
    """An engine that finishes what a test lays into `results`, and refuses the product "refused"."""

    num_slots = 2

    def __init__(self):
        self.num_open, self.results, self.texts = 0, [], []

    def ask(self, place, request):
        """Take a product in, or refuse it."""
        if request.product == "refused":
            raise BadAnswer("the question takes too many tokens")
        self.num_open += 1

    def score(self, place, index, before, text):
        """Take a phrase in, or refuse it."""
        if "refused" in text:
            raise BadAnswer("a phrase takes too many tokens")
        self.texts.append((place, index, before, text))
        self.num_open += 1

    def step(self):
        """Finish what the test laid in."""
        results, self.results = self.results, []
        self.num_open -= len(results)
        return results


@pytest.fixture
def hand():
    return Hand()


@pytest.fixture
def drafter(hand):
    return Drafter(hand, "m", "1")


def answer(place, text=ANSWER, *, is_complete=True):
    return Answer(place=place, text=text, is_complete=is_complete, num_tokens=9)


def test_every_phrase_of_an_answer_is_scored_behind_its_product_and_the_scores_return_to_it(hand, drafter):
    drafter.add(7, CAP)
    hand.results = [answer(7)]
    assert drafter.step() == []
    assert hand.texts == [
        (7, 0, "A photo of a good cap with", "A photo of a good cap with a smooth rim"),
        (7, 1, "A photo of a faulty cap with", "A photo of a faulty cap with a chipped rim"),
    ]
    hand.results = [Score(place=7, index=1, log_prob=-2.0)]
    assert drafter.step() == []
    hand.results = [Score(place=7, index=0, log_prob=1e-9)]  # a rounding error above certainty
    ((place, draft),) = drafter.step()
    assert (place, draft.model, draft.revision, draft.failure) == (7, "m", "1", None)
    assert [(p.text, p.side, p.log_prob) for p in draft.phrases] == [
        ("a smooth rim", "normal", 0.0),
        ("a chipped rim", "abnormal", -2.0),
    ]
    assert drafter.num_open == 0


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([answer(0, is_complete=False)], "the answer was cut off after 9 tokens"),
        ([answer(0, "Certainly!")], "the answer is not JSON"),
        ([answer(0, ANSWER.replace("smooth", "refused"))], "a phrase takes too many tokens"),
        ([answer(0), Score(place=0, index=0, log_prob=math.nan)], "log-probability nan"),
        ([answer(0), Score(place=0, index=0, log_prob=-math.inf)], "log-probability -inf"),
    ],
)
def test_a_product_whose_answer_or_score_is_bad_fails_alone(hand, drafter, results, told):
    drafter.add(0, CAP)
    drafter.add(1, CAP)
    hand.results = [*results, answer(1), Score(place=1, index=0, log_prob=-1), Score(place=1, index=1, log_prob=-1)]
    drafts = dict(drafter.step())
    assert told in drafts[0].failure
    assert drafts[0].phrases == ()
    assert drafts[1].failure is None


def test_scores_that_come_after_their_product_failed_are_ignored(hand, drafter):
    drafter.add(0, CAP)
    drafter.add(1, CAP)
    hand.results = [answer(0), *(Score(place=0, index=index, log_prob=math.nan) for index in (0, 1))]
    assert len(drafter.step()) == 1
    assert drafter.num_open == 1


def test_a_question_that_is_refused_fails_in_the_next_step_without_one_of_the_engine(hand, drafter):
    drafter.add(3, WriteRequest(product="refused"))
    assert drafter.num_open == 1
    ((place, draft),) = drafter.step()
    assert (place, draft.failure) == (3, "the question takes too many tokens")
    assert drafter.work.steps == 0


def test_occupancy_counts_open_requests_up_to_the_slots(hand, drafter):
    for place in range(3):
        drafter.add(place, CAP)
    drafter.step()  # three open, two slots
    hand.results = [answer(place, "Certainly!") for place in (0, 1)]
    drafter.step()
    drafter.step()  # one open
    assert (drafter.work.steps, drafter.work.slots_used, drafter.work.tokens) == (3, 5, 18)
