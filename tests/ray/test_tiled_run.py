"""The main job over tiles: the same numbers as in a notebook, and blocks that Ray does not split."""

from dataclasses import replace

import numpy as np
import pytest
from batch_runs import BATCH_SIZE, THRESHOLD, config_for, rows_by_key
from PIL import Image

import zsad
from zsad.bundle import parse_ref, read_config
from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.distributed.batch import SHARD_BYTES, score_bucket, shard_rows
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.report import ledger
from zsad.report.paths import run_key
from zsad.storage import open_store
from zsad.tiling import retiled

pytestmark = pytest.mark.ray

NUM_IMAGES = 5
NUM_NORMALS = 8


def draw(folder, *, seed, count, anomaly_share):
    folder.mkdir()
    config = SyntheticConfig(size=300, anomaly_share=anomaly_share)
    for number in range(count):
        Image.fromarray(generate(seed, number, config).image).save(folder / f"{number}.png")
    return folder


def decoded(folder):
    return [decode_image(path.read_bytes(), DecodeLimits()) for path in sorted(folder.iterdir())]


@pytest.mark.usefixtures("local_ray")
def test_tiled_scores_are_those_of_the_notebook(tmp_path):
    images = draw(tmp_path / "images", seed=5, count=NUM_IMAGES, anomaly_share=1.0)
    normals = draw(tmp_path / "normals", seed=6, count=NUM_NORMALS, anomaly_share=0.0)
    output = tmp_path / "report"
    score_bucket(config_for(images, output, tiles=2, normals=str(normals), maps="all", num_scorers=1))

    detector = zsad.load_detector("nano", device="cpu", tiles=2, normals=decoded(normals), batch_size=BATCH_SIZE)
    findings = detector.with_threshold(THRESHOLD).inspect(decoded(images))
    assert any(finding.is_anomaly for finding in findings)
    rows = rows_by_key(images, output)
    assert sorted(rows) == [f"{number}.png" for number in range(NUM_IMAGES)]
    for number, finding in enumerate(findings):
        row = rows[f"{number}.png"]
        assert (row["score"], row["raw_score"]) == (finding.score, finding.raw_score)
        assert row["defect_type"] == finding.defect_type
        assert finding.anomaly_map.shape == (26, 26)
        with Image.open(row["map_uri"]) as stored:
            assert stored.size == (26, 26)
            assert np.abs(np.asarray(stored) / 65535 - finding.anomaly_map).max() <= 0.51 / 65535

    store = open_store(str(output))
    used = read_config(store.uri(run_key(ledger.latest_published(store), "detector")))
    assert used.preprocess == retiled(Preprocess(size=224), patch_size=16, tiles=2)
    assert used.calibration.num_normals == NUM_NORMALS


@pytest.mark.parametrize(
    ("tiles", "batch_size", "rows"),
    [
        (1, 16, 64),
        (2, 16, 64),  # 416 px: 129 would fit into 64 MiB
        (5, 16, 16),  # 992 px: 22 would, one whole batch of them is taken
        (7, 16, 11),  # 1,376 px: less than a batch, which its tiles fill
        (16, 16, 2),  # 3,104 px
    ],
)
def test_a_shard_of_large_squares_stays_small(tiles, batch_size, rows):
    stored = read_config(parse_ref("nano").url)
    detector = replace(stored, preprocess=retiled(stored.preprocess, patch_size=16, tiles=tiles))
    found = shard_rows(config_for("in", "out", batch_size=batch_size), detector.preprocess)
    assert found == rows
    assert found * detector.preprocess.size**2 * 3 <= SHARD_BYTES
