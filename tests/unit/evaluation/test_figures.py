"""From streamed results to figures: hand-made groups, what is missing and why, naming, the worst images."""

import numpy as np
import pyarrow as pa
import pytest

from zsad.evaluation.compare import RESULT_SCHEMA
from zsad.evaluation.figures import Figure, mean, results
from zsad.evaluation.tally import NUM_WORST, Tally
from zsad.metrics.streaming import empty_tally, tally_image

WORDS = ("crack", "deep hole")


def image(key, raw, *, is_anomaly=False, answer=None, types=(0.0, 0.0), error=None):
    scored = {"score": raw, "raw_score": raw, "is_anomaly": is_anomaly, "answer": answer, "type_scores": list(types)}
    failed = {"error_code": error, "error_message": f"{key} is wrong"}
    return {"key": key, "uri": f"/d/{key}", "mask": None, **(failed if error else scored)}


def group(product, kind, images, pixels=None, words=WORDS):
    row = {
        "product": product,
        "defect_type": kind,
        "label": int(kind != "good"),
        "words": list(words),
        "tally": (pixels or empty_tally()).to_bytes(),
        "images": images,
    }
    return pa.Table.from_pylist([row], schema=RESULT_SCHEMA)


def pixels(defective, *, score=5.0):
    """A 4 x 4 image whose first column is defective and scores `score`, the rest -5."""
    mask = np.zeros((4, 4), bool)
    mask[:, 0] = defective
    return tally_image(np.where(np.arange(4) == 0, score, -5.0) * np.ones((4, 1)), mask)


@pytest.fixture
def tally():
    """Product a: 2 good, 2 cracks (one above all, one between), 1 hole below all; product b: 1 good and 1 error."""
    counted = Tally()
    counted.add(
        group(
            "a", "good", [image("g1", 0.1), image("g2", 0.6, is_anomaly=True, answer="crack")], pixels(False, score=-5)
        )
    )
    counted.add(
        group("a", "crack", [image("c1", 0.9, is_anomaly=True, answer="crack", types=(0.8, 0.1))], pixels(True))
    )
    counted.add(group("a", "crack", [image("c2", 0.3, types=(0.2, 0.1))]))
    counted.add(group("a", "deep_hole", [image("h1", 0.05, types=(0.0, 0.05)), image("h2", 0, error="mask_size")]))
    counted.add(group("b", "good", [image("g3", 0.2)]))
    return counted  # fmt: skip


@pytest.fixture
def found(tally):
    return results(tally)


def test_image_figures_by_hand(found):
    """Cracks: 0.9 beats both good ones, 0.3 one of two: 3 of 4 pairs; the hole beats none: 3 of 6."""
    a = found.products[0]
    assert a.types["crack"]["image_auroc"].value == pytest.approx(0.75)
    assert a.types["deep_hole"]["image_auroc"].value == 0.0
    assert a.figures["image_auroc"].value == pytest.approx(0.5)
    assert a.mean_of_types["image_auroc"].value == pytest.approx(0.375)
    assert (a.num_normal, a.num_anomalous, a.num_by_type) == (2, 3, {"crack": 2, "deep_hole": 1})


def test_pixel_figures_by_hand(found):
    """The column scores 5, all other pixels -5: perfect; the hole has no mask."""
    a = found.products[0]
    for metric in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro"):
        assert a.types["crack"][metric].value == pytest.approx(1.0)
    assert a.types["deep_hole"]["pixel_auroc"] == Figure(value=None, reason="there are no masks")
    assert a.mean_of_types["pixel_auroc"].reason == "over 1 of 2: there are no masks"
    assert a.num_pixel_images == 2


def test_shares_at_the_threshold_by_hand(found):
    a = found.products[0]
    assert a.false_alarms.value == 0.5
    assert a.detections.value == pytest.approx(1 / 3)
    assert found.products[1].detections == Figure(value=None, reason="there are no anomalous images")


