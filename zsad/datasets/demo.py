"""The demo's bucket: three procedural products, a known truth beside it, and three broken files.

Only folders, names and numbers are decided here; the pictures are those of `zsad.datasets.synthetic`.
"""

import csv
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.metrics import auroc
from zsad.report.read import read_report

SEED = 7
IMAGE_PX = 320
IMAGES_PER_PRODUCT = 80
PRODUCTS = {
    "metal_plate": SyntheticConfig(size=IMAGE_PX, anomaly_share=0.3, materials=("ground_metal",), object_share=0.0),
    "leather_cover": SyntheticConfig(size=IMAGE_PX, anomaly_share=0.3, materials=("leather",), object_share=0.0),
    "ceramic_part": SyntheticConfig(size=IMAGE_PX, anomaly_share=0.3, materials=("ceramic",), object_share=1.0),
}
TRUTH = "truth.csv"


@dataclass(frozen=True, slots=True)
class Truth:
    """What is really on one picture; `defect_type` is "good" for normal ones."""

    key: str
    defect_type: str


def write_bucket(folder: Path) -> list[Truth]:
    """Write `folder/images/<product>/<number>.jpg`, three broken files, and `folder/truth.csv`.

    Returns:
        The truth of the 240 pictures; the broken files have none.
    """
    jobs = [(product, number) for product in PRODUCTS for number in range(IMAGES_PER_PRODUCT)]
    for product in PRODUCTS:
        (folder / "images" / product).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        drawn = workers.map(partial(_draw, folder / "images"), jobs, chunksize=8)
        truths = list(tqdm(drawn, total=len(jobs), desc="drawing the demo's bucket", unit="img"))
    _break_files(folder / "images", truths)
    with (folder / TRUTH).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "defect_type"])
        writer.writerows((truth.key, truth.defect_type) for truth in truths)
    return truths


def _draw(images: Path, job: tuple[str, int]) -> Truth:
    product, number = job
    sample = generate(SEED + list(PRODUCTS).index(product), number, PRODUCTS[product])
    key = f"{product}/{number:03d}.jpg"
    Image.fromarray(sample.image).save(images / key, quality=92)
    return Truth(key, sample.defect_type)


def _break_files(images: Path, truths: list[Truth]) -> None:
    """An empty file, half a picture, and a web server's error page: what real buckets hold."""
    half = (images / truths[0].key).read_bytes()
    (images / "metal_plate" / "upload_failed.jpg").write_bytes(b"")
    (images / "leather_cover" / "cut_off.jpg").write_bytes(half[: len(half) // 2])
    (images / "ceramic_part" / "error_page.jpg").write_bytes(b"<html><body>502 Bad Gateway</body></html>")


def image_auroc_by_product(output_url: str, truths: list[Truth]) -> dict[str, float]:
    """Image AUROC of the latest report against the truth, per product and over all ("all products")."""
    table = read_report(output_url).to_table(columns=["uri", "score", "status"])
    scores = {uri: score for uri, score, status in zip(*table.to_pydict().values(), strict=True) if status == "ok"}
    by_key = {"/".join(uri.split("/")[-2:]): score for uri, score in scores.items()}
    groups = {product: [t for t in truths if t.key.startswith(f"{product}/")] for product in PRODUCTS}
    groups["all products"] = truths
    return {
        name: auroc([t.defect_type != "good" for t in group], np.array([by_key[t.key] for t in group]))
        for name, group in groups.items()
    }
