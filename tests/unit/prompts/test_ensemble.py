"""Prompt ensembles: the words, their order and their mean direction."""

import pytest
import torch

from zsad.prompts.ensemble import (
    ABNORMAL_STATES,
    DEFECT_WORDS,
    NORMAL_STATES,
    TEMPLATES,
    compose,
    defect_states,
    direction,
)


def test_states_go_into_templates_state_by_state():
    found = compose(["{}", "damaged {}"], "cable", ["a photo of a {}.", "one {}"])
    assert found == ["a photo of a cable.", "one cable", "a photo of a damaged cable.", "one damaged cable"]


def test_braces_of_users_are_ordinary_characters():
    """str.format would raise on some of these names and drop others."""
    found = compose(["damaged {}", *defect_states("{x} {}")], "{0} {y", ["one {}."])
    assert found == ["one damaged {0} {y.", "one {0} {y with a {x} {}.", "one {0} {y with {x} {}."]
    assert compose(["{}"], "{}", ["a {}."]) == ["a {}."]


@pytest.mark.parametrize(
    ("word", "states"),
    [
        ("scratch", ("{} with a scratch", "{} with scratch")),
        ("indent", ("{} with an indent", "{} with indent")),
        ("missing part", ("{} with a missing part", "{} with missing part")),
    ],
)
def test_a_defect_word_gives_two_states(word, states):
    assert defect_states(word) == states


def test_every_prompt_of_the_ensembles_is_a_different_sentence():
    states = [*NORMAL_STATES, *ABNORMAL_STATES, *(s for word in DEFECT_WORDS for s in defect_states(word))]
    prompts = compose(states, "cable")
    assert len(prompts) == len(set(prompts)) == len(states) * len(TEMPLATES)
    assert all(prompt.count("cable") == 1 and "{" not in prompt for prompt in prompts)


class AxisText:
    """Embeds a text as one axis for "damaged", another one otherwise."""

    def encode_text(self, strings):  # noqa: D102
        return torch.stack([torch.eye(2)[int("damaged" in string)] for string in strings])


def test_the_direction_is_the_unit_mean():
    """One prompt in four along the second axis: mean (0.75, 0.25), of length sqrt(0.625)."""
    found = direction(AxisText(), ["{}", "perfect {}", "damaged {}", "good {}"], "cable")
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]) / 0.625**0.5)
