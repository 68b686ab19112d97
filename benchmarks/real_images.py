"""A scored report of shared/data/magnetic_tile against its index.csv: image AUROC per defect type, pixel AUROC.

python jobs/score_bucket.py --input ../shared/data/magnetic_tile/test --output OUT --maps all
python benchmarks/real_images.py --report OUT --data ../shared/data/magnetic_tile

Image figures are taken where `matched` is 1: elsewhere the lighting alone tells normal from defective. Pixel AUROC
pools the pixels of all images at the images' own size.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from zsad.metrics import auroc
from zsad.regions import upsample
from zsad.report.read import read_report


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--report", required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    with (arguments.data / "index.csv").open() as file:
        truth = [row for row in csv.DictReader(file) if row["split"] == "test"]
    report = read_report(arguments.report).to_table(columns=["uri", "score", "map_uri", "width", "height"]).to_pylist()
    by_uri = {row["uri"]: row for row in report}
    rows = [(t, by_uri[str((arguments.data / t["path"]).resolve())]) for t in truth]
    matched = [(t, r) for t, r in rows if t["matched"] == "1"]
    normal = [r["score"] for t, r in matched if t["label"] == "0"]
    values = []
    for defect in sorted({t["defect_type"] for t, _ in matched} - {"good"}):
        scores = [r["score"] for t, r in matched if t["defect_type"] == defect]
        values.append(auroc([0] * len(normal) + [1] * len(scores), normal + scores))
        print(f"image AUROC {defect:<10} {values[-1]:.3f}  ({len(scores)} defects, {len(normal)} normals, matched)")
    print(f"image AUROC mean       {np.mean(values):.3f}")
    labels = [t["label"] == "1" for t, _ in matched]
    print(f"image AUROC pooled     {auroc(labels, [r['score'] for _, r in matched]):.3f}")
    masks, maps = zip(*(pixels(t, r, arguments.data) for t, r in rows), strict=True)
    print(f"pixel AUROC            {auroc(np.concatenate(masks), np.concatenate(maps)):.3f}  ({len(rows)} images)")


def pixels(truth: dict, row: dict, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and anomaly map of one image, flattened, at the image's size."""
    values = np.asarray(Image.open(row["map_uri"]), dtype=np.float32) / 65535
    fine = upsample(values, row["height"], row["width"])
    if not truth["mask_path"]:
        return np.zeros(fine.size, bool), fine.ravel()
    return (np.asarray(Image.open(data / truth["mask_path"])) > 0).ravel(), fine.ravel()


if __name__ == "__main__":
    main()
