"""Inspected images against their masks: the same figures as from the finding's maps and scikit-learn."""

import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from zsad.detector import Detector
from zsad.evaluation.compare import ALMOST_ZERO, RESULT_SCHEMA, compare_table, standard_map
from zsad.evaluation.truth import MASK, at_size, decoded_schema, pack
from zsad.metrics.streaming import PixelTally, empty_tally, pixel_auroc, tally_image
from zsad.regions import upsample
from zsad.scoring import PIXELS

SIZE, WIDTH, HEIGHT = 32, 40, 24
THRESHOLD = 0.02


def mask_of(index):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[index : index + 6, 3 * index : 3 * index + 9] = True
    return mask


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def asking(tiny_detector):
    """The tiny detector, asked for types of every image."""
    calibration = replace(tiny_detector.config.calibration, threshold=ALMOST_ZERO)
    return Detector(replace(tiny_detector.config, calibration=calibration), {}, batch_size=4)


def rows(images, side_px):
    """Two good, two scratched, one without a mask, one that failed, one of another product."""
    kinds = ["good", "good", "scratch", "scratch", "dent", "scratch", "good"]
    for index, (image, kind) in enumerate(zip(images, kinds, strict=True)):
        is_marked = kind == "scratch"
        size = (side_px, side_px) if side_px else (HEIGHT, WIDTH)
        is_bad = index == 5
        yield {
            "key": f"{index}.png",
            "uri": f"/d/{index}.png",
            "label": int(kind != "good"),
            "defect_type": kind,
            "mask": f"m{index}.png" if is_marked else None,
            "product": "b" if index == 6 else "a",
            "width": WIDTH,
            "height": HEIGHT,
            "error_code": "mask_size" if is_bad else None,
            "error_message": "mask m5.png is small" if is_bad else None,
            MASK: pack(at_size(mask_of(index), *size)) if is_marked and not is_bad else None,
            PIXELS: image.tobytes(),
        }


def compared(detector, images, side_px):
    table = pa.Table.from_pylist(list(rows(images, side_px)), schema=decoded_schema(SIZE))
    return compare_table(detector, table, threshold=THRESHOLD, side_px=side_px)


@pytest.mark.parametrize("side_px", [64, None])
def test_pixel_auroc_is_that_of_the_raw_maps_up_sampled(asking, images, side_px):
    result = compared(asking, images, side_px).to_pylist()
    tally = sum((PixelTally.from_bytes(row["tally"]) for row in result[1:2]), PixelTally.from_bytes(result[0]["tally"]))
    height, width = (side_px, side_px) if side_px else (HEIGHT, WIDTH)
    labels, scores = [], []
    for index in range(4):
        raw = asking.inspect([images[index]])[0].raw_map
        scores.append(upsample(raw, height, width).ravel())
        mask = mask_of(index) if index >= 2 else np.zeros((HEIGHT, WIDTH), bool)
        labels.append(at_size(mask, height, width).ravel())
    exact = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    found = pixel_auroc(tally)
    assert abs(found.value - exact) <= found.error + 1e-9
    assert found.error < 0.01
    assert (tally.num_images, tally.num_regions) == (4, 2)


def test_one_row_per_product_and_type_holds_every_image_once(asking, images):
    result = compared(asking, images, 64)
    assert result.schema == RESULT_SCHEMA
    found = {(row["product"], row["defect_type"]): row for row in result.to_pylist()}
    assert {group: [image["key"] for image in row["images"]] for group, row in found.items()} == {
        ("a", "good"): ["0.png", "1.png"],
        ("a", "scratch"): ["2.png", "3.png", "5.png"],
        ("a", "dent"): ["4.png"],
        ("b", "good"): ["6.png"],
    }
    assert PixelTally.from_bytes(found["a", "dent"]["tally"]).num_images == 0  # no mask: no truth of its pixels
    failed = found["a", "scratch"]["images"][2]
    assert (failed["error_code"], failed["score"]) == ("mask_size", None)


def test_scores_answers_and_type_scores_are_the_detectors(asking, tiny_detector, images):
    result = compared(asking, images, 64).to_pylist()
    seen = {image["key"]: image for row in result for image in row["images"]}
    assert all(row["words"] == ["scratch", "dent"] for row in result)
    plain = tiny_detector.with_threshold(THRESHOLD)
    for index in (0, 2, 4, 6):
        finding, image = plain.inspect([images[index]])[0], seen[f"{index}.png"]
        assert (image["score"], image["raw_score"]) == (finding.score, finding.raw_score)
        assert image["is_anomaly"] == finding.is_anomaly
        assert image["answer"] == finding.defect_type
        assert sum(image["type_scores"]) == pytest.approx(finding.score, rel=1e-5)


def test_standard_units_keep_the_order_of_the_raw_map(asking):
    scale = asking.config.calibration.map
    raw = np.linspace(0.1, 0.9, 16, dtype=np.float32).reshape(4, 4)
    units = standard_map(raw, scale, height=4, width=4, sigma=0.0)
    assert (np.diff(units.ravel()) > 0).all()
    np.testing.assert_array_equal(units, scale.standardise(raw))


def test_a_methods_published_filter_is_applied_to_its_raw_map(asking, images):
    """SciPy's filter with a sigma of a sixteenth of each side: 1.5 rows and 2.5 columns of 24 x 40 pixels."""
    filtered = copy.copy(asking)
    filtered.method = copy.copy(asking.method)
    filtered.method.map_sigma = 1 / 16
    scale = asking.config.calibration.map
    expected = empty_tally()
    for index in (0, 1):
        fine = upsample(asking.inspect([images[index]])[0].raw_map, HEIGHT, WIDTH)
        units = scale.standardise(ndimage.gaussian_filter(fine.astype(np.float64), (1.5, 2.5)))
        expected += tally_image(units, np.zeros((HEIGHT, WIDTH), bool))
    found, plain = (PixelTally.from_bytes(compared(d, images, None)["tally"][0].as_py()) for d in (filtered, asking))
    moved = np.abs(np.cumsum(found.normal_N) - np.cumsum(expected.normal_N)).sum()  # pixels times bins
    assert moved <= 0.05 * found.normal_N.sum()
    assert np.abs(np.cumsum(plain.normal_N) - np.cumsum(expected.normal_N)).sum() > 20 * moved