def test_counts_add_up_and_errors_are_kept_by_name(tally, found):
    assert (found.num_images, found.num_errors, found.errors_by_code) == (7, 1, {"mask_size": 1})
    assert sum(found.confusion.values()) == 6
    assert (tally.errors[0].uri, tally.errors[0].message) == ("/d/h2", "h2 is wrong")


def test_the_mean_is_over_products_that_have_the_figure(found):
    assert found.mean["image_auroc"].value == found.products[0].figures["image_auroc"].value
    assert found.mean["image_auroc"].reason == "over 1 of 2: there are no anomalous images"
    assert mean([])["pro"].value is None


def test_naming_by_hand(found):
    """Crack's scores 0.8 and 0.2 beat all others; 1 of 2 cracks named, and 1 good image called crack: F1 2 / 4."""
    naming = found.products[0].naming
    assert naming.words == WORDS
    assert naming.by_word["crack"] == pytest.approx((1.0, 1.0, 0.5))
    assert naming.by_word["deep hole"][2] == 0.0
    assert naming.macro_f1.value == pytest.approx(0.25)
    assert found.products[1].naming.macro_f1.reason == "the data set names no defect types"


def test_types_without_a_word_are_listed():
    counted = Tally()
    counted.add(group("a", "deep_hole", [image("h1", 0.5, types=(0.1,))], words=("scratch",)))
    naming = results(counted).products[0].naming
    assert naming.unnameable == ("deep hole",)
    assert naming.macro_auroc.value is None
    assert "no word for any type" in naming.macro_auroc.reason


def test_an_image_of_score_zero_has_no_type_scores_and_counts_as_zero():
    counted = Tally()
    counted.add(group("a", "good", [image("g1", 0.0, types=())], words=()))
    counted.add(group("a", "crack", [image("c1", 0.5, types=(0.4, 0.1))]))
    assert results(counted).products[0].naming.by_word["crack"][0] == 1.0


def test_confusion_has_truths_and_answers(found):
    assert found.confusion == {
        ("good", "good"): 2,
        ("good", "crack"): 1,
        ("crack", "crack"): 1,
        ("crack", "good"): 1,
        ("deep hole", "good"): 1,
    }


def test_confusion_ignores_the_case_of_words():
    counted = Tally()
    counted.add(group("part", "Deep_Cut", [image("c", 0.9, is_anomaly=True, answer="Deep cut")]))
    assert results(counted).confusion == {("deep cut", "deep cut"): 1}


def test_without_normal_images_pixels_still_have_figures():
    """Product c has only marked images: no image figure, and why; pixels inside against outside."""
    counted = Tally()
    counted.add(group("c", "crack", [image("c1", 0.9)], pixels(True)))
    found = results(counted).products[0]
    assert found.figures["image_auroc"] == Figure(value=None, reason="there are no normal images")
    assert found.figures["pixel_auroc"].value == pytest.approx(1.0)
    assert found.naming.macro_auroc.reason == "there is only one type and nothing to tell it from"


def test_the_worst_are_the_highest_normal_and_the_lowest_anomalous(tally):
    assert [seen.key for seen in tally.false_alarms] == ["g2", "g3", "g1"]
    assert [seen.key for seen in tally.misses] == ["h1", "c2", "c1"]


def test_the_worst_are_few_and_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    images = [image(f"{k:03d}", float(score)) for k, score in enumerate(rng.integers(0, 10, 60) / 10)]
    kept = []
    for order in (range(60), reversed(range(60))):
        counted = Tally()
        for index in order:
            counted.add(group("a", "good", [images[index]]))
        kept.append([(seen.key, seen.score) for seen in counted.false_alarms])
    assert kept[0] == kept[1]
    assert len(kept[0]) == NUM_WORST
    assert min(score for _, score in kept[0]) >= sorted((i["score"] for i in images), reverse=True)[NUM_WORST - 1]


def test_results_are_json_ready(found):
    plain = found.to_dict()
    assert {"truth": "good", "answer": "crack", "images": 1} in plain["confusion"]
    assert plain["products"][0]["types"]["crack"]["image_auroc"]["value"] == pytest.approx(0.75)
