"""Naming of defect types: by hand, and against scikit-learn."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from zsad.metrics.naming import f1_by_class, macro_f1, one_vs_rest

CONFUSION = Counter({("good", "good"): 3, ("crack", "crack"): 1, ("crack", "dent"): 1, ("dent", "unknown"): 2})


def test_f1_by_hand():
    """Crack: 1 right of 2 true and 1 answered; dent: none right of 2 true and 1 answered."""
    found = f1_by_class(CONFUSION, ["good", "crack", "dent", "hole"])
    assert found == {"good": 1.0, "crack": pytest.approx(2 / 3), "dent": 0.0, "hole": 0.0}
    assert macro_f1(CONFUSION, ["crack", "dent"]) == pytest.approx(1 / 3)


def test_macro_f1_equals_scikit_learn():
    rng = np.random.default_rng(0)
    names = np.array(["good", "crack", "dent"])
    truth, answer = names[rng.integers(0, 3, 200)], names[rng.integers(0, 3, 200)]
    confusion = Counter(zip(truth.tolist(), answer.tolist(), strict=True))
    assert macro_f1(confusion, list(names)) == pytest.approx(f1_score(truth, answer, average="macro"))


def test_one_vs_rest_equals_scikit_learn():
    rng = np.random.default_rng(1)
    truth = [("good", "crack", "dent")[k] for k in rng.integers(0, 3, 100)]
    scores = rng.random(100)
    found = one_vs_rest(truth, {"crack": scores})
    assert found["crack"][0] == pytest.approx(roc_auc_score([t == "crack" for t in truth], scores))


def test_a_class_without_images_is_refused():
    with pytest.raises(ValueError, match="only one class"):
        one_vs_rest(["good"], {"crack": [0.1]})
    with pytest.raises(ValueError, match="at least one class"):
        macro_f1(CONFUSION, [])
