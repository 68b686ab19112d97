"""States of a product: five adjectives, three suffixes, and what things like it suffer from."""

import pytest

from zsad.prompts.class_states import FAMILIES, PLAIN_SURFACE, class_states

GENERIC = [
    "damaged {}",
    "flawed {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
]


def generic(name):
    return [state.replace("{}", name) for state in GENERIC]


@pytest.mark.parametrize("name", ["widget", "blue gizmo 7", "{}", "{0!r} {x}", "%s", "", "Zahnrad", "螺丝", "a\nb"])
def test_an_unknown_name_gets_the_generic_states_and_plain_defects(name):
    assert class_states(name) == generic(name) + [f"{name} {defect}" for defect in PLAIN_SURFACE]


def test_a_word_of_the_name_chooses_the_family():
    assert class_states("cable")[8:] == [
        "cable with cut insulation",
        "cable with bare wire",
        "cable with missing strand",
        "cable with bent wire",
        "cable with swapped wires",
    ]


@pytest.mark.parametrize("name", ["Steel Bolt", "steel_bolt", "bolts of STEEL", "bolt-steel 12"])
def test_families_join_without_repeating_a_defect(name):
    """Metal has five defects, fasteners four; both know burrs."""
    states = class_states(name)
    shown = name.replace("_", " ")
    assert states[:8] == generic(shown)
    assert len(states) == len(set(states)) == 8 + 5 + 4 - 1
    assert f"{shown} with rust" in states
    assert f"{shown} with worn thread" in states


def test_a_part_of_a_word_is_no_word():
    """In "caramel" there is no car, in "metallurgy" no metal."""
    assert class_states("caramel metallurgy")[8:] == [f"caramel metallurgy {defect}" for defect in PLAIN_SURFACE]


@pytest.mark.parametrize("name", sorted({key for keys in FAMILIES for key in keys}))
def test_every_key_reaches_its_family(name):
    family = next(defects for keys, defects in FAMILIES.items() if name in keys)
    assert [f"{name} {defect}" for defect in family] == [s for s in class_states(name) if s.partition(" ")[2] in family]
