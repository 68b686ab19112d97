"""The built-in lists as a writer."""

from zsad.prompts.checks import text_fault
from zsad.prompts.class_states import FAMILIES
from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.builtin import BuiltinWriter


def texts(product, side, **changes):
    (draft,) = BuiltinWriter().write([WriteRequest(product=product, **changes)])
    return [phrase.text for phrase in draft.phrases if phrase.side == side]


def test_faults_are_those_of_things_with_this_name():
    assert texts("M4 screw", "abnormal") == [
        "worn thread on one part",
        "bent tip on one part",
        "scratched head on one part",
        "burr on one part",
    ]


def test_no_more_than_the_pairs_asked_for():
    assert len(texts("steel bolt", "abnormal", num_pairs=2)) == len(texts("steel bolt", "normal", num_pairs=2)) == 2


def test_every_built_in_phrase_passes_the_checks_of_text():
    for product in (*(keys[0] for keys in FAMILIES), "gizmo"):
        for side in ("normal", "abnormal"):
            found = texts(product, side, num_pairs=32)
            assert found
            assert [text for text in found if text_fault(text, side, "en")] == []


def test_drafts_come_in_order():
    requests = [WriteRequest(product=name) for name in ("cap", "lid")]
    assert [draft.request for draft in BuiltinWriter().write(requests)] == requests
