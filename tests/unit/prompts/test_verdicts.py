"""Scores, verdicts and reasons of a draft's phrases."""

import pytest
from stub_reader import BAD, GOOD, StubReader, phrases

from zsad.prompts.bank import Phrase
from zsad.prompts.verdicts import combined_ranks, is_usable, judged
from zsad.prompts.writers.base import DraftPhrase

FIVE = (*GOOD, "a clear even glass wall")
EIGHT = (*FIVE, "a firm and even seam", "a bright uniform colour", "a level round base")


def verdicts(drafted, reader=None, language="en"):
    found = judged(drafted, reader or StubReader(), object_name="pill bottle", language=language)
    return {phrase.text: (phrase.verdict, phrase.reason) for phrase in found}


def test_sound_phrases_stay_in_their_order_with_all_scores():
    found = judged(phrases(log_prob=-1.5), StubReader(), object_name="pill bottle", language="en")
    assert [(phrase.text, phrase.side) for phrase in found] == [
        *((text, "normal") for text in GOOD),
        *((text, "abnormal") for text in BAD),
    ]
    assert all(set(phrase.scores) == {"log_prob", "contrast", "separation", "rank"} for phrase in found)


def test_phrases_that_fail_as_text_are_not_read_by_the_tower():
    reader = StubReader()
    found = verdicts(phrases(good=(*GOOD[:3], "a <b>bold</b> rim", "a rim"), bad=()), reader)
    assert found["a <b>bold</b> rim"] == ("drop", "holds < >, which looks like markup")
    assert found["a rim"] == ("drop", "2 words; a phrase has 3 to 12")
    assert reader.num_read == 3


def test_a_phrase_said_before_counts_once_on_either_side():
    found = judged(
        phrases(good=("a smooth clear wall", "A smooth  clear wall"), bad=("a smooth CLEAR wall",)),
        StubReader(),
        object_name="cap",
        language="en",
    )
    assert [(phrase.verdict, phrase.reason) for phrase in found] == [
        ("keep", ""),
        ("drop", "said before"),
        ("drop", "said before"),
    ]


def test_a_phrase_longer_than_the_context_is_dropped():
    found = verdicts(phrases(), StubReader(too_long={GOOD[0]}))
    assert found[GOOD[0]] == ("drop", "too long for the text tower's context inside the longest template")


def test_words_the_backbone_never_saw_are_flagged_and_not_scored():
    reader = StubReader(untaught={"flush", "cap"})
    found = judged(phrases(log_prob=-2.0), reader, object_name="pill bottle", language="en")
    flagged = {phrase.text: phrase for phrase in found if phrase.verdict == "unseen"}
    assert set(flagged) == {"a cap seated flush", "a cap tilted sideways"}
    assert flagged["a cap seated flush"].reason == "words the backbone was never taught: cap, flush"
    assert flagged["a cap seated flush"].scores == {"log_prob": -2.0}


def test_a_phrase_on_the_wrong_side_for_the_tower_is_dropped():
    found = verdicts(phrases(), StubReader(contrast={GOOD[0]: -0.01, BAD[0]: 0.0}))
    assert found[GOOD[0]] == ("drop", "the backbone reads it as abnormal")
    assert found[BAD[0]] == ("drop", "the backbone reads it as normal")


def test_a_phrase_that_tells_worse_than_chance_is_dropped():
    found = verdicts(phrases(), StubReader(separation={GOOD[0]: 0.49, GOOD[1]: 0.5}))
    assert found[GOOD[0]] == ("drop", "tells faulty from normal images worse than chance")
    assert found[GOOD[1]][0] == "keep"


def test_of_phrases_that_are_alike_to_the_tower_the_better_stays():
    reader = StubReader(like={GOOD[0]: GOOD[2]}, separation={GOOD[0]: 0.6, GOOD[2]: 0.8})
    found = verdicts(phrases(), reader)
    assert found[GOOD[0]] == ("drop", f"to the backbone the same as {GOOD[2]!r}")
    assert found[GOOD[2]][0] == "keep"


def test_phrases_of_two_sides_may_be_alike():
    assert verdicts(phrases(), StubReader(like={GOOD[0]: BAD[0]}))[GOOD[0]][0] == "keep"


@pytest.mark.parametrize(("texts", "num_kept"), [(GOOD[:1], 1), (GOOD[:3], 3), (GOOD, 3), (FIVE, 4), (EIGHT, 6)])
def test_the_weakest_quarter_of_a_side_goes_but_three_stay(texts, num_kept):
    """Three quarters of 4, 5 and 8, rounded up: 3, 4 and 6."""
    separation = {text: 0.6 + 0.01 * n for n, text in enumerate(texts)}
    found = verdicts(phrases(good=texts, bad=()), StubReader(separation=separation))
    assert [text for text in texts if found[text][0] == "keep"] == list(texts[len(texts) - num_kept :])


def test_both_scores_make_the_rank():
    """By separation 1, 2, 3; by log-probability 3, 1, 2: means 2, 1.5, 2.5."""
    scored = [
        Phrase(text=text, side="normal", scores={"separation": separation, "log_prob": log_prob})
        for text, separation, log_prob in zip(GOOD, (0.9, 0.8, 0.7), (-3, -1, -2), strict=False)
    ]
    assert combined_ranks(scored) == [2.0, 1.5, 2.5]


def test_without_log_probabilities_separation_ranks_alone_and_ties_share():
    scored = [
        Phrase(text=t, side="normal", scores={"separation": s}) for t, s in zip(GOOD, (0.9, 0.7, 0.7, 0.6), strict=True)
    ]
    assert combined_ranks(scored) == [1.0, 2.5, 2.5, 4.0]


def test_the_order_of_a_draft_changes_no_verdict():
    separation = {text: 0.6 + 0.01 * n for n, text in enumerate(EIGHT)}
    drafted = phrases(good=EIGHT, log_prob=-1.0)
    assert verdicts(drafted, StubReader(separation=separation)) == verdicts(
        drafted[::-1], StubReader(separation=separation)
    )


def test_a_full_stop_at_the_end_is_no_part_of_a_phrase():
    assert verdicts(phrases(good=("a smooth clear wall.",), bad=()))["a smooth clear wall"][0] == "keep"


@pytest.mark.parametrize("text", ["\x1b[31m", "\n", "\u202e\u202e", "x" * 10_000, "\ud800", "a\0b c d"])
def test_texts_that_no_file_can_hold_are_kept_for_the_record_as_what_is_printable(text):
    (found,) = judged((DraftPhrase(text=text, side="normal"),), StubReader(), object_name="cap", language="en")
    assert found.verdict == "drop"
    assert found.text.isprintable()
    assert len(found.text) <= 120


def test_english_rules_of_contrast_are_for_english_only():
    german = phrases(good=("ein glatter unbeschädigter Rand",), bad=("ein Riss quer über den Rand",))
    assert all(verdict == ("keep", "") for verdict in verdicts(german, language="de").values())


def test_a_draft_is_rubbish_unless_each_side_has_a_phrase_that_passed_as_text():
    def found(**changes):
        return judged(phrases(**changes), StubReader(untaught={"wall"}), object_name="cap", language="en")

    assert is_usable(found())
    assert is_usable(found(good=("a smooth clear wall",), bad=("a crack in the wall",)))
    assert not is_usable(found(bad=()))
    assert not is_usable(found(bad=("no", "see http://x.y/z now")))
    assert not is_usable(())
