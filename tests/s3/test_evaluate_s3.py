"""Evaluation from one S3 bucket to another: the same figures as from a local folder."""

import json

import pytest
from evaluation_runs import config_for, figures_of, write_labelled

from zsad.distributed.evaluate import evaluate
from zsad.storage import open_store

pytestmark = [pytest.mark.s3, pytest.mark.ray]


def test_figures_are_those_of_the_local_data_set(s3, local_ray, tmp_path):
    folder = tmp_path / "set"
    write_labelled(folder)
    evaluate(config_for(folder, tmp_path / "out", limit=3))
    source, output = s3.new_bucket() + "/labelled set", s3.new_bucket() + "/figures"
    bucket = open_store(source)
    for path in folder.rglob("*.png"):
        bucket.put(path.relative_to(folder).as_posix(), path.read_bytes())
    evaluate(config_for(source, output, limit=3))
    results = open_store(output)
    whole = json.loads(results.get("metrics.json", max_bytes=2**24))
    assert {product["product"]: product for product in whole["results"]["products"]} == figures_of(tmp_path / "out")
    assert b"data:image/jpeg" in results.get("report.html", max_bytes=2**24)
