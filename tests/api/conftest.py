"""One endpoint for all API tests: the real graph on a real Ray Serve, its proxy's sockets and nano as the model."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_runs import config_for, rows_by_key
from PIL import Image

from zsad.bundle import SHIPPED
from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.serve_config import ServeConfig

from .serving_runs import BATCH_SIZE, NUM_PARITY, THRESHOLD, Endpoint, picture, wait_until_ready


@pytest.fixture(scope="package")
def batch_scores(local_ray, tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """A folder of images and the batch job's row of each, made before the endpoint takes the CPUs of this Ray."""
    from zsad.distributed.batch import score_bucket

    folder = tmp_path_factory.mktemp("parity") / "images"
    folder.mkdir()
    config = SyntheticConfig(size=96, anomaly_share=0.5)
    for number in range(NUM_PARITY):
        Image.fromarray(generate(11, number, config).image).save(folder / f"{number:03d}.png")
    report = folder.parent / "report"
    score_bucket(config_for(folder, report, batch_size=BATCH_SIZE, num_scorers=1, threshold=THRESHOLD))
    return folder, rows_by_key(folder, report)


@pytest.fixture(scope="package")
def endpoint(local_ray, batch_scores, tmp_path_factory) -> Iterator[Endpoint]:
    from ray import serve as ray_serve

    from zsad.distributed.serving import build_graph

    folder = tmp_path_factory.mktemp("endpoint")
    shutil.copytree(SHIPPED / "winclip", folder / "changing")
    (folder / "bucket").mkdir()
    config = ServeConfig(
        detectors=("nano", f"changing={folder / 'changing'}"),
        buckets=(f"shots={folder / 'bucket'}",),
        batch_size=BATCH_SIZE,
        body_timeout_s=3.0,
        reload_s=1.0,
        drain_s=10.0,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build_graph(config, {"index.html": b"<p>page</p>"}, {}))
    endpoint = Endpoint(port=port, config=config, changing=folder / "changing", bucket=folder / "bucket")
    wait_until_ready(endpoint)
    yield endpoint
    ray_serve.shutdown()


@pytest.fixture(scope="package")
def pictures() -> list[bytes]:
    """Eight procedural pictures as JPEG, half of them with a defect."""
    return [picture(number) for number in range(8)]
