import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from zsad.datasets.synthetic import (
    ABNORMAL_STATES,
    DEFECT_PHRASES,
    DEFECT_STATES,
    DEFECTS,
    MATERIAL_ADJECTIVES,
    MATERIALS,
    NORMAL_STATES,
    OBJECT_NAMES,
    SHAPE_NAMES,
    SHAPES,
    SyntheticConfig,
    caption,
    generate,
    generate_pair,
    object_names,
    state,
)
from zsad.errors import ConfigError

CONFIG = SyntheticConfig(size=96)
BAD = replace(CONFIG, anomaly_share=1.0)
PERFECT_CAMERA = replace(BAD, camera_strength=0.0)


def phrases_in(text: str) -> list[str]:
    return [phrase for phrases in DEFECT_PHRASES.values() for phrase in phrases if f" {phrase} " in f" {text} "]


def test_same_seed_and_index_give_the_same_picture_in_any_order() -> None:
    first = [generate(3, i, CONFIG) for i in range(6)]
    again = [generate(3, i, CONFIG) for i in reversed(range(6))][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert (a.defect_type, a.object_name, a.caption) == (b.defect_type, b.object_name, b.caption)


def test_another_process_gives_the_same_picture() -> None:
    code = (
        "from hashlib import sha256\n"
        "from zsad.datasets.synthetic import SyntheticConfig, generate\n"
        "print(sha256(generate(5, 2, SyntheticConfig(size=96)).image.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == sha256(generate(5, 2, CONFIG).image.tobytes()).hexdigest()


@pytest.mark.parametrize(("seed", "index"), [(3, 1), (4, 0)])
def test_another_seed_or_index_gives_another_picture(seed: int, index: int) -> None:
    assert not np.array_equal(generate(3, 0, CONFIG).image, generate(seed, index, CONFIG).image)


@pytest.mark.parametrize("size", [32, 97, 224])
def test_pictures_are_square_uint8_rgb_with_a_boolean_mask(size: int) -> None:
    for index in range(4):
        sample = generate(0, index, SyntheticConfig(size=size))
        assert sample.image.shape == (size, size, 3)
        assert sample.image.dtype == np.uint8
        assert sample.mask.shape == (size, size)
        assert sample.mask.dtype == np.bool_


@pytest.mark.parametrize("material", MATERIALS)
def test_every_material_renders_as_a_surface_and_as_a_part(material: str) -> None:
    for object_share, names in ((0.0, object_names(material)), (1.0, None)):
        sample = generate(1, 7, replace(CONFIG, materials=(material,), object_share=object_share, anomaly_share=0.0))
        assert sample.material == material
        assert sample.image.std() > 0.5
        assert sample.object_name in (names or object_names(material, sample.shape))


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_renders_visibly_and_its_mask_is_where_the_picture_changed(defect: str) -> None:
    for index in range(4):
        sample, clean = generate_pair(2, index, replace(PERFECT_CAMERA, defects=(defect,)))
        change = np.abs(sample.image.astype(int) - clean).mean(-1)
        assert sample.defect_type == defect
        assert sample.mask.sum() >= 6
        assert change[sample.mask].mean() >= 0.03 * 255
        assert change[sample.mask].mean() > 5 * change[~sample.mask].mean()
        assert change[sample.mask].sum() > 0.5 * change.sum()


def test_mask_is_empty_exactly_for_good_pictures_and_their_reference_is_the_picture() -> None:
    for index in range(40):
        sample, clean = generate_pair(8, index, CONFIG)
        assert sample.mask.any() == (sample.defect_type != "good")
        assert np.array_equal(sample.image, clean) == (sample.defect_type == "good")


def test_share_of_anomalies_is_near_the_configured_one_and_keeps_the_scenes() -> None:
    config = replace(CONFIG, size=32, anomaly_share=0.3)
    bad = sum(generate(0, i, config).defect_type != "good" for i in range(400))
    assert abs(bad / 400 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)
    with_defect, clean = generate_pair(0, 1, replace(CONFIG, anomaly_share=1.0))
    good = generate(0, 1, replace(CONFIG, anomaly_share=0.0))
    assert with_defect.material == good.material
    np.testing.assert_array_equal(clean, good.image)


def test_all_materials_shapes_and_defects_come_up() -> None:
    samples = [generate(1, i, replace(BAD, size=32, object_share=0.6)) for i in range(500)]
    assert {s.material for s in samples} == set(MATERIALS)
    assert {s.defect_type for s in samples} == set(DEFECTS)
    assert {s.shape for s in samples} == {"surface", *SHAPES}
    assert max(Counter(s.material for s in samples).values()) < 500 * 3 / len(MATERIALS)


def test_a_defect_that_suits_no_allowed_material_is_drawn_all_the_same() -> None:
    config = replace(BAD, materials=("glass",), defects=("fray",), object_share=0.0)
    assert generate(0, 0, config).defect_type == "fray"


def test_grey_share_one_gives_pictures_without_colour() -> None:
    image = generate(0, 0, replace(CONFIG, grey_share=1.0)).image.astype(int)
    assert np.abs(image - image[..., :1]).max() <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"materials": ("lether",)}, "did you mean 'leather'"),
        ({"defects": ("scrach",)}, "did you mean 'scratch'"),
        ({"defects": ("zzz",)}, "known are scratch"),
        ({"materials": ()}, "materials is empty"),
        ({"size": 8}, "size is 8 px"),
        ({"anomaly_share": 1.5}, "anomaly_share is 1.5"),
        ({"camera_strength": -1.0}, "camera_strength is -1.0"),
        ({"min_contrast": math.nan}, "min_contrast is nan"),
    ],
)
def test_wrong_configuration_is_refused_with_the_field_and_the_limit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**changes)  # type: ignore[arg-type]


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        generate(-1, 0, CONFIG)


def test_captions_name_the_thing_and_name_a_defect_only_if_there_is_one() -> None:
    rng = np.random.default_rng(0)
    for material in MATERIALS:
        for shape in ("surface", *SHAPES):
            name = object_names(material, shape)[int(rng.integers(len(object_names(material, shape))))]
            good = caption(rng, name, "good")
            assert name in good
            assert not phrases_in(good), good
            for defect in DEFECTS:
                bad = caption(rng, name, defect)
                assert name in bad
                assert set(phrases_in(bad)) & set(DEFECT_PHRASES[defect]), bad


def test_generated_captions_agree_with_the_label() -> None:
    for index in range(30):
        sample = generate(4, index, CONFIG)
        assert sample.object_name in sample.caption
        assert bool(phrases_in(sample.caption)) == (sample.defect_type != "good")


def test_word_lists_cover_every_name_and_never_overlap() -> None:
    assert set(OBJECT_NAMES) == set(MATERIAL_ADJECTIVES) == set(MATERIALS)
    assert set(DEFECT_PHRASES) == set(DEFECTS)
    assert set(SHAPE_NAMES) == set(SHAPES)
    assert not set(NORMAL_STATES) & {*ABNORMAL_STATES, *DEFECT_STATES}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("oak board", {"an undamaged oak board", "an oak board"}), ("leather", {"undamaged leather", "leather"})],
)
def test_articles_follow_the_next_word_and_matter_has_none(name: str, expected: set[str]) -> None:
    rng = np.random.default_rng(1)
    said = {state(rng, name, is_anomalous=False) for _ in range(200)}
    starts = {text for text in said for start in expected if text.startswith(start)}
    assert {min(expected, key=len)} & {text.split(" with")[0] for text in starts}
    assert max(expected, key=len) in said
