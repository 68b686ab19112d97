"""Raw numbers to calibrated ones: anchors, order and limits."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad.calibration import Calibration, Scale, fit
from zsad.errors import ConfigError

NORMALS = 1 / (1 + np.exp(-np.linspace(-3, 1, 201)))  # logits -3 ... 1: median -1, 99 % quantile 0.96


@pytest.mark.parametrize("seed", range(3))
def test_median_and_tail_land_where_promised(seed):
    raw = np.random.default_rng(seed).beta(2, 8, size=500)
    found = fit(raw, raw / 2, source="x")
    for scale, values in ((found.image, raw), (found.map, raw / 2)):
        logits = np.log(values / (1 - values))
        median, tail = (1 / (1 + math.exp(-np.quantile(logits, q))) for q in (0.5, 0.99))
        assert scale.apply([median, tail]) == pytest.approx([0.01, 0.5], abs=1e-6)
        assert 4 <= np.sum(scale.apply(values) >= 0.5) <= 6  # 1 % of 500


def test_anchors_by_hand():
    """Median -1 to logit(0.01) = -ln 99, tail 0.96 to 0: spread (0.96 + 1) / ln 99."""
    scale = fit(NORMALS, NORMALS, source="x").image
    assert scale.center == pytest.approx(0.96)
    assert scale.spread == pytest.approx(1.96 / math.log(99))


def test_few_normals_extrapolate_the_tail():
    """Logits -1, 0, 1, each 3 times: mad 1, so sigma 1.4826, above the deviation sqrt(2/3); z(99 %) is 2.3263."""
    raw = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 1.0] * 3)))
    scale = fit(raw, raw, source="x").image
    assert scale.center == pytest.approx(2.3263 * 1.4826)
    assert scale.apply(0.5) == pytest.approx(0.01)


def test_few_normals_with_one_outlier_use_the_deviation():
    """Eight logits 0 and one 9: the mad is 0, the mean 1, the deviation sqrt((8 + 64) / 9)."""
    raw = 1 / (1 + np.exp(-np.array([0.0] * 8 + [9.0])))
    assert fit(raw, raw, source="x").image.center == pytest.approx(2.3263 * math.sqrt(8))


def test_equal_normals_still_give_an_increasing_map():
    found = fit(np.full(300, 0.3), np.full(300, 0.3), source="x").image
    assert found.spread > 0
    assert found.apply(0.3) == pytest.approx(0.5)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_fewer_than_8_normals_are_refused(count):
    with pytest.raises(ConfigError, match=f"my folder: {count} usable normal images; calibration needs at least 8"):
        fit(NORMALS[:count], NORMALS[:count], source="my folder")


def test_the_number_and_source_are_kept():
    found = fit(NORMALS[:8], NORMALS[:8], source="my folder")
    assert (found.num_normals, found.source, found.threshold, found.map_threshold) == (8, "my folder", 0.5, 0.5)


@given(
    raw=st.lists(st.floats(0, 1), min_size=2, max_size=20),
    center=st.floats(-16, 16),
    spread=st.floats(1e-4, 10),
)
def test_calibration_never_turns_an_order_round(raw, center, spread):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Scale(center=center, spread=spread).apply(sorted(raw))
    assert np.all(np.diff(found) >= 0)
    assert found.min() >= 0
    assert found.max() <= 1


def test_shapes_and_type():
    scale = Scale(center=0.0, spread=1.0)
    found = scale.apply(np.array([[0.25, 0.5], [0.75, 0.9]], dtype=np.float32))
    assert found.dtype == np.float32
    logits = np.log([3.0, 9.0])  # of 0.75 and 0.9
    np.testing.assert_allclose(found, [[0.25, 0.5], 1 - 0.5 / (1 + logits)], rtol=1e-6)  # identity up to 0.5
    assert float(scale.apply(0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize("spread", [0.023, 0.4])
def test_extreme_anomalies_keep_their_order(spread):
    """float32 rounds 1 - 1e-8 to 1: a plain logistic curve of a narrow scale would tie these."""
    raw = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999])
    found = Scale(center=-1.35, spread=spread).apply(raw)
    assert np.all(np.diff(found) > 0)


def test_extreme_values_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Scale(center=0.0, spread=2e-4).apply([0.0, 1e-30, 1.0])
    assert np.all(np.isfinite(found))


def test_round_trip():
    found = fit(NORMALS, NORMALS**2, source="x")
    assert Calibration.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    "change",
    [
        {"image": None},
        {"map": {"center": 0.0}},
        {"image": {"center": 0.0, "spread": 1.0, "shift": 1.0}},
        {"image": {"center": "0", "spread": 1.0}},
        {"level": 3},
    ],
)
def test_dicts_that_are_no_calibration(change):
    stored = fit(NORMALS, NORMALS, source="x").to_dict()
    with pytest.raises(ConfigError, match="not a calibration"):
        Calibration.from_dict({**stored, **change})


def test_a_missing_scale_is_refused():
    stored = fit(NORMALS, NORMALS, source="x").to_dict()
    del stored["map"]
    with pytest.raises(ConfigError, match="not a calibration: 'map'"):
        Calibration.from_dict(stored)


@pytest.mark.parametrize(("center", "spread"), [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_maps_that_do_not_increase_are_refused(center, spread):
    with pytest.raises(ConfigError, match="positive spread"):
        Scale(center=center, spread=spread)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, math.nan])
@pytest.mark.parametrize("name", ["threshold", "map_threshold"])
def test_thresholds_lie_between_0_and_1(name, threshold):
    scale = Scale(center=0.0, spread=1.0)
    with pytest.raises(ConfigError, match=f"{name} is"):
        Calibration(image=scale, map=scale, **{name: threshold})


def test_standard_units_by_hand():
    """logit(0.5) = 0: (0 - 0.4) / 0.2 = -2; at the centre 0."""
    scale = Scale(center=0.4, spread=0.2)
    assert scale.standardise([0.5, 1 / (1 + math.exp(-0.4))]) == pytest.approx([-2, 0])
    assert scale.apply(1 / (1 + math.exp(-0.4))) == pytest.approx(0.5)
