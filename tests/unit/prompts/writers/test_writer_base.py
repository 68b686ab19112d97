"""What may be asked of a writer, and what a draft may hold."""

import pytest

from zsad.errors import ConfigError
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest


@pytest.mark.parametrize(
    "wrong",
    [
        {"product": " "},
        {"product": 7},
        {"notes": None},
        {"language": "English"},
        {"language": "EN"},
        {"num_pairs": 0},
        {"num_pairs": 33},
        {"num_pairs": True},
        {"seed": -1},
        {"seed": 2**31},
    ],
)
def test_a_request_that_can_not_be_written_is_refused(wrong):
    with pytest.raises(ConfigError):
        WriteRequest(**{"product": "cap", **wrong})


@pytest.mark.parametrize("log_prob", [0.1, float("nan"), float("-inf")])
def test_a_score_that_is_no_log_probability_is_refused(log_prob):
    with pytest.raises(ConfigError, match="log_prob"):
        DraftPhrase(text="a smooth rim", side="normal", log_prob=log_prob)


def test_a_phrase_has_one_of_two_sides():
    with pytest.raises(ConfigError, match="normal or abnormal"):
        DraftPhrase(text="a smooth rim", side="good")


def test_a_draft_has_phrases_or_a_failure():
    request, phrase = WriteRequest(product="cap"), DraftPhrase(text="a smooth rim", side="normal")
    assert Draft(request=request, phrases=(phrase,), model="m", revision="1").failure is None
    assert Draft(request=request, phrases=(), model="m", revision="1", failure="no answer").phrases == ()
    for wrong in ({"phrases": ()}, {"phrases": (phrase,), "failure": "no answer"}):
        with pytest.raises(ConfigError, match="either phrases or a failure"):
            Draft(request=request, model="m", revision="1", **wrong)
