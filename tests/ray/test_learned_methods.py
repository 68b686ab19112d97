"""Bundles of the learned methods go through both jobs unchanged; their prompts are where training starts."""

import json
from dataclasses import replace

import evaluation_runs
import numpy as np
import pytest
import torch
from batch_runs import BATCH_SIZE, THRESHOLD, config_for, rows_by_key
from PIL import Image

from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.detector import Detector, load_detector
from zsad.distributed.batch import score_bucket
from zsad.distributed.evaluate import evaluate
from zsad.images import DecodeLimits, decode_image
from zsad.learn import promptad
from zsad.methods import Subject, dapo, faprompt

pytestmark = pytest.mark.ray

NUM_IMAGES = 5
PIXELS = [generate(6, number, SyntheticConfig(size=224, anomaly_share=0.0)).image for number in range(8)]


def learned(method, nano):
    """Tensors of a method over nano."""
    if method == "faprompt":
        return faprompt.initial_tensors(faprompt.FAPromptConfig(), nano.backbone, seed=0)
    if method == "dapo":
        return dapo.initial_tensors(dapo.DAPOConfig(), nano.backbone, seed=0)
    normals = [torch.from_numpy(np.stack(PIXELS[:2]))]
    return promptad.fit(promptad.PromptADTraining(epochs=2), nano.backbone, Subject(object_name="object"), normals)


@pytest.fixture(params=["faprompt", "dapo", "promptad"])
def bundle(request, tmp_path):
    """The URL of a calibrated bundle."""
    nano = load_detector("nano", device="cpu", batch_size=BATCH_SIZE)
    config = replace(nano.config, method=request.param, settings={}, calibration=None)
    detector = Detector(config, learned(request.param, nano), batch_size=BATCH_SIZE)
    url = str(tmp_path / "bundle")
    detector.calibrated(PIXELS, source="drawn images").save(url)
    return url


@pytest.mark.usefixtures("local_ray")
def test_both_jobs_give_what_the_notebook_gives(bundle, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(NUM_IMAGES):
        picture = generate(5, number, SyntheticConfig(size=224, anomaly_share=1.0)).image
        Image.fromarray(picture).save(images / f"{number}.png")
    score_bucket(config_for(images, tmp_path / "report", detector=bundle, num_scorers=1))
    detector = load_detector(bundle, device="cpu", batch_size=BATCH_SIZE).with_threshold(THRESHOLD)
    files = sorted(images.iterdir())
    findings = detector.inspect([decode_image(path.read_bytes(), DecodeLimits()) for path in files])
    rows = rows_by_key(images, tmp_path / "report")
    assert sorted(rows) == [path.name for path in files]
    for path, finding in zip(files, findings, strict=True):
        row = rows[path.name]
        assert (row["score"], row["raw_score"]) == (finding.score, finding.raw_score)
        assert row["defect_type"] == finding.defect_type

    labelled = tmp_path / "labelled"
    evaluation_runs.write_labelled(labelled)
    output = tmp_path / "figures"
    evaluate(replace(evaluation_runs.config_for(labelled, output), detector=bundle, num_scorers=1, limit=3))
    measured = json.loads((output / "metrics.json").read_text())["results"]["products"]
    assert {product["product"] for product in measured} == set(evaluation_runs.PRODUCTS)
