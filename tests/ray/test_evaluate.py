"""Evaluation on a real Ray with the real nano model: figures equal those of direct inspection and scikit-learn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batch_runs import REPOSITORY, last_line
from evaluation_runs import SIDE_PX, config_for, figures_of, write_labelled
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from zsad.datasets.reference import parse_dataset
from zsad.detector import load_detector
from zsad.distributed.evaluate import evaluate
from zsad.errors import ConfigError, TooManyBadImages
from zsad.evaluation.truth import at_size
from zsad.regions import upsample

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "set"
    write_labelled(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(local_ray, labelled, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated")
    evaluate(config_for(labelled, output))
    return output


def direct(folder: Path, product: str) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Image figures, and labels and raw map values of all pixels, by `detector.inspect` alone."""
    detector = load_detector("nano", batch_size=8)
    images = [i for i in parse_dataset(f"mvtec:{folder}").images(split="test") if i.product == product]
    findings = detector.inspect([np.asarray(Image.open(folder / image.key).convert("RGB")) for image in images])
    labels, scores = [image.label for image in images], [finding.raw_score for finding in findings]
    pixels, masks = [], []
    for image, finding in zip(images, findings, strict=True):
        pixels.append(upsample(finding.raw_map, SIDE_PX, SIDE_PX).ravel())
        mask = np.asarray(Image.open(folder / image.mask)) > 0 if image.mask else np.zeros((8, 8), bool)
        masks.append(at_size(mask, SIDE_PX, SIDE_PX).ravel())
    image_figures = {"image_auroc": roc_auc_score(labels, scores), "image_ap": average_precision_score(labels, scores)}
    return image_figures, np.concatenate(masks), np.concatenate(pixels)


@pytest.mark.parametrize("product", ["plate", "ring"])
def test_figures_are_those_of_direct_inspection(evaluated, labelled, product):
    found = figures_of(evaluated)[product]["figures"]
    expected, masks, pixels = direct(labelled, product)
    for metric, value in expected.items():
        assert found[metric]["value"] == pytest.approx(value, abs=1e-12)
    for metric, exact in (
        ("pixel_auroc", roc_auc_score(masks, pixels)),
        ("pixel_ap", average_precision_score(masks, pixels)),
    ):
        assert abs(found[metric]["value"] - exact) <= found[metric]["error"] + 1e-9
        assert found[metric]["error"] < 0.01


def test_counts_types_and_files_are_complete(evaluated, labelled):
    whole = json.loads((evaluated / "metrics.json").read_text())
    images = list(parse_dataset(f"mvtec:{labelled}").images(split="test"))
    assert whole["results"]["num_images"] == len(images)
    assert whole["errors"] == []
    for product, found in figures_of(evaluated).items():
        mine = [image for image in images if image.product == product]
        assert found["num_normal"] == sum(image.label == 0 for image in mine)
        assert set(found["types"]) == {image.defect_type for image in mine if image.label}
    assert "| mean of 2 products |" in (evaluated / "metrics.md").read_text()
    html = (evaluated / "report.html").read_text()
    num_normal = sum(image.label == 0 for image in images)
    assert html.count("data:image/jpeg") == min(12, num_normal) + min(12, len(images) - num_normal)
    assert load_detector(str(evaluated / "detectors" / "0")).config.method == "winclip"


def test_figures_do_not_depend_on_workers_or_grouping(evaluated, labelled, tmp_path, monkeypatch):
    from zsad.distributed import batch

    monkeypatch.setattr(batch, "CPU_SHARD_ROWS", 8)
    evaluate(replace(config_for(labelled, tmp_path), num_scorers=1))
    assert figures_of(tmp_path) == figures_of(evaluated)


def test_wrong_masks_and_images_are_named_and_counts_add_up(labelled, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(labelled, folder)
    masks = sorted((folder / "plate/ground_truth").rglob("*.png"))
    masks[0].unlink()
    Image.open(masks[1]).resize((30, 30)).save(masks[1])
    broken = sorted((folder / "ring/test/good").iterdir())[0]
    broken.write_bytes(b"not an image")
    config = config_for(folder, tmp_path / "out")
    with pytest.raises(TooManyBadImages, match=r"3 of \d+ images can't be used"):
        evaluate(config)
    assert not (tmp_path / "out" / "metrics.json").exists()
    evaluate(replace(config, max_error_share=0.5))
    whole = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert sorted(row["code"] for row in whole["errors"]) == ["mask_missing", "mask_size", "unknown_format"]
    assert str(broken) in {row["uri"] for row in whole["errors"]}
    used = sum(p["num_normal"] + p["num_anomalous"] for p in whole["results"]["products"])
    assert used + 3 == whole["results"]["num_images"]
    for row in whole["errors"]:
        assert row["uri"] in (tmp_path / "out" / "report.html").read_text()


def test_products_may_have_their_own_words(labelled, tmp_path):
    evaluate(config_for(labelled, tmp_path, limit=2, object="{product}", defect_words=("{types}",)))
    whole = json.loads((tmp_path / "metrics.json").read_text())
    assert whole["info"]["object_names"] == ["plate", "ring"]
    assert sorted(path.name for path in (tmp_path / "detectors").iterdir()) == ["0", "1"]
    for product in whole["results"]["products"]:
        assert all(count <= 2 for count in product["num_by_type"].values())


def test_the_output_may_not_lie_in_the_data_set(labelled):
    with pytest.raises(ConfigError, match="lies inside the data set"):
        evaluate(config_for(labelled, labelled / "out"))


def test_the_job_ends_with_2_for_an_unknown_layout(tmp_path):
    import subprocess
    import sys

    command = [
        sys.executable,
        str(REPOSITORY / "jobs" / "evaluate.py"),
        "--dataset",
        "mvtek:/d",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "did you mean 'mvtec'" in last_line(done.stderr)
    assert list(tmp_path.iterdir()) == []
