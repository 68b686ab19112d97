"""What the sentences of a training step say, and which of them fit which image."""

import numpy as np

from zsad.datasets.synthetic import DEFECT_PHRASES
from zsad.learn import wording
from zsad.learn.styles import TRAINED_DEFECTS

VOCABULARY = np.array(["apple", "river", "cloud"])
KINDS = [("steel", "plate"), ("steel", "plate"), ("wood", "surface"), ("wood", "surface")]
WORDS = ["dent", "good", "dent", "good"]


def written(seed=0, kinds=None, defects=None):
    return wording.write(np.random.default_rng(seed), kinds or real_kinds(), defects or WORDS, VOCABULARY)


def real_kinds():
    from zsad.datasets.synthetic import MATERIALS

    first, second = sorted(MATERIALS)[:2]
    return [(first, "surface"), (first, "surface"), (second, "surface"), (second, "surface")]


def test_positives_by_hand():
    """Captions 0 and 2 name their thing; 1 and 3 speak of "an object"."""
    found = wording._positives(KINDS, ["dent", "dent", "dent", "good"], np.array([True, False, True, False]))
    expected = [
        [1, 1, 0, 0],  # a dented steel plate: its own name, and the dented object
        [1, 1, 0, 0],  # another one
        [0, 1, 1, 0],  # dented wood: the dented object, its own name
        [0, 0, 0, 1],  # good wood
    ]
    assert found.astype(int).tolist() == expected


def test_every_image_fits_its_own_caption():
    for seed in range(5):
        words = written(seed)
        assert words.positives_BC.shape == (4, 4)
        assert words.positives_BC.diagonal().all()


def test_the_generator_decides_every_word():
    assert written(3).texts == written(3).texts
    assert written(3).texts != written(4).texts


def test_groups_point_at_normal_and_abnormal_sentences_of_one_name():
    words = written()
    assert len(words.shared) == 3
    assert set(words.own) == set(real_kinds())
    for group in (*words.shared, *words.own.values()):
        assert len(group.normal) == len(group.abnormal) == wording.PROMPTS_PER_STATE
    first = words.shared[0]
    assert all("object" in words.texts[index] for index in (*first.normal, *first.abnormal))
    bad = ("damaged", "with flaw", "with defect", "with damage")
    for group in (*words.shared, *words.own.values()):
        assert all(any(b in words.texts[index] for b in bad) for index in group.abnormal)
        assert not any(any(b in words.texts[index] for b in bad) for index in group.normal)
    third = words.shared[2]
    assert all(any(v in words.texts[index] for v in VOCABULARY) for index in (*third.normal, *third.abnormal))


def test_each_defect_is_told_in_two_prompts():
    words = written()
    assert len(words.defects) == len(TRAINED_DEFECTS)
    for defect, rows in zip(TRAINED_DEFECTS, words.defects, strict=True):
        assert len(rows) == 2
        assert f" with {defect.replace('_', ' ')}" in words.texts[rows[0]].replace(" a ", " ").replace(" an ", " ")


def test_indices_cover_all_texts_once():
    words = written()
    groups = [*words.shared, *words.own.values()]
    used = [index for group in groups for index in (*group.normal, *group.abnormal)]
    used += [index for rows in words.defects for index in rows]
    assert sorted(used) == list(range(4, len(words.texts)))


def test_only_so_many_kinds_are_asked_by_name(monkeypatch):
    monkeypatch.setattr(wording, "OWN_GROUPS", 1)
    assert len(written().own) == 1


def test_words_of_left_out_styles_are_not_taught():
    taught = wording.taught_words()
    assert {"scratch", "missing", "part", "flawless", "photo", "object", "wooden", "blowhole"} <= taught
    assert not taught & {"leather", "rubber", "corrosion", "rust", "wrinkle", "bend", "{a}", "name", "defect}"}


def test_good_things_may_lack_a_defect_by_name_and_still_fit_only_good_images():
    spared = [text for seed in range(40) for text in written(seed).texts[1::2] if "without" in text or "free" in text]
    said = {phrase for defect in TRAINED_DEFECTS for phrase in DEFECT_PHRASES[defect]}
    assert any(phrase in text for text in spared for phrase in said)
    assert not written(0).positives_BC[0::2, 1::2].any()
    assert wording.taught_words() >= {"free", "undamaged"}
